package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const xattrSystem = 7 // the name space "system."

var errInline = errors.New("damaged attributes in the inode")

// inline returns what is in an inode that holds its content itself: 60 bytes in
// place of the map of blocks, and the rest as value of the attribute system.data
// (Documentation/filesystems/ext4/inlinedata.rst).
func (i *inode) inline() (head, tail []byte, err error) {
	tail, err = i.inlineRest()
	if err != nil {
		return nil, nil, fmt.Errorf("inode %d: %w", i.Inode, err)
	}
	return i.block(), tail, nil
}

func (i *inode) inlineRest() ([]byte, error) {
	le := binary.LittleEndian
	if i.extra+4 > len(i.raw) || le.Uint32(i.raw[i.extra:]) != xattrMagic {
		return nil, nil // no attributes
	}
	area := i.raw[i.extra+4:]
	for e := area; len(e) >= 4 && le.Uint32(e) != 0; {
		if len(e) < xattrEntry || len(e) < xattrEntry+int(e[0]) {
			return nil, errInline
		}
		name, space := string(e[xattrEntry:xattrEntry+int(e[0])]), e[1]
		if space == xattrSystem && name == "data" {
			off, size := uint64(le.Uint16(e[2:])), uint64(le.Uint32(e[8:]))
			if le.Uint32(e[4:]) != 0 || off+size > uint64(len(area)) {
				return nil, errInline
			}
			return area[off : off+size], nil
		}
		e = e[min(len(e), xattrEntry+(len(name)+3)&^3):]
	}
	return nil, nil
}

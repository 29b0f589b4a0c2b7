package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

const (
	rootInode = 2

	typeMask    = 0xF000
	typeFIFO    = 0x1000
	typeChar    = 0x2000
	typeDir     = 0x4000
	typeBlock   = 0x6000
	typeRegular = 0x8000
	typeLink    = 0xA000
	typeSocket  = 0xC000

	flagEncrypted = 0x800
	flagExtents   = 0x80000
	flagEAInode   = 0x200000 // holds an attribute's value
	flagInline    = 0x10000000

	// Offsets in an inode, and the size of the field that holds a map of blocks or, of what is short, the content.
	offBlock     = 0x28
	blockArea    = 60
	offExtraSize = 0x80
	offMTimeMore = 0x88

	// maxTarget is the longest target of a symbolic link, in bytes: PATH_MAX less the zero (symlink(7)).
	maxTarget = 4095
)

var errEncrypted = errors.New("it is encrypted")

// inode is an inode whose numbers still are what the file system says.
type inode struct {
	Info
	flags uint32
	raw   []byte // the whole, at least 128 bytes
	extra int    // where attributes begin in raw
}

func (i *inode) isType(t uint32) bool { return i.Mode&typeMask == t }

// block is the map of blocks.
func (i *inode) block() []byte { return i.raw[offBlock : offBlock+blockArea] }

// inode reads the inode that a directory names; what has no name is none of a directory's business.
func (c *call) inode(num uint32) (*inode, error) {
	i, err := c.readInode(num)
	if err != nil {
		return nil, fmt.Errorf("inode %d: %w", num, err)
	}
	return i, nil
}

func (c *call) readInode(num uint32) (*inode, error) {
	if num > c.s.Inodes || num != rootInode && num < c.s.firstInode {
		return nil, errors.New("no file has this number")
	}
	group, index := (num-1)/c.s.inodesPerGroup, (num-1)%c.s.inodesPerGroup
	if group >= c.s.groups() {
		return nil, errors.New("it is in no group")
	}
	size := int64(c.s.inodeSize)
	if err := c.take(size + int64(c.s.descSize)); err != nil {
		return nil, err
	}
	d, err := readDesc(c.src, c.s, group)
	if err != nil {
		return nil, err
	}
	off := int64(index) * size
	if d.inodeTable == 0 || d.inodeTable >= c.s.Blocks || off > int64(c.s.Blocks-d.inodeTable)*c.s.BlockSize-size {
		return nil, fmt.Errorf("inode table of group %d is outside the file system", group)
	}
	raw := make([]byte, size)
	if err := readFull(c.src, raw, int64(d.inodeTable)*c.s.BlockSize+off); err != nil {
		return nil, err
	}
	i, err := c.s.parseInode(raw)
	if err != nil {
		return nil, err
	}
	i.Inode = num
	if i.isType(typeLink) && !i.Encrypted {
		i.Target, err = c.target(i)
	}
	return i, err
}

// parseInode decodes an inode without its target.
func (s Super) parseInode(b []byte) (*inode, error) {
	le := binary.LittleEndian
	i := &inode{flags: le.Uint32(b[0x20:]), raw: b, extra: inodeSizeOld}
	i.Info = Info{
		Mode:      uint32(le.Uint16(b)),
		UID:       uint32(le.Uint16(b[0x02:])) | uint32(le.Uint16(b[0x78:]))<<16,
		GID:       uint32(le.Uint16(b[0x18:])) | uint32(le.Uint16(b[0x7A:]))<<16,
		Size:      int64(le.Uint32(b[0x04:])),
		Links:     int(le.Uint16(b[0x1A:])),
		Encrypted: i.flags&flagEncrypted != 0,
	}
	if i.isType(typeRegular) || s.incompat&incompatLarge != 0 {
		i.Size |= int64(le.Uint32(b[0x6C:])) << 32
	}
	seconds, more := int64(int32(le.Uint32(b[0x10:]))), uint32(0)
	if len(b) > inodeSizeOld {
		i.extra += int(le.Uint16(b[offExtraSize:]))
		if i.extra > len(b) {
			return nil, errors.New("it is larger than an inode")
		}
		if i.extra >= offMTimeMore+4 {
			more = le.Uint32(b[offMTimeMore:])
		}
	}
	// Two bits of the year and 30 of nanoseconds.
	i.ModTime = time.Unix(seconds+int64(more&3)<<32, int64(more>>2)).UTC()
	switch i.Mode & typeMask {
	case typeChar, typeBlock:
		i.Major, i.Minor = device(i.block())
	case typeDir, typeRegular, typeLink, typeFIFO, typeSocket:
	default:
		return nil, fmt.Errorf("mode 0%o is of no type of file", i.Mode)
	}
	switch {
	case i.Links == 0:
		return nil, errors.New("it is deleted")
	case i.Size < 0:
		return nil, errors.New("its size is negative")
	case i.flags&flagEAInode != 0:
		return nil, errors.New("it holds an attribute")
	}
	return i, nil
}

// device decodes a device's numbers: 8 and 8 bits in the first word or, where it
// is zero, 12 and 20 bits in the second (linux/kdev_t.h).
func device(b []byte) (major, minor uint32) {
	le := binary.LittleEndian
	if v := le.Uint32(b); v != 0 {
		return v >> 8 & 0xff, v & 0xff
	}
	v := le.Uint32(b[4:])
	return v >> 8 & 0xfff, v&0xff | v>>12&0xfff00
}

// target reads the target of a symbolic link: in the inode where it is short, in a block otherwise.
func (c *call) target(i *inode) (string, error) {
	if i.Size == 0 || i.Size > maxTarget {
		return "", fmt.Errorf("symbolic link to a path of %d bytes", i.Size)
	}
	b := i.block()
	if i.Size < blockArea && i.flags&flagInline == 0 && (i.flags&flagExtents == 0 || !isExtentNode(b)) {
		b = b[:i.Size]
	} else {
		var err error
		if b, err = c.content(i); err != nil {
			return "", err
		}
	}
	if bytes.IndexByte(b, 0) >= 0 {
		return "", errors.New("symbolic link to a path with a zero byte")
	}
	return string(b), nil
}

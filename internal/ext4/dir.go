package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	direntHeader = 8
	minDirent    = 12 // a name of one byte, in multiples of four
	inlineParent = 4  // an inline directory begins with its parent's number instead of "." and ".."
	maxName      = 255
)

var errDirent = errors.New("damaged directory")

// dir calls f with every entry of a directory but "." and "..", in no order. f
// must not keep name.
//
// Directories with an index are read like others: what is not entries looks like
// unused ones (Documentation/filesystems/ext4/directory.rst).
func (c *call) dir(i *inode, f func(num uint32, name []byte) error) error {
	if i.Encrypted {
		return fmt.Errorf("inode %d: %w", i.Inode, errEncrypted)
	}
	if i.flags&flagInline != 0 {
		head, tail, err := i.inline()
		if err != nil {
			return err
		}
		if err := c.entries(head[inlineParent:], f); err != nil {
			return err
		}
		return c.entries(tail, f)
	}
	b := make([]byte, c.s.BlockSize)
	err := c.runs(i, func(r run) error {
		for k := range r.count {
			if err := c.read(b, r.physical+k); err != nil {
				return err
			}
			if err := c.entries(b, f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("inode %d: %w", i.Inode, err)
	}
	return nil
}

// entries calls f with the entries in b, one block.
func (c *call) entries(b []byte, f func(num uint32, name []byte) error) error {
	le := binary.LittleEndian
	for len(b) >= minDirent {
		num, size, length := le.Uint32(b), c.recordSize(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
		if c.s.incompat&incompatType != 0 {
			length &= 0xff // the other byte is the type
		}
		if size < minDirent || size%4 != 0 || size > len(b) || num != 0 && direntHeader+length > size {
			return errDirent
		}
		if num != 0 {
			name := b[direntHeader : direntHeader+length]
			switch {
			case string(name) == ".", string(name) == "..":
			case length == 0, length > maxName, bytes.ContainsAny(name, "/\x00"):
				return fmt.Errorf("%w: a file named %q", errDirent, name)
			default:
				if err := f(num, name); err != nil {
					return err
				}
			}
		}
		b = b[size:]
	}
	return nil
}

// recordSize decodes the size of an entry. Where a block has 64 KiB, 0 and 65535
// stand for all of it, and the lowest two bits for the highest
// (ext4_rec_len_from_disk in the kernel's fs/ext4/ext4.h).
func (c *call) recordSize(v uint16) int {
	switch {
	case c.s.BlockSize < 1<<16:
		return int(v)
	case v == 0, v == 0xffff:
		return 1 << 16
	}
	return int(v&^3) | int(v&3)<<16
}

package ext4

import (
	"encoding/binary"
	"fmt"
	"io"
)

// desc is a block group's descriptor, as far as it is needed; the fields are block numbers.
type desc struct{ blockBitmap, inodeBitmap, inodeTable uint64 }

func readDesc(f io.ReaderAt, s Super, group uint32) (desc, error) {
	off := s.descOffset(group)
	if off > s.Bytes()-int64(s.descSize) {
		return desc{}, fmt.Errorf("descriptor of group %d is outside the file system", group)
	}
	b := make([]byte, s.descSize)
	if err := readFull(f, b, off); err != nil {
		return desc{}, fmt.Errorf("descriptor of group %d: %w", group, err)
	}
	le := binary.LittleEndian
	d := desc{uint64(le.Uint32(b[0:])), uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:]))}
	if s.descSize >= minDescSize64 {
		d.blockBitmap |= uint64(le.Uint32(b[0x20:])) << 32
		d.inodeBitmap |= uint64(le.Uint32(b[0x24:])) << 32
		d.inodeTable |= uint64(le.Uint32(b[0x28:])) << 32
	}
	return d, nil
}

// descOffset tells where a group's descriptor lies, in bytes: in one table
// behind the superblock or, with meta_bg, in a block at the start of the first
// of the groups that the block describes (Documentation/filesystems/ext4/blockgroup.rst).
func (s Super) descOffset(group uint32) int64 {
	perBlock := uint32(s.BlockSize) / uint32(s.descSize)
	nr, in := group/perBlock, int64(group%perBlock)*int64(s.descSize)
	if s.incompat&incompatMetaBG == 0 || nr < s.firstMetaBG {
		return (superOffset/s.BlockSize+1+int64(nr))*s.BlockSize + in
	}
	first := nr * perBlock
	block := int64(s.firstDataBlock) + int64(first)*int64(s.blocksPerGroup)
	if s.hasSuper(first) {
		block++
	}
	if nr == 0 && s.BlockSize == superOffset && s.firstDataBlock == 0 {
		block++ // the superblock is in block 1, though the group begins with block 0
	}
	return block*s.BlockSize + in
}

// hasSuper reports whether a group begins with a copy of the superblock.
func (s Super) hasSuper(group uint32) bool {
	switch {
	case group == 0:
		return true
	case s.compat&compatSparse2 != 0:
		return group == s.backups[0] || group == s.backups[1]
	case group == 1, s.roCompat&roSparse == 0:
		return true
	}
	return isPower(group, 3) || isPower(group, 5) || isPower(group, 7)
}

func isPower(n, base uint32) bool {
	for n%base == 0 {
		n /= base
	}
	return n == 1
}

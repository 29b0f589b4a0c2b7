package ext4

import (
	"fmt"
	"os"
)

// readWriterAt is what the repair needs of a file.
type readWriterAt interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
}

// repair corrects what tar2ext4 (hcsshim 0.15) leaves for e2fsck to complain
// about: the padding of the bitmaps, the order of attributes in attribute
// blocks. It also stamps UUID and label. It is for file systems without
// metadata checksums, which FromTar's are.
func repair(f readWriterAt, uuid UUID, label string) error {
	s, err := readSuper(f)
	if err != nil {
		return err
	}
	if err := padBitmaps(f, s); err != nil {
		return err
	}
	if err := sortAttributes(f, s); err != nil {
		return err
	}
	return stamp(f, uuid, label)
}

// padBitmaps sets the bits of each group's bitmaps that stand for no block and
// no inode.
func padBitmaps(f readWriterAt, s Super) error {
	groups := s.groups()
	for g := range groups {
		d, err := readDesc(f, s, g)
		if err != nil {
			return err
		}
		blocks := uint32(min(uint64(s.blocksPerGroup), s.Blocks-uint64(g)*uint64(s.blocksPerGroup)))
		if err := setTail(f, s, d.blockBitmap, blocks); err != nil {
			return fmt.Errorf("block bitmap of group %d: %w", g, err)
		}
		if err := setTail(f, s, d.inodeBitmap, s.inodesPerGroup); err != nil {
			return fmt.Errorf("inode bitmap of group %d: %w", g, err)
		}
	}
	return nil
}

// setTail sets the bits of the bitmap in block from bit first on.
func setTail(f readWriterAt, s Super, block uint64, first uint32) error {
	if block == 0 || block >= s.Blocks {
		return fmt.Errorf("block %d is outside the file system", block)
	}
	b := make([]byte, s.BlockSize)
	off := int64(block) * s.BlockSize
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	changed := false
	for i := first; i < uint32(len(b))*8; {
		if i%8 == 0 {
			changed = changed || b[i/8] != 0xff
			b[i/8] = 0xff
			i += 8
			continue
		}
		bit := byte(1) << (i % 8)
		changed = changed || b[i/8]&bit == 0
		b[i/8] |= bit
		i++
	}
	if !changed {
		return nil
	}
	_, err := f.WriteAt(b, off)
	return err
}

// stamp writes UUID and label, and turns off the check that is due after so many mounts, about which
// the kernel warns otherwise.
func stamp(f readWriterAt, uuid UUID, label string) error {
	if len(label) > labelSize {
		return fmt.Errorf("label %q is longer than %d bytes", label, labelSize)
	}
	var field [labelSize]byte
	copy(field[:], label)
	if _, err := f.WriteAt([]byte{0xff, 0xff}, superOffset+offMaxMnt); err != nil {
		return err
	}
	_, err := f.WriteAt(append(uuid[:], field[:]...), superOffset+offUUID)
	return err
}

var _ readWriterAt = (*os.File)(nil)

package ext4

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"os"
	"strings"
)

// ErrDirty says that a file system has to be checked before anybody may rely on it.
var ErrDirty = errors.New("the file system needs a check")

// maxMountBlock is the largest block, in bytes, of a file system that Linux 6.12 mounts where pages have 4 KiB
// (ext4_fill_super in the kernel's fs/ext4/super.c).
const maxMountBlock = 4096

// Fields of the superblock that only Check looks at.
const (
	offJournalInode = 0xE0
	offJournalDev   = 0xE4
	offOrphans      = 0xE8
	offChecksumType = 0x175
	offErrorCount   = 0x194
	offChecksum     = 0x3FC
	checksumCRC32C  = 1
)

// incompatNames are the features without which a file system cannot be read, by
// bit (Documentation/filesystems/ext4/super.rst).
var incompatNames = map[uint32]string{
	0x1: "compression", 0x2: "filetype", 0x4: "needs_recovery", 0x8: "journal_dev", 0x10: "meta_bg", 0x40: "extents",
	0x80: "64bit", 0x100: "mmp", 0x200: "flex_bg", 0x400: "ea_inode", 0x1000: "dirdata", 0x2000: "metadata_csum_seed",
	0x4000: "largedir", 0x8000: "inline_data", 0x10000: "encrypt", 0x20000: "casefold",
}

// incompatKnown are those that Linux 6.12 mounts (EXT4_FEATURE_INCOMPAT_SUPP in its fs/ext4/ext4.h).
const incompatKnown = 0x2 | 0x4 | 0x10 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000

// known returns an error where the file system has features that make it
// unreadable. Features that are unknown but compatible, or compatible when read
// only, do not matter.
func (s Super) known() error {
	var names []string
	for rest := s.incompat &^ incompatKnown; rest != 0; rest &= rest - 1 {
		bit := uint32(1) << bits.TrailingZeros32(rest)
		name, ok := incompatNames[bit]
		if !ok {
			name = fmt.Sprintf("unknown bit 0x%x", bit)
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("it has features that Linux 6.12 cannot mount: %s", strings.Join(names, ", "))
}

// Check tells whether the file system in the file or device at path can be a
// base drive, which the kernel of a VM (Linux 6.12) mounts read-only. The error
// is ErrNotExt4 where there is none, and ErrDirty where e2fsck has to mend it first.
func Check(path string) error {
	f, err := openImage(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := check(f); err != nil {
		if errors.Is(err, ErrDirty) {
			err = fmt.Errorf("%w; mend it with: e2fsck -f %q", err, path)
		}
		return fmt.Errorf("check ext4 %q: %w", path, err)
	}
	return nil
}

func check(f *os.File) error {
	r, err := newReader(f)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd) // of a device, Stat does not tell it
	if err != nil {
		return err
	}
	b := make([]byte, superSize)
	if err := readFull(f, b, superOffset); err != nil {
		return err
	}
	s := r.s
	switch {
	case s.BlockSize > maxMountBlock:
		return fmt.Errorf("its blocks have %d bytes, and Linux 6.12 mounts at most %d", s.BlockSize, maxMountBlock)
	case s.Bytes() > size:
		return fmt.Errorf("it is cut off: the file system has %d bytes, the file %d", s.Bytes(), size)
	}
	for _, f := range []func(Super, []byte) error{checkJournal, checkState, checkSums} {
		if err := f(s, b); err != nil {
			return err
		}
	}
	if uint64(s.groups())*uint64(s.inodesPerGroup) != uint64(s.Inodes) {
		return fmt.Errorf("%w: %d inodes do not fill its groups", ErrDirty, s.Inodes)
	}
	root, err := r.call(context.Background(), maxLookup).inode(rootInode)
	if err == nil && !root.isType(typeDir) {
		err = errors.New("its root is not a directory")
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrDirty, err)
	}
	return nil
}

// checkJournal refuses a journal that the VM would not have.
func checkJournal(s Super, b []byte) error {
	le := binary.LittleEndian
	if s.compat&compatJournal == 0 {
		return nil
	}
	switch {
	case le.Uint32(b[offJournalDev:]) != 0:
		return errors.New("its journal is on another device; remove it with: tune2fs -O ^has_journal")
	case le.Uint32(b[offJournalInode:]) == 0:
		return fmt.Errorf("%w: it has no journal, though it should (feature has_journal)", ErrDirty)
	}
	return nil
}

func checkState(s Super, b []byte) error {
	le := binary.LittleEndian
	state := le.Uint16(b[offState:])
	switch {
	case s.NeedsRecovery:
		return fmt.Errorf("%w: its journal has to be replayed: it is still mounted, or was not unmounted", ErrDirty)
	case s.Errors, le.Uint32(b[offErrorCount:]) != 0:
		return fmt.Errorf("%w: the kernel found errors in it", ErrDirty)
	case state&stateClean == 0:
		return fmt.Errorf("%w: it is still mounted, or was not unmounted", ErrDirty)
	case state&stateOrphans != 0, s.roCompat&roOrphans != 0, le.Uint32(b[offOrphans:]) != 0:
		return fmt.Errorf("%w: deleted files are left in it", ErrDirty)
	}
	return nil
}

// checkSums verifies the superblock's checksum, without which the kernel does not mount.
func checkSums(s Super, b []byte) error {
	if s.roCompat&roMetadataCsum == 0 {
		return nil
	}
	if b[offChecksumType] != checksumCRC32C {
		return fmt.Errorf("its checksums are of the unknown type %d", b[offChecksumType])
	}
	// The field is without the inversion at the end that crc32 has.
	sum := ^crc32.Checksum(b[:offChecksum], crc32.MakeTable(crc32.Castagnoli))
	if sum != binary.LittleEndian.Uint32(b[offChecksum:]) {
		return fmt.Errorf("%w: the checksum of its superblock is wrong", ErrDirty)
	}
	return nil
}

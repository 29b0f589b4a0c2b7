package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Offsets of superblock fields and feature bits used here; the rest of the
// layout is in the kernel's Documentation/filesystems/ext4.
const (
	superOffset = 1024
	superSize   = 1024
	superMagic  = 0xEF53

	offState       = 0x3A
	offMaxMnt      = 0x36
	offUUID        = 0x68
	offLabel       = 0x78
	labelSize      = 16
	stateClean     = 0x1
	stateErrors    = 0x2
	incompatNeeds  = 0x4  // needs_recovery: the journal has to be replayed
	incompat64bit  = 0x80 // 64-bit block numbers and larger group descriptors
	minDescSize64  = 64
	descSizeSmall  = 32
	maxLogBlock    = 6 // 64 KiB blocks
	maxBlockGroups = 1 << 27
)

// ErrNotExt4 says that a file holds no ext4 file system.
var ErrNotExt4 = errors.New("not an ext4 file system")

// Super is what a superblock says.
type Super struct {
	UUID  UUID
	Label string
	// BlockSize is in bytes.
	BlockSize int64
	// Blocks and FreeBlocks are counts of blocks, Inodes and FreeInodes of inodes.
	Blocks, FreeBlocks uint64
	Inodes, FreeInodes uint32
	// Clean says that it was unmounted, no error was recorded and no journal needs replay.
	Clean bool
	// NeedsRecovery says that the journal has to be replayed: it is or was mounted.
	NeedsRecovery bool
	// Errors says that the kernel recorded an error.
	Errors bool

	compat, incompat, roCompat uint32
	firstDataBlock             uint32
	blocksPerGroup             uint32
	inodesPerGroup             uint32
	inodeSize                  uint16
	descSize                   uint16
}

// Bytes is the size of the file system in bytes; a file may be larger.
func (s Super) Bytes() int64 { return int64(s.Blocks) * s.BlockSize }

// groups is the number of block groups.
func (s Super) groups() uint32 {
	n := s.Blocks - uint64(s.firstDataBlock)
	return uint32((n + uint64(s.blocksPerGroup) - 1) / uint64(s.blocksPerGroup))
}

// Superblock reads the primary superblock of the file or device at path. The
// error is ErrNotExt4 where there is none or it makes no sense.
func Superblock(path string) (Super, error) {
	f, err := os.Open(path)
	if err != nil {
		return Super{}, err
	}
	defer f.Close()
	s, err := readSuper(f)
	if err != nil {
		return Super{}, fmt.Errorf("read superblock of %q: %w", path, err)
	}
	return s, nil
}

func readSuper(r io.ReaderAt) (Super, error) {
	var b [superSize]byte
	if _, err := r.ReadAt(b[:], superOffset); err != nil {
		if errors.Is(err, io.EOF) {
			return Super{}, ErrNotExt4
		}
		return Super{}, err
	}
	return parseSuper(b[:])
}

// parseSuper decodes the 1,024 bytes of a superblock and refuses values that
// would make arithmetic on them meaningless.
func parseSuper(b []byte) (Super, error) {
	le := binary.LittleEndian
	if len(b) < superSize || le.Uint16(b[0x38:]) != superMagic {
		return Super{}, ErrNotExt4
	}
	state := le.Uint16(b[offState:])
	s := Super{
		Inodes:         le.Uint32(b[0x00:]),
		Blocks:         uint64(le.Uint32(b[0x04:])),
		FreeBlocks:     uint64(le.Uint32(b[0x0C:])),
		FreeInodes:     le.Uint32(b[0x10:]),
		firstDataBlock: le.Uint32(b[0x14:]),
		blocksPerGroup: le.Uint32(b[0x20:]),
		inodesPerGroup: le.Uint32(b[0x28:]),
		inodeSize:      le.Uint16(b[0x58:]),
		compat:         le.Uint32(b[0x5C:]),
		incompat:       le.Uint32(b[0x60:]),
		roCompat:       le.Uint32(b[0x64:]),
		UUID:           UUID(b[offUUID : offUUID+16]),
		descSize:       descSizeSmall,
	}
	label, _, _ := bytes.Cut(b[offLabel:offLabel+labelSize], []byte{0})
	s.Label = string(label)
	s.Errors = state&stateErrors != 0
	s.NeedsRecovery = s.incompat&incompatNeeds != 0
	s.Clean = state&stateClean != 0 && !s.Errors && !s.NeedsRecovery
	if s.incompat&incompat64bit != 0 {
		s.Blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.FreeBlocks |= uint64(le.Uint32(b[0x158:])) << 32
		s.descSize = le.Uint16(b[0xFE:])
	}
	logBlock := le.Uint32(b[0x18:])
	if logBlock > maxLogBlock {
		return Super{}, fmt.Errorf("%w: block size 2^%d KiB", ErrNotExt4, logBlock)
	}
	s.BlockSize = 1024 << logBlock
	return s, s.check()
}

func (s Super) check() error {
	bits := uint32(s.BlockSize) * 8
	switch {
	case s.blocksPerGroup == 0 || s.blocksPerGroup > bits,
		s.inodesPerGroup == 0 || s.inodesPerGroup > bits,
		s.Blocks <= uint64(s.firstDataBlock),
		s.Blocks > uint64(1<<62)/uint64(s.BlockSize),
		(s.Blocks-uint64(s.firstDataBlock))/uint64(s.blocksPerGroup) >= maxBlockGroups,
		s.inodeSize != 0 && (s.inodeSize < 128 || int64(s.inodeSize) > s.BlockSize),
		s.descSize < descSizeSmall || int64(s.descSize) > s.BlockSize,
		s.incompat&incompat64bit != 0 && s.descSize < minDescSize64:
		return fmt.Errorf("%w: impossible geometry", ErrNotExt4)
	}
	return nil
}

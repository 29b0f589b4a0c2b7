package ext4

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
	stateOrphans   = 0x4    // the kernel was deleting what had been deleted while it was open
	compatJournal  = 0x4    // has_journal
	compatSparse2  = 0x200  // sparse_super2: at most two backups of the superblock
	incompatType   = 0x2    // filetype: directory entries tell the type of a file
	incompatNeeds  = 0x4    // needs_recovery: the journal has to be replayed
	incompatJDev   = 0x8    // journal_dev: it is only a journal
	incompatMetaBG = 0x10   // meta_bg: descriptors lie in the groups they describe
	incompat64bit  = 0x80   // 64-bit block numbers and larger group descriptors
	incompatLarge  = 0x4000 // largedir: directories of more than 2 GiB
	roSparse       = 0x1    // sparse_super: backups of the superblock in some groups only
	roBigalloc     = 0x200  // blocks are allocated in clusters
	roMetadataCsum = 0x400
	roOrphans      = 0x10000 // orphan_present: the orphan file is not empty
	minDescSize64  = 64
	descSizeSmall  = 32
	maxLogBlock    = 6 // 64 KiB blocks
	maxBlockGroups = 1 << 27
	inodeSizeOld   = 128 // of every inode in revision 0
	firstInodeOld  = 11
	maxLogCluster  = 20 // 1 GiB; EXT4_MAX_CLUSTER_LOG_SIZE of fs/ext4/ext4.h, 30, is the logarithm of bytes, this of KiB
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
	firstInode                 uint32    // the first that is not reserved
	firstMetaBG                uint32    // the first block of descriptors that meta_bg places
	backups                    [2]uint32 // groups with a superblock, where sparse_super2 is set
	clusterBits                uint8     // a cluster is 2^clusterBits blocks
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
	f, err := openImage(path)
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
	s := Super{
		Inodes:         le.Uint32(b[0x00:]),
		Blocks:         uint64(le.Uint32(b[0x04:])),
		FreeBlocks:     uint64(le.Uint32(b[0x0C:])),
		FreeInodes:     le.Uint32(b[0x10:]),
		UUID:           UUID(b[offUUID : offUUID+16]),
		firstDataBlock: le.Uint32(b[0x14:]),
		blocksPerGroup: le.Uint32(b[0x20:]),
		inodesPerGroup: le.Uint32(b[0x28:]),
		firstInode:     firstInodeOld,
		inodeSize:      inodeSizeOld,
		compat:         le.Uint32(b[0x5C:]),
		incompat:       le.Uint32(b[0x60:]),
		roCompat:       le.Uint32(b[0x64:]),
		descSize:       descSizeSmall,
		firstMetaBG:    le.Uint32(b[0x104:]),
		backups:        [2]uint32{le.Uint32(b[0x24C:]), le.Uint32(b[0x250:])},
	}
	if revision := le.Uint32(b[0x4C:]); revision > 0 {
		s.firstInode, s.inodeSize = le.Uint32(b[0x54:]), le.Uint16(b[0x58:])
	}
	label, _, _ := bytes.Cut(b[offLabel:offLabel+labelSize], []byte{0})
	s.Label = string(label)
	state := le.Uint16(b[offState:])
	s.Errors = state&stateErrors != 0
	s.NeedsRecovery = s.incompat&incompatNeeds != 0
	s.Clean = state&stateClean != 0 && !s.Errors && !s.NeedsRecovery
	if s.incompat&incompat64bit != 0 {
		s.Blocks |= uint64(le.Uint32(b[0x150:])) << 32
		s.FreeBlocks |= uint64(le.Uint32(b[0x158:])) << 32
		s.descSize = le.Uint16(b[0xFE:])
	}
	logBlock, logCluster := le.Uint32(b[0x18:]), le.Uint32(b[0x1C:])
	if logBlock > maxLogBlock {
		return Super{}, fmt.Errorf("%w: block size 2^%d KiB", ErrNotExt4, logBlock)
	}
	s.BlockSize = 1024 << logBlock
	if s.roCompat&roBigalloc != 0 {
		if logCluster < logBlock || logCluster > maxLogCluster {
			return Super{}, fmt.Errorf("%w: cluster size 2^%d KiB", ErrNotExt4, logCluster)
		}
		s.clusterBits = uint8(logCluster - logBlock)
	}
	return s, s.check()
}

func (s Super) check() error {
	// A block of each bitmap has to do for a group.
	bits := uint32(s.BlockSize) * 8
	switch {
	case s.incompat&incompatJDev != 0:
		return fmt.Errorf("%w: it is the journal of another (feature journal_dev)", ErrNotExt4)
	case s.blocksPerGroup == 0 || uint64(s.blocksPerGroup) > uint64(bits)<<s.clusterBits,
		s.inodesPerGroup == 0 || s.inodesPerGroup > bits,
		s.Blocks <= uint64(s.firstDataBlock),
		s.Blocks > uint64(1<<62)/uint64(s.BlockSize),
		(s.Blocks-uint64(s.firstDataBlock))/uint64(s.blocksPerGroup) >= maxBlockGroups,
		s.firstInode < firstInodeOld,
		s.inodeSize < inodeSizeOld || int64(s.inodeSize) > s.BlockSize || s.inodeSize&(s.inodeSize-1) != 0,
		s.descSize < descSizeSmall || int64(s.descSize) > s.BlockSize || s.descSize&(s.descSize-1) != 0,
		s.incompat&incompat64bit != 0 && s.descSize < minDescSize64:
		return fmt.Errorf("%w: impossible geometry", ErrNotExt4)
	}
	return nil
}

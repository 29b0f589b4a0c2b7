package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ext4ResizeFS is EXT4_IOC_RESIZE_FS; its argument is a count of file system blocks.
const ext4ResizeFS = 0x40086610

// growDeadline is how long the kernel may take to note that a drive has grown: the VMM's interrupt only tells it to look.
const growDeadline = 2 * time.Second

// growData grows the file system of the open directory data to bytes, 0 for all of its drive dev, and
// returns its size. A file system that is as large already stays as it is.
func growData(data *os.File, dev string, bytes int64) (int64, error) {
	drive, err := awaitBytes(dev, bytes, growDeadline)
	if err != nil {
		return 0, err
	}
	if bytes > drive {
		return 0, fmt.Errorf("grow the data file system to %d bytes: its drive has %d", bytes, drive)
	}
	if bytes == 0 {
		bytes = drive
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(data.Fd()), &st); err != nil {
		return 0, fmt.Errorf("statfs of the data file system: %w", err)
	}
	blocks := uint64(bytes / st.Bsize)
	have, err := superblockBytes(dev, data)
	if err != nil || have >= int64(blocks)*st.Bsize {
		return have, err
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, data.Fd(), ext4ResizeFS, uintptr(unsafe.Pointer(&blocks)))
	if err := errnoOf("grow the data file system", errno); err != nil {
		return 0, err
	}
	return int64(blocks) * st.Bsize, nil
}

// awaitBytes returns how large the drive dev is, as soon as that is enough, at last after patience.
func awaitBytes(dev string, enough int64, patience time.Duration) (int64, error) {
	for end := time.Now().Add(patience); ; <-time.After(2 * time.Millisecond) {
		n, err := deviceBytes(dev)
		if err != nil || n >= enough || time.Now().After(end) {
			return n, err
		}
	}
}

func deviceBytes(dev string) (int64, error) {
	f, err := os.Open(dev)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	n, err := f.Seek(0, 2)
	if err != nil {
		return 0, fmt.Errorf("size of %q: %w", dev, err)
	}
	return n, nil
}

// superblockBytes reads how large the ext4 on dev is, which is mounted at data. statfs does not say: it leaves
// out what the file system takes for itself.
func superblockBytes(dev string, data *os.File) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(data.Fd()), &st); err != nil {
		return 0, fmt.Errorf("statfs of the data file system: %w", err)
	}
	f, err := os.Open(dev)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	sb := make([]byte, 1024)
	if _, err := f.ReadAt(sb, 1024); err != nil {
		return 0, fmt.Errorf("read the superblock of %q: %w", dev, err)
	}
	n, err := ext4Blocks(sb)
	return int64(n) * st.Bsize, err
}

// ext4Blocks returns the count of blocks in an ext4 superblock.
func ext4Blocks(sb []byte) (uint64, error) {
	const (
		atBlocksLow  = 0x04
		atMagic      = 0x38
		atIncompat   = 0x60
		atBlocksHigh = 0x150
		magic        = 0xef53
		incompat64   = 0x80
	)
	if len(sb) < 1024 || binary.LittleEndian.Uint16(sb[atMagic:]) != magic {
		return 0, errors.New("not an ext4 superblock")
	}
	n := uint64(binary.LittleEndian.Uint32(sb[atBlocksLow:]))
	if binary.LittleEndian.Uint32(sb[atIncompat:])&incompat64 != 0 {
		n |= uint64(binary.LittleEndian.Uint32(sb[atBlocksHigh:])) << 32
	}
	return n, nil
}

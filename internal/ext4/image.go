package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
)

// openImage opens a file or block device, and never waits for one, as opening a FIFO would.
func openImage(path string) (*os.File, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if err := imageMode(path, st); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// It may have become another since.
	if st, err = f.Stat(); err == nil {
		err = imageMode(path, st)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func imageMode(path string, st fs.FileInfo) error {
	switch m := st.Mode(); {
	case m.IsRegular(), m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0:
		return nil
	case m.IsDir():
		return fmt.Errorf("open %q: %w: it is a directory", path, ErrNotExt4)
	}
	return fmt.Errorf("open %q: %w: it is neither a file nor a block device", path, ErrNotExt4)
}

// magics tells other things that people take for an image of a file system; the
// first that fits counts.
var magics = []struct {
	off   int64
	magic string
	name  string
}{
	{0, "QFI\xfb", "a qcow2 image; convert it with: qemu-img convert -O raw"},
	{0, "KDMV", "a VMDK image; convert it with: qemu-img convert -O raw"},
	{0, "# Disk DescriptorFile", "a VMDK descriptor; convert it with: qemu-img convert -O raw"},
	{0, "vhdxfile", "a VHDX image; convert it with: qemu-img convert -O raw"},
	{0, "conectix", "a VHD image; convert it with: qemu-img convert -O raw"},
	{0x40, "\x7f\x10\xda\xbe", "a VDI image; convert it with: qemu-img convert -O raw"},
	{0, "\x1f\x8b", "compressed with gzip; decompress it first"},
	{0, "\x28\xb5\x2f\xfd", "compressed with zstd; decompress it first"},
	{0, "\xfd7zXZ\x00", "compressed with xz; decompress it first"},
	{0, "BZh", "compressed with bzip2; decompress it first"},
	{0, "\x04\x22\x4d\x18", "compressed with lz4; decompress it first"},
	{0, "PK\x03\x04", "a zip archive"},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive"},
	{257, "ustar", "a tar archive"},
	{0, "\x3a\xff\x26\xed", "an Android sparse image; convert it with: simg2img"},
	{0, "LUKS\xba\xbe", "encrypted with LUKS"},
	{0, "XFSB", "an XFS file system"},
	{0, "hsqs", "a squashfs file system"},
	{1024, "\xe2\xe1\xf5\xe0", "an EROFS file system"},
	{1024, "\x10\x20\xf5\xf2", "an F2FS file system"},
	{0x10040, "_BHRfS_M", "a Btrfs file system"},
	{3, "NTFS    ", "an NTFS file system"},
	{54, "FAT1", "a FAT file system"},
	{82, "FAT32", "a FAT file system"},
	{4086, "SWAPSPACE2", "swap space"},
	{512, "LABELONE", "a volume of LVM"},
	{512, "EFI PART", partitioned},
	{4096, "EFI PART", partitioned},
	{0x8001, "CD001", "an ISO 9660 file system"},
	{510, "\x55\xaa", partitioned},
}

const partitioned = "a disk with partitions; take the partition of the file system out of it"

// explain adds to ErrNotExt4 what the file is instead, where that shows.
func explain(err error, src io.ReaderAt) error {
	if !errors.Is(err, ErrNotExt4) {
		return err
	}
	if _, e := src.ReadAt(make([]byte, 1), 0); errors.Is(e, io.EOF) {
		return fmt.Errorf("%w: it is empty", err)
	}
	for _, m := range magics {
		b := make([]byte, len(m.magic))
		if readFull(src, b, m.off) == nil && bytes.Equal(b, []byte(m.magic)) {
			return fmt.Errorf("%w: it is %s", err, m.name)
		}
	}
	return err
}

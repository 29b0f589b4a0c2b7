package ext4

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestCheckFlavors(t *testing.T) {
	for _, flavor := range flavors {
		t.Run(flavor.name, func(t *testing.T) {
			err := Check(mke2fs(t, 16<<20, flavor.args...))
			if slices.Contains(flavor.args, "65536") {
				if err == nil || !strings.Contains(err.Error(), "65536 bytes") || errors.Is(err, ErrNotExt4) {
					t.Errorf("blocks of 64 KiB: %v", err)
				}
				return
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// TestCheckState changes a clean file system with debugfs, or its superblock word by word.
func TestCheckState(t *testing.T) {
	for _, c := range []struct {
		name     string
		args     []string
		commands []string
		words    map[int]uint32 // of the superblock
		bytes    int64          // what is left of the file, where not all
		is       error
		want     string
	}{
		{name: "needs recovery", commands: []string{"feature needs_recovery"}, is: ErrDirty, want: "journal has to be replayed"},
		{name: "mounted", args: []string{"-O", "^has_journal"}, commands: []string{"ssv state 0"}, is: ErrDirty, want: "check: it is still mounted"},
		{name: "errors", commands: []string{"ssv state 3"}, is: ErrDirty, want: "found errors"},
		{name: "errors counted", commands: []string{"ssv error_count 2"}, is: ErrDirty, want: "found errors"},
		{name: "orphans", commands: []string{"ssv last_orphan 12"}, is: ErrDirty, want: "deleted files"},
		{name: "orphans in their file", args: []string{"-O", "orphan_file"}, commands: []string{"feature orphan_present"}, is: ErrDirty, want: "deleted files"},
		{name: "orphans being deleted", commands: []string{"ssv state 5"}, is: ErrDirty, want: "deleted files"},
		{name: "no root", commands: []string{"clri <2>"}, is: ErrDirty, want: "inode 2"},
		{name: "root is a file", commands: []string{"sif <2> mode 0100644"}, is: ErrDirty, want: "root is not a directory"},
		{name: "wrong checksum", words: map[int]uint32{offUUID: 1}, is: ErrDirty, want: "checksum of its superblock"},
		{name: "unknown checksums", words: map[int]uint32{offChecksumType &^ 3: 0x0200}, want: "unknown type 2"},
		{name: "inodes", args: []string{"-O", "^metadata_csum"}, words: map[int]uint32{0: 77}, is: ErrDirty, want: "77 inodes"},
		{name: "cut off", bytes: 3 << 20, want: "cut off: the file system has 4194304 bytes, the file 3145728"},
		{name: "larger file", bytes: 5 << 20},
		{name: "unknown feature", commands: []string{"feature FEATURE_I31"}, want: "unknown bit 0x80000000"},
		{name: "known features", words: map[int]uint32{0x60: 0x2 | 0x40 | 0x1 | 0x1000}, want: "compression, dirdata"},
		{name: "unknown feature that can be read", commands: []string{"feature FEATURE_R31", "feature FEATURE_C31"}},
		{name: "journal", args: []string{"-O", "journal_dev"}, is: ErrNotExt4, want: "journal of another (feature journal_dev)"},
		{name: "journal elsewhere", commands: []string{"ssv journal_dev 0x801", "ssv journal_inum 0"}, want: "on another device"},
		{name: "no journal", commands: []string{"ssv journal_inum 0"}, is: ErrDirty, want: "has no journal"},
		{name: "geometry", words: map[int]uint32{0x20: 0}, is: ErrNotExt4, want: "impossible geometry"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := mke2fs(t, 4<<20, append([]string{"-t", "ext4"}, c.args...)...)
			for _, command := range c.commands {
				if out := tool(t, "debugfs", "-w", "-R", command, path); strings.Contains(out, "nvalid") {
					t.Fatal(out)
				}
			}
			patch(t, path, c.words)
			if c.bytes > 0 {
				if err := os.Truncate(path, c.bytes); err != nil {
					t.Fatal(err)
				}
			}
			err := Check(path)
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want one with %q", err, c.want)
			}
			for _, sentinel := range []error{ErrDirty, ErrNotExt4} {
				if got := errors.Is(err, sentinel); got != errors.Is(c.is, sentinel) {
					t.Errorf("error %q is %q: %v", err, sentinel, got)
				}
			}
			if errors.Is(c.is, ErrDirty) && !strings.Contains(err.Error(), "e2fsck -f") {
				t.Errorf("error %q does not tell how to mend it", err)
			}
		})
	}
}

func patch(t *testing.T, path string, words map[int]uint32) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for off, word := range words {
		if _, err := f.WriteAt(binary.LittleEndian.AppendUint32(nil, word), superOffset+int64(off)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestCheckOther has what people take for an image.
func TestCheckOther(t *testing.T) {
	image, err := os.ReadFile(mke2fs(t, 1<<20, "-t", "ext4"))
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write(random(5000)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	at := func(off int, magic string) []byte {
		b := make([]byte, 1<<20)
		copy(b[off:], magic)
		return b
	}
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"empty":            {nil, "it is empty"},
		"short":            {make([]byte, 1100), "not an ext4 file system"},
		"zeros":            {make([]byte, 1<<20), "not an ext4 file system"},
		"xfs":              {at(0, "XFSB"), "an XFS file system"},
		"btrfs":            {at(0x10040, "_BHRfS_M"), "a Btrfs file system"},
		"qcow2":            {at(0, "QFI\xfb\x00\x00\x00\x03"), "a qcow2 image; convert it with: qemu-img convert -O raw"},
		"mbr":              {at(510, "\x55\xaa"), "a disk with partitions"},
		"gpt":              {at(512, "EFI PART"), "a disk with partitions"},
		"disk of an fs":    {append(at(510, "\x55\xaa"), image...), "a disk with partitions"},
		"gzip":             {zipped.Bytes(), "compressed with gzip"},
		"zstd":             {at(0, "\x28\xb5\x2f\xfd"), "compressed with zstd"},
		"short and xz":     {[]byte("\xfd7zXZ\x00"), "compressed with xz"},
		"tar":              {tarOf(t, file("a", random(3000))), "a tar archive"},
		"a cut ext4":       {image[:1500], "not an ext4 file system"},
		"not a superblock": {at(superOffset+0x38, "\x53\xef"), "impossible geometry"},
	} {
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{"Check": Check(path), "Open": openAndClose(path)} {
			if !errors.Is(err, ErrNotExt4) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s of %s: error %v, want ErrNotExt4 with %q", what, name, err, c.want)
			}
		}
	}
}

func openAndClose(path string) error {
	r, err := Open(path)
	if err != nil {
		return err
	}
	return r.Close()
}

// TestCheckNoFile has what is not even a file.
func TestCheckNoFile(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{dir: "it is a directory", fifo: "neither a file nor a block device", "/dev/zero": "neither a file nor a block device"} {
		for what, err := range map[string]error{"Check": Check(path), "Open": openAndClose(path)} {
			if !errors.Is(err, ErrNotExt4) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: error %v, want ErrNotExt4 with %q", what, err, want)
			}
		}
	}
	if err := Check(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

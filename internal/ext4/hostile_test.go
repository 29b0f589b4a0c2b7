package ext4

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestHostile changes single fields of a good file system, to what e2fsck would not leave.
func TestHostile(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b", "c", "secret/d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"file", "c/x"} {
		if err := os.WriteFile(filepath.Join(dir, f), random(20000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("t", 100), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	good := mke2fs(t, 1<<20, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum", "-d", dir)
	image, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, command, want string }{
		{"nothing", "stats", ""},
		{"directory in itself", "ln a a/b/loop", `directory "/a/b/loop" is in two places`},
		{"the root in a directory", "ln / a/loop", `directory "/a/loop" is in two places`},
		{"directory in two places", "ln a/b c/b", `directory "/c/b" is in two places`},
		{"reserved inode", "ln <8> journal", "no file has this number"},
		{"deleted inode", "sif file links_count 0", "it is deleted"},
		{"no type", "sif file mode 07777", "of no type"},
		{"directory that is a file", "sif a mode 0100755", ""},
		{"file that is a directory", "sif c/x mode 040755", "damaged directory"},
		{"link that is too long", "sif link size 5000", "path of 5000 bytes"},
		{"link to nothing", "sif link size 0", "path of 0 bytes"},
		{"link with zeros", "sif link size 900", "zero byte"},
		{"extent tree without a magic number", "sif a block[0] 0", "damaged extent tree"},
		{"extent outside", "sif a block[5] 0x7fffffff", "outside the file system"},
		{"extents out of order", "sif a block[3] 9000000", ""}, // behind the end: nothing is left
		{"extent tree too deep", "sif a block[1] 0x00060004", "damaged extent tree"},
		{"extra size", "sif file extra_isize 4000", "larger than an inode"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "fs")
			if err := os.WriteFile(path, image, 0o600); err != nil {
				t.Fatal(err)
			}
			out := tool(t, "debugfs", "-w", "-R", c.command, path)
			err := openTest(t, path).Walk(t.Context(), func(string, Info) error { return nil })
			if c.want == "" && err == nil {
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || c.want == "" {
				t.Errorf("error %v, want %q; debugfs: %s", err, c.want, out)
			}
		})
	}
}

// TestNamesTwice has a directory with two files of a name: which of them is meant, readers need not agree on.
func TestNamesTwice(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"name-one", "name-two"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image, err := os.ReadFile(mke2fs(t, 1<<20, "-t", "ext4", "-d", dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := newReader(bytes.NewReader(bytes.ReplaceAll(image, []byte("name-two"), []byte("name-one"))))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	err = r.Walk(t.Context(), func(string, Info) error { count++; return nil })
	if err == nil || !strings.Contains(err.Error(), `directory "/": "name-one" is twice in it`) || count != 1 {
		t.Errorf("after %d files: %v", count, err)
	}
}

// TestEntries has blocks of directories, with and without damage.
func TestEntries(t *testing.T) {
	entry := func(num uint32, size uint16, name string) []byte {
		b := binary.LittleEndian.AppendUint32(nil, num)
		b = binary.LittleEndian.AppendUint16(b, size)
		b = append(append(b, byte(len(name)), 1), name...)
		return append(b, make([]byte, max(0, int(size)-len(b)))...)
	}
	const kib, kib64 = 1024, 64 << 10
	for _, c := range []struct {
		name      string
		block     []byte
		blockSize int64
		want      []string // nil for an error
	}{
		{"one", entry(12, 1024, "a"), kib, []string{"a"}},
		{"dots", slices.Concat(entry(2, 12, "."), entry(2, 12, ".."), entry(12, 1000, "...")), kib, []string{"..."}},
		{"unused", slices.Concat(entry(0, 12, "a"), entry(12, 1012, "b")), kib, []string{"b"}},
		{"unused and longer than it may be", entry(0, 12, strings.Repeat("x", 255))[:12], kib, []string{}},
		{"all of a large block", entry(12, 0, "a"), kib64, []string{"a"}},
		{"all of a large block in another way", entry(12, 0xffff, "a"), kib64, []string{"a"}},
		{"more than 16 bits", slices.Concat(entry(12, 0xc000, "a"), entry(12, 0x4000, "b")), kib64, []string{"a", "b"}},
		{"nothing in a small block", entry(12, 0, "a"), kib, nil},
		{"too small", entry(12, 8, "a"), kib, nil},
		{"odd", slices.Concat(entry(12, 13, "a"), entry(12, 1011, "b")), kib, nil},
		{"beyond the end", entry(12, 1028, "a")[:1024], kib, nil},
		{"name longer than its record", entry(12, 12, "abcdefgh")[:12], kib, nil},
		{"slash", entry(12, 1024, "../x"), kib, nil},
		{"zero", entry(12, 1024, "x\x00"), kib, nil},
		{"no name", entry(12, 1024, ""), kib, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			block := c.block
			if len(block) < minDirent || c.blockSize == kib64 {
				block = append(block, make([]byte, int(c.blockSize)-len(block))...)
			}
			r := &Reader{s: Super{BlockSize: c.blockSize, incompat: incompatType}}
			got := []string{}
			err := r.call(t.Context(), 0).entries(block, func(_ uint32, name []byte) error {
				got = append(got, string(name))
				return nil
			})
			if c.want == nil && !errors.Is(err, errDirent) || c.want != nil && (err != nil || !slices.Equal(got, c.want)) {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}

// TestBounds walks with bounds that the file system just keeps, and just does not.
func TestBounds(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "a/b/c/d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for k := range 10 {
		if err := os.WriteFile(filepath.Join(dir, "a/b", fmt.Sprint(k)), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := openTest(t, mke2fs(t, 1<<20, "-t", "ext4", "-b", "1024", "-d", dir))
	bounded := func(change func(w *walk)) error {
		w := walk{call: r.call(t.Context(), 1<<20), f: func(string, Info) error { return nil }, files: 1000, held: 1000, depth: 10, seen: inodeSet{}}
		change(&w)
		return w.run()
	}
	// Root, lost+found, a, b, c, d and ten files; names of 21 bytes in 14 places, not all at a time.
	for name, c := range map[string]struct {
		change func(w *walk)
		want   error
	}{
		"none":           {func(*walk) {}, nil},
		"files":          {func(w *walk) { w.files = 16 }, nil},
		"too many files": {func(w *walk) { w.files = 15 }, errTooMany},
		"depth":          {func(w *walk) { w.depth = 5 }, nil},
		"too deep":       {func(w *walk) { w.depth = 4 }, errTooDeep},
		"names":          {func(w *walk) { w.held = 2*maxName + 15*perName }, nil},
		"too many names": {func(w *walk) { w.held = 10 * perName }, errTooMany},
		"too much":       {func(w *walk) { w.left = 8 << 10 }, errTooMuch},
		"cancelled": {func(w *walk) {
			ctx, cancel := context.WithCancel(w.ctx)
			cancel()
			w.ctx = ctx
		}, context.Canceled},
	} {
		if err := bounded(c.change); !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
	}
}

// TestSharedExtents has a directory of a terabyte in a file system of a megabyte: all its blocks are the same.
func TestSharedExtents(t *testing.T) {
	le := binary.LittleEndian
	const blockSize, blocks = 4096, 256
	image := make([]byte, blocks*blockSize)
	s := Super{BlockSize: blockSize, Blocks: blocks, Inodes: 64, firstInode: firstInodeOld, blocksPerGroup: 32768, inodesPerGroup: 64,
		inodeSize: 256, descSize: 32, incompat: incompatType | incompatLarge}
	le.PutUint32(image[blockSize+8:], 3) // the inode table
	inode := image[3*blockSize+256:]
	le.PutUint16(inode, typeDir|0o755)
	le.PutUint32(inode[0x6C:], 1<<8) // 1 TiB
	le.PutUint16(inode[0x1A:], 2)
	le.PutUint32(inode[0x20:], flagExtents)
	header := func(b []byte, entries, depth uint16) {
		le.PutUint16(b, extentMagic)
		le.PutUint16(b[2:], entries)
		le.PutUint16(b[6:], depth)
	}
	header(inode[offBlock:], 1, 1)
	le.PutUint32(inode[offBlock+extentHeader+4:], 10)
	leaf := image[10*blockSize:]
	header(leaf, 340, 0)
	for k := range uint32(340) {
		e := leaf[extentHeader+k*extentEntry:]
		le.PutUint32(e, k*128)
		le.PutUint16(e[4:], 128)
		le.PutUint32(e[8:], 100)
	}
	for k := 100; k < 228; k++ { // an entry that is not used
		le.PutUint16(image[k*blockSize+4:], blockSize)
	}
	r := &Reader{src: bytes.NewReader(image), s: s}
	if err := r.Walk(t.Context(), func(string, Info) error { return nil }); err != nil {
		t.Errorf("%v", err) // 340 times 128 blocks are still little
	}
	w := walk{call: r.call(t.Context(), 100<<20), f: func(string, Info) error { return nil }, files: 10, held: 1000, depth: 10, seen: inodeSet{}}
	if err := w.run(); !errors.Is(err, errTooMuch) {
		t.Errorf("error %v, want %v", err, errTooMuch)
	}
	// A node that names itself cannot go on.
	le.PutUint16(leaf[6:], 1)
	header(inode[offBlock:], 1, 2)
	le.PutUint32(leaf[extentHeader+4:], 10)
	le.PutUint16(leaf[extentHeader+8:], 0)
	if err := r.Walk(t.Context(), func(string, Info) error { return nil }); !errors.Is(err, errExtents) {
		t.Errorf("error %v, want %v", err, errExtents)
	}
}

// TestEncrypted marks a directory and a file as encrypted.
func TestEncrypted(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "secret/d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	path := mke2fs(t, 1<<20, "-t", "ext4", "-O", "encrypt", "-d", dir)
	for _, f := range []string{"secret", "file"} {
		tool(t, "debugfs", "-w", "-R", fmt.Sprintf("sif %s flags 0x%x", f, flagExtents|flagEncrypted), path)
	}
	all := readEncrypted(t, path)
	if want := []string{"/", "/file", "/lost+found", "/secret"}; !slices.Equal(all, want) {
		t.Errorf("%q, want %q", all, want)
	}
	r := openTest(t, path)
	if _, err := r.ReadFile("/file", 10); !errors.Is(err, errEncrypted) {
		t.Errorf("file: %v", err)
	}
	if _, err := r.Stat("/secret/d"); !errors.Is(err, errEncrypted) {
		t.Errorf("in the directory: %v", err)
	}
}

func readEncrypted(t *testing.T, path string) []string {
	t.Helper()
	var all []string
	err := openTest(t, path).Walk(t.Context(), func(path string, i Info) error {
		if i.Encrypted != (path == "/file" || path == "/secret") {
			t.Errorf("%q: encrypted %v", path, i.Encrypted)
		}
		all = append(all, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

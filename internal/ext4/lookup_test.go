package ext4

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// treeWithLinks is a tree with every kind of symbolic link that a lookup meets.
func treeWithLinks(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "usr/lib"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
	must(os.WriteFile(filepath.Join(dir, "usr/lib/os-release"), []byte("ID=debian\n"), 0o644))
	for name, target := range map[string]string{
		"etc/os-release": "../usr/lib/os-release",
		"etc/absolute":   "/usr/lib/os-release",
		"etc/outside":    "../../../../../../usr/lib/os-release",
		"etc/twice":      "absolute",
		"etc/loop":       "loop",
		"etc/ping":       "pong/x",
		"etc/pong":       "ping/x",
		"etc/dangling":   "/nothing/here",
		"etc/slash":      "../usr/lib/",
		"etc/file-slash": "../usr/lib/os-release/",
		"lib":            "usr/lib",
		"chain0":         "etc/os-release",
	} {
		must(os.Symlink(target, filepath.Join(dir, name)))
	}
	for k := range 45 {
		must(os.Symlink(fmt.Sprintf("chain%d", k), filepath.Join(dir, fmt.Sprintf("chain%d", k+1))))
	}
	return dir
}

func openTest(t testing.TB, path string) *Reader {
	t.Helper()
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestLookup(t *testing.T) {
	r := openTest(t, mke2fs(t, 1<<20, "-t", "ext4", "-d", treeWithLinks(t)))
	for path, want := range map[string]error{
		"/etc/os-release":                 nil,
		"etc/os-release":                  nil,
		"//etc/./os-release":              nil,
		"/etc/absolute":                   nil,
		"/etc/outside":                    nil,
		"/etc/twice":                      nil,
		"/lib/os-release":                 nil,
		"/lib/../lib/os-release":          nil,
		"/../../lib/os-release":           nil,
		"/etc/slash/os-release":           nil,
		"/etc/slash/../../etc":            syscall.EISDIR,
		"/chain38":                        nil,
		"/chain39":                        syscall.ELOOP, // and that of /etc
		"/etc/loop":                       syscall.ELOOP,
		"/etc/ping":                       syscall.ELOOP,
		"/etc/dangling":                   fs.ErrNotExist,
		"/etc/OS-RELEASE":                 fs.ErrNotExist,
		"":                                fs.ErrNotExist,
		"/usr/lib/os-release/":            syscall.ENOTDIR,
		"/usr/lib/os-release/.":           syscall.ENOTDIR,
		"/usr/lib/os-release/x":           syscall.ENOTDIR,
		"/etc/file-slash":                 syscall.ENOTDIR,
		"/":                               syscall.EISDIR,
		"/" + strings.Repeat("x", 300):    fs.ErrNotExist,
		"/" + strings.Repeat("../", 2000): syscall.ENAMETOOLONG,
	} {
		got, err := r.ReadFile(path, 1000)
		if !errors.Is(err, want) || want == nil && string(got) != "ID=debian\n" {
			t.Errorf("%q: %q, %v; want error %v", path, got, err, want)
		}
		var pathError *fs.PathError
		if err != nil && (!errors.As(err, &pathError) || pathError.Path != path) {
			t.Errorf("%q: error %#v is no fs.PathError", path, err)
		}
	}
	if i, err := r.Lstat("/etc/loop"); err != nil || i.Target != "loop" {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err := r.Lstat("/lib/"); err != nil || i.Mode&typeMask != typeDir {
		t.Errorf("a link with a slash behind it: %+v, %v", i, err)
	}
	if _, err := r.ReadFile("/etc/os-release", 9); err == nil || !strings.Contains(err.Error(), "10 bytes are more than 9") {
		t.Errorf("too large: %v", err)
	}
}

func TestWalkEnds(t *testing.T) {
	r := openTest(t, mke2fs(t, 1<<20, "-t", "ext4", "-d", treeWithLinks(t)))
	mine := errors.New("mine")
	count := 0
	err := r.Walk(t.Context(), func(string, Info) error {
		if count++; count == 5 {
			return mine
		}
		return nil
	})
	if !errors.Is(err, mine) || count != 5 {
		t.Errorf("after %d files: %v", count, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	err = r.Walk(ctx, func(string, Info) error {
		cancel(mine)
		return nil
	})
	if !errors.Is(err, mine) {
		t.Errorf("cancelled: %v", err)
	}
}

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

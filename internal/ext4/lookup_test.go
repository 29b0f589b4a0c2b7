package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// TestTripleIndirect reads a block that is found only through three others.
func TestTripleIndirect(t *testing.T) {
	dir := t.TempDir()
	const size = 70 << 20
	sparse(t, filepath.Join(dir, "f"), size, 0, 300<<10, size-4)
	r := openTest(t, mke2fs(t, 1<<20, "-t", "ext2", "-b", "1024", "-d", dir))
	got, err := r.ReadFile("f", size)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the content differs")
	}
}

// TestManyGoroutines uses one Reader from several goroutines.
func TestManyGoroutines(t *testing.T) {
	r := openTest(t, mke2fs(t, 1<<20, "-t", "ext4", "-d", treeWithLinks(t)))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := r.Walk(t.Context(), func(string, Info) error { return nil }); err != nil {
				t.Error(err)
			}
			if b, err := r.ReadFile("/etc/twice", 100); err != nil || len(b) != 10 {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
	wg.Wait()
}

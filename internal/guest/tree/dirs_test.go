package tree

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOpenDir: both ways to open a directory follow no link and open the same.
func TestOpenDir(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.MkdirAll(root+"/a/b/c", 0o755), os.Symlink("b", root+"/a/link"), os.Symlink("/etc", root+"/etc"), os.WriteFile(root+"/file", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	dir, err := openRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	at := int(dir.Fd())
	for name, ok := range map[string]bool{"a": true, "a/b/c": true, ".": true, "a/link": false, "a/link/c": false, "etc": false, "file": false, "file/x": false, "none": false,
		"a/none/c": false, strings.Repeat("n", 256): false} {
		for what, open := range map[string]func(int, string, int) (int, error){"openDir": openDir, "walkDir": walkDir} {
			for _, flags := range []int{unix.O_PATH, unix.O_RDONLY} {
				fd, err := open(at, name, flags)
				if ok != (err == nil) || !ok && !absent(err) {
					t.Errorf("%s %q: %v", what, name, err)
				}
				if err != nil {
					continue
				}
				var got, want unix.Stat_t
				if err := errors.Join(unix.Fstat(fd, &got), unix.Stat(root+"/"+name, &want), unix.Close(fd)); err != nil || got.Ino != want.Ino {
					t.Errorf("%s %q opens inode %d, not %d, %v", what, name, got.Ino, want.Ino, err)
				}
			}
		}
	}
}

// TestDirsAt: whatever the order of the paths and however deep they are, each is found where it is, and all is closed.
func TestDirsAt(t *testing.T) {
	root := t.TempDir()
	deep := strings.Repeat("d/", 2*maxLevels)
	var names []string
	for i := 2; i <= len(deep); i += 2 {
		names = append(names, deep[:i]+"x")
	}
	names = append(names, "a/x", "ab/x", "a/b/x", "a/x", "abc/d/x", "ab/x", "x", "a/b/x", deep+"x")
	for _, name := range names {
		if err := errors.Join(os.MkdirAll(root+"/"+strings.TrimSuffix(name, "x"), 0o755), os.WriteFile(root+"/"+name, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	dir, err := openRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	d := &dirs{root: int(dir.Fd())}
	for _, name := range names {
		at, base, err := d.at(append([]byte(name), 0))
		if err != nil || string(base) != "x\x00" {
			t.Fatalf("%q: %q, %v", name, base, err)
		}
		fd, err := openFile(at, base)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, MaxPath)
		n, err := read(fd, buf)
		if err := errors.Join(err, unix.Close(fd)); err != nil || string(buf[:n]) != name {
			t.Errorf("%q holds %q, %v", name, buf[:n], err)
		}
		if len(d.levels) > maxLevels {
			t.Errorf("%d directories are open", len(d.levels))
		}
	}
	if d.close(); len(d.levels) != 0 {
		t.Error("directories are open")
	}
}

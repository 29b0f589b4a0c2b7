package ext4

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// seen is what a file is, in a form that compares.
type seen struct {
	Mode         uint32
	UID, GID     uint32
	Size         int64
	Links        int
	Inode        uint32
	ModTime      time.Time
	Target       string
	Major, Minor uint32
	Content      string
	isDirectory  bool
}

// readAll reads a whole file system.
func readAll(t testing.TB, path string) map[string]seen {
	t.Helper()
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	all := map[string]seen{}
	last := ""
	err = r.Walk(t.Context(), func(path string, i Info) error {
		if parent, ok := all[filepath.Dir(path)]; len(all) > 0 && (!ok || !parent.isDirectory) {
			t.Errorf("%q came before its directory", path)
		}
		if walkKey(path) <= last && path != "/" {
			t.Errorf("%q came after %q", path, last)
		}
		last = walkKey(path)
		s := seen{Mode: i.Mode, UID: i.UID, GID: i.GID, Size: i.Size, Links: i.Links, Inode: i.Inode, ModTime: i.ModTime,
			Target: i.Target, Major: i.Major, Minor: i.Minor, isDirectory: i.Mode&typeMask == typeDir}
		if i.Mode&typeMask == typeRegular && i.Size > 0 {
			b, err := r.ReadFile(path, 100<<20)
			if err != nil {
				t.Error(err)
			}
			s.Content = string(b)
		}
		all[path] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// walkKey orders paths as Walk does: a directory's files follow it at once.
func walkKey(path string) string { return strings.ReplaceAll(path, "/", "\x00") }

// readTree reads a directory of the host.
func readTree(t testing.TB, dir string) map[string]seen {
	t.Helper()
	all := map[string]seen{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		sys := st.Sys().(*syscall.Stat_t)
		s := seen{Mode: sys.Mode, UID: sys.Uid, GID: sys.Gid, Size: sys.Size, Links: int(sys.Nlink), Inode: uint32(sys.Ino),
			ModTime: st.ModTime().UTC(), isDirectory: d.IsDir()}
		switch sys.Mode & typeMask {
		case typeLink:
			s.Target, err = os.Readlink(p)
		case typeRegular:
			var b []byte
			b, err = os.ReadFile(p)
			s.Content = string(b)
		case typeChar, typeBlock:
			s.Major, s.Minor = uint32(sys.Rdev>>8&0xfff), uint32(sys.Rdev&0xff|sys.Rdev>>12&0xfff00)
		}
		all["/"+strings.TrimPrefix(strings.TrimPrefix(p, dir), "/")] = s
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// assertSame compares two trees; loose leaves out what mke2fs does not take from the tree it copies.
func assertSame(t *testing.T, want, got map[string]seen, loose bool) {
	t.Helper()
	for path, w := range want {
		g, ok := got[path]
		if !ok {
			t.Errorf("%q is missing", path)
			continue
		}
		if loose {
			if w.ModTime.Unix() != g.ModTime.Unix() && path != "/" {
				t.Errorf("%q: time %v, want %v", path, g.ModTime, w.ModTime)
			}
			w.Inode, w.ModTime = g.Inode, g.ModTime
			if path == "/" {
				w.UID, w.GID = g.UID, g.GID
			}
			if w.isDirectory {
				w.Size, w.Links = g.Size, g.Links
			}
		}
		if w.Content != g.Content {
			t.Errorf("%q: content of %d bytes differs from %d bytes", path, len(g.Content), len(w.Content))
			w.Content, g.Content = "", ""
		}
		if w != g { // which is much faster than to look for a difference
			t.Errorf("%q (-want +got):\n%s", path, cmp.Diff(w, g, cmp.AllowUnexported(seen{})))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok && path != "/lost+found" {
			t.Errorf("%q is not in the tree", path)
		}
	}
}

// plant makes a tree of everything that a file system has a way of its own to store.
func plant(t testing.TB, dir string, files int) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(elem ...string) string { return filepath.Join(append([]string{dir}, elem...)...) }
	must(os.MkdirAll(at("names", "below", "deep", "deeper"), 0o755))
	for k, name := range []string{"\xff\xfe not UTF-8", "new\nline", strings.Repeat("n", 255), " ", "-rf", "ä", "a.b", "a", "a-b"} {
		must(os.WriteFile(at("names", name), fmt.Append(nil, k), 0o600))
	}
	must(os.Mkdir(at("sizes"), 0o755))
	for _, size := range []int{0, 1, 59, 60, 61, 100, 140, 160, 1023, 1024, 1025, 4096, 12<<10 + 1, 300 << 10} {
		must(os.WriteFile(at("sizes", fmt.Sprint(size)), random(size), 0o644))
	}
	sparse(t, at("sizes", "sparse"), 6<<20, 0, 100<<10, 5<<20, 6<<20-5)
	sparse(t, at("sizes", "hole"), 3<<20)
	must(os.Mkdir(at("links"), 0o755))
	for _, size := range []int{1, 58, 59, 60, 61, 150, 1000} {
		must(os.Symlink(strings.Repeat("t", size), at("links", fmt.Sprint(size))))
	}
	must(os.Link(at("sizes", "1025"), at("links", "hard")))
	must(os.Mkdir(at("few"), 0o755))
	must(os.WriteFile(at("few", "x"), nil, 0o644))
	must(os.Mkdir(at("many"), 0o755))
	for k := range files {
		must(os.WriteFile(at("many", fmt.Sprintf("a file of a longer name %d", k)), nil, 0o644))
	}
	must(os.Chmod(at("sizes", "1"), 0o7751))
	must(syscall.Mkfifo(at("fifo"), 0o640))
	if os.Getuid() == 0 {
		must(os.Chown(at("sizes", "60"), 70000, 80000))
		must(syscall.Mknod(at("null"), syscall.S_IFCHR|0o666, 1<<8|3))
		must(syscall.Mknod(at("char"), syscall.S_IFCHR|0o600, 1<<8|300&0xff|(300&^0xff)<<12))
		must(syscall.Mknod(at("block"), syscall.S_IFBLK|0o600, 259<<8|0x77|0x12300<<12))
	}
	must(os.Chtimes(at("sizes", "0"), time.Time{}, time.Unix(1e9, 0)))
}

// sparse makes a file of size bytes with a few bytes at each of the places.
func sparse(t testing.TB, path string, size int64, places ...int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, off := range places {
		if _, err := f.WriteAt([]byte("data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
}

// memoryDir is a directory in memory where the host has such: there is no waiting for a disk that others use.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ext4-test-*") //nolint:usetesting // t.TempDir may be on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// mke2fs makes a file system of size bytes.
func mke2fs(t testing.TB, size int64, args ...string) string {
	t.Helper()
	path := filepath.Join(memoryDir(t), "fs")
	sparse(t, path, size)
	tool(t, "mke2fs", slices.Concat([]string{"-q", "-F"}, args, []string{path})...)
	return path
}

// mount mounts a file system as root, or skips the test.
func mount(t *testing.T, path, options string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting takes root")
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "ext4", "-o", "loop,"+options, path, dir).CombinedOutput(); err != nil {
		t.Skipf("the kernel does not mount it: %s", out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, 0) })
	return dir
}

// remount makes a mounted file system read-only, and with that writes it out.
func remount(t *testing.T, dir string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,ro", dir).CombinedOutput(); err != nil {
		t.Fatalf("remount: %s", out)
	}
}

var flavors = []struct {
	name   string
	args   []string
	kernel bool // let the kernel write one, too
	files  int  // in a directory
}{
	{"plain", nil, true, 3000},
	{"ext2", []string{"-t", "ext2"}, true, 100},
	{"ext3 1 KiB", []string{"-t", "ext3", "-b", "1024"}, true, 100},
	{"ext4 1 KiB", []string{"-t", "ext4", "-b", "1024"}, true, 3000},
	{"ext4 2 KiB", []string{"-t", "ext4", "-b", "2048", "-I", "512"}, false, 0},
	{"ext4 64 KiB", []string{"-t", "ext4", "-b", "65536"}, false, 0},
	{"small inodes", []string{"-t", "ext4", "-I", "128", "-O", "^metadata_csum"}, true, 100},
	{"no extents", []string{"-t", "ext4", "-O", "^extent,^64bit"}, false, 0},
	{"no 64bit", []string{"-t", "ext4", "-O", "^64bit,^flex_bg"}, false, 0},
	{"no checksums", []string{"-t", "ext4", "-O", "^metadata_csum,uninit_bg"}, false, 0},
	{"no type in directories", []string{"-t", "ext4", "-O", "^filetype"}, false, 0},
	{"meta_bg", []string{"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "1024"}, false, 0},
	{"meta_bg, all superblocks", []string{"-t", "ext3", "-b", "1024", "-O", "meta_bg,^resize_inode,^sparse_super", "-g", "512"}, false, 0},
	{"sparse_super2", []string{"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,sparse_super2", "-g", "1024"}, false, 0},
	{"inline data", []string{"-t", "ext4", "-O", "inline_data"}, true, 100},
	{"inline data, large inodes", []string{"-t", "ext4", "-I", "1024", "-O", "inline_data"}, true, 100},
	{"casefold", []string{"-t", "ext4", "-O", "casefold"}, false, 0},
	{"bigalloc", []string{"-t", "ext4", "-O", "bigalloc", "-C", "16384"}, true, 100},
	{"bigalloc 1 KiB", []string{"-t", "ext4", "-b", "1024", "-O", "bigalloc,^resize_inode", "-C", "16384"}, false, 0},
	{"everything", []string{"-t", "ext4", "-O", "encrypt,verity,quota,project,ea_inode,large_dir,mmp,metadata_csum_seed,orphan_file"}, false, 0},
}

// TestReadMke2fs compares what mke2fs copied from a tree with the tree, and where the kernel mounts it, with what the
// kernel sees.
func TestReadMke2fs(t *testing.T) {
	t.Parallel()
	tree := memoryDir(t)
	if err := os.Chmod(tree, 0o755); err != nil { // as mke2fs makes the root
		t.Fatal(err)
	}
	plant(t, tree, 300)
	want := readTree(t, tree)
	for _, flavor := range flavors {
		t.Run(flavor.name, func(t *testing.T) {
			path := mke2fs(t, 48<<20, slices.Concat(flavor.args, []string{"-d", tree})...)
			got := readAll(t, path)
			assertSame(t, want, got, true)
			dir := mount(t, path, "ro")
			assertSame(t, readTree(t, dir), got, false)
		})
	}
}

// TestReadKernel compares what the kernel wrote with what it says of it.
func TestReadKernel(t *testing.T) {
	t.Parallel()
	for _, flavor := range flavors {
		if !flavor.kernel || testing.Short() && flavor.args != nil {
			continue
		}
		t.Run(flavor.name, func(t *testing.T) {
			path := mke2fs(t, 48<<20, flavor.args...)
			dir := mount(t, path, "rw")
			plant(t, dir, flavor.files)
			for k := range flavor.files / 2 {
				if err := os.Remove(filepath.Join(dir, "many", fmt.Sprintf("a file of a longer name %d", 2*k))); err != nil {
					t.Fatal(err)
				}
			}
			for name, when := range map[string]time.Time{
				"fifo":  time.Date(1923, 4, 5, 6, 7, 8, 9, time.UTC),
				"many":  time.Date(2040, 1, 1, 0, 0, 0, 999999999, time.UTC),
				"names": time.Date(2420, 1, 1, 0, 0, 0, 1, time.UTC),
			} {
				if err := os.Chtimes(filepath.Join(dir, name), time.Time{}, when); err != nil {
					t.Fatal(err)
				}
			}
			fragment(t, filepath.Join(dir, "fragments"))
			remount(t, dir)
			assertSame(t, readTree(t, dir), readAll(t, path), false)
		})
	}
}

// fragment writes a file of which every other block is a hole, some punched, and preallocates blocks that nobody writes.
func fragment(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for k := range int64(800) {
		if _, err := f.WriteAt(fmt.Appendf(nil, "block %d", k), k*8192); err != nil {
			t.Fatal(err)
		}
	}
	const keepSize, punchHole = 1, 2
	for _, step := range []struct {
		mode      uint32
		off, size int64
	}{{0, 7 << 20, 1 << 20}, {keepSize, 9 << 20, 1 << 20}, {keepSize | punchHole, 64 << 10, 64 << 10}, {0, 4096, 4096}} {
		if err := syscall.Fallocate(int(f.Fd()), step.mode, step.off, step.size); err != nil && !errors.Is(err, syscall.EOPNOTSUPP) {
			t.Fatal(err)
		}
	}
}

// TestReadFromTar reads what this package makes.
func TestReadFromTar(t *testing.T) {
	big := random(3 << 20)
	path := build(t, tarOf(t, file("etc/os-release", []byte("ID=test\n")), file("big", big), zeros("zeros", 8<<20)), Options{})
	r, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := r.ReadFile("/etc/os-release", 100)
	if err != nil || string(got) != "ID=test\n" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := r.ReadFile("big", 3<<20); err != nil || !bytes.Equal(got, big) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if i, err := r.Stat("/big"); err != nil || !i.ModTime.Equal(stamp2001) || i.Links != 1 {
		t.Errorf("%+v, %v", i, err)
	}
	if i, err := r.Stat("/zeros"); err != nil || i.Size != 8<<20 {
		t.Errorf("%+v, %v", i, err)
	}
	if err := Check(path); err != nil {
		t.Error(err)
	}
}

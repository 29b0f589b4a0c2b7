package hostfiles_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
	"git.thaloco.com/thaloco/banger/internal/hostfiles"
)

// stream is a tar stream of headers; a regular file's content is its Size in x.
func stream(t testing.TB, hs ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		h.Uid, h.Gid = 4321, 4321
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func entry(typ byte, name, link string, size int64) tar.Header {
	return tar.Header{Name: name, Linkname: link, Typeflag: typ, Size: size}
}

func dir(name string) tar.Header           { return entry(tar.TypeDir, name, "", 0) }
func file(name string) tar.Header          { return entry(tar.TypeReg, name, "", 3) }
func link(name, to string) tar.Header      { return entry(tar.TypeSymlink, name, to, 0) }
func hard(name, to string) tar.Header      { return entry(tar.TypeLink, name, to, 0) }
func device(typ byte, n string) tar.Header { return entry(typ, n, "", 0) }

// world is a directory with a target in it, a link out of the target, and files that must stay.
func world(t testing.TB) (top, target string) {
	t.Helper()
	top = t.TempDir()
	target = filepath.Join(top, "target")
	for _, err := range []error{
		os.Mkdir(target, 0o755), os.Mkdir(filepath.Join(top, "outside"), 0o755), os.Mkdir(filepath.Join(target, "mine"), 0o711),
		os.WriteFile(filepath.Join(top, "victim"), []byte("v"), 0o600),
		os.WriteFile(filepath.Join(target, "mine", "kept"), []byte("k"), 0o600),
		os.WriteFile(filepath.Join(target, "own"), []byte("o"), 0o600),
		os.Symlink("../outside", filepath.Join(target, "out")), os.Symlink("../victim", filepath.Join(target, "tovictim")),
		os.Symlink("mine", filepath.Join(target, "inside")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return top, target
}

// check fails where anything outside of the target changed, or the target holds what no copy may bring.
func check(t testing.TB, top, target string) {
	t.Helper()
	if left, err := os.ReadDir(top); err != nil || len(left) != 3 {
		t.Errorf("outside: %v, %v", left, err)
	}
	if left, err := os.ReadDir(filepath.Join(top, "outside")); err != nil || len(left) != 0 {
		t.Errorf("written through a link: %v, %v", left, err)
	}
	for name, want := range map[string]string{filepath.Join(top, "victim"): "v", filepath.Join(target, "mine", "kept"): "k"} {
		if b, err := os.ReadFile(name); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if st, err := os.Stat(filepath.Join(target, "mine")); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("a directory that was there changed: %v, %v", st.Mode(), err)
	}
	err := filepath.WalkDir(target, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if k := st.Mode().Type(); k != 0 && k != fs.ModeDir && k != fs.ModeSymlink || st.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky) != 0 {
			t.Errorf("%s: %v", p, st.Mode())
		}
		if sys := st.Sys().(*syscall.Stat_t); int(sys.Uid) != os.Getuid() {
			t.Errorf("%s belongs to %d", p, sys.Uid)
		}
		if strings.Contains(p, ".banger-cp-") {
			t.Errorf("left behind: %s", p)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// TestHostileStreams: whatever a guest sends, nothing outside of the target changes, nothing in it that was there goes away
// but files of the same name, and what is refused is said.
func TestHostileStreams(t *testing.T) {
	long := strings.Repeat("d/", 2100)
	for _, tc := range []struct {
		name string
		in   []tar.Header
		bad  string // in the error; empty for none
		left string // there afterwards, in the target
	}{
		{"parent", []tar.Header{dir("s"), file("s/../../evil")}, "leads out", "s"},
		{"parent first", []tar.Header{file("../evil")}, "leads out", ""},
		{"absolute", []tar.Header{dir("s"), file("/s/evil")}, "absolute", "s"},
		{"absolute first", []tar.Header{file("/evil")}, "absolute", ""},
		{"another top", []tar.Header{dir("s"), file("mine/evil")}, "something else", "s"},
		{"a top that begins alike", []tar.Header{dir("s"), file("sevil")}, "something else", "s"},
		{"deep first", []tar.Header{file("s/evil")}, "something else", ""},
		{"dot first", []tar.Header{dir("./"), file("evil")}, "something else", ""},
		{"top twice, as a link", []tar.Header{dir("s"), link("s", "..")}, "a directory is there", "s"},
		{"top twice, as a file", []tar.Header{dir("s"), file("s")}, "a directory is there", "s"},
		{"through a link of its own", []tar.Header{dir("s"), link("s/l", ".."), file("s/l/evil")}, "link is in the way", "s/l"},
		{"through an absolute link", []tar.Header{dir("s"), link("s/l", "/tmp"), file("s/l/evil")}, "link is in the way", "s/l"},
		{"through a link within", []tar.Header{dir("s"), dir("s/d"), link("s/l", "d"), file("s/l/evil")}, "link is in the way", "s/l"},
		{"through two links", []tar.Header{dir("s"), link("s/a", "."), link("s/a/b", ".."), file("s/b/evil")}, "link is in the way", "s/a"},
		{"a directory through a link", []tar.Header{dir("s"), link("s/l", ".."), dir("s/l/evil")}, "link is in the way", "s/l"},
		{"a directory over a link", []tar.Header{dir("s"), link("s/l", ".."), dir("s/l")}, "link is in the way", "s/l"},
		{"a link instead of a directory in use", []tar.Header{dir("s"), dir("s/d"), file("s/d/a"), link("s/d", "../.."), file("s/d/evil")}, "a directory is there", "s/d/a"},
		{"hard link up", []tar.Header{dir("s"), hard("s/h", "../victim")}, "leads out", "s"},
		{"hard link to what was there", []tar.Header{dir("s"), hard("s/h", "own")}, "something else", "s"},
		{"hard link absolute", []tar.Header{dir("s"), hard("s/h", "/etc/passwd")}, "absolute", "s"},
		{"hard link through a link", []tar.Header{dir("s"), link("s/l", "../.."), hard("s/h", "s/l/victim")}, "link is in the way", "s/l"},
		{"hard link to a link", []tar.Header{dir("s"), link("s/l", "../../victim"), hard("s/h", "s/l")}, "not copied", "s/l"},
		{"hard link to a directory", []tar.Header{dir("s"), dir("s/d"), hard("s/h", "s/d")}, "not copied", "s/d"},
		{"hard link of its own", []tar.Header{dir("s"), file("s/a"), hard("s/h", "s/a")}, "", "s/h"},
		{"hard link to itself", []tar.Header{dir("s"), file("s/a"), hard("s/a", "s/a")}, "", "s/a"},
		{"hard link over the same file", []tar.Header{dir("s"), file("s/a"), hard("s/h", "s/a"), hard("s/h", "s/a")}, "", "s/h"},
		{"hard link over a directory", []tar.Header{dir("s"), file("s/a"), dir("s/d"), hard("s/d", "s/a")}, "a directory is there", "s/d"},
		{"the same file three times", []tar.Header{dir("s"), file("s/a"), file("s/a"), file("s/a")}, "", "s/a"},
		{"no parent", []tar.Header{dir("s"), file("s/deep/er/a")}, "did not come before", "s"},
		{"a file as parent", []tar.Header{dir("s"), file("s/a"), file("s/a/b")}, "not a directory", "s/a"},
		{"a directory over a file", []tar.Header{dir("s"), file("s/a"), dir("s/a")}, "a file is there", "s/a"},
		{"devices", []tar.Header{dir("s"), device(tar.TypeChar, "s/c"), device(tar.TypeBlock, "s/b"), device(tar.TypeFifo, "s/p"), file("s/a")}, "", "s/a"},
		{"a device alone", []tar.Header{device(tar.TypeChar, "s")}, "", ""},
		{"setuid", []tar.Header{{Name: "s", Typeflag: tar.TypeDir, Mode: 0o7777}, {Name: "s/su", Typeflag: tar.TypeReg, Mode: 0o7755, Size: 1}}, "", "s/su"},
		{"a name that is too long", []tar.Header{dir("d"), dir(long)}, "too long", "d"},
		{"a file for a name that is a link", []tar.Header{file("s")}, "", "s"},
		{"nothing", nil, "nothing came", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			top, target := world(t)
			res, err := hostfiles.Receive(t.Context(), bytes.NewReader(stream(t, tc.in...)), files.Target{Path: target}, nil)
			if tc.bad == "" && err != nil || tc.bad != "" && (err == nil || !strings.Contains(err.Error(), tc.bad)) {
				t.Errorf("error %v, want %q", err, tc.bad)
			}
			if _, err := os.Lstat(filepath.Join(target, tc.left)); err != nil {
				t.Error(err)
			}
			if tc.name == "devices" && len(res.Skipped) != 3 {
				t.Errorf("said %q", res.Skipped)
			}
			check(t, top, target)
		})
	}
}

// TestOverWhatIsThere: the names in the target that lead elsewhere, as names of the copy.
func TestOverWhatIsThere(t *testing.T) {
	for _, tc := range []struct {
		name string
		in   []tar.Header
		bad  string
	}{
		{"a file over a link to a file", []tar.Header{file("tovictim")}, ""},
		{"a file over a link to a directory", []tar.Header{file("out")}, ""},
		{"a directory over a link to a directory", []tar.Header{dir("out"), file("out/evil")}, "link is in the way"},
		{"a directory over a link within", []tar.Header{dir("inside"), file("inside/kept")}, "link is in the way"},
		{"a file over a directory", []tar.Header{file("mine")}, "a directory is there"},
		{"a directory over a file", []tar.Header{dir("own")}, "a file is there"},
		{"a directory over its like", []tar.Header{dir("mine"), file("mine/new")}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			top, target := world(t)
			_, err := hostfiles.Receive(t.Context(), bytes.NewReader(stream(t, tc.in...)), files.Target{Path: target}, nil)
			if tc.bad == "" && err != nil || tc.bad != "" && (err == nil || !strings.Contains(err.Error(), tc.bad)) {
				t.Errorf("error %v, want %q", err, tc.bad)
			}
			check(t, top, target)
		})
	}
}

// TestName: the copy's name is what the user asked for, not what the guest says.
func TestName(t *testing.T) {
	top, target := world(t)
	if _, err := hostfiles.Receive(t.Context(), bytes.NewReader(stream(t, file("own"))), files.Target{Path: target, Name: "asked"}, nil); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "own")); err != nil || string(b) != "o" {
		t.Errorf("%q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "asked")); err != nil || string(b) != "xxx" {
		t.Errorf("%q, %v", b, err)
	}
	check(t, top, target)
}

// TestSpecialTargets: what is no file is not replaced by one.
func TestSpecialTargets(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	stdout := filepath.Join(t.TempDir(), "stdout") // as /dev/stdout is
	if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", w.Fd()), stdout); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, filepath.Dir(pipe), link, stdout} {
		_, err := hostfiles.Receive(t.Context(), bytes.NewReader(stream(t, file("pipe"))), files.Target{Path: path}, nil)
		if api.KindOf(err) != api.KindInvalid {
			t.Errorf("%s: %v", path, err)
		}
	}
	if to, err := os.Readlink(link); err != nil || to != "/dev/null" {
		t.Errorf("%q, %v", to, err)
	}
	if st, err := os.Lstat(pipe); err != nil || st.Mode().Type() != fs.ModeNamedPipe {
		t.Errorf("%v, %v", st, err)
	}
}

// failing reads and then fails.
type failing struct {
	r   io.Reader
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = f.err
	}
	return n, err
}

// TestCut: wherever a stream is cut, that is an error, a file is whole or as it was, and nothing else is left.
func TestCut(t *testing.T) {
	whole := stream(t, dir("s"), entry(tar.TypeReg, "s/a", "", 5000), entry(tar.TypeReg, "s/b", "", 600_000), dir("s/d"))
	for n := 0; n < len(whole); n += 512 {
		if n > 8192 && n < len(whole)-60*512 {
			n += 50 * 512
		}
		top, target := world(t)
		if err := os.Mkdir(filepath.Join(target, "s"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(target, "s", "b"), []byte("before"), 0o600); err != nil {
			t.Fatal(err)
		}
		cause := errors.New("cut")
		in := io.Reader(bytes.NewReader(whole[:n]))
		if n%1024 == 0 {
			in = &failing{in, cause}
		}
		_, err := hostfiles.Receive(t.Context(), in, files.Target{Path: target}, nil)
		if err == nil || n%1024 == 0 && !errors.Is(err, cause) {
			t.Errorf("cut at %d of %d: %v", n, len(whole), err)
		}
		left, _ := os.ReadDir(filepath.Join(target, "s"))
		for _, e := range left {
			st, err := e.Info()
			want := map[string][]int64{"a": {5000}, "b": {6, 600_000}}[e.Name()]
			if err != nil || !e.IsDir() && st.Size() != want[0] && st.Size() != want[len(want)-1] {
				t.Errorf("cut at %d: %s has %d bytes, %v", n, e.Name(), st.Size(), err)
			}
		}
		check(t, top, target)
	}
}

func TestCancel(t *testing.T) {
	top, target := world(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	in := stream(t, entry(tar.TypeReg, "own", "", 3<<20))
	_, err := hostfiles.Receive(ctx, bytes.NewReader(in), files.Target{Path: target}, func(int64) { cancel(why) })
	if !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(target, "own")); err != nil || string(b) != "o" {
		t.Errorf("%q, %v", b, err)
	}
	check(t, top, target)
}

// TestFullDisk: a file system with no room keeps what it has.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can mount a small disk")
	}
	disk := t.TempDir()
	if err := unix.Mount("cp", disk, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("no mounts here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, 0) })
	if err := os.WriteFile(filepath.Join(disk, "a"), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := hostfiles.Receive(t.Context(), bytes.NewReader(stream(t, entry(tar.TypeReg, "a", "", 8<<20))), files.Target{Path: disk}, nil)
	if api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "the host's disk is full") || !strings.Contains(err.Error(), filepath.Join(disk, "a")) {
		t.Errorf("error %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(disk, "a")); err != nil || string(b) != "before" {
		t.Errorf("%q, %v", b, err)
	}
	if left, err := os.ReadDir(disk); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
	// Zeros are holes, and take no room.
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: "sparse", Size: 8 << 20, Mode: 0o600}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 8<<20)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := hostfiles.Receive(t.Context(), &b, files.Target{Path: disk}, nil); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(disk, "sparse")); err != nil || st.Size() != 8<<20 || st.Sys().(*syscall.Stat_t).Blocks > 1024 {
		t.Errorf("%v, %v", st, err)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add(stream(f, dir("s"), file("s/a"), hard("s/h", "s/a"), link("s/l", "../..")))
	f.Add(stream(f, dir("s"), link("s/l", ".."), file("s/l/evil")))
	f.Add(stream(f, dir("mine"), file("mine/new"), device(tar.TypeFifo, "mine/p")))
	f.Add(stream(f, file("own")))
	f.Add(stream(f, dir("out"), file("out/x")))
	f.Add(bytes.Replace(stream(f, dir("s"), file("s/a")), []byte("s/a"), []byte("s\x00a"), 1))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, contents := range []bool{false, true} {
			top, target := world(t)
			_, _ = hostfiles.Receive(t.Context(), bytes.NewReader(in), files.Target{Path: target, Contents: contents}, nil)
			// The stream may name it; it may be replaced, not removed.
			kept := filepath.Join(target, "mine", "kept")
			if err := os.Remove(kept); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(kept, []byte("k"), 0o600); err != nil {
				t.Fatal(err)
			}
			check(t, top, target)
		}
	})
}

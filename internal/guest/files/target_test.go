package files_test

import (
	"archive/tar"
	"bytes"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
)

// TestReceive: where a copy goes, as the manual of docker cp has it.
func TestReceive(t *testing.T) {
	file := []tar.Header{{Name: "f", Size: 1}}
	dir := []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o750}, {Name: "d/in", Size: 1}}
	for _, tc := range []struct {
		name, path string
		target     files.Target
		in         []tar.Header
		made       []string // of what was not there
		kind       api.ErrorKind
		bad        string
	}{
		{name: "file as a name", path: "new", in: file, made: []string{"new"}},
		{name: "file as a directory that is not there", path: "new/", in: file, kind: api.KindNotFound, bad: "no directory"},
		{name: "file over a file", path: "there", in: file},
		{name: "file into a directory", path: "sub", in: file, made: []string{"sub/f"}},
		{name: "file into a directory, said so", path: "sub/", in: file, made: []string{"sub/f"}},
		{name: "file into a directory by a link", path: "link", in: file, made: []string{"sub/f"}},
		{name: "file over a dangling link", path: "dangling", in: file},
		{name: "file as a directory that is a file", path: "there/", in: file, kind: api.KindInvalid, bad: "is not a directory"},
		{name: "file below a file", path: "there/x", in: file, kind: api.KindInvalid, bad: "is not a directory"},
		{name: "file below nothing", path: "no/x", in: file, kind: api.KindNotFound, bad: `no"`},
		{name: "directory as a name", path: "new", in: dir, made: []string{"new", "new/in"}},
		{name: "directory as a name, said so", path: "new/", in: dir, made: []string{"new", "new/in"}},
		{name: "directory into a directory", path: "sub", in: dir, made: []string{"sub/d", "sub/d/in"}},
		{name: "directory over a file", path: "there", in: dir, kind: api.KindInvalid, bad: "there is a file"},
		{name: "directory over a dangling link", path: "dangling", in: dir, kind: api.KindInvalid, bad: "there is a file"},
		{name: "contents as a name", path: "new", target: files.Target{Contents: true}, in: dir, made: []string{"new", "new/in"}},
		{name: "contents into a directory", path: "sub", target: files.Target{Contents: true}, in: dir, made: []string{"sub/in"}},
		{name: "contents of a file", path: "sub", target: files.Target{Contents: true}, in: file, kind: api.KindInvalid, bad: "is not a directory"},
		{name: "one of several into a directory", path: "sub", target: files.Target{Into: true}, in: file, made: []string{"sub/f"}},
		{name: "one of several as a name", path: "new", target: files.Target{Into: true}, in: file, kind: api.KindNotFound, bad: "no directory"},
		{name: "one of several over a file", path: "there", target: files.Target{Into: true}, in: file, kind: api.KindInvalid, bad: "is not a directory"},
		{name: "under another name", path: "sub", target: files.Target{Name: "other"}, in: dir, made: []string{"sub/other", "sub/other/in"}},
		{name: "stream", path: "sub", target: files.Target{Stream: true}, in: append(slices.Clone(dir), file...), made: []string{"sub/d", "sub/d/in", "sub/f"}},
		{name: "stream without directories", path: "sub", target: files.Target{Stream: true}, in: dir[1:], made: []string{"sub/d", "sub/d/in"}},
		{name: "stream of nothing", path: "sub", target: files.Target{Stream: true}},
		{name: "stream as a name", path: "new", target: files.Target{Stream: true}, in: file, kind: api.KindNotFound, bad: "no directory"},
		{name: "stream over a file", path: "there", target: files.Target{Stream: true}, in: file, kind: api.KindInvalid, bad: "is not a directory"},
		{name: "through a link within", path: "sub", target: files.Target{Stream: true}, in: []tar.Header{{Name: "lib/", Typeflag: tar.TypeDir, Mode: 0o700}, {Name: "lib/x", Size: 1}}, made: []string{"sub/usr/x"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			top := t.TempDir()
			for _, name := range []string{"sub", "sub/usr"} {
				if err := os.Mkdir(filepath.Join(top, name), 0o711); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(top, "there"), []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			for name, to := range map[string]string{"link": "sub", "dangling": "nowhere", "sub/lib": "usr"} {
				if err := os.Symlink(to, filepath.Join(top, name)); err != nil {
					t.Fatal(err)
				}
			}
			before := tree(t, top)
			tc.target.Path = top + "/" + tc.path
			_, err := files.Receive(t.Context(), stream(t, tc.in...), tc.target, files.Options{Merge: true, Own: true})
			if tc.bad != "" {
				if api.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.bad) {
					t.Errorf("%s error %v, want %s %q", api.KindOf(err), err, tc.kind, tc.bad)
				}
			} else if err != nil {
				t.Error(err)
			}
			after := tree(t, top)
			var made []string
			for _, name := range slices.Sorted(maps.Keys(after)) {
				if _, ok := before[name]; !ok {
					made = append(made, name)
				}
			}
			if diff := cmp.Diff(tc.made, made); diff != "" {
				t.Error(diff)
			}
			if st, err := os.Stat(filepath.Join(top, "sub")); err != nil || st.Mode().Perm() != 0o711 {
				t.Errorf("a directory that was there changed: %v, %v", st.Mode(), err)
			}
		})
	}
}

// TestOwner: what comes gets the owner that is asked for.
func TestOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	top := t.TempDir()
	in := stream(t, tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "d/f", Size: 1, Mode: 0o4755},
		tar.Header{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "f"})
	_, err := files.Receive(t.Context(), in, files.Target{Path: top}, files.Options{Merge: true, Own: true, Owner: &files.Owner{UID: 1234, GID: 4321}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"d", "d/f", "d/l"} {
		st, err := os.Lstat(filepath.Join(top, name))
		if err != nil {
			t.Fatal(err)
		}
		if sys := st.Sys().(*syscall.Stat_t); sys.Uid != 1234 || sys.Gid != 4321 || st.Mode()&fs.ModeSetuid != 0 {
			t.Errorf("%s: %v of %d:%d", name, st.Mode(), sys.Uid, sys.Gid)
		}
	}
}

// TestWholeOrNot: the other names of a file that is replaced keep the old one.
func TestWholeOrNot(t *testing.T) {
	top := t.TempDir()
	if err := os.WriteFile(filepath.Join(top, "f"), []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(top, "f"), filepath.Join(top, "g")); err != nil {
		t.Fatal(err)
	}
	if _, err := files.Receive(t.Context(), stream(t, tar.Header{Name: "f", Size: 2}), files.Target{Path: top}, files.Options{Merge: true}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"f": "xx", "g": "before"} {
		if b, err := os.ReadFile(filepath.Join(top, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if left, err := os.ReadDir(top); err != nil || len(left) != 2 {
		t.Errorf("%v, %v", left, err)
	}
}

// TestPackTop: what a path means, by how it is written.
func TestPackTop(t *testing.T) {
	top := t.TempDir()
	if err := os.MkdirAll(filepath.Join(top, "d", "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(top, "f"), []byte("123"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"ld": "d", "lf": "f", "dangling": "none"} {
		if err := os.Symlink(to, filepath.Join(top, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(top, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path  string
		opt   files.PackOptions
		names []string
		bytes int64
		bad   string
	}{
		{path: "f", names: []string{"f"}, bytes: 3},
		{path: "f", opt: files.PackOptions{Name: "n"}, names: []string{"n"}, bytes: 3},
		{path: "d", names: []string{"d/", "d/sub/"}},
		{path: "d/.", names: []string{"d/", "d/sub/"}},
		{path: "d/", opt: files.PackOptions{Name: "n"}, names: []string{"n/", "n/sub/"}},
		{path: "d/sub/..", names: []string{"d/", "d/sub/"}},
		{path: "ld", names: []string{"ld"}},
		{path: "ld/", names: []string{"ld/", "ld/sub/"}},
		{path: "ld", opt: files.PackOptions{Follow: true}, names: []string{"ld/", "ld/sub/"}},
		{path: "lf", names: []string{"lf"}},
		{path: "lf", opt: files.PackOptions{Follow: true}, names: []string{"lf"}, bytes: 3},
		{path: "dangling", names: []string{"dangling"}},
		{path: "dangling", opt: files.PackOptions{Follow: true}, bad: "no such file"},
		{path: "f/", bad: "not a directory"},
		{path: "pipe", bad: "neither file"},
		{path: "none", bad: "no such file"},
	} {
		var b bytes.Buffer
		var seen int64
		tc.opt.Progress = func(n int64) { seen += n }
		path := top + "/" + tc.path
		_, err := files.Pack(t.Context(), &b, path, tc.opt)
		if tc.bad != "" {
			if err == nil || !strings.Contains(err.Error(), tc.bad) || !strings.Contains(err.Error(), strings.TrimSuffix(tc.path, "/")) {
				t.Errorf("%s: error %v, want %q", tc.path, err, tc.bad)
			}
			continue
		}
		var names []string
		tr := tar.NewReader(&b)
		for h, err := tr.Next(); err == nil; h, err = tr.Next() {
			names = append(names, h.Name)
		}
		if diff := cmp.Diff(tc.names, names); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", tc.path, err, diff)
		}
		if n := files.Measure(t.Context(), path, tc.opt.Follow); seen != tc.bytes || n != tc.bytes {
			t.Errorf("%s: %d bytes, measured %d, want %d", tc.path, seen, n, tc.bytes)
		}
	}
}

// TestPackProc: files whose sizes say nothing are copied as they read.
func TestPackProc(t *testing.T) {
	var b bytes.Buffer
	if _, err := files.Pack(t.Context(), &b, "/proc/self/limits", files.PackOptions{}); err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile("/proc/self/limits")
	if err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "limits")
	if _, err := files.Receive(t.Context(), &b, files.Target{Path: to}, files.Options{Merge: true, Strict: true}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

package files_test

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
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/files"
)

// tree describes what is in a directory, a line each.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		st, err := os.Lstat(p)
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%v %d", st.Mode(), st.ModTime().Unix())
		switch {
		case st.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %q", b)
		case st.Mode().Type() == fs.ModeSymlink:
			to, _ := os.Readlink(p)
			line = "-> " + to
		}
		out[name] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// stream is a tar stream of headers; a regular file's content is its Size in x.
func stream(t testing.TB, hs ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range hs {
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		h.Uid, h.Gid = os.Getuid(), os.Getgid()
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
	return &b
}

func TestRoundTrip(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	old := time.Unix(1_000_000_000, 0)
	mk := func(name, content string, mode fs.FileMode) {
		p := filepath.Join(src, "tree", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Chmod(p, mode), os.Chtimes(p, old, old)); err != nil {
			t.Fatal(err)
		}
	}
	mk("a", "hello", 0o644)
	mk("deep/er/run.sh", "#!/bin/sh\n", 0o755)
	mk("deep/secret", "s", 0o600)
	mk("open", "o", 0o666)
	mk("readonly/file", "r", 0o444)
	mk("big", strings.Repeat("0123456789", 100_000), 0o644)
	mk("name with \n and ünïcödé", "n", 0o644)
	mk(strings.Repeat("long/", 60)+"end", "l", 0o644)
	for name, to := range map[string]string{"rel": "deep/er", "dangling": "no/such", "abs": "/etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(src, "tree", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(filepath.Join(src, "tree/readonly"), 0o555), os.Chtimes(filepath.Join(src, "tree/deep"), old, old)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Chmod(filepath.Join(src, "tree/readonly"), 0o755)
		_ = os.Chmod(filepath.Join(dst, "tree/readonly"), 0o755)
	})
	var b bytes.Buffer
	packed, err := files.Pack(t.Context(), &b, filepath.Join(src, "tree"), files.PackOptions{})
	if err != nil {
		t.Fatal(err)
	}
	again := bytes.NewReader(b.Bytes())
	unpacked, err := files.Unpack(t.Context(), dst, &b, files.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(packed, unpacked); diff != "" {
		t.Error(diff)
	}
	want := tree(t, filepath.Join(src, "tree"))
	if diff := cmp.Diff(want, tree(t, filepath.Join(dst, "tree"))); diff != "" {
		t.Error(diff)
	}
	// Over what is there already, the same comes out; root alone may write into a read-only directory.
	if os.Getuid() == 0 {
		if _, err := files.Unpack(t.Context(), dst, again, files.Options{}); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, tree(t, filepath.Join(dst, "tree"))); diff != "" {
			t.Error(diff)
		}
	}
}

func TestReplaceKinds(t *testing.T) {
	dst := t.TempDir()
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	first := stream(t, tar.Header{Name: "file", Size: 1}, tar.Header{Name: "dir/sub/x", Size: 1}, tar.Header{Name: "other", Size: 2},
		tar.Header{Name: "link", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "empty/", Typeflag: tar.TypeDir, Mode: 0o700})
	if _, err := files.Unpack(t.Context(), dst, first, files.Options{}); err != nil {
		t.Fatal(err)
	}
	second := stream(t, tar.Header{Name: "file/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "file/in", Size: 1},
		tar.Header{Name: "dir/sub/y", Size: 1}, tar.Header{Name: "dir", Size: 3}, tar.Header{Name: "link", Size: 4},
		tar.Header{Name: "empty/z", Size: 1}, tar.Header{Name: "empty", Typeflag: tar.TypeSymlink, Linkname: "file"}, tar.Header{Name: "empty/through", Size: 1})
	if _, err := files.Unpack(t.Context(), dst, second, files.Options{}); err != nil {
		t.Fatal(err)
	}
	got := tree(t, dst)
	var names []string
	for _, n := range []string{"file/in", "file/through", "dir", "link", "other", "empty", "dir/sub"} {
		if got[n] != "" {
			names = append(names, n)
		}
	}
	if diff := cmp.Diff([]string{"file/in", "file/through", "dir", "link", "other", "empty"}, names); diff != "" {
		t.Error(diff)
	}
	if b, _ := os.ReadFile(outside); string(b) != "keep" {
		t.Errorf("written through a link: %q", b)
	}
}

// TestHostileStreams: nothing is written outside, and limits hold.
func TestHostileStreams(t *testing.T) {
	up := func(typ byte, name, link string, size int64) tar.Header {
		return tar.Header{Name: name, Linkname: link, Typeflag: typ, Size: size}
	}
	for _, tc := range []struct {
		name string
		opt  files.Options
		in   []tar.Header
		bad  string // in the error; empty for none
	}{
		{"parent", files.Options{}, []tar.Header{up(tar.TypeReg, "../evil", "", 1)}, "leads out"},
		{"inner parent", files.Options{}, []tar.Header{up(tar.TypeReg, "a/../../evil", "", 1)}, "leads out"},
		{"absolute", files.Options{}, []tar.Header{up(tar.TypeReg, "/evil", "", 1)}, ""},
		{"link up", files.Options{}, []tar.Header{up(tar.TypeSymlink, "l", "..", 0), up(tar.TypeReg, "l/evil", "", 1)}, "escapes"},
		{"link abs", files.Options{}, []tar.Header{up(tar.TypeSymlink, "l", "/tmp", 0), up(tar.TypeReg, "l/evil", "", 1)}, "escapes"},
		{"two links", files.Options{}, []tar.Header{up(tar.TypeSymlink, "a", ".", 0), up(tar.TypeSymlink, "a/b", "..", 0), up(tar.TypeReg, "b/evil", "", 1)}, "escapes"},
		{"dir through link", files.Options{}, []tar.Header{up(tar.TypeSymlink, "l", "..", 0), up(tar.TypeDir, "l/evil/", "", 0)}, "escapes"},
		{"hard link up", files.Options{}, []tar.Header{up(tar.TypeLink, "l", "../victim", 0)}, "leads out"},
		{"hard link through link", files.Options{}, []tar.Header{up(tar.TypeSymlink, "s", "..", 0), up(tar.TypeLink, "l", "s/victim", 0)}, "escapes"},
		{"root as file", files.Options{}, []tar.Header{up(tar.TypeSymlink, ".", "/tmp", 0)}, "cannot be replaced"},
		{"device", files.Options{}, []tar.Header{up(tar.TypeChar, "null", "", 0), up(tar.TypeFifo, "pipe", "", 0)}, ""},
		{"bytes", files.Options{MaxBytes: 10}, []tar.Header{up(tar.TypeReg, "a", "", 6), up(tar.TypeReg, "b", "", 6)}, "more than 10 bytes"},
		{"entries", files.Options{MaxEntries: 2}, []tar.Header{up(tar.TypeReg, "a", "", 0), up(tar.TypeReg, "b", "", 0), up(tar.TypeReg, "c", "", 0)}, "more than 2 entries"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "victim"), []byte("v"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := files.Unpack(t.Context(), filepath.Join(dir, "in"), stream(t, tc.in...), tc.opt)
			if tc.bad == "" && err != nil || tc.bad != "" && (err == nil || !strings.Contains(err.Error(), tc.bad)) {
				t.Errorf("error %v, want %q", err, tc.bad)
			}
			left, _ := os.ReadDir(dir)
			if len(left) != 2 {
				t.Errorf("outside: %v", left)
			}
			for name, line := range tree(t, filepath.Join(dir, "in")) {
				if strings.HasPrefix(line, "D") || strings.HasPrefix(line, "p") {
					t.Errorf("%s: %s", name, line)
				}
			}
		})
	}
}

func TestSetuid(t *testing.T) {
	for _, special := range []bool{false, true} {
		dir := t.TempDir()
		if _, err := files.Unpack(t.Context(), dir, stream(t, tar.Header{Name: "su", Mode: 0o4755}), files.Options{Special: special}); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(filepath.Join(dir, "su"))
		if err != nil || st.Mode()&fs.ModeSetuid != 0 != special {
			t.Errorf("special %v: %v, %v", special, st.Mode(), err)
		}
	}
}

func TestCutStreamAndCancel(t *testing.T) {
	whole := stream(t, tar.Header{Name: "a", Size: 5000}, tar.Header{Name: "b", Size: 5000}).Bytes()
	for _, n := range []int{100, 700, 5000, 7000} {
		if _, err := files.Unpack(t.Context(), t.TempDir(), bytes.NewReader(whole[:n]), files.Options{}); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut at %d: %v", n, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := files.Unpack(ctx, t.TempDir(), bytes.NewReader(whole), files.Options{}); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := files.Pack(ctx, io.Discard, t.TempDir(), files.PackOptions{}); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := files.Pack(t.Context(), io.Discard, filepath.Join(t.TempDir(), "none"), files.PackOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
}

func TestOwners(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can give files away")
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d/f", Mode: 0o644}, {Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "f"}} {
		h.Uid, h.Gid = 1234, 4321
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	_ = w.Close()
	dir := t.TempDir()
	if _, err := files.Unpack(t.Context(), dir, &b, files.Options{}); err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if _, err := files.Pack(t.Context(), &again, filepath.Join(dir, "d"), files.PackOptions{}); err != nil {
		t.Fatal(err)
	}
	tr, n := tar.NewReader(&again), 0
	for h, err := tr.Next(); err == nil; h, err = tr.Next() {
		if n++; h.Uid != 1234 || h.Gid != 4321 {
			t.Errorf("%s belongs to %d:%d", h.Name, h.Uid, h.Gid)
		}
	}
	if n != 3 {
		t.Errorf("%d entries", n)
	}
}

func FuzzUnpack(f *testing.F) {
	f.Add(stream(f, tar.Header{Name: "a/b", Size: 3}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}).Bytes())
	f.Add(stream(f, tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "d"}).Bytes())
	f.Fuzz(func(t *testing.T, in []byte) {
		dir := t.TempDir()
		inside := filepath.Join(dir, "x", "in")
		_, _ = files.Unpack(t.Context(), inside, bytes.NewReader(in), files.Options{MaxBytes: 1 << 20, MaxEntries: 100, Own: true})
		for _, d := range []string{dir, filepath.Join(dir, "x")} {
			if left, err := os.ReadDir(d); err != nil || len(left) != 1 {
				t.Fatalf("outside: %v, %v", left, err)
			}
		}
	})
}

func BenchmarkUnpack(b *testing.B) {
	var hs []tar.Header
	for d := range 100 {
		hs = append(hs, tar.Header{Name: fmt.Sprintf("src/dir%d/", d), Typeflag: tar.TypeDir, Mode: 0o755})
		for i := range 100 {
			hs = append(hs, tar.Header{Name: fmt.Sprintf("src/dir%d/file%d", d, i), Size: 1000})
		}
	}
	in := stream(b, hs...).Bytes()
	for b.Loop() {
		if _, err := files.Unpack(b.Context(), b.TempDir(), bytes.NewReader(in), files.Options{}); err != nil {
			b.Fatal(err)
		}
	}
}

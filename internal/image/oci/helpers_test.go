package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/ext4"
)

// stamp is the time of every entry that has none of its own.
var stamp = time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)

type entry struct {
	tar.Header
	body string
}

func file(name, body string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

func dir(name string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755}}
}

func symlink(name, to string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to, Mode: 0o777}}
}

func hard(name, to string) entry {
	return entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to, Mode: 0o644}}
}

func device(name string, typ byte, major, minor int64) entry {
	return entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

// with changes an entry.
func (e entry) with(f func(h *tar.Header)) entry {
	f(&e.Header)
	return e
}

func (e entry) owned(uid, gid int) entry {
	return e.with(func(h *tar.Header) { h.Uid, h.Gid = uid, gid })
}

func (e entry) mode(m int64) entry { return e.with(func(h *tar.Header) { h.Mode = m }) }

func (e entry) xattr(name, value string) entry {
	return e.with(func(h *tar.Header) {
		h.PAXRecords = maps.Clone(h.PAXRecords)
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrRecord+name] = value
	})
}

// plainLayer is a layer without compression.
func plainLayer(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.body))
		if h.ModTime.IsZero() && h.Typeflag != tar.TypeXGlobalHeader {
			h.ModTime = stamp
		}
		h.Format = cmp.Or(h.Format, tar.FormatPAX)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.body); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// layer is one with gzip.
func layer(t testing.TB, entries ...entry) []byte {
	t.Helper()
	return zip(t, plainLayer(t, entries...))
}

func zip(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zstandard(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// random are bytes that do not compress, always the same of a seed.
func random(seed byte, n int) string {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return string(b)
}

func digestOf(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func sourceOf(b []byte) source {
	return source{open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }, digest: digestOf(b)}
}

// flatBytes is the merged tree of layers as a tar.
func flatBytes(ctx context.Context, layers ...[]byte) ([]byte, error) {
	var out bytes.Buffer
	sources := make([]source, len(layers))
	for n, l := range layers {
		sources[n] = sourceOf(l)
	}
	err := flatten(ctx, sources, &out)
	return out.Bytes(), err
}

// show describes a file the way that tests want it: "TYPE MODE UID:GID [links=N] [mtime=SECONDS] WHAT [XATTR=VALUE]…".
func show(typ string, mode uint32, uid, gid uint32, links uint64, mtime time.Time, what string, attrs map[string]string) string {
	s := fmt.Sprintf("%s %04o %d:%d", typ, mode, uid, gid)
	if links > 1 && typ != "dir" {
		s += fmt.Sprintf(" links=%d", links)
	}
	if !mtime.Equal(stamp) {
		s += fmt.Sprintf(" mtime=%d", mtime.Unix())
		if n := mtime.Nanosecond(); n != 0 {
			s += fmt.Sprintf(".%09d", n)
		}
	}
	if what != "" {
		s += " " + what
	}
	for _, k := range slices.Sorted(maps.Keys(attrs)) {
		s += fmt.Sprintf(" %s=%q", k, attrs[k])
	}
	return s
}

// content is short, or a hash.
func content(b []byte) string {
	if len(b) <= 40 {
		return fmt.Sprintf("%q", b)
	}
	sum := sha256.Sum256(b)
	return fmt.Sprintf("%d bytes %x", len(b), sum[:4])
}

// treeOfTar describes what a tar has in it, and fails on a stream that is not as Flatten promises.
func treeOfTar(t testing.TB, stream []byte) map[string]string {
	t.Helper()
	type found struct {
		h     *tar.Header
		what  string
		links uint64
	}
	seen := map[string]*found{}
	tr := tar.NewReader(bytes.NewReader(stream))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := path.Clean("/" + h.Name)
		if seen[name] != nil || slices.Contains(strings.Split(h.Name, "/"), "..") {
			t.Errorf("%q is twice in the stream, or leads out", h.Name)
		}
		if up := seen[path.Dir(name)]; name != "/" && (up == nil || up.h.Typeflag != tar.TypeDir) {
			t.Errorf("%q comes before its directory", h.Name)
		}
		f := &found{h: h, links: 1}
		switch h.Typeflag {
		case tar.TypeReg:
			b, err := io.ReadAll(tr)
			if err != nil {
				t.Fatal(err)
			}
			f.what = "file " + content(b)
		case tar.TypeLink:
			to := seen[path.Clean("/"+h.Linkname)]
			if to == nil {
				t.Fatalf("%q is a link to %q, which has not come", h.Name, h.Linkname)
			}
			to.links++
			f = to
		case tar.TypeSymlink:
			f.what = "link -> " + h.Linkname
		case tar.TypeChar:
			f.what = fmt.Sprintf("char %d:%d", h.Devmajor, h.Devminor)
		case tar.TypeBlock:
			f.what = fmt.Sprintf("block %d:%d", h.Devmajor, h.Devminor)
		case tar.TypeFifo:
			f.what = "fifo "
		case tar.TypeDir:
			f.what = "dir "
		}
		seen[name] = f
	}
	out := map[string]string{}
	for name, f := range seen {
		attrs := map[string]string{}
		for k, v := range f.h.PAXRecords {
			if k, ok := strings.CutPrefix(k, xattrRecord); ok {
				attrs[k] = v
			}
		}
		typ, what, _ := strings.Cut(f.what, " ")
		mode := uint32(f.h.Mode)
		if f.h.Typeflag == tar.TypeSymlink {
			mode = 0o777
		}
		out[name] = show(typ, mode, uint32(f.h.Uid), uint32(f.h.Gid), f.links, f.h.ModTime, what, attrs)
	}
	return out
}

// treeOfDir describes what a mounted file system has in it.
func treeOfDir(t testing.TB, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := path.Clean("/" + strings.TrimPrefix(p, root))
		if name == "/lost+found" {
			return fs.SkipDir
		}
		out[name] = showFile(t, p)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func showFile(t testing.TB, p string) string {
	t.Helper()
	info, err := os.Lstat(p)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	var typ, what string
	switch st.Mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		typ, what = "file", content(b)
	case syscall.S_IFDIR:
		typ = "dir"
	case syscall.S_IFLNK:
		to, err := os.Readlink(p)
		if err != nil {
			t.Fatal(err)
		}
		typ, what = "link", "-> "+to
	case syscall.S_IFCHR:
		typ, what = "char", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case syscall.S_IFBLK:
		typ, what = "block", fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	case syscall.S_IFIFO:
		typ = "fifo"
	}
	return show(typ, st.Mode&0o7777, st.Uid, st.Gid, uint64(st.Nlink), info.ModTime(), what, attributes(t, p))
}

func attributes(t testing.TB, p string) map[string]string {
	t.Helper()
	out := map[string]string{}
	names := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, names)
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 64<<10)
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatal(name, err)
		}
		out[name] = string(value[:n])
	}
	return out
}

// mounted makes a file system of a tar, has e2fsck look at it, and mounts it; "" where that cannot be done here, with the reason in the log.
func mounted(t testing.TB, stream []byte) string {
	t.Helper()
	image := filepath.Join(t.TempDir(), "fs.ext4")
	if err := ext4.FromTar(t.Context(), bytes.NewReader(stream), image, ext4.Options{MaxBytes: 1 << 30}); err != nil {
		t.Fatal(err)
	}
	fsck(t, image)
	if os.Getuid() != 0 {
		t.Log("only root may mount, so the file system is not read back")
		return ""
	}
	at := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop,ro", image, at).CombinedOutput(); err != nil {
		t.Logf("a file system cannot be mounted here, so it is not read back: %v: %s", err, out)
		return ""
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Error(err)
		}
	})
	return at
}

// fsck fails the test on the least remark of e2fsck.
func fsck(t testing.TB, image string) {
	t.Helper()
	e2fsck, err := exec.LookPath("e2fsck")
	if err != nil {
		t.Log("the file system is not checked:", err)
		return
	}
	out, err := exec.CommandContext(t.Context(), e2fsck, "-fn", image).CombinedOutput()
	if err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "Pass ") && !strings.HasPrefix(line, "e2fsck ") && !strings.Contains(line, "files (") {
			t.Errorf("e2fsck: %s", line)
		}
	}
}

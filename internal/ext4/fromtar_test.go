package ext4

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stamp2001 is the time of every entry.
var stamp2001 = time.Date(2001, 2, 3, 4, 5, 6, 789, time.UTC)

type entry struct {
	tar.Header
	body []byte
}

func file(name string, body []byte) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, body}
}

// zeros is a file of n zero bytes.
func zeros(name string, n int64) entry {
	e := file(name, nil)
	e.Size = n
	return e
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	if err := writeTar(&buf, entries); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// tarStream is tarOf without the memory.
func tarStream(entries []entry) io.Reader {
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeTar(w, entries)) }()
	return r
}

func writeTar(out io.Writer, entries []entry) error {
	w := tar.NewWriter(out)
	for _, e := range entries {
		h := e.Header
		body := io.LimitReader(zeroReader{}, h.Size)
		if e.body != nil {
			h.Size, body = int64(len(e.body)), bytes.NewReader(e.body)
		}
		h.ModTime, h.Format = stamp2001, tar.FormatPAX
		if h.Typeflag == tar.TypeXGlobalHeader {
			h.ModTime = time.Time{}
		}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		if _, err := io.Copy(w, body); err != nil {
			return err
		}
	}
	return w.Close()
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func build(t testing.TB, tarball []byte, o Options) string {
	t.Helper()
	return buildStream(t, bytes.NewReader(tarball), o)
}

func buildStream(t testing.TB, r io.Reader, o Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs.ext4")
	if err := FromTar(t.Context(), r, path, o); err != nil {
		t.Fatal(err)
	}
	return path
}

// tool runs a program of e2fsprogs, skipping the test where it is not installed.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/sbin/"} {
		if p, err := exec.LookPath(dir + name); err == nil {
			out, err := exec.CommandContext(t.Context(), p, args...).CombinedOutput()
			if err != nil {
				t.Fatalf("%s %q: %v\n%s", name, args, err, out)
			}
			return string(out)
		}
	}
	t.Skip(name + " is not installed")
	return ""
}

// fsck fails the test on the least remark of e2fsck.
func fsck(t testing.TB, path string) {
	t.Helper()
	out := tool(t, "e2fsck", "-fn", path)
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "Pass ") || strings.HasPrefix(line, "e2fsck ") || strings.Contains(line, "files (") {
			continue
		}
		t.Errorf("e2fsck: %s", line)
	}
}

func TestFsckIsSilent(t *testing.T) {
	t.Parallel()
	many := func(n int) []entry {
		var es []entry
		for i := range n {
			es = append(es, file(fmt.Sprintf("d%d/f%d", i%97, i), nil))
		}
		return es
	}
	big := random(1 << 20)
	bigs := func(n int) []entry {
		var es []entry
		for i := range n {
			es = append(es, file(fmt.Sprintf("big%d", i), big))
		}
		return es
	}
	for name, entries := range map[string][]entry{
		"empty":                       nil,
		"one file":                    {file("a", []byte("x"))},
		"1000 files":                  many(1000),
		"more inodes than one group":  many(33000),
		"one group filled partly":     bigs(100),
		"two groups":                  bigs(140),
		"last group hardly begun":     bigs(127),
		"three groups":                bigs(270),
		"many zeros":                  {zeros("zeros", 200<<20)},
		"a file with an extent block": {zeros("long", 600<<20)},
	} {
		t.Run(name, func(t *testing.T) {
			if testing.Short() && len(entries) > 500 {
				t.Skip("takes its time")
			}
			path := buildStream(t, tarStream(entries), Options{Label: "banger-test"})
			fsck(t, path)
			s, err := Superblock(path)
			if err != nil {
				t.Fatal(err)
			}
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if s.Bytes() != st.Size() || !s.Clean || s.Label != "banger-test" || s.UUID.IsZero() {
				t.Errorf("superblock %+v of a file of %d bytes", s, st.Size())
			}
		})
	}
}

// TestContents reads everything FromTar promises to keep back through debugfs.
func TestContents(t *testing.T) {
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	long := strings.Repeat("long/", 30) + "target"
	path := build(t, tarOf(t,
		entry{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "ignored"}}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o755}},
		entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./dir/", Mode: 0o1777, Uid: 70000, Gid: 80000}},
		file("./dir/file", []byte("hello\n")),
		entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "./dir/hard", Linkname: "./dir/file"}},
		entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "./short", Linkname: "dir/file"}},
		entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "./long", Linkname: long}},
		entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "./null", Mode: 0o666, Devmajor: 1, Devminor: 300}},
		entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: "./fifo", Mode: 0o600}},
		entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "./ping", Mode: 0o4755,
			PAXRecords: map[string]string{xattrRecord + "security.capability": capability}}, body: []byte("ping")},
		file("./no/parent/was/given", []byte("x")),
	), Options{})
	fsck(t, path)
	debug := func(cmd string) string {
		return tool(t, "debugfs", "-R", cmd, path)
	}
	for cmd, want := range map[string]string{
		"cat /dir/file":                       "hello\n",
		"cat /no/parent/was/given":            "x",
		"stat /dir":                           "Mode:  01777",
		"stat /dir ":                          "User: 70000   Group: 80000",
		"stat /dir/hard":                      "Links: 2",
		"stat /short":                         `Fast link dest: "dir/file"`,
		"cat /long":                           long,
		"stat /null":                          "major/minor number: 01:300",
		"stat /fifo":                          "Type: FIFO",
		"stat /ping":                          "Mode:  04755",
		"ea_get -x /ping security.capability": "01 00 00 02 00 04 00 00",
		"stat /dir/file":                      "mtime: 0x3a7b8372:00000c54",
		"stat  /dir/file":                     "ctime: 0x3a7b8372:00000c54",
		"stat   /dir/file":                    "atime: 0x3a7b8372:00000c54",
	} {
		if got := debug(cmd); !strings.Contains(got, want) {
			t.Errorf("debugfs %s: %q is not in\n%s", cmd, want, got)
		}
	}
}

// TestAttributeBlocks has attributes of several name spaces that do not fit the inode.
func TestAttributeBlocks(t *testing.T) {
	attrs := map[string]string{
		"trusted.zz":          strings.Repeat("t", 90),
		"security.a":          strings.Repeat("s", 90),
		"user.much-longer":    strings.Repeat("u", 90),
		"user.b":              strings.Repeat("v", 90),
		"user.aa":             strings.Repeat("w", 90),
		aclAccess:             "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\xe8\x03\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x04\x00\xff\xff\xff\xff",
		"com.apple.something": "not ours",
	}
	h := tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644, PAXRecords: map[string]string{}}
	for k, v := range attrs {
		h.PAXRecords[xattrRecord+k] = v
	}
	path := build(t, tarOf(t, entry{Header: h}), Options{})
	fsck(t, path)
	got := tool(t, "debugfs", "-R", "ea_list f", path)
	for name, value := range attrs {
		if strings.HasPrefix(name, "com.") {
			if strings.Contains(got, "apple") {
				t.Errorf("an attribute of another system was kept:\n%s", got)
			}
			continue
		}
		if want := fmt.Sprintf("%s (%d)", name, len(value)); name != aclAccess && !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	assertSorted(t, path)
}

// assertSorted fails where an attribute block is out of order, which the kernel's search would stumble on.
func assertSorted(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s, err := readSuper(f)
	if err != nil {
		t.Fatal(err)
	}
	// A file that refuses writes: nothing may be left to sort.
	if err := sortAttributes(readOnly{f}, s); err != nil {
		t.Error(err)
	}
}

type readOnly struct{ io.ReaderAt }

func (readOnly) WriteAt([]byte, int64) (int, error) { return 0, errors.New("out of order") }

func TestEqualStreamsMakeEqualFiles(t *testing.T) {
	sum := func(tarball []byte, o Options) [32]byte {
		b, err := os.ReadFile(build(t, tarball, o))
		if err != nil {
			t.Fatal(err)
		}
		return sha256.Sum256(b)
	}
	one := tarOf(t, file("a", []byte("1")), file("b", random(100000)))
	two := tarOf(t, file("a", []byte("2")), file("b", random(100000)))
	if first, second := sum(one, Options{}), sum(one, Options{}); first != second {
		t.Error("equal streams made different files")
	}
	uuid := func(tarball []byte, o Options) UUID {
		s, err := Superblock(build(t, tarball, o))
		if err != nil {
			t.Fatal(err)
		}
		return s.UUID
	}
	if uuid(one, Options{}) == uuid(two, Options{}) {
		t.Error("different streams got the same UUID")
	}
	given := UUID{1, 2, 3}
	if got := uuid(one, Options{UUID: given}); got != given {
		t.Errorf("UUID %v, want %v", got, given)
	}
}

func TestHolesAreLeft(t *testing.T) {
	path := build(t, tarOf(t, zeros("zeros", 64<<20), file("data", random(1<<20))), Options{})
	if got := allocated(t, path); got > 8<<20 {
		t.Errorf("%d bytes allocated for 1 MiB of data", got)
	}
}

func TestBadStreams(t *testing.T) {
	good := tarOf(t, file("a", random(10000)))
	for name, c := range map[string]struct {
		tarball []byte
		o       Options
		want    string
	}{
		"not a tar":         {[]byte(strings.Repeat("no tar at all ", 100)), Options{}, "read tar: "},
		"cut in a file":     {good[:5000], Options{}, "unexpected EOF"},
		"cut in a header":   {good[:700], Options{}, "unexpected EOF"},
		"a path twice":      {tarOf(t, file("a", random(9)), file("a", random(8))), Options{}, "overwrite"},
		"file as directory": {tarOf(t, file("a", nil), file("a/b", nil)), Options{}, "a/b"},
		"no link target":    {tarOf(t, entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "l", Linkname: "gone"}}), Options{}, "gone"},
		"device":            {tarOf(t, entry{Header: tar.Header{Typeflag: tar.TypeChar, Name: "c", Devmajor: 5000}}), Options{}, "out of range"},
		"acl":               {tarOf(t, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "c", PAXRecords: map[string]string{xattrRecord + aclAccess: "x"}}}), Options{}, "makes no sense"},
		"too large":         {tarOf(t, file("a", random(2<<20))), Options{MaxBytes: 1 << 20}, "maximum size"},
		"long label":        {good, Options{Label: "seventeen letters"}, "longer than 16"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, "fs.ext4")
			err := FromTar(t.Context(), bytes.NewReader(c.tarball), path, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			assertEmpty(t, dir)
		})
	}
}

func TestCancel(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	tarball := tarOf(t, file("a", random(1<<20)))
	go func() {
		_, _ = w.Write(tarball[:1<<19])
		cancel()
		_, _ = w.Write(tarball[1<<19:])
		w.Close()
	}()
	err := FromTar(ctx, r, filepath.Join(dir, "fs.ext4"), Options{})
	r.Close()
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	assertEmpty(t, dir)
}

func assertEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range left {
		names = append(names, e.Name())
	}
	if diff := cmp.Diff([]string(nil), names); diff != "" {
		t.Errorf("left in the directory: %s", diff)
	}
}

// TestSparseWriter compares the sparse writer with a plain buffer over random writes and seeks.
func TestSparseWriter(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := &sparseWriter{f: f}
	var want []byte
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		at := len(want)
		if rnd.IntN(4) == 0 {
			at = rnd.IntN(len(want) + 1)
		}
		p := make([]byte, rnd.IntN(3*BlockSize))
		if rnd.IntN(2) == 0 {
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
		}
		if _, err := w.Seek(int64(at), io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if n, err := w.Write(p); err != nil || n != len(p) {
			t.Fatal(n, err)
		}
		want = append(want[:at:at], append(bytes.Clone(p), want[min(len(want), at+len(p)):]...)...)
	}
	if err := f.Truncate(w.size); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the file differs from what was written")
	}
}

package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

var testManifest = Manifest{
	Version: Version, Name: "mine", Description: "for tests", Arch: "amd64", Kernel: "generic-6.12", Source: "a test",
	Env: []string{"PATH=/bin", "EMPTY="}, WorkDir: "/root", User: "root", Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"},
	CreatedAt: time.Date(2026, 3, 2, 1, 0, 0, 5, time.UTC),
}

// drive makes a file of size bytes with random data at some places, and returns it with its content.
func drive(t testing.TB, size int64, data ...int64) (*os.File, []byte) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "drive"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	content := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	for _, at := range data {
		part := content[at:min(at+10_000, size)]
		_, _ = random.Read(part)
		if _, err := f.WriteAt(part, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return f, content
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

func write(t testing.TB, m Manifest, f *os.File) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Write(t.Context(), &out, m, f, progress.Discard); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// assertEmpty fails the test where anything is in dir.
func assertEmpty(t testing.TB, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left in the directory: %s", e.Name())
	}
}

func TestRoundTrip(t *testing.T) {
	const mib = 1 << 20
	for name, c := range map[string]struct {
		size int64
		data []int64
	}{
		"a sector":             {512, []int64{0}},
		"a sector of zeros":    {512, nil},
		"odd":                  {chunkSize + 1536, []int64{0, chunkSize - 100}},
		"a chunk":              {chunkSize, []int64{100}},
		"a hole":               {20 * mib, nil},
		"data about holes":     {28 * mib, []int64{4000, 9*mib + 7, 16 * mib, 28*mib - 5000}},
		"a hole at the end":    {20 * mib, []int64{0}},
		"a hole at the start":  {20 * mib, []int64{20*mib - 512}},
		"every chunk has some": {3 * chunkSize, []int64{0, chunkSize, 2 * chunkSize}},
	} {
		t.Run(name, func(t *testing.T) {
			f, content := drive(t, c.size, c.data...)
			packed := write(t, testManifest, f)
			dir := t.TempDir()
			r := bytes.NewReader(packed)
			got, err := Extract(t.Context(), r, dir, progress.Discard)
			if err != nil {
				t.Fatal(err)
			}
			want := testManifest
			want.Rootfs = Rootfs{SHA256: sum(content), Size: c.size}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			if r.Len() != 0 {
				t.Errorf("%d bytes were not read", r.Len())
			}
			path := filepath.Join(dir, memberRootfs)
			if b, err := os.ReadFile(path); err != nil || !bytes.Equal(b, content) {
				t.Errorf("%d bytes, %v, not the %d of before", len(b), err, len(content))
			}
			apparent, allocated, err := disk.Usage(path)
			if most := int64(len(c.data)) * 24 << 10; err != nil || apparent != c.size || allocated > most {
				t.Errorf("%d bytes, %d on the disk, more than %d, %v", apparent, allocated, most, err)
			}
			if len(packed) > len(c.data)*11_000+20_000 {
				t.Errorf("%d bytes packed", len(packed))
			}
		})
	}
}

// TestEqualImagesMakeEqualBundles: it does not matter where the host's file system keeps holes, nor whether the digest was known.
func TestEqualImagesMakeEqualBundles(t *testing.T) {
	f, content := drive(t, 5*chunkSize, 0, chunkSize+5, 4*chunkSize)
	dense, err := os.Create(filepath.Join(t.TempDir(), "dense"))
	if err != nil {
		t.Fatal(err)
	}
	defer dense.Close()
	if _, err := dense.Write(content); err != nil {
		t.Fatal(err)
	}
	first := write(t, testManifest, f)
	m := testManifest
	m.Version, m.Rootfs, m.CreatedAt = 77, Rootfs{SHA256: sum(content), Size: 5}, m.CreatedAt.In(time.FixedZone("x", 3600))
	for range 3 {
		if !bytes.Equal(first, write(t, m, dense)) {
			t.Error("the bundles differ")
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	f, _ := drive(t, 4096, 0)
	for name, c := range map[string]struct {
		change func(*Manifest)
		kind   api.ErrorKind
		text   string
	}{
		"another drive": {func(m *Manifest) { m.Rootfs.SHA256 = sum(nil) }, api.KindUnavailable, "its base drive is damaged"},
		"no name":       {func(m *Manifest) { m.Name = "" }, api.KindInvalid, "the name or the arch"},
		"a huge text":   {func(m *Manifest) { m.Env = []string{"A=" + strings.Repeat("x", 1<<20)} }, api.KindInvalid, "larger than"},
	} {
		m := testManifest
		c.change(&m)
		if err := Write(t.Context(), io.Discard, m, f, progress.Discard); api.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	empty, _ := drive(t, 0)
	if err := Write(t.Context(), io.Discard, testManifest, empty, progress.Discard); api.KindOf(err) != api.KindInvalid {
		t.Errorf("an empty drive: %v", err)
	}
}

// A writer that fails, at whichever of its calls, ends Write.
func TestWriteFails(t *testing.T) {
	f, _ := drive(t, 5*chunkSize, 0, chunkSize, 3*chunkSize)
	full := errors.New("full")
	for n := range 7 {
		w := &failing{after: n, err: full}
		if err := Write(t.Context(), w, testManifest, f, progress.Discard); !errors.Is(err, full) {
			t.Errorf("after %d: %v", n, err)
		}
	}
	if err := Write(t.Context(), &failing{after: 7}, testManifest, f, progress.Discard); err != nil {
		t.Error(err)
	}
}

// failing fails after so many calls.
type failing struct {
	after int
	err   error
}

func (f *failing) Write(p []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, f.err
	}
	return len(p), nil
}

// stopper cancels when so many bytes are done.
type stopper struct {
	progress.Reporter
	at     int64
	cancel func()
}

func (s stopper) Bytes(done, total int64) {
	if done >= s.at {
		s.cancel()
	}
}

func TestCancel(t *testing.T) {
	f, content := drive(t, 9*chunkSize, 0, chunkSize, 8*chunkSize)
	m := testManifest
	m.Rootfs.SHA256 = sum(content)
	packed := write(t, m, f)
	gone := errors.New("gone")
	for _, at := range []int64{0, 1, 4 * chunkSize, 8 * chunkSize} {
		ctx, cancel := context.WithCancelCause(t.Context())
		rep := stopper{progress.Discard, at, func() { cancel(gone) }}
		if err := Write(ctx, io.Discard, m, f, rep); at < 8*chunkSize && !errors.Is(err, gone) {
			t.Errorf("Write, cancelled at %d: %v", at, err)
		}
		ctx, cancel = context.WithCancelCause(t.Context())
		rep.cancel = func() { cancel(gone) }
		dir := t.TempDir()
		if _, err := Extract(ctx, bytes.NewReader(packed), dir, rep); !errors.Is(err, gone) {
			t.Errorf("Extract, cancelled at %d: %v", at, err)
		}
		assertEmpty(t, dir)
	}
}

// TestCutShort has bundles that end too early, at every tenth and at the ends of their frames.
func TestCutShort(t *testing.T) {
	f, _ := drive(t, 3*chunkSize, 0, chunkSize, 2*chunkSize+99)
	packed := write(t, testManifest, f)
	cuts := []int{1, 3, len(packed) - 1}
	for tenth := 1; tenth < 10; tenth++ {
		cuts = append(cuts, len(packed)*tenth/10)
	}
	for at := range packed {
		if at > 0 && bytes.HasPrefix(packed[at:], []byte{0x28, 0xb5, 0x2f, 0xfd}) {
			cuts = append(cuts, at)
		}
	}
	for _, at := range cuts {
		dir := t.TempDir()
		_, err := Extract(t.Context(), bytes.NewReader(packed[:at]), dir, progress.Discard)
		if api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "cut short") {
			t.Errorf("%d of %d bytes: %v", at, len(packed), err)
		}
		assertEmpty(t, dir)
	}
}

// TestDamaged changes every so-manieth byte: never is something else unpacked than what was packed.
func TestDamaged(t *testing.T) {
	f, content := drive(t, 2*chunkSize, 0, chunkSize)
	packed := write(t, testManifest, f)
	for at := 0; at < len(packed); at += 1 + len(packed)/50 {
		b := bytes.Clone(packed)
		b[at] ^= 0x10
		dir := t.TempDir()
		m, err := Extract(t.Context(), bytes.NewReader(b), dir, progress.Discard)
		if err == nil && m.Rootfs.SHA256 != sum(content) {
			t.Errorf("byte %d: %+v", at, m)
		}
		if err != nil {
			assertEmpty(t, dir)
			if api.KindOf(err) != api.KindInvalid {
				t.Errorf("byte %d: %v", at, err)
			}
		}
	}
}

// TestReaderFails tells a broken reader from a broken bundle.
func TestReaderFails(t *testing.T) {
	f, _ := drive(t, 2*chunkSize, 0, chunkSize)
	packed := write(t, testManifest, f)
	broken := errors.New("broken pipe")
	for _, n := range []int{0, 3, 100, len(packed) / 2, len(packed)} {
		dir := t.TempDir()
		r := io.MultiReader(bytes.NewReader(packed[:n]), failingReader{broken})
		if _, err := Extract(t.Context(), r, dir, progress.Discard); !errors.Is(err, broken) || api.KindOf(err) == api.KindInvalid {
			t.Errorf("after %d: %v", n, err)
		}
		assertEmpty(t, dir)
	}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

func TestFullDisk(t *testing.T) {
	f, _ := drive(t, 4*chunkSize, 0, chunkSize, chunkSize+50_000, chunkSize+100_000, 3*chunkSize)
	packed := write(t, testManifest, f)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32k"); err != nil {
		t.Skip("mount:", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	if _, err := Extract(t.Context(), bytes.NewReader(packed), dir, progress.Discard); !errors.Is(err, unix.ENOSPC) || api.KindOf(err) != api.KindInternal {
		t.Errorf("%v", err)
	}
	assertEmpty(t, dir)
}

// What is there already is not written to, nor removed.
func TestOccupied(t *testing.T) {
	f, _ := drive(t, 4096, 0)
	dir := t.TempDir()
	path := filepath.Join(dir, memberRootfs)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Extract(t.Context(), bytes.NewReader(write(t, testManifest, f)), dir, progress.Discard); !errors.Is(err, os.ErrExist) {
		t.Errorf("%v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "precious" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestOtherPrograms has what we write read by tar and zstd, and what they write by us.
func TestOtherPrograms(t *testing.T) {
	run := hostexec.Runner{}
	for _, p := range []string{"zstd", "tar"} {
		if _, err := run.LookPath(p); err != nil {
			t.Skip(err)
		}
	}
	f, content := drive(t, 3*chunkSize, 0, 2*chunkSize+99)
	packed := write(t, testManifest, f)
	out, err := run.Output(t.Context(), hostexec.Cmd{Argv: []string{"zstd", "-dc"}, Stdin: bytes.NewReader(packed)})
	if err != nil {
		t.Fatal(err)
	}
	list, err := run.Output(t.Context(), hostexec.Cmd{Argv: []string{"tar", "-t"}, Stdin: bytes.NewReader(out)})
	if err != nil || string(list) != "manifest.json\nrootfs.ext4\n" {
		t.Errorf("%q, %v", list, err)
	}
	r := tar.NewReader(bytes.NewReader(out))
	if _, err := r.Next(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	manifest, err := io.ReadAll(r)
	if err := errors.Join(err, os.WriteFile(filepath.Join(dir, memberManifest), manifest, 0o600),
		os.WriteFile(filepath.Join(dir, memberRootfs), content, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"gnu", "pax", "ustar", "v7"} {
		theirs, err := run.Output(t.Context(), hostexec.Cmd{Argv: []string{"tar", "--format=" + format, "-C", dir, "-c", memberManifest, memberRootfs}})
		if err != nil {
			t.Fatal(err)
		}
		theirs, err = run.Output(t.Context(), hostexec.Cmd{Argv: []string{"zstd", "-19", "-c"}, Stdin: bytes.NewReader(theirs)})
		if err != nil {
			t.Fatal(err)
		}
		m, err := Extract(t.Context(), bytes.NewReader(theirs), t.TempDir(), progress.Discard)
		if err != nil || m.Name != testManifest.Name {
			t.Errorf("%s: %+v, %v", format, m, err)
		}
	}
}

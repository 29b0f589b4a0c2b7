package disk

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/disk/template"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const gib = 1 << 30

func output(t testing.TB, name string, args ...string) string {
	t.Helper()
	run := hostexec.Runner{}
	if _, err := run.LookPath(name); err != nil {
		t.Skip(err)
	}
	out, err := run.Output(t.Context(), hostexec.Cmd{Argv: append([]string{name}, args...)})
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// fsck fails the test on the least remark of e2fsck.
func fsck(t testing.TB, path string) {
	t.Helper()
	for line := range strings.Lines(output(t, "e2fsck", "-fn", path)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "Pass ") && !strings.Contains(line, "files (") {
			t.Errorf("e2fsck: %s", line)
		}
	}
}

func mustCreate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := Create(t.Context(), path, size); err != nil {
		t.Fatal(err)
	}
}

func TestCreate(t *testing.T) {
	dir := t.TempDir()
	seen := map[ext4.UUID]bool{}
	for size, fsBytes := range map[int64]int64{
		MinBytes:             MinBytes,
		2*gib + 4096:         MinBytes,
		DefaultBytes - 1<<20: MinBytes,
		DefaultBytes:         DefaultBytes,
		30 * gib:             DefaultBytes,
		3 << 40:              DefaultBytes,
	} {
		path := filepath.Join(dir, strconv.FormatInt(size, 10))
		mustCreate(t, path, size)
		s, err := ext4.Superblock(path)
		if err != nil {
			t.Fatal(err)
		}
		apparent, allocated, err := Usage(path)
		if err != nil {
			t.Fatal(err)
		}
		if apparent != size || s.Bytes() != fsBytes || !s.Clean || s.Label != template.Label || s.BlockSize != 4096 {
			t.Errorf("%s: %d bytes, %+v", FormatSize(size), apparent, s)
		}
		if allocated > 3<<20 {
			t.Errorf("%s: %d bytes allocated", FormatSize(size), allocated)
		}
		if seen[s.UUID] {
			t.Errorf("%s: UUID %s twice", FormatSize(size), s.UUID)
		}
		seen[s.UUID] = true
		fsck(t, path)
	}
}

// TestBackupSuperblocks repairs a drive from a copy of its superblock: the UUID was renewed there too.
func TestBackupSuperblocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	mustCreate(t, path, DefaultBytes)
	want, err := ext4.Superblock(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"32768", "98304", "163840", "229376", "294912", "819200", "884736", "1605632", "2654208", "4096000"} {
		out := output(t, "dumpe2fs", "-h", "-o", "superblock="+group, "-o", "blocksize=4096", path)
		if !strings.Contains(out, want.UUID.String()) {
			t.Errorf("superblock at block %s has another UUID:\n%s", group, out)
		}
	}
}

// TestTemplates checks what is embedded against the parameters it was made with.
func TestTemplates(t *testing.T) {
	for _, p := range template.All {
		t.Run(p.File, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d")
			mustCreate(t, path, p.Size)
			head := output(t, "dumpe2fs", "-h", path)
			field := func(name string) string {
				m := regexp.MustCompile(`(?m)^` + name + `:\s*(.*)$`).FindStringSubmatch(head)
				if m == nil {
					t.Fatalf("no %q in\n%s", name, head)
				}
				return strings.TrimSpace(m[1])
			}
			if diff := cmp.Diff(template.Features(), strings.Fields(field("Filesystem features")), cmp.Transformer("set", set)); diff != "" {
				t.Error("features:", diff)
			}
			for name, want := range map[string]string{
				"Reserved block count": "0", "Block size": "4096", "Inode size": "256",
				"Errors behavior": "Remount read-only", "Filesystem state": "clean", "Blocks per group": "32768",
				"Total journal blocks": formatBlocks(p.Journal),
			} {
				if got := field(name); got != want {
					t.Errorf("%s: %s, want %s", name, got, want)
				}
			}
			// An inode table that is not marked zeroed would be written full by the kernel.
			for line := range strings.Lines(output(t, "dumpe2fs", path)) {
				if strings.HasPrefix(line, "Group ") && strings.Contains(line, "(Blocks") && !strings.Contains(line, "ITABLE_ZEROED") {
					t.Errorf("not zeroed: %s", line)
				}
			}
			if got := output(t, "debugfs", "-R", "ls -p /", path); strings.Count(got, "\n") != 4 || !strings.Contains(got, "lost+found") {
				t.Errorf("the root directory holds\n%s", got)
			}
		})
	}
}

// formatBlocks writes a number of bytes as a number of blocks.
func formatBlocks(bytes int64) string { return strconv.FormatInt(bytes/4096, 10) }

func set(names []string) map[string]bool {
	out := map[string]bool{}
	for _, n := range names {
		out[n] = true
	}
	return out
}

// TestTemplatesAreCurrent makes the templates again, where mke2fs is of the version that made them.
func TestTemplatesAreCurrent(t *testing.T) {
	out, _ := exec.CommandContext(t.Context(), "/usr/sbin/mke2fs", "-V").CombinedOutput()
	if !bytes.Contains(out, []byte("mke2fs 1.47.0 ")) {
		t.Skipf("made by mke2fs 1.47.0, here is %q", out)
	}
	for _, p := range template.All {
		got, err := p.Make(t.Context(), hostexec.Runner{}, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		b, err := templates.ReadFile(p.File)
		if err != nil {
			t.Fatal(err)
		}
		want, err := template.Decode(b)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(want, got) { // fast with bytes
			t.Errorf("%s is out of date: run go generate ./internal/disk", p.File)
		}
	}
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "d")
	for _, size := range []int64{-1, 0, MinBytes - 4096, MinBytes + 1} {
		err := Create(t.Context(), path, size)
		if api.KindOf(err) != api.KindInvalid || api.AsError(err).Hint == "" {
			t.Errorf("%d: %v", size, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Create(ctx, path, MinBytes); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	mustCreate(t, path, MinBytes)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Create(t.Context(), path, MinBytes); !errors.Is(err, os.ErrExist) {
		t.Errorf("existing file: %v", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Error("an existing file was replaced")
	}
}

// TestFullHost creates and copies drives on a tmpfs of 64 KiB.
func TestFullHost(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skip("mount:", err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	src := filepath.Join(t.TempDir(), "src")
	mustCreate(t, src, DefaultBytes)
	for what, err := range map[string]error{
		"create": Create(t.Context(), filepath.Join(dir, "d"), DefaultBytes),
		"copy":   Copy(t.Context(), src, filepath.Join(dir, "d")),
	} {
		if api.KindOf(err) != api.KindUnavailable || !errors.Is(err, unix.ENOSPC) || api.AsError(err).Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestCopy(t *testing.T) {
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "src"), filepath.Join(dir, "dst")
	f, err := os.Create(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 256<<20 + 4097 // an odd end
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		p := make([]byte, rnd.IntN(100000))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		if _, err := f.WriteAt(p, rnd.Int64N(size-int64(len(p)))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteAt([]byte("end"), size-3); err != nil {
		t.Fatal(err)
	}
	if err := Copy(t.Context(), src, dst); err != nil {
		t.Fatal(err)
	}
	assertSame(t, src, dst)
	_, a, _ := Usage(src)
	_, b, _ := Usage(dst)
	if b > a+1<<20 {
		t.Errorf("the copy takes %d bytes, the original %d", b, a)
	}
	if err := Copy(t.Context(), src, dst); !errors.Is(err, os.ErrExist) {
		t.Errorf("copy over a file: %v", err)
	}
	if err := Copy(t.Context(), filepath.Join(dir, "absent"), dst+"2"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("copy of nothing: %v", err)
	}
}

func assertSame(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Error("the copy differs")
	}
}

func TestGrow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d")
	mustCreate(t, path, MinBytes)
	for _, size := range []int64{MinBytes, 4 * gib} {
		if err := Grow(path, size); err != nil {
			t.Fatal(err)
		}
		if got, _, _ := Usage(path); got != size {
			t.Errorf("size %d, want %d", got, size)
		}
	}
	if err := Grow(path, 2*gib); api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "cannot shrink") {
		t.Errorf("shrink: %v", err)
	}
	if err := Grow(path+"x", 2*gib); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
	fsck(t, path)
}

func TestRoom(t *testing.T) {
	total, free, err := Room(t.TempDir())
	if err != nil || total <= 0 || free < 0 || free > total {
		t.Errorf("Room: %d, %d, %v", total, free, err)
	}
	if _, _, err := Room("/does/not/exist"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

func BenchmarkCreate(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		path := filepath.Join(dir, "d")
		if err := Create(b.Context(), path, DefaultBytes); err != nil {
			b.Fatal(err)
		}
		os.Remove(path)
	}
}

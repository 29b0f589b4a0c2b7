package filesync

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// pack is what a stream of entries holds, a line each.
func pack(t *testing.T, entries ...Entry) (lines, warnings []string) {
	t.Helper()
	var b bytes.Buffer
	warnings, err := Pack(t.Context(), &b, entries)
	if err != nil {
		t.Fatal(err)
	}
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return lines, warnings
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("%c %s %o %d:%d %s%s", h.Typeflag, h.Name, h.Mode, h.Uid, h.Gid, h.Linkname, content)))
	}
}

func put(t *testing.T, dir, name, content string, mode os.FileMode) {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), mode), os.Chmod(p, mode)); err != nil {
		t.Fatal(err)
	}
}

func TestPack(t *testing.T) {
	dir := t.TempDir()
	put(t, dir, "token", "secret", 0o644)
	put(t, dir, "conf/a", "A", 0o640)
	put(t, dir, "conf/sub/run", "B", 0o755)
	put(t, dir, "conf/odd\n\xff", "C", 0o600)
	err := errors.Join(
		os.Symlink("token", filepath.Join(dir, "link")),
		os.Symlink("sub/run", filepath.Join(dir, "conf/inside")),
		os.Symlink("../a", filepath.Join(dir, "conf/sub/up")),
		os.Symlink("../token", filepath.Join(dir, "conf/outside")),
		os.Symlink("/etc/passwd", filepath.Join(dir, "conf/absolute")),
		os.Symlink("nowhere", filepath.Join(dir, "conf/dangling")),
		unix.Mkfifo(filepath.Join(dir, "conf/pipe"), 0o600),
		os.Chmod(filepath.Join(dir, "conf/sub"), 0o700),
	)
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	lines, warnings := pack(t, Entry{at("token"), "/root/.token", 0o600}, Entry{at("missing"), "/root/x", 0o600}, Entry{at("link"), "/root/.linked", 0o400},
		Entry{at("conf"), "/root/.config/conf", 0o600})
	want := []string{
		"0 root/.token 600 0:0 secret", "0 root/.linked 400 0:0 secret",
		"5 root/.config/conf/ 755 0:0", "0 root/.config/conf/a 640 0:0 A", "2 root/.config/conf/dangling 777 0:0 nowhere", "2 root/.config/conf/inside 777 0:0 sub/run",
		"0 root/.config/conf/odd\n\xff 600 0:0 C", "5 root/.config/conf/sub/ 700 0:0", "0 root/.config/conf/sub/run 755 0:0 B", "2 root/.config/conf/sub/up 777 0:0 ../a",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
	wantWarnings := []string{
		"file_sync: " + at("missing") + " is not on this host: not copied", "file_sync: " + at("conf/absolute") + " leads out of " + at("conf") + ": not copied",
		"file_sync: " + at("conf/outside") + " leads out of " + at("conf") + ": not copied",
		"file_sync: " + at("conf/pipe") + " is neither file, directory nor link: not copied",
	}
	if diff := cmp.Diff(wantWarnings, warnings); diff != "" {
		t.Error(diff)
	}
}

func TestPackFails(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "file", "secret", 0o600)
	for host, want := range map[string]string{"/dev/null": "neither a file nor a directory", filepath.Join(dir, "pipe"): "neither a file nor a directory",
		filepath.Join(dir, "file", "below"): "not a directory"} {
		_, err := Pack(t.Context(), io.Discard, []Entry{{filepath.Join(dir, "file"), "/root/a", 0o600}, {host, "/root/b", 0o600}})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "file_sync[1]") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", host, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Pack(ctx, io.Discard, []Entry{{filepath.Join(dir, "file"), "/root/a", 0o600}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	full := errors.New("no room")
	if _, err := Pack(t.Context(), failing{full}, []Entry{{filepath.Join(dir, "file"), "/root/a", 0o600}}); !errors.Is(err, full) {
		t.Errorf("a full disk: %v", err)
	}
	if os.Geteuid() == 0 {
		t.Skip("root reads everything")
	}
	if err := os.Chmod(filepath.Join(dir, "file"), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Pack(t.Context(), io.Discard, []Entry{{filepath.Join(dir, "file"), "/root/a", 0o600}}); !errors.Is(err, os.ErrPermission) {
		t.Errorf("not readable: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

package files

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// packed is what a tar of a root holds, a line for each entry, in order.
func packed(t *testing.T, r Root) ([]string, Result) {
	t.Helper()
	var b bytes.Buffer
	res, err := PackRoot(t.Context(), &b, r)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for tr := tar.NewReader(&b); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return lines, res
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%c %s %o", h.Typeflag, h.Name, h.Mode)
		for _, more := range []string{h.Linkname, string(content), h.PAXRecords["SCHILY.xattr.user.note"]} {
			if more != "" {
				line += " " + more
			}
		}
		lines = append(lines, line)
	}
}

// openRoot opens a directory until the test ends.
func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// put makes files with their directories; a name that ends with a slash is a directory.
func put(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if strings.HasSuffix(name, "/") {
			err = errors.Join(err, os.MkdirAll(path, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestPackRoot: what is a root's own is there as it is, and what makes a guest this guest is not.
func TestPackRoot(t *testing.T) {
	dir, home := t.TempDir(), t.TempDir()
	put(t, dir, map[string]string{
		"bin/tool": "tool", "etc/hostname": "me", "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 me\n", "etc/ssh/ssh_host_rsa_key": "secret",
		"etc/ssh/sshd_config": "conf", "root/.bashrc": "the image's", "tmp/x": "x", "var/lib/docker/big": "big", "dev/null": "",
	})
	put(t, home, map[string]string{".bashrc": "mine", "work/a": "a"})
	err := errors.Join(
		os.Link(filepath.Join(dir, "bin/tool"), filepath.Join(dir, "bin/tool2")),
		os.Symlink("/etc/hostname", filepath.Join(dir, "bin/link")),
		unix.Mkfifo(filepath.Join(dir, "bin/pipe"), 0o600),
		os.Chmod(filepath.Join(dir, "bin/tool"), 0o755|os.ModeSetuid),
		os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky),
		unix.Setxattr(filepath.Join(dir, "etc"), "user.note", []byte("noted"), 0),
		os.Chmod(home, 0o700), os.Chmod(dir, 0o755),
	)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "bin/socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := Root{Tree: openRoot(t, dir), Drop: []string{"etc/hostname", "etc/ssh/ssh_host_*"}, Empty: []string{"tmp", "dev", "var/lib/docker"},
		Rewrite: map[string]func([]byte) []byte{"etc/hosts": func(b []byte) []byte { return bytes.Replace(b, []byte("127.0.1.1 me\n"), nil, 1) }}}
	want := []string{
		"5 ./ 755", "5 bin/ 755", "2 bin/link 777 /etc/hostname", "6 bin/pipe 600", "0 bin/tool 4755 tool", "1 bin/tool2 4755 bin/tool", "5 dev/ 755",
		"5 etc/ 755 noted", "0 etc/hosts 644 127.0.0.1 localhost\n", "5 etc/ssh/ 755", "0 etc/ssh/sshd_config 644 conf",
		"5 root/ 755", "0 root/.bashrc 644 the image's", "5 tmp/ 1777", "5 var/ 755", "5 var/lib/ 755", "5 var/lib/docker/ 755",
	}
	got, res := packed(t, r)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if res.Entries != len(want) || len(res.Skipped) != 0 {
		t.Errorf("%+v", res)
	}
	r.Homes = map[string]*os.Root{"root": openRoot(t, home)}
	want = append(append(want[:11:11], "5 root/ 700", "0 root/.bashrc 644 mine", "5 root/work/ 755", "0 root/work/a 644 a"), want[13:]...)
	got, _ = packed(t, r)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestPackRootKeeps: times to the nanosecond, and names of any bytes.
func TestPackRootKeeps(t *testing.T) {
	dir := t.TempDir()
	at := time.Unix(1_700_000_000, 123_456_789)
	name := "odd\xff\n name"
	put(t, dir, map[string]string{name: "x"})
	if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := PackRoot(t.Context(), &b, Root{Tree: openRoot(t, dir)}); err != nil {
		t.Fatal(err)
	}
	tr := tar.NewReader(&b)
	if _, err := tr.Next(); err != nil {
		t.Fatal(err)
	}
	h, err := tr.Next()
	if err != nil || h.Name != name || !h.ModTime.Equal(at) {
		t.Errorf("%q %v, %v", h.Name, h.ModTime, err)
	}
}

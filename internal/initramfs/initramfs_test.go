package initramfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"github.com/google/go-cmp/cmp"
)

type item struct {
	Header
	Body string
}

func readAll(t *testing.T, r io.Reader) []item {
	t.Helper()
	items, err := collect(r)
	if err != nil {
		t.Fatal(err)
	}
	return items
}

func collect(r io.Reader) ([]item, error) {
	var items []item
	ar := NewReader(r)
	for {
		h, err := ar.Next()
		if errors.Is(err, io.EOF) {
			return items, nil
		}
		if err != nil {
			return items, err
		}
		body, err := io.ReadAll(ar)
		if err != nil {
			return items, err
		}
		items = append(items, item{*h, string(body)})
	}
}

func sample(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, err := range []error{
		w.Dir("/dev/", 0o755),
		w.CharDevice("dev/console", 0o600, 5, 1),
		w.Bytes("a", 0o644, []byte("12345")),
		w.Bytes("empty", 0o600, nil),
		w.Symlink("link", "a"),
		w.File("abc", 0o4755, 3, strings.NewReader("xyz and more")),
		w.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	data := sample(t)
	if len(data)%512 != 0 {
		t.Errorf("archive of %d bytes, want a multiple of 512", len(data))
	}
	if !bytes.Equal(data, sample(t)) {
		t.Error("the same input gave other bytes")
	}
	want := []item{
		{Header{Name: "dev", Mode: typeDir | 0o755}, ""},
		{Header{Name: "dev/console", Mode: typeChar | 0o600, Major: 5, Minor: 1}, ""},
		{Header{Name: "a", Mode: typeFile | 0o644, Size: 5}, "12345"},
		{Header{Name: "empty", Mode: typeFile | 0o600}, ""},
		{Header{Name: "link", Mode: typeSymlink | 0o777, Size: 1}, "a"},
		{Header{Name: "abc", Mode: typeFile | 0o4755, Size: 3}, "xyz"},
	}
	if diff := cmp.Diff(want, readAll(t, bytes.NewReader(data))); diff != "" {
		t.Error(diff)
	}
	second := append(bytes.Clone(data), data...)
	for _, it := range want {
		it.Archive = 1
		want = append(want, it)
	}
	if diff := cmp.Diff(want, readAll(t, bytes.NewReader(second))); diff != "" {
		t.Errorf("two archives: %s", diff)
	}
}

// The bytes of a header, spelled out: what the kernel parses, not what our reader does.
func TestHeaderBytes(t *testing.T) {
	var b bytes.Buffer
	if err := NewWriter(&b).Bytes("ab", 0o640, []byte("x")); err != nil {
		t.Fatal(err)
	}
	want := "070701" + "00000001" + "000081a0" + "00000000" + "00000000" + "00000001" + "00000000" +
		"00000001" + "00000000" + "00000000" + "00000000" + "00000000" + "00000003" + "00000000" +
		"ab\x00" + "\x00\x00\x00" + "x\x00\x00\x00"
	if got := b.String(); got != want {
		t.Errorf("got\n%q, want\n%q", got, want)
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, add := range map[string]func(*Writer) error{
		"no name":    func(w *Writer) error { return w.Dir("/", 0o755) },
		"trailer":    func(w *Writer) error { return w.Bytes("TRAILER!!!", 0o644, nil) },
		"zero byte":  func(w *Writer) error { return w.Bytes("a\x00b", 0o644, nil) },
		"long name":  func(w *Writer) error { return w.Dir(strings.Repeat("a", 4096), 0o755) },
		"too big":    func(w *Writer) error { return w.File("a", 0o644, 1<<32, strings.NewReader("")) },
		"short body": func(w *Writer) error { return w.File("a", 0o644, 2, strings.NewReader("x")) },
		"no target":  func(w *Writer) error { return w.Symlink("a", "") },
	} {
		t.Run(name, func(t *testing.T) {
			w := NewWriter(io.Discard)
			err := add(w)
			if err == nil {
				t.Fatal("no error")
			}
			if err2 := w.Close(); !errors.Is(err2, err) {
				t.Errorf("Close after %v: %v", err, err2)
			}
		})
	}
}

func TestReaderRefuses(t *testing.T) {
	good := sample(t)
	bad := bytes.Clone(good)
	copy(bad[6:], "0000000g")
	for name, c := range map[string]struct {
		data []byte
		want error
	}{
		"text":       {[]byte(strings.Repeat("no archive ", 40)), ErrFormat},
		"cut header": {good[:50], io.ErrUnexpectedEOF},
		"cut body":   {good[:len(good)-600], io.ErrUnexpectedEOF},
		"no trailer": {good[:112+4], io.ErrUnexpectedEOF},
		"bad hex":    {bad, ErrFormat},
		"unaligned":  {append(append(bytes.Clone(good), 0), good...), ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := collect(bytes.NewReader(c.data)); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestBootAndAgent(t *testing.T) {
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("\x7fELF program"), 0o600); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := WriteAgent(&b, agent); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadBoot(bytes.NewReader(b.Bytes())); !errors.Is(err, ErrNoBoot) {
		t.Errorf("ReadBoot of the agent's archive: %v, want ErrNoBoot", err)
	}
	boot := wire.Boot{Version: wire.Version, Secret: strings.Repeat("ab", 32), Transport: "vsock",
		Identity: wire.Identity{VM: "id", Hostname: "dev", Env: []string{"A=B"}}}
	if err := errors.Join(WriteBoot(&b, wire.Boot{Secret: "older"}), WriteBoot(&b, boot)); err != nil {
		t.Fatal(err)
	}
	got, err := ReadBoot(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(boot, got); diff != "" {
		t.Error(diff)
	}
	var names []string
	for _, it := range readAll(t, &b) {
		names = append(names, it.Name)
		if it.Name == "init" && (it.Perm() != 0o755 || it.Body != "\x7fELF program") {
			t.Errorf("init: %+v", it)
		}
		if "/"+it.Name == wire.BootFile && it.Perm() != 0o600 {
			t.Errorf("boot configuration has mode %o", it.Perm())
		}
	}
	want := strings.Fields("dev proc sys run banger newroot dev/console dev/null init banger banger/boot.json banger banger/boot.json")
	if diff := cmp.Diff(want, names); diff != "" {
		t.Error(diff)
	}
}

func TestWriteAgentMissing(t *testing.T) {
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), t.TempDir()} {
		if err := WriteAgent(io.Discard, path); err == nil {
			t.Errorf("WriteAgent(%q) succeeded", path)
		}
	}
}

func FuzzReader(f *testing.F) {
	var b bytes.Buffer
	w := NewWriter(&b)
	_ = w.Bytes("a", 0o644, []byte("12345"))
	_ = w.Close()
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		items, err := collect(bytes.NewReader(data))
		total := 0
		for _, it := range items {
			total += len(it.Body) + len(it.Name)
			if err == nil && int64(len(it.Body)) != it.Size {
				t.Fatalf("%q: body of %d bytes, size %d", it.Name, len(it.Body), it.Size)
			}
		}
		if total > len(data) {
			t.Fatalf("%d bytes came out of %d", total, len(data))
		}
	})
}

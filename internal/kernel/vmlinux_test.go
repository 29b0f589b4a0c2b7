package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ulikunitz/xz/lzma"

	"git.thaloco.com/thaloco/banger/internal/deb/debtest"
)

// vmlinux is a file with the header of a kernel.
func vmlinux() []byte {
	var b bytes.Buffer
	hdr := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Phentsize: 56, Shentsize: 64}
	copy(hdr.Ident[:], "\x7fELF\x02\x01\x01")
	_ = binary.Write(&b, binary.LittleEndian, hdr)
	b.WriteString(strings.Repeat("kernel ", 10_000))
	return b.Bytes()
}

// bzImage wraps a payload as a boot image does; ext is its compression.
func bzImage(t testing.TB, content []byte, ext string) []byte {
	t.Helper()
	var p []byte
	if ext == ".lzma" {
		p = compressLZMA(t, content)
	} else {
		p = debtest.Compress(t, content, ext)
	}
	if ext != ".gz" {
		p = binary.LittleEndian.AppendUint32(p, uint32(len(content)))
	}
	const sects, offset = 3, 0x100
	image := make([]byte, (sects+1)*512+offset)
	image[offSetupSects] = sects
	copy(image[offMagic:], "HdrS")
	binary.LittleEndian.PutUint16(image[offVersion:], 0x20f)
	binary.LittleEndian.PutUint32(image[offPayloadOffset:], offset)
	binary.LittleEndian.PutUint32(image[offPayloadLength:], uint32(len(p)))
	return append(append(image, p...), "what follows the payload"...)
}

func compressLZMA(t testing.TB, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := lzma.NewWriter(&out)
	if err == nil {
		_, err = w.Write(content)
	}
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestExtractVmlinux(t *testing.T) {
	content := vmlinux()
	for _, ext := range []string{".zst", ".gz", ".xz", ".lzma"} {
		var out bytes.Buffer
		if err := extractVmlinux(&out, bzImage(t, content, ext), maxVmlinux); err != nil || !bytes.Equal(out.Bytes(), content) {
			t.Errorf("%s: %d bytes, %v", ext, out.Len(), err)
		}
	}
	good := bzImage(t, content, ".zst")
	change := func(at int, b ...byte) []byte {
		image := bytes.Clone(good)
		copy(image[at:], b)
		return image
	}
	filtered := bzImage(t, content, ".xz")
	filtered[4*512+0x100+13] |= 1
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"empty":           {nil, "no setup header"},
		"no magic":        {change(offMagic, 'x'), "no setup header"},
		"old":             {change(offVersion, 7, 2), "older than 2.08"},
		"payload outside": {change(offPayloadLength, 0xff, 0xff, 0xff, 0xff), "not inside"},
		"no payload":      {change(offPayloadLength, 0, 0, 0, 0), "not inside"},
		"lz4":             {bzImage(t, append([]byte{0x02, 0x21, 0x4c, 0x18}, content...), ""), "by lz4"},
		"lzo":             {bzImage(t, append([]byte("\x89LZO"), content...), ""), "by lzo"},
		"unknown":         {bzImage(t, []byte("plain text"), ""), "no known compression"},
		"xz for x86 code": {filtered, "a filter for x86 code"},
		"cut":             {change(offPayloadLength, 60, 0, 0, 0), "decompress its payload"},
		"too short":       {change(offPayloadLength, 4, 0, 0, 0), "holds 0 bytes, not"},
	} {
		if err := extractVmlinux(io.Discard, c.image, maxVmlinux); !errors.Is(err, errBzImage) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if err := extractVmlinux(io.Discard, good, 100); err == nil || !strings.Contains(err.Error(), "longer than 100 bytes") {
		t.Errorf("a payload beyond the limit: %v", err)
	}
}

func FuzzExtractVmlinux(f *testing.F) {
	for _, ext := range []string{".zst", ".gz", ".xz", ".lzma"} {
		f.Add(bzImage(f, []byte("\x7fELF short"), ext))
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		const limit = 1 << 16
		var out bytes.Buffer
		err := extractVmlinux(&out, image, limit)
		if err != nil && !errors.Is(err, errBzImage) {
			t.Fatal(err)
		}
		if out.Len() > limit+1 || err == nil && out.Len() > limit {
			t.Fatalf("%d bytes", out.Len())
		}
	})
}

func FuzzPayload(f *testing.F) {
	f.Add(bzImage(f, []byte("\x7fELF short"), ".zst"))
	f.Add(bzImage(f, []byte("\x7fELF short"), ".gz"))
	f.Fuzz(func(t *testing.T, image []byte) {
		p, err := payload(image)
		if err == nil && (len(p) == 0 || !bytes.Contains(image, p)) {
			t.Fatalf("a payload of %d bytes", len(p))
		}
		if err != nil && !errors.Is(err, errBzImage) {
			t.Fatal(err)
		}
	})
}

package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

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
	p := debtest.Compress(t, content, ext)
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

func TestExtractVmlinux(t *testing.T) {
	content := vmlinux()
	for _, ext := range []string{".zst", ".gz", ".xz"} {
		var out bytes.Buffer
		if err := extractVmlinux(&out, bzImage(t, content, ext)); err != nil || !bytes.Equal(out.Bytes(), content) {
			t.Errorf("%s: %d bytes, %v", ext, out.Len(), err)
		}
	}
	good := bzImage(t, content, ".zst")
	change := func(at int, b ...byte) []byte {
		image := bytes.Clone(good)
		copy(image[at:], b)
		return image
	}
	for name, image := range map[string][]byte{
		"empty":           nil,
		"no magic":        change(offMagic, 'x'),
		"old":             change(offVersion, 7, 2),
		"payload outside": change(offPayloadLength, 0xff, 0xff, 0xff, 0xff),
		"no payload":      change(offPayloadLength, 0, 0, 0, 0),
		"lz4":             bzImage(t, append([]byte{0x02, 0x21, 0x4c, 0x18}, content...), ""),
		"cut":             change(offPayloadLength, 100, 0, 0, 0),
	} {
		if err := extractVmlinux(io.Discard, image); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
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

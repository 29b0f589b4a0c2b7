package kernel

import (
	"bytes"
	"compress/bzip2"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// errBzImage says that a kernel image is not what this package can open.
var errBzImage = errors.New("not a kernel image banger can open")

// Offsets of the setup header (Documentation/arch/x86/boot.rst of the kernel), in bytes.
const (
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offVersion       = 0x206
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	setupHeaderEnd   = 0x250
)

// maxVmlinux bounds an uncompressed kernel, in bytes.
const maxVmlinux = 512 << 20

// payload returns the compressed vmlinux in a bzImage.
func payload(image []byte) ([]byte, error) {
	if len(image) < setupHeaderEnd || string(image[offMagic:offMagic+4]) != "HdrS" {
		return nil, fmt.Errorf("it has no setup header: %w", errBzImage)
	}
	if v := binary.LittleEndian.Uint16(image[offVersion:]); v < 0x208 {
		return nil, fmt.Errorf("boot protocol %#x is older than 2.08: %w", v, errBzImage)
	}
	sects := int64(image[offSetupSects])
	if sects == 0 {
		sects = 4 // as the boot protocol says, for very old kernels
	}
	begin := (sects+1)*512 + int64(binary.LittleEndian.Uint32(image[offPayloadOffset:]))
	end := begin + int64(binary.LittleEndian.Uint32(image[offPayloadLength:]))
	if begin >= end || end > int64(len(image)) {
		return nil, fmt.Errorf("its payload from %d to %d is not inside its %d bytes: %w", begin, end, len(image), errBzImage)
	}
	return image[begin:end], nil
}

// extractVmlinux writes the ELF vmlinux in a bzImage to w. A payload is a compressed stream and, but for gzip,
// 4 bytes with the length of what it holds.
func extractVmlinux(w io.Writer, image []byte) error {
	p, err := payload(image)
	if err != nil {
		return err
	}
	var r io.Reader
	trailer := 4
	switch {
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(p[:max(0, len(p)-4)]), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(256<<20))
		if err != nil {
			return err
		}
		defer z.Close()
		r = z
	case bytes.HasPrefix(p, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return err
		}
		z.Multistream(false)
		r, trailer = z, 0
	case bytes.HasPrefix(p, []byte("\xfd7zXZ\x00")):
		z, err := xz.NewReader(bytes.NewReader(p[:max(0, len(p)-4)]))
		if err != nil {
			return fmt.Errorf("open its xz payload: %w: %w", err, errBzImage)
		}
		r = z
	case bytes.HasPrefix(p, []byte("BZh")):
		r = bzip2.NewReader(bytes.NewReader(p[:max(0, len(p)-4)]))
	default:
		return fmt.Errorf("its payload begins with %x, which is no known compression: %w", p[:min(4, len(p))], errBzImage)
	}
	n, err := io.Copy(w, io.LimitReader(r, maxVmlinux+1))
	if err != nil {
		return fmt.Errorf("decompress its payload: %w", err)
	}
	if n > maxVmlinux {
		return fmt.Errorf("its payload is longer than %d bytes: %w", maxVmlinux, errBzImage)
	}
	if trailer > 0 {
		if want := binary.LittleEndian.Uint32(p[len(p)-trailer:]); int64(want) != n {
			return fmt.Errorf("its payload holds %d bytes, not the %d it says: %w", n, want, errBzImage)
		}
	}
	return nil
}

// checkVmlinux makes sure that a file is a kernel for this architecture.
func checkVmlinux(r io.ReaderAt) error {
	f, err := elf.NewFile(r)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errBzImage)
	}
	if f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		return fmt.Errorf("it is an ELF of %s, %s, %s: %w", f.Class, f.Machine, f.Type, errBzImage)
	}
	return nil
}

package kernel

import (
	"bytes"
	"compress/bzip2"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// errBzImage says that a kernel image is not what this package can open.
var errBzImage = errors.New("not a kernel image banger can open")

// Offsets of the setup header (Documentation/arch/x86/boot.rst of the kernel), in bytes.
const (
	offARM64         = 0x38 // of the magic of an arm64 Image
	offSetupSects    = 0x1f1
	offMagic         = 0x202
	offVersion       = 0x206
	offPayloadOffset = 0x248
	offPayloadLength = 0x24c
	setupHeaderEnd   = 0x250
)

// maxVmlinux bounds an uncompressed kernel, in bytes.
const maxVmlinux = 512 << 20

// maxWindow is how much of what was decompressed a decoder may keep, in bytes.
const maxWindow = 256 << 20

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

// extractVmlinux writes the ELF vmlinux in a bzImage to w, at most limit bytes of it. A payload is a compressed stream and, but for gzip,
// 4 bytes with the length of what it holds.
func extractVmlinux(w io.Writer, image []byte, limit int64) error {
	p, err := payload(image)
	if err != nil {
		return err
	}
	var r io.Reader
	trailer := 4
	switch {
	case bytes.HasPrefix(p, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(bytes.NewReader(p[:max(0, len(p)-4)]), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxWindow(maxWindow))
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
		if r, err = xzReader(p[:len(p)-4]); err != nil {
			return err
		}
	case bytes.HasPrefix(p, []byte{0x5d, 0, 0}):
		if r, err = lzmaReader(p[:max(0, len(p)-4)]); err != nil {
			return err
		}
	case bytes.HasPrefix(p, []byte("BZh")):
		r = bzip2.NewReader(bytes.NewReader(p[:max(0, len(p)-4)]))
	default:
		return unknownPayload(p)
	}
	n, err := io.Copy(w, io.LimitReader(payloadReader{r}, limit+1))
	if err != nil {
		return err
	}
	if n > limit {
		return fmt.Errorf("its payload is longer than %d bytes: %w", limit, errBzImage)
	}
	if trailer > 0 {
		if want := binary.LittleEndian.Uint32(p[len(p)-trailer:]); int64(want) != n {
			return fmt.Errorf("its payload holds %d bytes, not the %d it says: %w", n, want, errBzImage)
		}
	}
	return nil
}

// payloadReader tells its own errors from those of who is written to.
type payloadReader struct{ r io.Reader }

func (p payloadReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("decompress its payload: %w: %w", err, errBzImage)
	}
	return n, err
}

// lzmaReader opens a stream in the classic format, of which the first byte is the only sign.
func lzmaReader(p []byte) (io.Reader, error) {
	r, err := lzma.ReaderConfig{DictCap: maxWindow}.NewReader(bytes.NewReader(p))
	if err != nil {
		return nil, fmt.Errorf("open its lzma payload: %w: %w", err, errBzImage)
	}
	return r, nil
}

// xzReader opens an xz stream. The library has no filters but LZMA2, and the kernel's build uses another one.
func xzReader(p []byte) (io.Reader, error) {
	const offBlockFlags = 13 // behind the stream's header and the length of the block's
	if len(p) > offBlockFlags && p[offBlockFlags]&3 != 0 {
		return nil, fmt.Errorf("its payload is compressed by xz with a filter for x86 code, which banger cannot undo: %w", errBzImage)
	}
	r, err := xz.NewReader(bytes.NewReader(p))
	if err != nil {
		return nil, fmt.Errorf("open its xz payload: %w: %w", err, errBzImage)
	}
	return r, nil
}

// unknownPayload says what a payload is that cannot be opened.
func unknownPayload(p []byte) error {
	for magic, name := range map[string]string{"\x02\x21\x4c\x18": "lz4", "\x89LZO": "lzo"} {
		if bytes.HasPrefix(p, []byte(magic)) {
			return fmt.Errorf("its payload is compressed by %s, which banger cannot undo: %w", name, errBzImage)
		}
	}
	return fmt.Errorf("its payload begins with %x, which is no known compression: %w", p[:min(4, len(p))], errBzImage)
}

// checkVmlinux makes sure that a file is a kernel for this architecture.
func checkVmlinux(r io.ReaderAt) error {
	_, err := parseELF(r)
	return err
}

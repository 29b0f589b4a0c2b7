// Package bundle reads and writes images as one file: a tar, compressed with zstd, of manifest.json, which says what
// the image is, and rootfs.ext4, its base drive. Nothing else is in it, in no other order.
//
// manifest.go is manifest.json, write.go writes a bundle, extract.go reads one that anybody may have made: what
// it says is checked and bounded, and its drive compared with the digest in its manifest before anyone gets to see it.
package bundle

import (
	"errors"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"

	"git.thaloco.com/thaloco/banger/api"
)

// The members of the tar.
const (
	memberManifest = "manifest.json"
	memberRootfs   = "rootfs.ext4"
)

// FirstMember is the name of the first member of a bundle's tar.
const FirstMember = memberManifest

// Limits of a bundle, in bytes: what is beyond them is refused.
const (
	maxManifest = 1 << 20
	maxRootfs   = 64 << 30
	// maxHeaders is what tar's own headers may take before each member.
	maxHeaders = 64 << 10
	// maxTail is how many zeros may follow the last member; GNU tar fills its records of 10,240 bytes with them.
	maxTail = 1 << 20
	// maxWindow is how far back compressed data may refer, which takes that much memory: zstd -19 needs 8 MiB.
	maxWindow = 32 << 20
)

// tarBlock is what tar rounds its members to, endMark what of zeros ends it, in bytes (POSIX.1-2017, pax, "ustar Interchange Format").
const (
	tarBlock = 512
	endMark  = 2 * tarBlock
)

// invalid is the error for a bundle that is none.
func invalid(format string, args ...any) *api.Error {
	return api.Errorf(api.KindInvalid, "read bundle: "+format, args...)
}

const hintFormat = "a bundle is what banger image export writes: a tar of manifest.json and rootfs.ext4, compressed with zstd"

// unpackError is what it means for a bundle that decompressing it failed.
func unpackError(err error) error {
	switch {
	case errors.Is(err, zstd.ErrMagicMismatch):
		return invalid("it is not compressed with zstd, or not only").WithHint(hintFormat)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrWindowSizeTooSmall), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return invalid("it is compressed in a way that takes more than %d MiB of memory to undo: %w", maxWindow>>20, err).
			WithHint("compress it again with zstd, without --long and --ultra")
	}
	return invalid("it is damaged: %w", err).WithHint("fetch or export it again")
}

// shown is a name from a bundle as an error may have it.
func shown(name string) string {
	if len(name) > 64 {
		name = strings.ToValidUTF8(name[:64], "") + "…"
	}
	return name
}

// removeFile takes back a file that was made in dir.
func removeFile(f *os.File) error { return errors.Join(f.Close(), os.Remove(f.Name())) }

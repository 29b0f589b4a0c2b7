// Package ext4 makes and inspects ext4 file systems on the host without
// mounting anything and without root.
//
// FromTar (fromtar.go) turns a tar stream into a read-only ext4; normalize.go
// is what it does to the stream on the way, repair.go what it does to the
// result.
//
// A Reader (reader.go) reads file systems that anybody may have made, so that
// neither the host's kernel nor its e2fsprogs has to: super.go and group.go say
// where things are, inode.go what a file is, blocks.go and inline.go where its
// content is; dir.go reads directories, lookup.go paths, walk.go whole trees.
// Check (check.go, image.go) tells whether a file can be a VM's base drive.
package ext4

import (
	"encoding/hex"
	"fmt"
)

// BlockSize is the block size, in bytes, of every file system FromTar makes.
const BlockSize = 4096

// UUID identifies a file system.
type UUID [16]byte

// String returns the usual form, 8-4-4-4-12 hexadecimal digits.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return fmt.Sprintf("%s-%s-%s-%s-%s", h[:8], h[8:12], h[12:16], h[16:20], h[20:])
}

// IsZero reports whether u is the null UUID.
func (u UUID) IsZero() bool { return u == UUID{} }

// uuidFrom makes a version 8 UUID (RFC 9562: the application's own scheme) of
// the first bytes of a digest.
func uuidFrom(digest []byte) UUID {
	var u UUID
	copy(u[:], digest)
	u[6] = u[6]&0x0f | 0x80
	u[8] = u[8]&0x3f | 0x80
	return u
}

package disk

import (
	"context"
	"crypto/rand"
	"embed"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/internal/disk/template"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

//go:generate go run ./template/gen

//go:embed *.zst
var templates embed.FS

// Create makes a data drive of size bytes, a multiple of 4,096 of at least
// MinBytes, as a sparse file at path, which must not exist. It holds an empty
// ext4 with a UUID of its own: of size bytes where size is DefaultBytes, else smaller, and the
// agent grows it at first boot. path appears complete and synced or not at all.
//
// Errors: api.KindInvalid for a size that cannot be, api.KindUnavailable where
// the host has no room, os.ErrExist.
func Create(ctx context.Context, path string, size int64) error {
	if err := checkSize(size); err != nil {
		return err
	}
	return hostError(create(ctx, path, size), "create disk", path)
}

func create(ctx context.Context, path string, size int64) error {
	t, err := templateFor(size)
	if err != nil {
		return err
	}
	return writeNew(ctx, path, func(f *os.File) error {
		if err := f.Truncate(size); err != nil {
			return err
		}
		if err := t.WriteTo(f); err != nil {
			return err
		}
		return renewUUID(f, t)
	})
}

// templateFor returns the largest embedded file system that fits size bytes.
func templateFor(size int64) (template.Template, error) {
	var best template.Params
	for _, p := range template.All {
		if p.Size <= size && p.Size > best.Size {
			best = p
		}
	}
	b, err := templates.ReadFile(best.File)
	if err != nil {
		return template.Template{}, err
	}
	t, err := template.Decode(b)
	if err != nil {
		return template.Template{}, fmt.Errorf("%s: %w", best.File, err)
	}
	return t, nil
}

// writeNew makes the file path, which must not exist, by way of a temporary one beside it.
func writeNew(ctx context.Context, path string, write func(*os.File) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-disk-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(f); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// A link, unlike a rename, does not replace what somebody else made meanwhile.
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	if err := hostfile.SyncDir(filepath.Dir(path)); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// Layout of a superblock, as far as a new UUID is concerned.
const (
	superSize      = 1024
	superMagic     = 0xEF53
	offMagic       = 0x38
	offUUID        = 0x68
	offChecksum    = 0x3FC
	blocksPerGroup = 8 * blockSize
)

// renewUUID gives the file system of t in f a random UUID, in every copy of its
// superblock. Nothing else depends on it: the seed of the checksums is stored (metadata_csum_seed).
func renewUUID(f *os.File, t template.Template) error {
	uuid := make([]byte, 16)
	if _, err := rand.Read(uuid); err != nil {
		return err
	}
	uuid[6] = uuid[6]&0x0f | 0x40
	uuid[8] = uuid[8]&0x3f | 0x80
	groups := (t.Size/blockSize + blocksPerGroup - 1) / blocksPerGroup
	for g := range groups {
		if !hasSuper(g) {
			continue
		}
		off := g * blocksPerGroup * blockSize
		if g == 0 {
			off = 1024
		}
		if err := setUUID(f, off, uuid); err != nil {
			return fmt.Errorf("superblock of group %d: %w", g, err)
		}
	}
	return nil
}

func setUUID(f *os.File, off int64, uuid []byte) error {
	b := make([]byte, superSize)
	if _, err := f.ReadAt(b, off); err != nil && err != io.EOF {
		return err
	}
	if binary.LittleEndian.Uint16(b[offMagic:]) != superMagic {
		return fmt.Errorf("none at %d", off)
	}
	copy(b[offUUID:], uuid)
	// The kernel's crc32c leaves out the final inversion.
	sum := ^crc32.Checksum(b[:offChecksum], crc32.MakeTable(crc32.Castagnoli))
	binary.LittleEndian.PutUint32(b[offChecksum:], sum)
	_, err := f.WriteAt(b, off)
	return err
}

// hasSuper reports whether a block group holds a copy of the superblock
// (sparse_super): groups 0 and 1 and the powers of 3, 5 and 7.
func hasSuper(group int64) bool {
	if group <= 1 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < group {
			n *= base
		}
		if n == group {
			return true
		}
	}
	return false
}

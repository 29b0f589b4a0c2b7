package tree

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"strconv"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// Format is how ids of blobs are computed.
type Format string

// The object formats of git.
const (
	SHA1   Format = "sha1"
	SHA256 Format = "sha256"
)

// Digits returns how many hexadecimal digits an id has; the error is a *api.Error of KindInvalid.
func (f Format) Digits() (int, error) {
	switch f {
	case SHA1:
		return 2 * sha1.Size, nil
	case SHA256:
		return 2 * sha256.Size, nil
	}
	return 0, api.Errorf(api.KindInvalid, "object format %q is neither sha1 nor sha256", string(f))
}

func (f Format) hash() hash.Hash {
	if f == SHA256 {
		return sha256.New()
	}
	return sha1.New()
}

// Hash writes the state of paths below a root, in their order. Of a file that changes meanwhile an entry and an id belong together in that
// the id is of as many bytes as the entry says, and that the entry is older than they are: what is written later shows in its time or size, unless
// that is the same second.
func Hash(ctx context.Context, w *Writer, root string, format Format, paths Paths) error {
	if _, err := format.Digits(); err != nil {
		return err
	}
	dir, err := openRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	return inOrder(ctx, func(yield func(Paths) error) error {
		for len(paths) > 0 {
			var some Paths
			some, paths = paths.take(chunk)
			if err := yield(some); err != nil {
				return err
			}
		}
		return nil
	}, func() (func(context.Context, *job) error, func()) {
		h := &hasher{root: root, dirs: dirs{root: int(dir.Fd())}, hash: format.hash(), buf: make([]byte, buffer)}
		return h.all, h.dirs.close
	}, func(j *job) error { return w.records(j.records, j.n) })
}

type hasher struct {
	root string // for errors
	dirs dirs
	hash hash.Hash
	buf  []byte
	id   []byte
}

func (h *hasher) all(ctx context.Context, j *job) error {
	return j.each(ctx, func(name []byte) error {
		rec, err := h.state(ctx, j.records, name)
		if err != nil {
			return failure("read", h.root+"/"+string(name[:len(name)-1]), err)
		}
		j.records = append(rec, 0)
		j.n++
		return nil
	})
}

// state appends the record of one path.
func (h *hasher) state(ctx context.Context, rec, name []byte) ([]byte, error) {
	at, base, err := h.dirs.at(name)
	if absent(err) {
		return append(rec, kindMissing), nil
	}
	if err != nil {
		return nil, err
	}
	for range shrinkTries {
		fd, err := openFile(at, base)
		switch {
		case errors.Is(err, unix.ELOOP):
			return h.link(rec, at, base)
		case errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV): // a socket, a device nobody serves
			return append(rec, kindSpecial), nil
		case absent(err):
			return append(rec, kindMissing), nil
		case err != nil:
			return nil, err
		}
		var st status
		err = st.stat(fd, itself)
		whole := false
		if err == nil && st.kind == kindFile {
			whole, err = h.content(ctx, fd, st.size)
		}
		_ = unix.Close(fd)
		switch {
		case err != nil:
			return nil, err
		case st.kind == kindDir:
			return append(appendStatus(rec, &st), '-'), nil
		case st.kind == kindSpecial:
			return append(rec, kindSpecial), nil
		case whole:
			return h.appendID(appendStatus(rec, &st)), nil
		}
	}
	return append(rec, kindSpecial), nil
}

// begin starts the id of a blob of size bytes.
func (h *hasher) begin(size int64) {
	h.hash.Reset()
	h.id = append(strconv.AppendInt(append(h.id[:0], "blob "...), size, 10), 0)
	h.hash.Write(h.id)
}

func (h *hasher) appendID(rec []byte) []byte {
	h.id = h.hash.Sum(h.id[:0])
	return hex.AppendEncode(rec, h.id)
}

// content hashes the first size bytes of a file; false where there are fewer.
func (h *hasher) content(ctx context.Context, fd int, size int64) (whole bool, err error) {
	h.begin(size)
	for left := size; left > 0; {
		n, err := read(fd, h.buf[:min(left, int64(len(h.buf)))])
		if err != nil || n == 0 {
			return false, err
		}
		h.hash.Write(h.buf[:n])
		if left -= int64(n); left > 0 && ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
	}
	return true, nil
}

// link appends the record of a link; what has become something else again is missing.
func (h *hasher) link(rec []byte, at int, base []byte) ([]byte, error) {
	var st status
	err := st.stat(at, base)
	var target []byte
	if err == nil {
		target, err = readLink(at, base, h.buf)
	}
	if absent(err) || errors.Is(err, unix.EINVAL) || err == nil && st.kind != kindLink {
		return append(rec, kindMissing), nil
	}
	if err != nil {
		return nil, err
	}
	st.size = int64(len(target))
	h.begin(st.size)
	h.hash.Write(target)
	return h.appendID(appendStatus(rec, &st)), nil
}

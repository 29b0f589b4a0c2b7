package workspace

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// indexFile is the copy of the index, also where the repository has none (then git reads it as empty).
func (r *repo) indexFile() string { return filepath.Join(r.temp, "index") }

// copyIndex copies the index and makes it one that any git reads: whole, not split or sparse, without what a monitor of the
// host knows. Its times stay those of the host's files, so git in the guest compares contents once and is right.
func (r *repo) copyIndex(ctx context.Context) error {
	file, err := r.gitPath(ctx, "index")
	if err != nil {
		return err
	}
	if err := copyFile(file, r.indexFile()); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return unreadable(file, err)
	}
	r.index = r.indexFile()
	_, err = r.indexed(ctx, nil, "-c", "index.sparse=false", "-c", "index.skipHash=false",
		"update-index", "--no-split-index", "--no-untracked-cache", "--no-fsmonitor", "--force-write-index")
	if err != nil {
		_, said := status(err)
		return r.git.broken(r.root, "the index", said)
	}
	return nil
}

// listIndex lists the index.
func (r *repo) listIndex(ctx context.Context) error {
	out, err := r.indexed(ctx, nil, listIndex...)
	if err != nil {
		return fmt.Errorf("list the files of %q: %w", r.root, err)
	}
	sum := newIndexSum()
	_, _ = sum.Write(out)
	if sum.empty {
		promised, err := r.indexed(ctx, nil, listPromised...)
		if err != nil {
			return fmt.Errorf("list the files of %q: %w", r.root, err)
		}
		_, _ = sum.Write(promised)
	}
	r.now.Index, r.listed = sum.String(), split(out, "\x00")
	if r.now.Head == r.host.Head {
		r.host.Index = r.now.Index
	}
	return nil
}

// listIndex are the arguments of git that list an index such that what is equal is listed equally, but for files of which is only said that
// they will be added: these look like empty ones, and listPromised tells which they are.
var (
	listIndex    = []string{"ls-files", "-z", "-v", "--stage"}
	listPromised = []string{"diff-files", "-z", "--name-only", "--diff-filter=A"}
)

// emptyIDs are the ids of an empty file.
var emptyIDs = [][]byte{[]byte(idOf(formatSHA1, nil)), []byte(idOf(formatSHA256, nil))}

// indexSum stands for what is in an index. What listIndex says is written to it, and where empty is set then, what listPromised says.
type indexSum struct {
	sum   hash.Hash
	tail  []byte
	empty bool
}

func newIndexSum() *indexSum { return &indexSum{sum: sha256.New()} }

// Write implements io.Writer.
func (s *indexSum) Write(p []byte) (int, error) {
	_, _ = s.sum.Write(p) // never fails
	if !s.empty {
		s.tail = append(s.tail, p...)
		s.empty = bytes.Contains(s.tail, emptyIDs[0]) || bytes.Contains(s.tail, emptyIDs[1])
		s.tail = append(s.tail[:0], s.tail[max(0, len(s.tail)-64):]...)
	}
	return len(p), nil
}

// String is what stands for it.
func (s *indexSum) String() string { return hex.EncodeToString(s.sum.Sum(nil)) }

// indexed runs git on the copy of the index.
func (r *repo) indexed(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	return r.git.output(ctx, r.root, stdin, []string{"GIT_INDEX_FILE=" + r.indexFile()}, args...)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}

// pack writes the objects that the refs, HEAD, the state and the index reach into one pack, all but what have, commits or trees, reach.
// Deltas are taken over, new ones are not looked for: the pack lives on this host and in one guest.
func (r *repo) pack(ctx context.Context, have ...string) error {
	args := []string{"-c", "pack.packSizeLimit=0", "-c", "pack.writeReverseIndex=false",
		"pack-objects", "--revs", "--indexed-objects", "--non-empty", "--delta-base-offset", "--window=0", "--compression=1", "-q"}
	if r.partial {
		args = append(args, "--missing=allow-promisor")
	}
	objects, err := r.gitPath(ctx, "objects")
	if err != nil {
		return err
	}
	own := filepath.Join(r.temp, "objects") // git writes temporary files to its object directory: not to the host's
	if err := os.Mkdir(own, 0o700); err != nil {
		return fmt.Errorf("pack the history of %q: %w", r.root, err)
	}
	env := []string{"GIT_INDEX_FILE=" + r.indexFile(), "GIT_OBJECT_DIRECTORY=" + own,
		`GIT_ALTERNATE_OBJECT_DIRECTORIES="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(objects) + `"`}
	var in strings.Builder
	for _, id := range r.shallow {
		in.WriteString("--shallow " + id + "\n")
	}
	for _, id := range r.tips {
		in.WriteString(id + "\n")
	}
	for _, id := range have {
		in.WriteString("^" + id + "\n")
	}
	out, err := r.git.output(ctx, r.root, strings.NewReader(in.String()), env, append(args, filepath.Join(r.temp, "pack"))...)
	if err != nil {
		if code, said := status(err); code > 0 {
			return r.git.broken(r.root, "the objects", said)
		}
		return fmt.Errorf("pack the history of %q: %w", r.root, err)
	}
	for id := range strings.FieldsSeq(string(out)) {
		for _, ext := range []string{".pack", ".idx"} {
			r.packs["pack-"+id+ext] = filepath.Join(r.temp, "pack-"+id+ext)
		}
		if r.partial {
			// Marks the pack's objects as a promisor's: those they refer to may be missing.
			r.promisors = append(r.promisors, "objects/pack/pack-"+id+".promisor")
		}
	}
	return nil
}

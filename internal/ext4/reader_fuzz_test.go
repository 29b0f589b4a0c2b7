package ext4

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fuzzImages are the small file systems in testdata/images, by name. UPDATE=1 makes them again, with mke2fs.
var fuzzImages = []struct {
	name string
	size int64
	args []string
}{
	{"ext4", 256 << 10, []string{"-t", "ext4", "-b", "1024"}},
	{"ext2", 256 << 10, []string{"-t", "ext2", "-b", "1024"}},
	{"inline", 256 << 10, []string{"-t", "ext4", "-b", "1024", "-O", "inline_data,^has_journal"}},
	{"metabg", 256 << 10, []string{"-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode,^has_journal,bigalloc", "-C", "2048"}},
	{"block4k", 256 << 10, []string{"-t", "ext4", "-b", "4096", "-O", "^has_journal,^filetype,casefold"}},
	{"block64k", 4 << 20, []string{"-t", "ext4", "-b", "65536", "-O", "^has_journal,^resize_inode"}},
}

// TestUpdateImages makes testdata/images.
func TestUpdateImages(t *testing.T) {
	if os.Getenv("UPDATE") == "" {
		t.Skip("UPDATE=1 makes the images again")
	}
	tree := treeWithLinks(t)
	if err := os.MkdirAll(filepath.Join(tree, "d", strings.Repeat("n", 200)), 0o755); err != nil {
		t.Fatal(err)
	}
	for k := 1; k < 40; k++ {
		if err := os.Symlink(strings.Repeat("t", k), filepath.Join(tree, "d", strings.Repeat("l", k+1))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("t", 70), filepath.Join(tree, "long")); err != nil {
		t.Fatal(err)
	}
	sparse(t, filepath.Join(tree, "sparse"), 400<<10, 0, 8<<10, 16<<10, 100<<10, 200<<10, 300<<10, 399<<10)
	for _, image := range fuzzImages {
		path := mke2fs(t, image.size, append([]string{"-N", "128", "-d", tree}, image.args...)...)
		tool(t, "e2fsck", "-fyD", path) // indexes the directories
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var zipped bytes.Buffer
		z, err := gzip.NewWriterLevel(&zipped, gzip.BestCompression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := z.Write(b); err != nil {
			t.Fatal(err)
		}
		if err := z.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join("testdata", "images", image.name+".gz"), zipped.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func loadImages(t testing.TB) [][]byte {
	t.Helper()
	var images [][]byte
	for _, image := range fuzzImages {
		f, err := os.Open(filepath.Join("testdata", "images", image.name+".gz"))
		if err != nil {
			t.Fatal(err)
		}
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(io.LimitReader(z, 8<<20))
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, b)
	}
	return images
}

// usedWords are the offsets of the words of an image that say something.
func usedWords(image []byte) []int {
	var words []int
	for off := 0; off+4 <= len(image); off += 4 {
		if binary.LittleEndian.Uint32(image[off:]) != 0 {
			words = append(words, off)
		}
	}
	return words
}

const editSize = 8

// edited is an image with other bytes in some places.
type edited struct {
	io.ReaderAt
	bytes map[int64]byte
}

func (e edited) ReadAt(p []byte, off int64) (int, error) {
	n, err := e.ReaderAt.ReadAt(p, off)
	for at, b := range e.bytes {
		if at >= off && at < off+int64(n) {
			p[at-off] = b
		}
	}
	return n, err
}

// edit changes an image as edits say, eight bytes for each change: which of the words that are not zero (or, with
// the highest bit, which byte of the image), an offset from there, the width less one, and the new value.
func edit(image []byte, words []int, edits []byte) io.ReaderAt {
	e := edited{bytes.NewReader(image), map[int64]byte{}}
	le := binary.LittleEndian
	for ; len(edits) >= editSize; edits = edits[editSize:] {
		which, off := int(le.Uint16(edits)), 0
		if which&0x8000 != 0 {
			off = (which&0x7fff)<<8 | int(edits[2])
		} else {
			off = words[which%len(words)] + int(edits[2])
		}
		for k := range int(edits[3])%4 + 1 {
			e.bytes[int64(off+k)] = edits[4+k]
		}
	}
	return e
}

// FuzzReader reads file systems in which anything may have been changed. Whatever they say, every call has to end soon,
// and what Walk found the other calls have to find, too.
func FuzzReader(f *testing.F) {
	images := loadImages(f)
	var words [][]int
	for k, image := range images {
		words = append(words, usedWords(image))
		f.Add(uint8(k), []byte{})
		f.Add(uint8(k), []byte{12, 0, 0, 3, 0xff, 0xff, 0xff, 0x7f, 40, 0, 4, 1, 0x10, 0, 0, 0})
	}
	f.Fuzz(func(t *testing.T, which uint8, edits []byte) {
		k := int(which) % len(images)
		image := edit(images[k], words[k], edits[:min(len(edits), 64*editSize)])
		r, err := newReader(image)
		if err != nil {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		found, count := map[string]Info{}, 0
		err = r.Walk(ctx, func(path string, i Info) error {
			if count++; count%7 == 0 && len(found) < 20 || i.Mode&typeMask == typeRegular && len(found) < 30 {
				found[path] = i
			}
			return nil
		})
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("Walk takes too long")
		}
		if err == nil && len(edits) == 0 && count < 60 {
			t.Errorf("an image as mke2fs made it has %d files", count)
		}
		readFound(t, r, found)
	})
}

// readFound does with some of the files that Walk found what else a Reader can do.
func readFound(t *testing.T, r *Reader, found map[string]Info) {
	t.Helper()
	const limit = 512 << 10
	paths := make([]string, 0, len(found))
	for path := range found {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	for _, path := range paths {
		if len(path) > 1000 {
			continue
		}
		i, err := r.Lstat(path)
		if err != nil {
			t.Errorf("Walk found %q, Lstat: %v", path, err)
		} else if diff := cmp.Diff(found[path], i); diff != "" {
			t.Errorf("%q: Walk and Lstat differ:\n%s", path, diff)
		}
		b, err := r.ReadFile(path, limit)
		if err == nil && i.Mode&typeMask == typeRegular && int64(len(b)) != i.Size || len(b) > limit {
			t.Errorf("%q: %d bytes, not %d", path, len(b), i.Size)
		}
	}
}

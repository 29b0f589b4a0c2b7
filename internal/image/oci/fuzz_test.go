package oci

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"

	"git.thaloco.com/thaloco/banger/internal/ext4"
)

// joined are layers in one slice of bytes, each after its length.
func joined(layers ...[]byte) []byte {
	var out []byte
	for _, l := range layers {
		out = append(binary.BigEndian.AppendUint32(out, uint32(len(l))), l...)
	}
	return out
}

// parted is the other way round, whatever the bytes are.
func parted(b []byte) (layers [][]byte) {
	for len(b) >= 4 && len(layers) < 8 {
		n := int(min(uint64(binary.BigEndian.Uint32(b)), uint64(len(b)-4)))
		layers, b = append(layers, b[4:4+n]), b[4+n:]
	}
	return layers
}

// FuzzFlatten merges layers that anybody may have made. An error will do; a stream that is not as Flatten promises will not, nor one that is
// another every time, nor a panic of what makes a file system of it.
func FuzzFlatten(f *testing.F) {
	f.Add(joined(plainLayer(f, dir("d"), file("d/f", "x"), hard("h", "d/f"), symlink("s", "d"))))
	f.Add(joined(plainLayer(f, file("a/b", "1"), symlink("l", "a")), plainLayer(f, file("l/.wh.b", ""), file("l/c", "2"), file("a/.wh..wh..opq", ""))))
	f.Add(joined(layer(f, file("a", strings.Repeat("a", 2000))), zstandard(f, plainLayer(f, hard("b", "a"), file("a", "new"))), plainLayer(f, file(".wh.b", ""))))
	f.Add(joined(plainLayer(f, symlink("a", "../b"), symlink("b", "/a"), device("c", tar.TypeChar, 1, 2), dir(".").owned(1<<31, 5), file("\xff", "").xattr("user.a", "\x00"))))
	image := filepath.Join(f.TempDir(), "fs.ext4")
	f.Fuzz(func(t *testing.T, b []byte) {
		layers := parted(b)
		stream, err := flatBytes(t.Context(), layers...)
		if err != nil {
			return
		}
		if len(stream) > 4<<20 {
			return // it is another test's that it takes no more than it should
		}
		treeOfTar(t, stream)
		if again, err := flatBytes(t.Context(), layers...); err != nil || !bytes.Equal(stream, again) {
			t.Errorf("another stream the second time, %v", err)
		}
		if err := ext4.FromTar(t.Context(), bytes.NewReader(stream), image, ext4.Options{MaxBytes: 64 << 20}); err == nil {
			if s, err := ext4.Superblock(image); err != nil || !s.Clean {
				t.Errorf("superblock %+v, %v", s, err)
			}
		}
	})
}

// FuzzReference reads references that anybody may have typed: what comes out of one means the same, and can go into a path of a URL.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"alpine", "docker.io/library/alpine:3.20", "localhost:5000/a/b:c", "ghcr.io/o/i@sha256:" + strings.Repeat("a", 64), "a:b@sha256:" + strings.Repeat("0", 64), "[::1]:5000/a", "index.docker.io/a", "x..y/z", "A/b", "a//b", "a:", "@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		full, err := Normalize(s)
		if err != nil {
			if Repository(s) != "" {
				t.Errorf("%q is no reference, but in %q", s, Repository(s))
			}
			return
		}
		again, err := Normalize(full)
		if err != nil || again != full {
			t.Errorf("%q is %q, and that %q, %v", s, full, again, err)
		}
		if !IsReference(full) || !strings.HasPrefix(full, Repository(s)) || Repository(full) != Repository(s) {
			t.Errorf("%q of %q, in %q", full, s, Repository(s))
		}
		short, err := ShortName(s)
		if err != nil || short == "" || short != path.Base(short) || strings.ContainsAny(short, ":@/") {
			t.Errorf("%q is %q for short, %v", s, short, err)
		}
		r, err := parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if parts := strings.Split(r.Context().RepositoryStr(), "/"); slices.Contains(parts, "..") || slices.Contains(parts, ".") {
			t.Errorf("%q leads to %q", s, parts)
		}
		if _, err := name.NewRepository(Repository(s)); err != nil {
			t.Errorf("%q is in %q: %v", s, Repository(s), err)
		}
	})
}

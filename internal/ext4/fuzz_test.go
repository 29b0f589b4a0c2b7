package ext4

import (
	"archive/tar"
	"bytes"
	"path/filepath"
	"testing"
)

// FuzzFromTar makes file systems of streams that anybody may have written: an error will do, a file
// system that does not read back will not.
func FuzzFromTar(f *testing.F) {
	f.Add(tarOf(f, file("a", []byte("x")), entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: "d/"}}, file("d/b", random(5000))))
	f.Add(tarOf(f, entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "s", Linkname: "a"}},
		entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: "h", Linkname: "s"}}, file("../../etc/passwd", nil)))
	f.Add(tarOf(f, entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: "x", PAXRecords: map[string]string{xattrRecord + "user.a": "b", xattrRecord + "user.": ""}}}))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, stream []byte) {
		path := filepath.Join(dir, "fs.ext4")
		if err := FromTar(t.Context(), bytes.NewReader(stream), path, Options{MaxBytes: 64 << 20}); err != nil {
			return
		}
		if s, err := Superblock(path); err != nil || !s.Clean {
			t.Errorf("superblock %+v, %v", s, err)
		}
	})
}

// Package sparse finds the data of a sparse file.
package sparse

import (
	"errors"
	"iter"
	"os"

	"golang.org/x/sys/unix"
)

// Run is a part of a file that may hold data, in bytes.
type Run struct{ Offset, Len int64 }

// Runs yields the parts of f, of size bytes, that hold data, in ascending order;
// the rest is zeros. Where the file system cannot tell, that is all of f. It moves f's offset.
func Runs(f *os.File, size int64) iter.Seq2[Run, error] {
	return func(yield func(Run, error) bool) {
		for at := int64(0); at < size; {
			start, err := f.Seek(at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) { // no data from here on
				return
			}
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
				yield(Run{at, size - at}, nil)
				return
			}
			var end int64
			if err == nil {
				end, err = f.Seek(start, unix.SEEK_HOLE)
			}
			if err != nil {
				yield(Run{}, err)
				return
			}
			if end = min(end, size); start < end && !yield(Run{start, end - start}, nil) {
				return
			}
			at = max(end, at+1)
		}
	}
}

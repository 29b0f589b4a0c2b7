package oci

import (
	"bufio"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Limits of what is kept of a layer, decompressed, from its download until it is written: to decompress is half of a pull's work.
const (
	// spoolTimes is how many times as large as the layer it may be; what is larger is made to fill the disk.
	spoolTimes = 16
	// bombTimes is how many times as large a download is not listed any further, so that it does not wait for that.
	bombTimes = 64
	// spoolMost is how large it may be in any case, in bytes, and spoolLeft how many bytes have to be left on the disk.
	spoolMost = 4 << 30
	spoolLeft = 4 << 30
	// spoolCheck is after how many bytes to look what is left.
	spoolCheck = 64 << 20
	// maxSpools is how many layers of an image are kept so: each has a file open.
	maxSpools = 64
)

var errSpool = errors.New("it is not kept")

// spool is a file without a name, which goes with the last one who knows of it.
type spool struct {
	f       *os.File
	w       *bufio.Writer
	size    int64
	most    int64
	bomb    int64 // the size that is an error
	checked int64 // the size at which the disk was looked at
	err     error // why it is not kept
}

// newSpool is one in a directory, for a layer of some bytes. One that cannot be made, or grows too large, is not kept, which is no error of anything.
func newSpool(dir string, layer int64) *spool {
	s := &spool{most: min(layer*spoolTimes+1<<20, spoolMost), bomb: (layer + 1<<20) * bombTimes, checked: -spoolCheck}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		s.err = err
		return s
	}
	s.f = os.NewFile(uintptr(fd), "a layer, decompressed")
	s.w = bufio.NewWriterSize(s.f, writeBuffer)
	return s
}

// Write implements io.Writer. It fails only for what is too large even to be read through.
func (s *spool) Write(p []byte) (int, error) {
	if s.size += int64(len(p)); s.size > s.bomb {
		return 0, errSpool
	}
	if s.err != nil {
		return len(p), nil
	}
	if s.size > s.most {
		s.drop(errSpool)
		return len(p), nil
	}
	if s.size >= s.checked+spoolCheck {
		s.checked = s.size
		var disk unix.Statfs_t
		if err := unix.Fstatfs(int(s.f.Fd()), &disk); err != nil || int64(disk.Bavail)*disk.Bsize < spoolLeft {
			s.drop(errors.Join(errSpool, err))
			return len(p), nil
		}
	}
	if _, err := s.w.Write(p); err != nil {
		s.drop(err)
	}
	return len(p), nil
}

// drop frees what there is.
func (s *spool) drop(why error) {
	s.err = why
	if s.f != nil {
		_ = s.f.Close()
	}
	s.f, s.w = nil, nil
}

// finish is the spool with all in it; nil for one that is not kept.
func (s *spool) finish() *spool {
	if s.err == nil {
		if err := s.w.Flush(); err != nil {
			s.drop(err)
		}
	}
	if s.err != nil {
		return nil
	}
	s.w = nil
	return s
}

// open reads it from its beginning. Several may do so.
func (s *spool) open() io.Reader { return io.NewSectionReader(s.f, 0, s.size) }

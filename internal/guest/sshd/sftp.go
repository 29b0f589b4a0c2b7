package sshd

import (
	"io"

	"github.com/pkg/sftp"
)

// ServeSFTP is the sftp server: it serves the files of the guest on in and out, with the rights and in the directory
// of this process, until in ends.
func ServeSFTP(in io.Reader, out io.WriteCloser) error {
	s, err := sftp.NewServer(struct {
		io.Reader
		io.WriteCloser
	}{in, out}, sftp.WithAllocator())
	if err != nil {
		return err
	}
	return s.Serve()
}

// Package hostfile reads files under a context, and makes their names last.
package hostfile

import (
	"context"
	"errors"
	"io"
	"os"
)

// Reader returns a reader of r that fails with the context's cause once ctx has ended. A Read of r that waits is not ended.
func Reader(ctx context.Context, r io.Reader) io.Reader { return &reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// SyncDir puts the names in a directory on the disk, so that a power failure does not take them.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

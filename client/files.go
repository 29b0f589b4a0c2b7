package client

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filestream"
)

// PutFiles sends the tar stream that write writes to a guest, which takes it as req says. Where write fails on its own
// its error is the one that is returned, and the guest knows that the stream is not whole. After an error
// write may be running for a moment longer, or until it is done reading from what does not end.
func (c *Client) PutFiles(ctx context.Context, name string, req api.PutFiles, write func(io.Writer) error) (api.FilesResult, error) {
	r, err := c.request(ctx, http.MethodPut, vmPath(name, "/files?"+req.Values().Encode()), nil, api.Version)
	if err != nil {
		return api.FilesResult{}, err
	}
	body := &writerBody{write: write}
	r.Body, r.ContentLength = body, -1
	r.Header.Set("Content-Type", "application/x-tar")
	resp, err := c.http.Do(r)
	if own := body.failed(); own != nil {
		if err == nil {
			resp.Body.Close()
		}
		return api.FilesResult{}, own
	}
	if err != nil {
		return api.FilesResult{}, c.transportError(ctx, err)
	}
	if err := c.check(resp); err != nil {
		return api.FilesResult{}, err
	}
	return decode[api.FilesResult](resp)
}

// Files returns a file, link or directory of a guest as a tar stream. Its Read returns io.EOF only where the stream is
// whole. What it holds is the guest's and not to be trusted: package hostfiles unpacks it. The caller closes it.
func (c *Client) Files(ctx context.Context, name string, req api.GetFiles) (*filestream.Stream, error) {
	resp, err := c.send(ctx, http.MethodGet, vmPath(name, "/files?"+req.Values().Encode()), nil) //nolint:bodyclose // the stream closes it
	if err != nil {
		return nil, err
	}
	return filestream.New(resp, func(e *api.Error) error { return e }), nil
}

// writerBody is a request's body made by a function that writes.
type writerBody struct {
	write func(io.Writer) error

	mu  sync.Mutex // guards err
	err error      // write's own
}

// WriteTo is how net/http sends a body that has it.
func (b *writerBody) WriteTo(w io.Writer) (int64, error) {
	out := &countingWriter{w: w}
	err := b.write(out)
	if err != nil && out.err == nil {
		b.mu.Lock()
		b.err = err
		b.mu.Unlock()
	}
	return out.n, err
}

// Read would be for a transport that does not know WriteTo.
func (b *writerBody) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Close has nothing to close.
func (b *writerBody) Close() error { return nil }

func (b *writerBody) failed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// countingWriter remembers whether writing was what failed.
type countingWriter struct {
	w   io.Writer
	n   int64
	err error
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if err != nil {
		c.err = err
	}
	return n, err
}

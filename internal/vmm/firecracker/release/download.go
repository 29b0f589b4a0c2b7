package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// attempts is how often a transfer is tried before it is given up, dials how often where no server is reached: a host without a way
// to the outside is to know soon.
const attempts, dials = 4, 2

// errIdle ends a transfer that delivers nothing.
var errIdle = errors.New("the server stopped sending")

// statusError is an HTTP answer other than what was asked for.
type statusError int

// Error implements error.
func (e statusError) Error() string {
	return fmt.Sprintf("HTTP status %d %s", int(e), http.StatusText(int(e)))
}

// permanentError is one that trying again does not mend.
type permanentError struct{ error }

// Unwrap returns the cause.
func (e *permanentError) Unwrap() error { return e.error }

// download returns the path of the archive beside the place where a user puts one, its digest verified. One that was broken off goes on
// where it stopped.
func (f *fetcher) download(ctx context.Context) (string, error) {
	part := f.path() + partSuffix
	f.rep.Step("fetch firecracker " + f.Pin.Version)
	for {
		resumed, err := f.transfers(ctx, part)
		if err != nil {
			return "", err
		}
		sum, err := content.Hash(ctx, f.Dir, filepath.Base(part), progress.Discard)
		if err != nil {
			return "", err
		}
		if sum.SHA256 == f.Pin.SHA256 {
			return part, nil
		}
		if err := os.Remove(part); err != nil {
			return "", err
		}
		if !resumed { // else what was there before may have been damaged: once more from the start
			return "", fmt.Errorf("fetch %s: digest mismatch: expected sha256 %s, got %s", f.Pin.URL, f.Pin.SHA256, sum.SHA256)
		}
	}
}

// transfers completes part in as many transfers as it takes, within reason; resumed tells whether there was something before the first.
func (f *fetcher) transfers(ctx context.Context, part string) (resumed bool, err error) {
	for n := 1; ; n++ {
		had, err := f.transfer(ctx, part)
		resumed = resumed || had && n == 1
		var local *os.PathError
		switch {
		case err == nil:
			return resumed, nil
		case ctx.Err() != nil:
			return false, context.Cause(ctx)
		case errors.As(err, &local):
			return false, err
		case n == attempts || n == dials && unreached(err) || !transient(err):
			return false, fmt.Errorf("fetch %s: %w", f.Pin.URL, err)
		}
		select {
		case <-time.After(time.Duration(n) * f.RetryDelay):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

func transient(err error) bool {
	var perm *permanentError
	var status statusError
	switch {
	case errors.As(err, &perm):
		return false
	case errors.As(err, &status):
		return status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
	}
	return true
}

// unreached tells whether no connection came to be, to the server or to a proxy.
func unreached(err error) bool {
	oe, ok := errors.AsType[*net.OpError](err)
	return ok && (oe.Op == "dial" || oe.Op == "proxyconnect")
}

// transfer appends to part what it lacks; had tells whether there was something before.
func (f *fetcher) transfer(ctx context.Context, part string) (had bool, err error) {
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	defer func() {
		if cerr := out.Close(); err == nil {
			err = cerr
		}
	}()
	have, err := out.Seek(0, io.SeekEnd)
	if err != nil {
		return false, err
	}
	if have >= f.Pin.MaxBytes {
		have = 0
	}
	had = have > 0
	b, err := f.get(ctx, have)
	if status := statusError(0); errors.As(err, &status) && status == http.StatusRequestedRangeNotSatisfiable && had {
		return true, nil // there is no more of it: the digest says whether it is all there
	}
	if err != nil {
		return had, err
	}
	defer b.Close()
	if b.total > f.Pin.MaxBytes {
		return had, &permanentError{fmt.Errorf("the server has %d bytes of it, more than %d", b.total, f.Pin.MaxBytes)}
	}
	if err := out.Truncate(b.offset); err != nil {
		return had, err
	}
	if _, err := out.Seek(b.offset, io.SeekStart); err != nil {
		return had, err
	}
	src := &counting{r: b, rep: f.rep, done: b.offset, total: max(b.total, 0)}
	if _, err = io.Copy(out, io.LimitReader(src, f.Pin.MaxBytes-b.offset)); err != nil {
		return had, err
	}
	if src.done >= f.Pin.MaxBytes {
		return had, &permanentError{fmt.Errorf("the server sends more than %d bytes", f.Pin.MaxBytes)}
	}
	return had, nil
}

// counting reports how far a transfer is.
type counting struct {
	r           io.Reader
	rep         progress.Reporter
	done, total int64
}

// Read implements io.Reader.
func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.rep.Bytes(c.done, c.total)
	return n, err
}

// body is an answer's body that gives up when nothing comes for a while.
type body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
	// offset is where the body begins in the file, total the file's length, -1 where it is unknown.
	offset, total int64
}

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.timer.Reset(b.idle)
	if err != nil && !errors.Is(err, io.EOF) && b.ctx.Err() != nil {
		return n, context.Cause(b.ctx)
	}
	return n, err
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// get asks for the archive from an offset on. The body begins at its own offset: 0 where the server ignores ranges.
func (f *fetcher) get(ctx context.Context, offset int64) (*body, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	// The client bounds connecting and the answer's header; this bounds the silences after them, and a client without such bounds.
	timer := time.AfterFunc(f.Idle+time.Minute, func() { cancel(errIdle) })
	fail := func(err error) (*body, error) {
		timer.Stop()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, f.Pin.URL, nil)
	if err != nil {
		return fail(&permanentError{err})
	}
	req.Header.Set("User-Agent", "banger")
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := f.HTTP.Do(req) //nolint:bodyclose // it is the caller's, as body
	if err != nil {
		return fail(plain(err))
	}
	b := &body{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, timer: timer, idle: f.Idle, total: resp.ContentLength}
	timer.Reset(f.Idle)
	switch resp.StatusCode {
	case http.StatusOK:
		return b, nil
	case http.StatusPartialContent:
		if first, total, ok := contentRange(resp.Header.Get("Content-Range")); ok && first == offset {
			b.offset, b.total = first, total
			return b, nil
		}
	}
	_ = b.Close()
	return nil, statusError(resp.StatusCode)
}

// plain returns the cause of an HTTP client's error: its text has the address, as that around it has.
func plain(err error) error {
	if ue, ok := errors.AsType[*url.Error](err); ok {
		return ue.Err
	}
	return err
}

// contentRange parses "bytes first-last/total"; total is -1 for "*".
func contentRange(s string) (first, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	span, all, ok1 := strings.Cut(s, "/")
	start, _, ok2 := strings.Cut(span, "-")
	first, err := strconv.ParseInt(start, 10, 64)
	if !ok || !ok1 || !ok2 || err != nil || first < 0 {
		return 0, 0, false
	}
	if all == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(all, 10, 64)
	return first, total, err == nil && total >= first
}

package deb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// errIdle ends a transfer that delivers nothing.
var errIdle = errors.New("the server stopped sending")

// statusError is an HTTP answer other than 200 and 206.
type statusError struct{ status int }

func (e *statusError) Error() string {
	return fmt.Sprintf("HTTP status %d %s", e.status, http.StatusText(e.status))
}

// body is a response's body that gives up when nothing comes for a while.
type body struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	ctx    context.Context
	timer  *time.Timer
	idle   time.Duration
	// offset is where the body begins in the file; total the file's length, -1 where it is unknown.
	offset, total int64
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.timer.Reset(b.idle)
	if err != nil && err != io.EOF && b.ctx.Err() != nil {
		return n, context.Cause(b.ctx)
	}
	return n, err
}

func (b *body) Close() error {
	b.timer.Stop()
	err := b.ReadCloser.Close()
	b.cancel(context.Canceled)
	return err
}

// get fetches addr from offset on. The body begins at its offset, which is 0 where the server ignores ranges.
func (c *Client) get(ctx context.Context, addr string, offset int64) (*body, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	// The transport bounds connecting and the answer's header; this timer bounds the silences after them. It
	// begins generously, for a client without such bounds.
	timer := time.AfterFunc(c.cfg.Idle+time.Minute, func() { cancel(errIdle) })
	fail := func(err error) (*body, error) {
		timer.Stop()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, addr, nil)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("User-Agent", "banger")
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := c.cfg.HTTP.Do(req)
	if err != nil {
		return fail(plain(err))
	}
	b := &body{ReadCloser: resp.Body, cancel: cancel, ctx: ctx, timer: timer, idle: c.cfg.Idle, total: resp.ContentLength}
	timer.Reset(c.cfg.Idle)
	switch resp.StatusCode {
	case http.StatusOK:
		return b, nil
	case http.StatusPartialContent:
		if first, total, ok := parseContentRange(resp.Header.Get("Content-Range")); ok && first == offset {
			b.offset, b.total = first, total
			return b, nil
		}
	}
	_ = b.Close()
	return nil, &statusError{resp.StatusCode}
}

// plain returns the cause of an HTTP client's error; the address is in the texts of this package's errors already.
func plain(err error) error {
	if ue := (*url.Error)(nil); errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// parseContentRange parses "bytes first-last/total"; total is -1 for "*".
func parseContentRange(s string) (first, total int64, ok bool) {
	s, ok = strings.CutPrefix(s, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, all, ok1 := strings.Cut(s, "/")
	start, _, ok2 := strings.Cut(span, "-")
	first, err := strconv.ParseInt(start, 10, 64)
	if !ok1 || !ok2 || err != nil || first < 0 {
		return 0, 0, false
	}
	if all == "*" {
		return first, -1, true
	}
	total, err = strconv.ParseInt(all, 10, 64)
	return first, total, err == nil && total >= first
}

// getSmall fetches a file of at most limit bytes.
func (c *Client) getSmall(ctx context.Context, addr string, limit int64) ([]byte, error) {
	var data []byte
	err := c.retry(ctx, 2, func() error {
		b, err := c.get(ctx, addr, 0)
		if err != nil {
			return err
		}
		defer b.Close()
		data, err = io.ReadAll(io.LimitReader(b, limit+1))
		if err == nil && int64(len(data)) > limit {
			return &permanentError{fmt.Errorf("longer than %d bytes", limit)}
		}
		return err
	})
	if err != nil {
		return nil, unreachable(ctx, addr, err)
	}
	return data, nil
}

// permanentError is one that trying again does not mend.
type permanentError struct{ error }

func (e *permanentError) Unwrap() error { return e.error }

// retry calls try until it succeeds, fails for good, or has been tried often enough.
func (c *Client) retry(ctx context.Context, attempts int, try func() error) error {
	for n := 1; ; n++ {
		err := try()
		if err == nil || n == attempts || !transient(err) || ctx.Err() != nil {
			return err
		}
		c.cfg.Log.Info("transfer broke, trying again", "error", err.Error(), "attempt", n)
		select {
		case <-time.After(time.Duration(n) * c.cfg.RetryDelay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func transient(err error) bool {
	var perm *permanentError
	var status *statusError
	switch {
	case errors.As(err, &perm):
		return false
	case errors.As(err, &status):
		return status.status >= 500 || status.status == http.StatusTooManyRequests || status.status == http.StatusRequestTimeout
	}
	return true
}

// unreachable is the error of a fetch that failed; that of ctx where it ended.
func unreachable(ctx context.Context, addr string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("fetch %s: %w", addr, context.Cause(ctx))
	}
	return api.Errorf(api.KindUnavailable, "fetch %s: %w", addr, &unreachableError{err}).
		WithHint("check the network (and http_proxy), or name another Debian mirror as debian_mirror in the configuration")
}

// IsUnreachable reports whether err is that of a file that could not be fetched, as against one that was fetched and is not
// what it should be.
func IsUnreachable(err error) bool {
	var u *unreachableError
	return errors.As(err, &u)
}

// unreachableError marks the cause of an error of unreachable.
type unreachableError struct{ error }

func (e *unreachableError) Unwrap() error { return e.error }

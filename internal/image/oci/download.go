package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// attempts is how often in a row a fetch may fail without a byte more.
	attempts = 6
	// wholes is how often a layer is fetched that is not what its digest says: something on the way may have changed it once.
	wholes = 2
)

// pace is how patient a Client is with a registry.
type pace struct {
	first, longest time.Duration // to wait before the first attempt again, and before any
	stall          time.Duration // how long no byte may come
}

var defaultPace = pace{first: 200 * time.Millisecond, longest: 20 * time.Second, stall: time.Minute}

var (
	// errCorrupt says that what was served is not what was promised.
	errCorrupt = errors.New("it is not what its digest says")
	// errRange says that the rest of a layer was asked for, and cannot be had by itself.
	errRange = errors.New("the registry does not continue where it was asked to")
	// errStalled ends a request.
	errStalled = errors.New("no byte came for too long")
)

// download fetches one layer.
type download struct {
	c   *Client
	r   reference
	l   Layer
	rt  http.RoundTripper // logged in; nil to log in
	got *atomic.Int64
}

// run fetches the layer into the cache, and returns its entries where it came by them.
func (d *download) run(ctx context.Context) (*listed, error) {
	p, err := d.c.openPart(ctx, d.l)
	if p == nil || err != nil {
		return nil, err
	}
	defer p.close()
	d.got.Store(p.size)
	wait := d.c.pace.first
	for failed, wrong, denied := 0, 0, false; !p.is(d.l); {
		before := p.size
		if p.size >= d.l.Size { // whole, and wrong
			if err = p.empty(); err != nil {
				return nil, err
			}
			before, err = 0, errCorrupt
		} else {
			err = d.request(ctx, p)
		}
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err == nil:
			continue
		case errors.Is(err, errCorrupt):
			if wrong++; wrong >= wholes {
				return nil, errors.Join(err, os.Remove(p.f.Name()))
			}
			continue
		case status(err) == http.StatusUnauthorized && !denied:
			denied, d.rt = true, nil // a token may have run out
			continue
		case !temporary(err):
			return nil, err
		case p.size > before:
			failed, wait, denied = 0, d.c.pace.first, false
		}
		if failed++; failed >= attempts {
			return nil, err
		}
		d.c.cfg.Log.Debug("fetch a layer again", "layer", d.l.Digest.String(), "at", p.size, "err", err)
		if err := sleep(ctx, max(wait, min(retryAfter(err), d.c.pace.longest))); err != nil {
			return nil, err
		}
		wait = min(2*wait, d.c.pace.longest)
	}
	out, err := p.finish(d.c.path(d.l.Digest))
	d.got.Store(d.l.Size)
	return out, err
}

// request asks for the rest of the layer.
func (d *download) request(ctx context.Context, p *part) error {
	if d.rt == nil {
		rt, err := d.c.login(ctx, d.r, d.c.cfg.Transport)
		if err != nil {
			return err
		}
		d.rt = rt
	}
	ctx, cancel := context.WithCancelCause(context.WithValue(ctx, hasty{}, true))
	defer cancel(nil)
	repo := d.r.Context()
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", repo.Scheme(), repo.RegistryStr(), repo.RepositoryStr(), d.l.Digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity") // or what is compressed already might be unpacked on the way
	if p.size > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", p.size, d.l.Size-1)) // there are registries that know no range without an end
	}
	stall := time.AfterFunc(d.c.pace.stall, func() { cancel(errStalled) })
	defer stall.Stop()
	resp, err := (&http.Client{Transport: d.rt}).Do(req)
	if err != nil {
		return caused(ctx, err)
	}
	defer resp.Body.Close()
	if err := d.position(p, resp); err != nil {
		return err
	}
	return caused(ctx, d.receive(p, resp.Body, func() { stall.Reset(d.c.pace.stall) }))
}

// caused is why a request ended, where it was made to.
func caused(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// position sees to it that an answer goes on where the part ends.
func (d *download) position(p *part, resp *http.Response) error {
	want := d.l.Size
	switch s := resp.StatusCode; {
	case s == http.StatusOK:
		if p.size > 0 {
			if err := p.empty(); err != nil { // it begins at the beginning
				return err
			}
		}
	case p.size > 0 && s == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", p.size)):
		want -= p.size
	case p.size > 0 && (s == http.StatusPartialContent || s == http.StatusRequestedRangeNotSatisfiable):
		return errors.Join(errRange, p.empty()) // the next one asks for all
	default:
		return answer(resp)
	}
	if n := resp.ContentLength; n > want || n >= 0 && n < want && resp.StatusCode == http.StatusOK {
		return fmt.Errorf("%d bytes instead of %d: %w", n, want, errCorrupt)
	}
	return nil
}

// receive appends what comes to the part.
func (d *download) receive(p *part, body io.Reader, alive func()) error {
	buf := make([]byte, 256<<10)
	for {
		n, err := body.Read(buf)
		alive()
		if p.size+int64(n) > d.l.Size {
			return errors.Join(fmt.Errorf("more than %d bytes: %w", d.l.Size, errCorrupt), p.empty())
		}
		if _, werr := p.Write(buf[:n]); werr != nil {
			return werr
		}
		d.got.Store(p.size)
		switch {
		case err == io.EOF && p.size < d.l.Size:
			return io.ErrUnexpectedEOF
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// limited is an answer that says to come back later.
type limited struct {
	said  error
	after time.Duration
}

// Error implements error.
func (l limited) Error() string { return l.said.Error() }

// Unwrap returns the answer.
func (l limited) Unwrap() error { return l.said }

// answer is the error of an answer that is one.
func answer(resp *http.Response) error {
	err := transport.CheckError(resp)
	if after := after(resp); after > 0 {
		return limited{err, after}
	}
	return err
}

// after is how long an answer says to wait; 0 where it does not say so (RFC 9110, 10.2.3).
func after(resp *http.Response) time.Duration {
	said := resp.Header.Get("Retry-After")
	if s, err := strconv.Atoi(said); err == nil {
		return time.Duration(min(max(s, 0), 86400)) * time.Second
	}
	if t, err := http.ParseTime(said); err == nil {
		return max(time.Until(t), 0)
	}
	return 0
}

func retryAfter(err error) time.Duration {
	l, _ := errors.AsType[limited](err)
	return l.after
}

// status is that of the answer that an error is; 0 where it is none.
func status(err error) int {
	if said, ok := errors.AsType[*transport.Error](err); ok {
		return said.StatusCode
	}
	return 0
}

// temporary tells whether to try again may help.
func temporary(err error) bool {
	if _, disk := errors.AsType[*fs.PathError](err); disk {
		return false // this host's
	}
	if _, known := errors.AsType[*api.Error](err); known {
		return false
	}
	s := status(err)
	return s == 0 || s >= 500 || s == http.StatusRequestTimeout || s == http.StatusTooManyRequests
}

// sleep waits, or is an error where ctx ends.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hasty is the key of a request's context that is not to be made again: a download has a patience of its own.
type hasty struct{}

// patient asks a registry again where that may help.
type patient struct {
	inner http.RoundTripper
	pace  pace
}

// RoundTrip implements http.RoundTripper.
func (p patient) RoundTrip(req *http.Request) (*http.Response, error) {
	wait := p.pace.first
	for n := 1; ; n++ {
		resp, err := p.inner.RoundTrip(req)
		if err != nil || req.Context().Value(hasty{}) != nil || req.Body != nil || n >= attempts || resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests {
			return resp, err
		}
		pause := max(wait, after(resp))
		if pause > p.pace.longest {
			return resp, nil
		}
		_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
		_ = resp.Body.Close()
		if err := sleep(req.Context(), pause); err != nil {
			return nil, err
		}
		wait *= 2
	}
}

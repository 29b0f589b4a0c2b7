package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/image/bundle"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

const (
	// maxBundle is the greatest size of a bundle in bytes: that of the greatest drive in one, and something for what cannot be compressed.
	maxBundle = 65 << 30
	// bundleAttempts is how often in a row a transfer may break without having brought anything new.
	bundleAttempts = 4
)

// fetchBundle writes the drive of the bundle at a URL, whose SHA-256 is sum, to rootfs.ext4 in dir. What was received is kept in the cache
// until it is unpacked, so that the next call goes on where this one ended; nothing of it is unpacked before all of it is verified.
//
// Errors: api.KindUnavailable where it is not to be had or another file is there, api.KindInvalid for what is no bundle, the
// cause of ctx, and what the host's file system says.
func (s *Store) fetchBundle(ctx context.Context, address, sum, dir string, rep progress.Reporter) (bundle.Manifest, error) {
	unlock, err := s.bundles.lock(ctx, sum)
	if err != nil {
		return bundle.Manifest{}, err
	}
	defer unlock()
	part, err := s.bundles.fetch(ctx, address, sum, rep)
	if err != nil {
		if ctx.Err() != nil {
			return bundle.Manifest{}, context.Cause(ctx)
		}
		return bundle.Manifest{}, fmt.Errorf("fetch %s: %w", redacted(address), err)
	}
	f, err := os.Open(part)
	if err != nil {
		return bundle.Manifest{}, err
	}
	defer f.Close()
	m, err := bundle.Extract(ctx, f, dir, rep)
	if err == nil || api.KindOf(err) == api.KindInvalid { // it will not get better; after a full disk or a cancellation it is of use
		err = errors.Join(err, os.Remove(part))
	}
	if err != nil {
		return bundle.Manifest{}, fmt.Errorf("unpack %s: %w", redacted(address), err)
	}
	return m, nil
}

// bundleCache fetches bundles into a directory, where each is HEX.part by its digest.
type bundleCache struct {
	dir    string
	client *http.Client
	delay  time.Duration // before a broken transfer is taken up again, times the number of attempts
	idle   time.Duration // how long a server may deliver nothing
	locks  sync.Map      // a chan struct{} of capacity 1 by digest
}

// lock waits for the right to use the file of a digest; the function returned gives it back.
func (c *bundleCache) lock(ctx context.Context, sum string) (unlock func(), err error) {
	v, _ := c.locks.LoadOrStore(sum, make(chan struct{}, 1))
	ch := v.(chan struct{})
	select {
	case ch <- struct{}{}:
		return func() { <-ch }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// fetch returns the path of the file with the given digest, complete.
func (c *bundleCache) fetch(ctx context.Context, address, sum string, rep progress.Reporter) (string, error) {
	rep.Step("download the bundle")
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return "", err
	}
	part := filepath.Join(c.dir, sum+".part")
	had, err := fileDigest(ctx, part)
	if err == nil && had == sum {
		return part, nil
	}
	resumed := err == nil
	for {
		if err := c.download(ctx, address, part, rep); err != nil {
			if st, serr := os.Stat(part); serr == nil && st.Size() == 0 { // nothing to go on with
				err = errors.Join(err, os.Remove(part))
			}
			return "", err
		}
		got, err := fileDigest(ctx, part)
		if err != nil {
			return "", err
		}
		if got == sum {
			return part, nil
		}
		if err := os.Remove(part); err != nil {
			return "", err
		}
		if !resumed {
			return "", api.Errorf(api.KindUnavailable, "expected sha256 %s, got %s", sum, got).
				WithHint("another file is there than the catalog says: the catalog may be old, or the file damaged on its server")
		}
		resumed = false // what was there before may be damaged, or of another file: once more from the start
	}
}

// fileDigest returns the SHA-256 of a file in hex.
func fileDigest(ctx context.Context, path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.CopyBuffer(h, hostfile.Reader(ctx, f), make([]byte, 1<<20)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// download appends to the file part until it is complete. A transfer that breaks is taken up again as long as each brings something.
func (c *bundleCache) download(ctx context.Context, address, part string, rep progress.Reporter) error {
	f, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	farthest := int64(-1)
	for attempt := 1; ; attempt++ {
		err := c.transfer(ctx, address, f, rep)
		if err == nil {
			return errors.Join(f.Sync(), f.Close())
		}
		broken, ok := errors.AsType[*brokenError](err)
		if !ok || ctx.Err() != nil {
			return err
		}
		if broken.have > farthest {
			farthest, attempt = broken.have, 1
		}
		if attempt >= bundleAttempts {
			return api.Errorf(api.KindUnavailable, "%w", broken.error).
				WithHint("check the network (and http_proxy) and pull again: it goes on where it stopped, where the server can do that")
		}
		select {
		case <-time.After(time.Duration(attempt) * c.delay):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// brokenError is a transfer that ended early and may do better the next time; have is what there is of the file then.
type brokenError struct {
	error
	have int64
}

func (e *brokenError) Unwrap() error { return e.error }

// transfer appends to f what it lacks. Where the server does not know ranges, it begins anew.
func (c *bundleCache) transfer(ctx context.Context, address string, f *os.File, rep progress.Reporter) error {
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(c.idle, func() { cancel(fmt.Errorf("nothing came for %s", c.idle)) })
	defer idle.Stop()
	broken := func(err error) error {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // the address is said already
		}
		return &brokenError{cmp.Or(context.Cause(ctx), err), have}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "banger")
	req.Header.Set("Accept-Encoding", "identity")
	if have > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", have))
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return broken(err)
	}
	defer resp.Body.Close()
	switch begin := fmt.Sprintf("bytes %d-", have); {
	case resp.StatusCode == http.StatusPartialContent && have > 0 && strings.HasPrefix(resp.Header.Get("Content-Range"), begin):
	case resp.StatusCode == http.StatusOK, resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && have > 0:
		if err := restart(f); err != nil {
			return err
		}
		have = 0
		if resp.StatusCode != http.StatusOK {
			return broken(errors.New(resp.Status)) // more was here than there: without it the next attempt gets all
		}
	default:
		return refused(resp, broken)
	}
	total := int64(0)
	if resp.ContentLength > 0 {
		total = have + resp.ContentLength
	}
	if total > maxBundle {
		return api.Errorf(api.KindInvalid, "it has %d bytes, more than the %d of the largest bundle", total, int64(maxBundle))
	}
	in := &arriving{r: resp.Body, done: have, total: total, rep: rep, heard: func() { idle.Reset(c.idle) }}
	n, err := io.Copy(f, io.LimitReader(in, maxBundle+1-have))
	have += n
	switch {
	case err != nil && in.err == nil:
		return err // of this host's file system
	case err != nil:
		return broken(err)
	case have > maxBundle:
		return api.Errorf(api.KindInvalid, "it has more than the %d bytes of the largest bundle", int64(maxBundle))
	}
	return nil
}

// restart empties a file that is written.
func restart(f *os.File) error {
	_, err := f.Seek(0, io.SeekStart)
	return errors.Join(err, f.Truncate(0))
}

// refused is the error for an answer without the file; it may be asked for again where that makes sense.
func refused(resp *http.Response, broken func(error) error) error {
	status := resp.StatusCode
	if status >= 500 || status == http.StatusTooManyRequests || status == http.StatusRequestTimeout {
		return broken(errors.New(resp.Status))
	}
	err := api.Errorf(api.KindUnavailable, "%s", resp.Status)
	switch status {
	case http.StatusNotFound, http.StatusGone:
		return err.WithHint("the catalog that names it may be old")
	case http.StatusUnauthorized, http.StatusForbidden:
		return err.WithHint("the server does not let everybody have it")
	}
	return err
}

// arriving reports progress, and remembers whether it was reading that failed.
type arriving struct {
	r           io.Reader
	rep         progress.Reporter
	heard       func()
	done, total int64
	err         error
}

func (a *arriving) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	a.heard()
	a.done += int64(n)
	a.rep.Bytes(a.done, max(a.total, 0))
	if err != nil && err != io.EOF {
		a.err = err
	}
	return n, err
}

package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

const (
	// fetchers is how many layers of an image are fetched at the same time.
	fetchers = 3
	// attempts is how often in a row a fetch may fail without a byte more.
	attempts = 6
	// stallAfter is how long no byte may come.
	stallAfter = time.Minute
	firstWait  = 200 * time.Millisecond
	longestGap = 20 * time.Second
	partSuffix = ".part"
)

// errCorrupt says that what was served is not what was promised.
var errCorrupt = errors.New("it is not what its digest says")

// fetch is a layer that is being fetched; who wants it, too, waits for done.
type fetch struct {
	done    chan struct{}
	err     error
	got     atomic.Int64
	cancel  context.CancelFunc
	waiting int // guarded by Client.mu
}

// path is where a layer is in the cache.
func (c *Client) path(d v1.Hash) string {
	return filepath.Join(c.cfg.Cache, d.Algorithm+"-"+d.Hex)
}

// Fetch sees to it that all layers of an image are in the cache. What was fetched of one before is not fetched again, and no layer twice at
// the same time, whoever wants it. Errors are *api.Error or those of ctx.
func (c *Client) Fetch(ctx context.Context, img *Image, rep progress.Reporter) error {
	if err := os.MkdirAll(c.cfg.Cache, 0o700); err != nil {
		return err
	}
	layers := map[v1.Hash]Layer{}
	for _, l := range img.Layers {
		if l.Digest.Algorithm != "sha256" {
			return api.Errorf(api.KindInvalid, "layer %s of %s: only sha256 is known", l.Digest, img.ref)
		}
		layers[l.Digest] = l
	}
	total := img.Bytes()
	count := &counter{rep: rep, total: total, got: map[v1.Hash]int64{}}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for _, l := range layers {
		g.Go(func() error { return c.layer(gctx, img.ref, l, count) })
	}
	err := g.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// counter tells how much of an image is there.
type counter struct {
	rep   progress.Reporter
	total int64

	mu  sync.Mutex // guards what follows
	got map[v1.Hash]int64
	sum int64
}

func (c *counter) set(d v1.Hash, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sum += n - c.got[d]
	c.got[d] = n
	c.rep.Bytes(c.sum, c.total)
}

// layer sees to it that one layer is in the cache.
func (c *Client) layer(ctx context.Context, r reference, l Layer, count *counter) error {
	for {
		if info, err := os.Stat(c.path(l.Digest)); err == nil && info.Size() == l.Size {
			now := time.Now()
			_ = os.Chtimes(c.path(l.Digest), now, now) // prune goes by it
			count.set(l.Digest, l.Size)
			return nil
		}
		f := c.join(ctx, r, l)
		err := f.wait(ctx, func(n int64) { count.set(l.Digest, n) })
		c.leave(f)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, context.Canceled):
			continue // nobody else wanted it any more when this one came
		case err != nil:
			return c.explainBlob(ctx, r, l, err)
		}
		if _, err := os.Stat(c.path(l.Digest)); err != nil {
			return err
		}
	}
}

// join finds the fetch of a layer, or begins one. It goes on while anybody waits for it.
func (c *Client) join(ctx context.Context, r reference, l Layer) *fetch {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.fetches[l.Digest]; f != nil {
		f.waiting++
		return f
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &fetch{done: make(chan struct{}), waiting: 1, cancel: cancel}
	c.fetches[l.Digest] = f
	go func() {
		f.err = c.get(own, r, l, f)
		c.mu.Lock()
		delete(c.fetches, l.Digest)
		c.mu.Unlock()
		cancel()
		close(f.done)
	}()
	return f
}

// leave is of one who does not wait any more.
func (c *Client) leave(f *fetch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
		f.cancel() // and the file is its own until it has ended
	}
}

// wait waits for a fetch, and tells how far it is.
func (f *fetch) wait(ctx context.Context, told func(int64)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-f.done:
			return f.err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			told(f.got.Load())
		}
	}
}

// part is a layer of which a beginning is there.
type part struct {
	f    *os.File
	hash hash.Hash
	size int64
}

// openPart opens what is there of a layer.
func openPart(path string, most int64) (*part, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	p := &part{f: f, hash: sha256.New()}
	if p.size, err = io.Copy(p.hash, io.LimitReader(f, most)); err == nil {
		_, err = f.Seek(p.size, io.SeekStart)
	}
	if err == nil {
		err = f.Truncate(p.size)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return p, nil
}

// Write implements io.Writer.
func (p *part) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.hash.Write(b[:n])
	p.size += int64(n)
	return n, err
}

// empty begins anew.
func (p *part) empty() error {
	p.hash.Reset()
	p.size = 0
	_, err := p.f.Seek(0, io.SeekStart)
	return errors.Join(err, p.f.Truncate(0))
}

// get fetches a layer into the cache.
func (c *Client) get(ctx context.Context, r reference, l Layer, f *fetch) error {
	name := c.path(l.Digest)
	p, err := openPart(name+partSuffix, l.Size)
	if err != nil {
		return err
	}
	defer p.f.Close()
	var rt http.RoundTripper
	wait := firstWait
	for failed := 0; ; {
		if p.size == l.Size && hex.EncodeToString(p.hash.Sum(nil)) == l.Digest.Hex {
			break
		}
		before := p.size
		if p.size >= l.Size { // whole, and wrong
			if failed++; failed > 1 {
				return errors.Join(errCorrupt, os.Remove(name+partSuffix))
			}
			if err := p.empty(); err != nil {
				return err
			}
		}
		if rt == nil {
			rt, err = c.login(ctx, r)
		}
		if err == nil {
			err = c.request(ctx, rt, r, l, p, f)
		}
		var full *fs.PathError
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			continue
		case errors.As(err, &full), !temporary(err): // the disk's error is this host's
			return err
		case p.size > before:
			failed, wait = 0, firstWait
		}
		if failed++; failed >= attempts {
			return err
		}
		c.cfg.Log.Debug("fetch a layer again", "layer", l.Digest.String(), "at", p.size, "err", err)
		pause := max(wait, retryAfter(err))
		wait = min(2*wait, longestGap)
		rt, err = nil, nil // a token may have run out
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := errors.Join(p.f.Sync(), os.Rename(name+partSuffix, name)); err != nil {
		return err
	}
	f.got.Store(l.Size)
	return nil
}

// limited is an answer that says to come back later.
type limited struct {
	said  *transport.Error
	after time.Duration
}

// Error implements error.
func (l limited) Error() string { return l.said.Error() }

// Unwrap returns the answer.
func (l limited) Unwrap() error { return l.said }

func retryAfter(err error) time.Duration {
	if l, ok := errors.AsType[limited](err); ok {
		return min(l.after, longestGap)
	}
	return 0
}

// temporary tells whether to try again may help.
func temporary(err error) bool {
	var said *transport.Error
	if !errors.As(err, &said) {
		return true // the network's
	}
	return said.Temporary() || said.StatusCode >= 500 || said.StatusCode == http.StatusTooManyRequests || said.StatusCode == http.StatusUnauthorized
}

// request asks for the rest of a layer.
func (c *Client) request(ctx context.Context, rt http.RoundTripper, r reference, l Layer, p *part, f *fetch) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	url := fmt.Sprintf("%s://%s/v2/%s/blobs/%s", r.Context().Scheme(), r.Context().RegistryStr(), r.Context().RepositoryStr(), l.Digest)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if p.size > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", p.size))
	}
	resp, err := (&http.Client{Transport: rt}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable); err != nil {
		var said *transport.Error
		if s, aerr := strconv.Atoi(resp.Header.Get("Retry-After")); aerr == nil && errors.As(err, &said) {
			return limited{said, time.Duration(s) * time.Second}
		}
		return err
	}
	from := fmt.Sprintf("bytes %d-", p.size)
	if resp.StatusCode != http.StatusPartialContent || p.size > 0 && !strings.HasPrefix(resp.Header.Get("Content-Range"), from) {
		if err := p.empty(); err != nil { // it begins at the beginning
			return err
		}
		if resp.StatusCode != http.StatusOK {
			return nil // the next one asks for all
		}
	}
	stall := time.AfterFunc(stallAfter, cancel)
	defer stall.Stop()
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		stall.Reset(stallAfter)
		if over := p.size + int64(n) - l.Size; over > 0 {
			return errors.Join(fmt.Errorf("more than %d bytes: %w", l.Size, errCorrupt), p.empty())
		}
		if _, werr := p.Write(buf[:n]); werr != nil {
			return werr
		}
		f.got.Store(p.size)
		if err == io.EOF {
			if p.size < l.Size {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// explainBlob gives an error of a fetch a kind and a hint.
func (c *Client) explainBlob(ctx context.Context, r reference, l Layer, err error) error {
	if errors.Is(err, errCorrupt) {
		return api.Errorf(api.KindUnavailable, "fetch layer %s of %s: %w", l.Digest, r, err).
			WithHint("the registry %s serves it damaged, or something on the way changes it", r.registry())
	}
	var disk *fs.PathError
	if errors.As(err, &disk) {
		return fmt.Errorf("fetch layer %s of %s: %w", l.Digest, r, err)
	}
	return c.explain(ctx, r, fmt.Errorf("layer %s: %w", l.Digest, err))
}

// Flatten writes the tree of an image whose layers are in the cache as a tar stream: parents before what is in them, and every path once.
func (c *Client) Flatten(ctx context.Context, img *Image, w io.Writer) error {
	var layers []opener
	for _, l := range img.Layers {
		layers = append(layers, openFile(c.path(l.Digest)))
	}
	err := flatten(ctx, layers, w)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// fetchers is how many layers of an image are fetched at the same time.
const fetchers = 3

// tellEvery is how often the progress of a fetch is told.
const tellEvery = 100 * time.Millisecond

// path is where a layer is in the cache.
func (c *Client) path(d v1.Hash) string {
	return filepath.Join(c.cfg.Cache, d.Algorithm+"-"+d.Hex)
}

// has tells whether a layer is in the cache, by its size: what is in it is looked at when it is read.
func (c *Client) has(l Layer) bool {
	info, err := os.Stat(c.path(l.Digest))
	return err == nil && info.Size() == l.Size
}

// Fetch sees to it that all layers of an image are in the cache. What was fetched of one before is not fetched again, and no layer twice at
// the same time, whoever wants it, be it another process. Errors are *api.Error or those of ctx.
func (c *Client) Fetch(ctx context.Context, img *Image, rep progress.Reporter) error {
	if err := os.MkdirAll(c.cfg.Cache, 0o700); err != nil {
		return c.explainDisk(err)
	}
	layers := map[v1.Hash]bool{}
	count := &counter{rep: rep, total: img.Bytes(), got: map[v1.Hash]int64{}}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(fetchers)
	for _, l := range img.Layers {
		if layers[l.Digest] {
			continue
		}
		layers[l.Digest] = true
		g.Go(func() error { return c.layer(gctx, img, l, count) })
	}
	err := g.Wait()
	if cause := context.Cause(ctx); err != nil && cause != nil {
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
func (c *Client) layer(ctx context.Context, img *Image, l Layer, count *counter) error {
	for {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		f := c.join(ctx, img, l)
		if f == nil {
			count.set(l.Digest, l.Size)
			return nil
		}
		err := f.wait(ctx, func(n int64) { count.set(l.Digest, n) })
		c.leave(f)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, errUnwanted):
			continue // nobody else wanted it any more when this one came
		case err != nil:
			return c.explainBlob(ctx, img.ref, l, err)
		}
		img.index.put(l.Digest, f.out)
		count.set(l.Digest, l.Size)
		return nil
	}
}

// fetch is a layer that is being fetched; who wants it, too, waits for done.
type fetch struct {
	done    chan struct{}
	out     *listed // nil for none; read, as is err, once done is closed
	err     error
	got     atomic.Int64
	cancel  context.CancelCauseFunc
	waiting int // guarded by Client.mu
}

// errUnwanted ends a fetch for which nobody waits.
var errUnwanted = errors.New("nobody waits for the layer any more")

// join finds the fetch of a layer, or begins one; it goes on while anybody waits for it. It is nil where the layer is in the cache.
func (c *Client) join(ctx context.Context, img *Image, l Layer) *fetch {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.fetches[l.Digest]; f != nil {
		f.waiting++
		return f
	}
	if c.has(l) {
		now := time.Now()
		_ = os.Chtimes(c.path(l.Digest), now, now) // what is used is not old
		return nil
	}
	own, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f := &fetch{done: make(chan struct{}), waiting: 1, cancel: cancel}
	c.fetches[l.Digest] = f
	go func() {
		d := download{c: c, r: img.ref, l: l, rt: img.rt, got: &f.got}
		f.out, f.err = d.run(own)
		c.mu.Lock()
		delete(c.fetches, l.Digest)
		c.mu.Unlock()
		cancel(nil)
		close(f.done)
	}()
	return f
}

// leave is of one who does not wait any more.
func (c *Client) leave(f *fetch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.waiting--; f.waiting == 0 {
		f.cancel(errUnwanted) // and the file is its own until it has ended
	}
}

// wait waits for a fetch, and tells how far it is.
func (f *fetch) wait(ctx context.Context, tell func(int64)) error {
	tick := time.NewTicker(tellEvery)
	defer tick.Stop()
	for {
		select {
		case <-f.done:
			return f.err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
			tell(f.got.Load())
		}
	}
}

// explainBlob gives an error of a fetch a kind and a hint.
func (c *Client) explainBlob(ctx context.Context, r reference, l Layer, err error) error {
	if errors.Is(err, errCorrupt) {
		return api.Errorf(api.KindUnavailable, "fetch layer %s of %s: %w", l.Digest, r, err).
			WithHint("the registry %s serves it damaged, or something on the way changes it", r.registry())
	}
	if _, disk := errors.AsType[*fs.PathError](err); disk {
		return c.explainDisk(fmt.Errorf("fetch layer %s of %s: %w", l.Digest, r, err))
	}
	return c.explain(ctx, r, fmt.Errorf("layer %s: %w", l.Digest, err))
}

// explainDisk gives an error of the cache's disk a kind and a hint.
func (c *Client) explainDisk(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return api.Errorf(api.KindUnavailable, "%w", err).WithHint("free some space where %s is, and pull again: what is there is kept", c.cfg.Cache)
	}
	return api.Errorf(api.KindInternal, "%w", err)
}

// index are the entries of layers that Fetch has come by, for Flatten.
type index struct {
	mu    sync.Mutex // guards what follows
	known map[v1.Hash]*listed
	cost  int64
}

func (i *index) put(d v1.Hash, l *listed) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if l == nil || i.known[d] != nil || i.cost+l.cost > maxKept {
		return
	}
	i.known[d] = l
	i.cost += l.cost
}

// takeAll returns the entries of layers, as far as they are known. None is kept any longer.
func (i *index) takeAll(layers []Layer) map[v1.Hash]*listed {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := map[v1.Hash]*listed{}
	for _, l := range layers {
		out[l.Digest] = i.known[l.Digest]
	}
	i.known, i.cost = map[v1.Hash]*listed{}, 0
	return out
}

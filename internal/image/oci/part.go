package oci

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

const (
	partSuffix = ".part"
	// lockPoll is how often to look whether another process is through with a layer.
	lockPoll = 50 * time.Millisecond
)

// part is a layer of which a beginning is there. What is written is listed at the same time, for it has to be read some time.
type part struct {
	f      *os.File // locked: another process on the same cache waits
	hash   hash.Hash
	size   int64
	lister *lister
	ctx    context.Context // the lister's
}

// openPart opens what is there of a layer, once no other process has it open. It is nil where the other one has fetched the layer meanwhile.
func (c *Client) openPart(ctx context.Context, l Layer) (*part, error) {
	name := c.path(l.Digest) + partSuffix
	f, err := lockFile(ctx, name)
	if err != nil {
		return nil, err
	}
	if c.has(l) {
		return nil, errors.Join(os.Remove(name), f.Close())
	}
	p := &part{f: f, hash: sha256.New(), ctx: ctx}
	if p.size, err = io.Copy(p.hash, io.LimitReader(hostfile.Reader(ctx, f), l.Size)); err == nil {
		_, err = f.Seek(p.size, io.SeekStart)
	}
	if err == nil {
		err = f.Truncate(p.size)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	p.lister = newLister(ctx, f, p.size)
	return p, nil
}

// lockFile opens and locks a file that has the name still when it is locked.
func lockFile(ctx context.Context, name string) (*os.File, error) {
	for {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		err = lock(ctx, f)
		if err == nil {
			var is, named os.FileInfo
			if is, err = f.Stat(); err == nil {
				if named, err = os.Stat(name); err == nil && os.SameFile(is, named) {
					return f, nil
				}
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
}

// lock waits for the lock of a file. It goes with f.
func lock(ctx context.Context, f *os.File) error {
	tick := time.NewTicker(lockPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("flock", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Write implements io.Writer.
func (p *part) Write(b []byte) (int, error) {
	n, err := p.f.Write(b)
	p.hash.Write(b[:n])
	p.size += int64(n)
	p.lister.grow(p.size)
	return n, err
}

// empty begins anew.
func (p *part) empty() error {
	p.lister.end(errEmptied)
	p.hash.Reset()
	p.size = 0
	_, err := p.f.Seek(0, io.SeekStart)
	if err = errors.Join(err, p.f.Truncate(0)); err == nil {
		p.lister = newLister(p.ctx, p.f, 0)
	}
	return err
}

// is tells whether the part is the whole layer, as its digest says.
func (p *part) is(l Layer) bool {
	return p.size == l.Size && hex.EncodeToString(p.hash.Sum(nil)) == l.Digest.Hex
}

// finish gives the part the name of the layer, and returns its entries; nil where they cannot be had, which whoever needs them will find, too.
func (p *part) finish(name string) (*listed, error) {
	if err := p.f.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(name+partSuffix, name); err != nil {
		return nil, err
	}
	return p.lister.end(nil), nil
}

// close closes the file; what is there stays.
func (p *part) close() {
	p.lister.end(context.Canceled)
	_ = p.f.Close()
}

// lister reads the entries of a layer out of a file that still grows.
type lister struct {
	f    io.ReaderAt
	at   int64 // the reader's
	done chan struct{}
	out  *listed // nil for none; read once done is closed

	mu    sync.Mutex // guards what follows
	more  sync.Cond  // of them
	size  int64      // how much is there
	whole bool
	err   error // why no more comes
}

var errEmptied = errors.New("the download begins anew")

func newLister(ctx context.Context, f io.ReaderAt, size int64) *lister {
	l := &lister{f: f, size: size, done: make(chan struct{})}
	l.more.L = &l.mu
	go func() {
		defer close(l.done)
		b := newBudget(maxEntries, maxEarly)
		if items, err := list(ctx, l, b); err == nil {
			l.out = &listed{items: items, cost: maxEarly - b.bytes.Load()}
		}
	}()
	return l
}

// grow says how much is there.
func (l *lister) grow(size int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.size = size
	l.more.Signal()
}

// end waits for the entries: all is there where err is nil, and they do not matter otherwise.
func (l *lister) end(err error) *listed {
	l.mu.Lock()
	if l.err == nil {
		l.whole, l.err = err == nil, err
	}
	l.more.Signal()
	l.mu.Unlock()
	<-l.done
	return l.out
}

// Read implements io.Reader.
func (l *lister) Read(p []byte) (int, error) {
	l.mu.Lock()
	for l.err == nil && !l.whole && l.at >= l.size {
		l.more.Wait()
	}
	size, err := l.size, l.err
	l.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case l.at >= size:
		return 0, io.EOF
	}
	n, err := l.f.ReadAt(p[:min(int64(len(p)), size-l.at)], l.at)
	l.at += int64(n)
	return n, err
}

package cli

import (
	"errors"
	"io"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// copyBuffer is the size of the buffer of a stream that is passed on, in bytes.
	copyBuffer = 256 << 10
	// copyShowAfter is how long a copy may take without a word about it.
	copyShowAfter = 2 * time.Second
)

// showCopy runs do, which calls progress with the number of bytes since its last call, and shows how far it is. total, which runs
// beside it, is how many bytes there are, 0 where that is not known.
func (a *App) showCopy(step string, total func() int64, do func(progress func(int64)) error) error {
	var (
		done, all atomic.Int64
		shown     sync.WaitGroup
		end       = make(chan struct{})
	)
	go func() { all.Store(total()) }()
	shown.Go(func() {
		view := newProgressView(a, 1)
		view.began = view.began.Add(copyShowAfter - showAfter)
		defer view.close()
		tick := time.NewTicker(redrawEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				view.update(0, "", api.Operation{State: api.OperationRunning, Progress: api.Progress{Step: step, Done: done.Load(), Total: all.Load()}})
			case <-end:
				return
			}
		}
	})
	err := do(func(n int64) { done.Add(n) })
	close(end)
	shown.Wait()
	return err
}

// progressReader counts what is read.
type progressReader struct {
	r        io.Reader
	progress func(int64)
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.progress(int64(n))
	}
	return n, err
}

// bareError is the cause of a file system error, whose path the caller names.
func bareError(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

package tree

import (
	"bytes"
	"context"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Bounds of what is done at once. A guest is mostly busy in its kernel here, which has as many hands as it has CPUs.
const (
	maxWorkers = 4
	chunk      = 128      // paths a worker takes
	flushAt    = 32 << 10 // bytes of records a worker keeps to itself
)

func workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// job is some paths and, once done is closed, their records and the repositories among them.
type job struct {
	paths   Paths
	done    chan struct{}
	records []byte
	n       int
	inner   []string
}

// inOrder has several workers, each made by start, do what produce yields, and calls finish with it in that order. A worker ends with stop.
func inOrder(ctx context.Context, produce func(yield func(Paths) error) error, start func() (do func(context.Context, *job) error, stop func()), finish func(*job) error) error {
	group, ctx := errgroup.WithContext(ctx)
	todo, order := make(chan *job), make(chan *job, 4*workers())
	for range workers() {
		group.Go(func() error {
			do, stop := start()
			defer stop()
			for j := range todo {
				if err := do(ctx, j); err != nil {
					return err
				}
				close(j.done)
			}
			return nil
		})
	}
	group.Go(func() error {
		defer close(order)
		defer close(todo)
		return produce(func(paths Paths) error {
			j := &job{paths: paths, done: make(chan struct{}), records: make([]byte, 0, 64*chunk)}
			for _, c := range []chan *job{order, todo} {
				select {
				case c <- j:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return nil
		})
	})
	group.Go(func() error {
		for j := range order {
			select {
			case <-j.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if err := finish(j); err != nil {
				return err
			}
		}
		return nil
	})
	return group.Wait()
}

// each calls f with every path of a job.
func (j *job) each(ctx context.Context, f func(name []byte) error) error {
	for rest := j.paths; len(rest) > 0; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		end := bytes.IndexByte(rest, 0) + 1
		if err := f(rest[:end]); err != nil {
			return err
		}
		rest = rest[end:]
	}
	return nil
}

// queue holds directories that several workers list and find more of.
type queue struct {
	mu   sync.Mutex
	more *sync.Cond // there are more directories, or there will be none
	dirs []string
	busy int // workers that may find more
	over bool
}

func newQueue(dir string, workers int) *queue {
	q := &queue{dirs: []string{dir}, busy: workers}
	q.more = sync.NewCond(&q.mu)
	return q
}

// next returns the next directory for a worker that has put what it found; false where there are none.
func (q *queue) next() (dir string, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	for len(q.dirs) == 0 && q.busy > 0 && !q.over {
		q.more.Wait()
	}
	if len(q.dirs) == 0 || q.over {
		q.more.Broadcast()
		return "", false
	}
	q.busy++
	dir = q.dirs[len(q.dirs)-1]
	q.dirs = q.dirs[:len(q.dirs)-1]
	return dir, true
}

func (q *queue) put(dirs []string) {
	if len(dirs) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.dirs = append(q.dirs, dirs...)
	q.more.Broadcast()
}

// stop makes next return false.
func (q *queue) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.over = true
	q.more.Broadcast()
}

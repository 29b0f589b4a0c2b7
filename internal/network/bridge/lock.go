package bridge

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// lockWithin is how long one waits for another Setup or Teardown of the same host.
	lockWithin = 30 * time.Second
	lockPoll   = 20 * time.Millisecond
)

// lock waits until no other process changes the network of this host, which is a namespace: what is locked is its file. The lock goes with this process.
func lock(ctx context.Context) (unlock func(), err error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, fmt.Errorf("lock the host's network: %w", err)
	}
	for end := time.Now().Add(lockWithin); ; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			break
		}
		if time.Now().After(end) {
			err = api.Errorf(api.KindConflict, "another process has been changing the host's network for %s", lockWithin).
				WithHint("look for another banger net, or bangerd, that hangs")
			break
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

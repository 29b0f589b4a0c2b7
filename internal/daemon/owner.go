package daemon

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
)

// ownerPoll is how long one wait for an owner's end lasts before the context is looked at, in milliseconds.
const ownerPoll = 500

// ownerGone returns a channel that is closed when the process o has ended.
func ownerGone(ctx context.Context, owner api.Owner) <-chan struct{} {
	o, gone := hostproc.Process(owner), make(chan struct{})
	fd, err := unix.PidfdOpen(o.PID, 0)
	// The pidfd first, then the look at who it is: the number cannot be reused in between unseen.
	if err != nil || !o.Alive() {
		if err == nil {
			_ = unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) && o.Alive() {
			go pollOwner(ctx, o, gone)
			return gone
		}
		close(gone)
		return gone
	}
	go func() {
		defer func() { _ = unix.Close(fd) }()
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, ownerPoll)
			if n > 0 || (err != nil && !errors.Is(err, unix.EINTR)) {
				close(gone)
				return
			}
		}
	}()
	return gone
}

// pollOwner looks again and again, where the kernel has no pidfd.
func pollOwner(ctx context.Context, o hostproc.Process, gone chan<- struct{}) {
	tick := time.NewTicker(ownerPoll * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !o.Alive() {
				close(gone)
				return
			}
		}
	}
}

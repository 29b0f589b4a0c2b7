package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// ownerPoll is how long one wait for an owner's end lasts before the context is looked at, in milliseconds.
const ownerPoll = 500

// ownerGone returns a channel that is closed when the process o has ended.
func ownerGone(ctx context.Context, o api.Owner) <-chan struct{} {
	gone := make(chan struct{})
	fd, err := unix.PidfdOpen(o.PID, 0)
	// The pidfd first, then the look at who it is: the number cannot be reused in between unseen.
	if err != nil || !isOwner(o) {
		if err == nil {
			_ = unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) && isOwner(o) {
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
func pollOwner(ctx context.Context, o api.Owner, gone chan<- struct{}) {
	tick := time.NewTicker(ownerPoll * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if !isOwner(o) {
				close(gone)
				return
			}
		}
	}
}

// isOwner reports whether the process with o's pid is still the one o means.
func isOwner(o api.Owner) bool {
	if id, err := bootID(); err != nil || id != o.BootID {
		return false
	}
	start, err := startTime(o.PID)
	return err == nil && start == o.StartTime
}

// startTime is field 22 of /proc/PID/stat (proc(5)).
func startTime(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	i := bytes.LastIndexByte(b, ')') // the command, which may hold blanks, ends with the last of these
	fields := strings.Fields(string(b[i+1:]))
	if i < 0 || len(fields) < 20 {
		return 0, fmt.Errorf("read the start time of process %d: unexpected /proc/%d/stat", pid, pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b)), err
}

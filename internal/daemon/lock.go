package daemon

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ErrRunning says that another daemon holds the lock.
var ErrRunning = errors.New("another daemon runs")

// lock is the flock that makes a daemon the only one of its state directory. Its file
// holds the path of the daemon's socket.
type lock struct{ f *os.File }

// takeLock takes the lock without waiting; ErrRunning where somebody else has it.
func takeLock(path, socket string) (*lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("lock %q: %w", path, err)
	}
	if err := rewrite(f, socket+"\n"); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write %q: %w", path, err)
	}
	return &lock{f}, nil
}

func rewrite(f *os.File, text string) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteString(text)
	return err
}

// release empties the file and gives the lock back. The file stays: removing it would let two daemons lock two files.
func (l *lock) release() {
	_ = l.f.Truncate(0)
	_ = l.f.Close()
}

package sshd

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Port is a TCP port of the guest that belongs to the ssh server of the image, if that wants it.
type Port struct {
	// Listen opens the port.
	Listen func() (net.Listener, error)
	// Serve serves a listener until that is closed.
	Serve func(net.Listener)
	// Programs are the files an ssh server of the image may be, there or not. That one is opened, or appears, is taken
	// for its start.
	Programs []string
	// Quiet is how long after the last sign of such a start the port is looked at again; 0 for 10 s.
	Quiet time.Duration
	// Log receives who has the port; nil for none.
	Log *slog.Logger
}

// Keep has the port for as long as nobody else wants it: where it is taken Keep returns at once, and where a program of the image
// starts, Keep closes its listener and looks again later. The error is that of Listen, other than that the port is taken.
func (p Port) Keep(ctx context.Context) error {
	log := p.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	starts, err := watchPrograms(ctx, p.Programs)
	if err != nil {
		log.Warn("the image's ssh server cannot be noticed", "error", err)
	}
	for {
		l, err := p.Listen()
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			log.Info("the ssh port is taken by another server")
			return nil
		case err != nil:
			return err
		}
		served := make(chan struct{})
		go func() {
			defer close(served)
			p.Serve(l)
		}()
		select {
		case <-starts:
		case <-ctx.Done():
		}
		_ = l.Close()
		<-served
		if !quiet(ctx, starts, cmp.Or(p.Quiet, 10*time.Second)) {
			return nil
		}
	}
}

// quiet waits until there was no event for d. It tells whether ctx is still there.
func quiet(ctx context.Context, events <-chan struct{}, d time.Duration) bool {
	for {
		select {
		case <-events:
		case <-time.After(d):
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// watchPrograms tells of every time one of files is opened or appears, until ctx ends; several such times may be told as one.
// What can be watched is, whatever the error says.
func watchPrograms(ctx context.Context, files []string) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch programs: %w", err)
	}
	w := programs{events: os.NewFile(uintptr(fd), "inotify"), files: files}
	context.AfterFunc(ctx, func() { _ = w.events.Close() })
	var errs []error
	// The directories first, so that a file that appears meanwhile is not missed.
	for _, f := range files {
		errs = append(errs, w.watch(path.Dir(f), unix.IN_CREATE|unix.IN_MOVED_TO|unix.IN_ONLYDIR))
	}
	for _, f := range files {
		errs = append(errs, w.watch(f, unix.IN_OPEN))
	}
	told := make(chan struct{}, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := w.events.Read(buf)
			if err != nil {
				return
			}
			if !w.notable(buf[:n]) {
				continue
			}
			select {
			case told <- struct{}{}:
			default:
			}
		}
	}()
	return told, errors.Join(errs...)
}

// programs are files that are watched.
type programs struct {
	events *os.File // inotify
	files  []string
}

// watch adds a file or directory, if it is there.
func (w programs) watch(file string, mask uint32) (err error) {
	rc, err := w.events.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { _, err = unix.InotifyAddWatch(int(fd), file, mask) })
	if err == nil {
		err = cerr
	}
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "watch", Path: file, Err: err}
}

// notable tells whether events are of the files, and not of others in their directories. One that has appeared is watched from now on.
func (w programs) notable(events []byte) bool {
	found := false
	for len(events) >= unix.SizeofInotifyEvent {
		mask := binary.NativeEndian.Uint32(events[4:])
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(events[12:]))
		name := strings.TrimRight(string(events[unix.SizeofInotifyEvent:size]), "\x00")
		events = events[size:]
		if mask&(unix.IN_OPEN|unix.IN_Q_OVERFLOW) != 0 {
			found = true
			continue
		}
		for _, f := range w.files {
			if name != "" && path.Base(f) == name {
				found = true
				_ = w.watch(f, unix.IN_OPEN) // the next start would go unseen; this one was not
			}
		}
	}
	return found
}

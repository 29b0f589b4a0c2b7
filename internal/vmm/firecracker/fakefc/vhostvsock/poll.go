package vhostvsock

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// poller calls functions when descriptors are ready. Each is known by a number of its own, which is not used again: an event of
// a descriptor that was closed meanwhile is for nobody.
type poller struct {
	fd     int
	last   uint64
	on     map[uint64]func(events uint32) error
	events [64]unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &poller{fd: fd, on: map[uint64]func(uint32) error{}}, nil
}

// add calls f, level-triggered, for events of fd.
func (p *poller) add(fd int, events uint32, f func(events uint32) error) (id uint64, err error) {
	p.last++
	if err := p.control(unix.EPOLL_CTL_ADD, fd, events, p.last); err != nil {
		return 0, err
	}
	p.on[p.last] = f
	return p.last, nil
}

// remove forgets fd, which add has made id of and which is still open.
func (p *poller) remove(fd int, id uint64) {
	if _, ok := p.on[id]; ok {
		delete(p.on, id)
		_ = p.control(unix.EPOLL_CTL_DEL, fd, 0, 0) // the only error is that it is not there
	}
}

// modify changes the events that fd is waited for.
func (p *poller) modify(fd int, id uint64, events uint32) error {
	return p.control(unix.EPOLL_CTL_MOD, fd, events, id)
}

func (p *poller) control(op, fd int, events uint32, id uint64) error {
	ev := unix.EpollEvent{Events: events, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
	if err := unix.EpollCtl(p.fd, op, fd, &ev); err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	return nil
}

// wait waits for events, at most timeout milliseconds (-1 for as long as it takes), and calls what is waiting for them.
func (p *poller) wait(timeout int) error {
	n, err := unix.EpollWait(p.fd, p.events[:], timeout)
	if errors.Is(err, unix.EINTR) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("epoll_wait", err)
	}
	for _, ev := range p.events[:n] {
		id := uint64(uint32(ev.Pad))<<32 | uint64(uint32(ev.Fd))
		if f := p.on[id]; f != nil {
			if err := f(ev.Events); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *poller) close() { _ = unix.Close(p.fd) }

package user

import (
	"errors"
	"io"
	"sync"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// graceDefault is how long a port whose link has ended waits for another.
const graceDefault = 60 * time.Second

// plug is one link of a port, for as long as it carries the guest's frames.
type plug struct {
	link    Link
	once    sync.Once
	ended   chan struct{}  // closed once the link is
	running sync.WaitGroup // who reads and who writes
}

// close closes the link; true for the first who does.
func (l *plug) close() (first bool) {
	l.once.Do(func() {
		first = true
		_ = l.link.Close() // its reader and writer are told by that; there is nobody to tell more to
		close(l.ended)
	})
	return first
}

// plugIn gives the port a link, in the place of the one it has; false where the port was closed.
func (p *Port) plugIn(link Link) bool {
	p.plugging.Lock()
	defer p.plugging.Unlock()
	l := &plug{link: link, ended: make(chan struct{})}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return false
	}
	old := p.plug
	p.plug = l
	p.mu.Unlock()
	if old != nil {
		old.close()
		old.running.Wait() // its writer must not take what is for the new one
	}
	l.running.Go(func() { p.read(l) })
	l.running.Go(func() { p.write(l) })
	return true
}

// lost is called when a link has failed. The port keeps its place and its connections until another is plugged in, for a
// while; what is sent to the guest waits in its queue as far as that has room.
func (p *Port) lost(l *plug) {
	if !l.close() {
		return // somebody wanted that
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.plug == l && !p.closed {
		p.expiry = time.AfterFunc(p.net.cfg.Grace, func() { p.expire(l) })
	}
}

// expire detaches the VM, unless a link came after l.
func (p *Port) expire(l *plug) {
	p.mu.Lock()
	over := p.plug == l
	p.closed = p.closed || over
	p.mu.Unlock()
	if over {
		p.net.log.Info("a vm's frames did not come back, its connections are reset", "vm", p.vm.Name, "id", p.vm.ID)
		p.Close()
	}
}

// Lost is closed once the link of this moment has ended: by itself, because another took its place, or with the port.
func (p *Port) Lost() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.plug.ended
}

// read hands the guest's frames to the switch until the link ends.
func (p *Port) read(l *plug) {
	defer p.lost(l)
	view := buffer.NewViewSize(wire.MaxEthernet)
	defer func() { view.Release() }()
	for {
		n, err := l.link.ReadFrame(view.AsSlice())
		if err != nil {
			if !errors.Is(err, io.EOF) {
				p.net.log.Debug("link of a vm ended", "vm", p.vm.ID, "error", err)
			}
			return
		}
		if n < 0 || n > view.Size() {
			return // not a Link
		}
		p.c.framesIn.Add(1)
		p.c.bytesIn.Add(uint64(n))
		if n < handOver {
			p.receive(view.AsSlice()[:n], nil)
			continue
		}
		whole := view
		view = buffer.NewViewSize(wire.MaxEthernet)
		whole.CapLength(n)
		p.receive(whole.AsSlice(), whole)
	}
}

// write sends the guest what waits for it until the link ends.
func (p *Port) write(l *plug) {
	defer p.lost(l)
	var pieces [][]byte
	var list []outFrame
	for {
		list = p.out.take(list, l.ended)
		if list == nil {
			return
		}
		var err error
		for i := range list {
			f, size := &list[i], list[i].size()
			if err == nil {
				pieces = f.pieces(pieces[:0])
				err = l.link.WriteFrame(pieces)
			}
			f.release()
			p.out.done(size)
			if err != nil { // what was taken is lost with the link, as on a wire
				p.c.overrun.Add(1)
				continue
			}
			p.c.framesOut.Add(1)
			p.c.bytesOut.Add(uint64(size))
		}
		clear(list)
		clear(pieces)
		if err != nil {
			return
		}
	}
}

package process

import (
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// maxLinger bounds how long after a process's end its pipes are read while somebody keeps writing to them.
const maxLinger = 500 * time.Millisecond

// proc is one process, from the reservation of its id until it is collected.
type proc struct {
	m     *Manager
	id    string
	argv  []string
	ready chan struct{} // closed when the start succeeded (pid is set) or failed
	done  chan struct{} // closed when exit is set

	// Set before ready is closed.
	pid int
	io  *stdio

	abandoned atomic.Bool // nobody will ask how it ended

	mu       sync.Mutex // guards what follows
	out      [2]*output // stdout, stderr; stderr is nil with a terminal
	in       input
	client   *client // attached, or nil
	detached bool    // started with Detach, or its owner is gone
	ended    bool    // waited for: its pid may be another's
	endedAt  time.Time
	state    syscall.WaitStatus
	open     int // outputs not read to their end
	exit     *wire.ExecExit
}

// output is one stream of a process on its way to the client.
type output struct {
	file *os.File
	ring *wire.Ring
	room *sync.Cond // the ring has room, or the process is detached
	late int        // bytes read since the process ended
}

// input is what the client sent and the process has not read.
type input struct {
	ring    *wire.Ring
	more    *sync.Cond // there is something to write, or eof, or the end
	started bool       // its goroutine runs
	eof     bool       // no more will come
	closed  bool       // the process has closed it, or it is closed
}

func newProc(m *Manager, req *wire.ExecStart) *proc {
	p := &proc{m: m, id: req.ID, argv: req.Argv, detached: req.Detach, ready: make(chan struct{}), done: make(chan struct{})}
	p.in.ring = wire.NewRing(0, wire.StdinWindow)
	p.in.more = sync.NewCond(&p.mu)
	return p
}

func (p *proc) isReady() bool {
	select {
	case <-p.ready:
		return p.pid != 0
	default:
		return false
	}
}

// run takes over a process that was just started.
func (p *proc) run(pid int, io *stdio) {
	p.pid, p.io = pid, io
	p.in.closed = io.stdin == nil
	for i, f := range []*os.File{io.stdout, io.stderr} {
		if f != nil {
			p.out[i] = &output{file: f, ring: wire.NewRing(0, wire.RingBytes), room: sync.NewCond(&p.mu)}
			p.open++
		}
	}
	p.m.wg.Add(1 + p.open)
	for _, o := range p.out {
		if o != nil {
			go p.pump(o)
		}
	}
	go p.wait()
}

// wait reaps the process.
func (p *proc) wait() {
	defer p.m.wg.Done()
	var err error
	for {
		// The child stays a zombie until p.mu is held, so that no signal meets a reused pid.
		if err = unix.Waitid(unix.P_PID, p.pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var ws syscall.WaitStatus
	if err == nil {
		_, err = syscall.Wait4(p.pid, &ws, 0, nil)
	}
	if err != nil {
		p.m.log.Error("wait for process", "exec", p.id, "pid", p.pid, "error", err)
		ws = 255 << 8 // somebody else has reaped it: how it ended is not known
	}
	p.ended, p.endedAt, p.state = true, time.Now(), ws
	p.closeInput()
	for _, o := range p.out {
		if o != nil {
			_ = o.file.SetReadDeadline(p.endedAt.Add(p.m.cfg.DrainIdle))
			o.room.Signal()
		}
	}
	p.finishIfOver()
}

// pump reads one output of the process into its ring.
func (p *proc) pump(o *output) {
	defer p.m.wg.Done()
	for {
		room := p.outputRoom(o)
		n, err := o.file.Read(room)
		p.mu.Lock()
		o.ring.Commit(n)
		if p.ended {
			o.late += n
		}
		idle := errors.Is(err, os.ErrDeadlineExceeded)
		over := gone(err) || (p.ended && (idle || (o.late > wire.RingBytes && time.Since(p.endedAt) > maxLinger)))
		if n > 0 {
			p.wakeClient()
		}
		if !over {
			p.mu.Unlock()
			continue
		}
		p.open--
		p.finishIfOver()
		p.mu.Unlock()
		if !gone(err) && !p.io.pty {
			p.m.discard(o.file)
			return
		}
		_ = o.file.Close() // also where the end of a terminal's leader left others on it: they are hung up
		return
	}
}

// outputRoom waits until there is room in the ring, or makes it where nobody is there to read.
func (p *proc) outputRoom(o *output) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	for o.ring.Full() {
		if p.detached && p.client == nil {
			o.ring.Drop(wire.MaxChunk)
			break
		}
		o.room.Wait()
	}
	if p.ended {
		_ = o.file.SetReadDeadline(time.Now().Add(p.m.cfg.DrainIdle))
	}
	return o.ring.Reserve()
}

// finishIfOver publishes the exit once the process was waited for and its output was read. p.mu is held.
func (p *proc) finishIfOver() {
	if !p.ended || p.open > 0 || p.exit != nil {
		return
	}
	exit := &wire.ExecExit{Status: p.state.ExitStatus()}
	if p.state.Signaled() {
		exit.Status = 128 + int(p.state.Signal())
		exit.Signal = strings.TrimPrefix(unix.SignalName(p.state.Signal()), "SIG")
	}
	for _, o := range p.out {
		if o != nil {
			exit.Dropped += o.ring.Dropped()
		}
	}
	p.exit = exit
	close(p.done)
	p.wakeClient()
	p.m.wg.Go(func() {
		p.m.noteEnd(p)
	})
}

// wakeClient tells the attached client's sender that there is news. p.mu is held.
func (p *proc) wakeClient() {
	if p.client != nil {
		p.client.news.Signal()
	}
}

// status is the process as the API lists it.
func (p *proc) status() wire.ProcessStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return wire.ProcessStatus{ID: p.id, PID: p.pid, Argv: p.argv, Attached: p.client != nil, Exit: p.exit}
}

// signal sends a named signal to the process group; one that has ended takes any. p.mu is held.
func (p *proc) signal(name string) error {
	sig := unix.SignalNum("SIG" + name)
	if sig == 0 {
		return wire.ExecErrorf(wire.ExecInvalid, "no signal %.16q", name)
	}
	p.kill(sig)
	return nil
}

// kill signals the process group. p.mu is held.
func (p *proc) kill(sig syscall.Signal) {
	if p.ended {
		return
	}
	if err := syscall.Kill(-p.pid, sig); err != nil {
		p.m.log.Warn("signal process group", "exec", p.id, "pid", p.pid, "signal", sig.String(), "error", err)
	}
}

// hangUp is OwnerGone; it tells whether the process has ended.
func (p *proc) hangUp() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.exit != nil {
		return true
	}
	p.kill(syscall.SIGHUP)
	p.kill(syscall.SIGCONT)
	p.detach()
	if p.io.pty {
		p.closeInput()
		_ = p.io.stdout.Close() // the kernel hangs the terminal up
	}
	return false
}

// end kills the process group and lets go of its output.
func (p *proc) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kill(syscall.SIGKILL)
	p.detach()
}

// detach lets output be dropped from now on. p.mu is held.
func (p *proc) detach() {
	p.detached = true
	for _, o := range p.out {
		if o != nil {
			o.room.Signal()
		}
	}
}

// discard reads a pipe that an ended process left open in others, until they close it.
func (m *Manager) discard(f *os.File) {
	defer f.Close()
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return
	}
	m.lingering[f] = struct{}{}
	m.mu.Unlock()
	_ = f.SetReadDeadline(time.Time{})
	buf := make([]byte, 4<<10)
	for {
		if _, err := f.Read(buf); err != nil {
			break
		}
	}
	m.mu.Lock()
	delete(m.lingering, f)
	m.mu.Unlock()
}

// receive takes stdin from a client: what it has already is skipped, a gap or more than the window is a violation. p.mu is held.
func (p *proc) receive(offset uint64, data []byte) error {
	in := &p.in
	end := in.ring.End()
	switch {
	case offset > end:
		return wire.Violation("stdin at offset %d, expected %d", offset, end)
	case offset+uint64(len(data)) <= end:
		return nil
	case in.eof:
		return wire.Violation("stdin after its end")
	}
	data = data[end-offset:]
	if n := in.ring.Append(data); n < len(data) {
		return wire.Violation("more than %d bytes of stdin in flight", wire.StdinWindow)
	}
	if in.closed {
		in.ring.Ack(in.ring.End())
		p.wakeClient()
		return nil
	}
	p.feedLater()
	return nil
}

// receiveEOF ends stdin at offset, which must be all that was sent. p.mu is held.
func (p *proc) receiveEOF(offset uint64) error {
	if end := p.in.ring.End(); offset != end {
		return wire.Violation("end of stdin at offset %d, have %d bytes", offset, end)
	}
	if p.in.eof {
		return nil
	}
	p.in.eof = true
	if p.in.closed {
		return nil
	}
	if p.io.pty || p.in.ring.Base() < offset {
		p.feedLater()
		return nil
	}
	p.closeInput()
	return nil
}

// feedLater lets the goroutine that writes stdin go on; the first time it starts it. p.mu is held.
func (p *proc) feedLater() {
	if p.in.started {
		p.in.more.Signal()
		return
	}
	p.in.started = true
	p.m.wg.Add(1)
	go p.feed()
}

// feed writes stdin to the process until its end.
func (p *proc) feed() {
	defer p.m.wg.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	in := &p.in
	buf := make([]byte, firstFeed)
	last := byte('\n')
	for {
		for in.ring.Base() == in.ring.End() && !in.eof && !in.closed {
			in.more.Wait()
		}
		if in.closed {
			in.ring.Ack(in.ring.End())
			p.wakeClient()
			return
		}
		n := in.ring.CopyAt(buf, in.ring.Base())
		if n == 0 {
			p.endInput(last)
			return
		}
		p.mu.Unlock()
		wrote, err := p.io.stdin.Write(buf[:n])
		last = buf[n-1]
		if n == len(buf) && n < wire.MaxChunk {
			buf = make([]byte, wire.MaxChunk)
		}
		p.mu.Lock()
		in.ring.Ack(in.ring.Base() + uint64(wrote))
		if err != nil {
			// EPIPE: it does not want more. What comes is taken and thrown away, as a shell's writer would find out itself.
			p.closeInput()
		}
		p.wakeClient()
	}
}

// firstFeed is the first buffer of feed in bytes; it grows once.
const firstFeed = 4 << 10

// endInput closes stdin; a terminal gets its end-of-file character, twice where a line was begun. p.mu is held.
func (p *proc) endInput(last byte) {
	if !p.io.pty {
		p.closeInput()
		return
	}
	eof := p.io.eofBytes()
	if len(eof) > 0 && last != '\n' && last != '\r' {
		eof = append(eof, eof...)
	}
	p.in.closed = true
	p.mu.Unlock()
	_, _ = p.io.stdin.Write(eof)
	p.mu.Lock()
}

// closeInput closes our end of stdin, but for a terminal, which is one file. p.mu is held.
func (p *proc) closeInput() {
	if p.in.closed {
		return
	}
	p.in.closed = true
	p.in.more.Signal()
	if !p.io.pty {
		_ = p.io.stdin.Close()
	}
}

package supervise

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// A kernel that halts, or is to switch off a machine that has no way to, stops its CPUs and stays: to Firecracker nothing happened. That is
// the end of a guest whose init is not systemd, and of `poweroff -f`, where nobody announces it. The kernel's last words are on the console, and so might
// be anybody's; a guest that answers afterwards has not halted.
const (
	// haltGrace is how long after its last words a guest is asked whether it is there.
	haltGrace = 3 * time.Second
	// haltAnswer is how long it may take to answer. Firecracker closes the connection after 2 s
	// (CONN_REQUEST_TIMEOUT_MS of src/vmm/src/devices/virtio/vsock/csm/mod.rs); a kernel that runs refuses at once where nobody listens.
	haltAnswer, haltRefusal = 5 * time.Second, time.Second
	// haltAsked is how often it must leave a question unanswered.
	haltAsked = 2
)

// haltLine matches the end of a kernel's last line (kernel/reboot.c), which may follow what a program left on the line.
var haltLine = regexp.MustCompile(`(?:^|\] )reboot: (?:System halted|Power down)\r*$`)

// maxHaltLine is how much of a line is looked at.
const maxHaltLine = 512

// haltWatch copies a guest's console to another writer, and tells when the kernel's last words were in it.
type haltWatch struct {
	to     io.Writer
	halted chan<- struct{} // one may wait in it
	line   []byte
}

// Write implements io.Writer.
func (h *haltWatch) Write(p []byte) (int, error) {
	for _, c := range p {
		switch {
		case c != '\n' && len(h.line) < maxHaltLine:
			h.line = append(h.line, c)
		case c == '\n':
			if haltLine.Match(h.line) {
				select {
				case h.halted <- struct{}{}:
				default:
				}
			}
			h.line = h.line[:0]
		}
	}
	return h.to.Write(p)
}

// awaitHalt closes b.silent once the guest has halted, and returns then or when ctx ends.
func (b *boot) awaitHalt(ctx context.Context) {
	for {
		select {
		case <-b.halted:
		case <-ctx.Done():
			return
		}
		if b.halts(ctx) {
			close(b.silent)
			return
		}
	}
}

// halts reports whether the guest that wrote a kernel's last words is silent from then on.
func (b *boot) halts(ctx context.Context) bool {
	for asked := 0; asked < haltAsked; {
		if !pause(ctx, min(b.s.endingGrace, haltGrace)) {
			return false
		}
		if answers(ctx, cmp.Or(b.s.requestTimeout, haltAnswer)) {
			b.s.log.Warn("the guest's console says that it has halted, but it answers")
			return false
		}
		if b.s.board.Status().Phase != vmm.PhasePaused {
			asked++
		}
	}
	return ctx.Err() == nil
}

// answers reports whether the guest's kernel takes, or refuses, a stream within so long.
func answers(ctx context.Context, within time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", paths.VMVsock)
	if err != nil {
		return false
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	began := time.Now()
	err = connect(conn, wire.PortAPI)
	return err == nil || errors.Is(err, vmm.ErrRefused) && time.Since(began) < haltRefusal
}

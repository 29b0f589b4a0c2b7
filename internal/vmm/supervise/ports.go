package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// maxGuestStreams is how many streams of the guest to a port of the host are served at once: the agent has one.
const maxGuestStreams = 8

// hostPorts are the ports of the host the guest can reach: sockets beside vsock.sock, as Firecracker connects to them and
// as guestStream does for QEMU. They are as old as the supervisor; who answers is the boot of the moment.
type hostPorts struct {
	log   *slog.Logger
	peers func(*net.UnixConn) error // refuses clients that are not the VMM
	// served are the ports there are.
	served []uint32

	mu   sync.Mutex // guards boot
	boot *boot
}

// put makes b answer; nil for nobody.
func (h *hostPorts) put(b *boot) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.boot = b
}

func (h *hostPorts) current() *boot {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.boot
}

// portSocket is the name of the socket of a port of the host.
func portSocket(port uint32) string { return fmt.Sprintf("%s_%d", paths.VMVsock, port) }

// listen serves the ports this VM's guest uses until close is called.
func (h *hostPorts) listen(ctx context.Context, dir string, s *supervisor) (stop func(), err error) {
	serve := map[uint32]func(*boot, net.Conn){}
	if transport(s.spec.Engine) == wire.TransportVsock {
		serve[wire.PortCall] = func(b *boot, conn net.Conn) { b.calls.serve(conn) }
	}
	if n := s.spec.Identity.Network; n != nil && n.Device == wire.DeviceTAP {
		serve[wire.PortNet] = func(b *boot, conn net.Conn) { b.carryFrames(ctx, conn) }
	}
	var stops []func()
	stop = func() {
		for _, f := range stops {
			f()
		}
	}
	for port, f := range serve {
		ln, err := listen(dir + portSocket(port))
		if err != nil {
			stop()
			return nil, err
		}
		stops = append(stops, func() { ln.Close() })
		h.served = append(h.served, port)
		go h.accept(ctx, ln, f)
	}
	return stop, nil
}

// accept takes streams at once: Firecracker's only thread waits while a listener's backlog is full.
func (h *hostPorts) accept(ctx context.Context, ln *net.UnixListener, serve func(*boot, net.Conn)) {
	var open atomic.Int32
	for {
		conn, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors
			h.log.Error("a port of the host does not accept", "error", err)
			if !pause(ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		b := h.current()
		if open.Add(1) > maxGuestStreams || b == nil || h.peers(conn) != nil {
			conn.Close()
			open.Add(-1)
			continue
		}
		go func() {
			defer open.Add(-1)
			defer conn.Close()
			select {
			case <-b.up: // a guest may be quicker than its VMM's first answer
				serve(b, conn)
			case <-b.down:
			}
		}()
	}
}

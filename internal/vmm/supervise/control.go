package supervise

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

const (
	maxControlClients = 64
	// requestTimeout is how long a client may take to say what it wants, and to read an answer.
	requestTimeout = 10 * time.Second
	// opTimeout bounds what is asked of the VMM.
	opTimeout = 30 * time.Second
	// snapshotTimeout is the same for what writes the guest's memory to disk.
	snapshotTimeout = 10 * time.Minute
)

// controlServer serves control.sock for a supervisor.
type controlServer struct {
	s   *supervisor
	log *slog.Logger

	mu   sync.Mutex
	open int           // guarded by mu: clients
	none chan struct{} // guarded by mu: closed when open is 0 again; nil while nobody waits for that
}

// serve accepts clients until ln is closed.
func (c *controlServer) serve(ctx context.Context, ln *net.UnixListener) {
	for {
		conn, err := ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors
			c.log.Error("control.sock does not accept", "error", err)
			if !pause(ctx, 100*time.Millisecond) {
				return
			}
			continue
		}
		if checkPeer(conn) != nil || !c.enter() {
			conn.Close()
			continue
		}
		go func() {
			defer c.leave()
			defer conn.Close()
			c.client(ctx, conn)
		}()
	}
}

// enter counts a client in; false where there are too many.
func (c *controlServer) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= maxControlClients {
		return false
	}
	c.open++
	return true
}

func (c *controlServer) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open--; c.open == 0 && c.none != nil {
		close(c.none)
		c.none = nil
	}
}

// drain waits until all clients have had their answer, for at most d.
func (c *controlServer) drain(d time.Duration) {
	c.mu.Lock()
	if c.open == 0 {
		c.mu.Unlock()
		return
	}
	c.none = make(chan struct{})
	none := c.none
	c.mu.Unlock()
	select {
	case <-none:
	case <-time.After(d):
	}
}

func (c *controlServer) client(ctx context.Context, conn *net.UnixConn) {
	_ = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	var req request
	if err := readMessage(bufio.NewReaderSize(conn, 512), maxRequest, &req); err != nil {
		return
	}
	if req.Op == opWatch && req.Version == ProtocolVersion {
		c.watch(ctx, conn)
		return
	}
	if req.Op == opLink && req.Version == ProtocolVersion {
		c.lend(conn)
		return
	}
	err := c.do(ctx, req)
	st := c.s.board.Status()
	answer := reply{Version: ProtocolVersion, Status: &st}
	if err != nil {
		answer.Error = api.AsError(err)
	}
	c.answer(conn, answer)
}

func (c *controlServer) answer(conn *net.UnixConn, r reply) bool {
	_ = conn.SetWriteDeadline(time.Now().Add(requestTimeout))
	return writeMessage(conn, r) == nil
}

func (c *controlServer) do(ctx context.Context, req request) error {
	if req.Version != ProtocolVersion && req.Op != opVersion && req.Op != opKill {
		return api.Errorf(api.KindVersion, "the VM's supervisor speaks version %d of its protocol, this daemon %d",
			ProtocolVersion, req.Version).WithHint("stop the VM and start it again")
	}
	ctx, cancel := context.WithTimeout(ctx, req.timeout())
	defer cancel()
	switch req.Op {
	case opVersion:
		return nil
	case opPause:
		return c.s.pause(ctx)
	case opResume:
		return c.s.resume(ctx)
	case opResize:
		return c.s.resize(ctx, req.Drive)
	case opSnapshot:
		return c.s.snapshot(ctx, req.Dir)
	case opBalloon:
		return c.s.setBalloon(ctx, req.MiB)
	case opKill:
		return c.s.killAndWait(ctx)
	default:
		return api.Errorf(api.KindInvalid, "unknown operation %q", req.Op)
	}
}

// watch sends the status now and at every change, the latest where the client is slow, until the VM has ended.
func (c *controlServer) watch(ctx context.Context, conn *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		// Nothing more is expected of the client: whatever comes is its end.
		_ = conn.SetReadDeadline(time.Time{})
		_, _ = conn.Read(make([]byte, 1))
		cancel()
	}()
	for seq := uint64(0); ; {
		st, err := c.s.board.Next(ctx, seq)
		if err != nil || !c.answer(conn, reply{Version: ProtocolVersion, Status: &st}) {
			return
		}
		if st.Phase == vmm.PhaseEnded {
			return
		}
		seq = st.Seq
	}
}

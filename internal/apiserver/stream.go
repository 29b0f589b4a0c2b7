package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/relay"
)

// UpgradeExec is the protocol an exec stream is upgraded to.
const UpgradeExec = "banger-exec"

// ownerGrace is how long after the end of an exec stream its client may take to exit and still count as gone.
const ownerGrace = 2 * time.Second

// PeerKey is the context key under which the daemon's listener leaves the Peer of a connection.
type PeerKey struct{}

// Peer is the process at the other end of a connection.
type Peer struct{ PID int }

// sse writes server-sent events.
type sse struct {
	w http.ResponseWriter
	c *http.ResponseController
}

func newSSE(w http.ResponseWriter) *sse {
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	return &sse{w, http.NewResponseController(w)}
}

func (s *sse) send(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	if _, err := fmt.Fprintf(s.w, "data: %s\n\n", b); err != nil {
		return err
	}
	return s.c.Flush()
}

func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	out := newSSE(w)
	_ = out.c.Flush()
	err := s.cfg.VMs.Events(r.Context(), func(ev api.Event) error { return out.send(ev) })
	s.streamEnded(r, err)
}

func (s *Server) operationEvents(w http.ResponseWriter, r *http.Request) {
	id := r.PathValue("id")
	if _, err := s.cfg.Operations.Get(r.Context(), id); err != nil {
		writeError(w, r, err)
		return
	}
	out := newSSE(w)
	err := s.cfg.Operations.Watch(r.Context(), id, func(op api.Operation) error { return out.send(op) })
	s.streamEnded(r, err)
}

// streamEnded logs why a stream broke off, unless its client simply left.
func (s *Server) streamEnded(r *http.Request, err error) {
	if err != nil && r.Context().Err() == nil {
		s.cfg.Log.Warn("stream ended", "path", r.URL.Path, "err", err)
	}
}

func (s *Server) logs(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	follow := q.Get("follow") == "true"
	out := &flusher{w: w, c: http.NewResponseController(w), each: follow}
	err := s.cfg.VMs.Logs(r.Context(), r.PathValue("name"), q.Get("source"), follow, out)
	if err != nil && !out.wrote {
		writeError(w, r, err)
		return
	}
	s.streamEnded(r, err)
}

// flusher flushes after each write where a reader waits for it.
type flusher struct {
	w     http.ResponseWriter
	c     *http.ResponseController
	each  bool
	wrote bool
}

func (f *flusher) Write(p []byte) (int, error) {
	f.wrote = true
	n, err := f.w.Write(p)
	if err == nil && f.each {
		err = f.c.Flush()
	}
	return n, err
}

// exec joins a client with the exec port of a guest's agent. With ?id=<exec id> the process is hung up once the client
// process is gone.
func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	name, id := r.PathValue("name"), r.URL.Query().Get("id")
	var gone func() bool
	if id != "" {
		var release func()
		gone, release = s.watchPeer(r) // now, while the client waits for the answer
		defer release()
	}
	if s.joinGuest(w, r, UpgradeExec, s.cfg.VMs.DialExec) && gone != nil && gone() {
		s.ownerGone(name, id)
	}
}

// joinGuest makes a request a stream of the protocol, joins it with what dial connects to in the VM that the request names,
// and returns true when both have ended; false where it did not come to that. The daemon does not read what they say.
func (s *Server) joinGuest(w http.ResponseWriter, r *http.Request, protocol string, dial func(context.Context, string) (net.Conn, error)) bool {
	if r.Header.Get("Upgrade") != protocol {
		writeError(w, r, api.Errorf(api.KindInvalid, "%s needs an upgrade to %q", r.URL.Path, protocol))
		return false
	}
	guest, err := dial(r.Context(), r.PathValue("name"))
	if err != nil {
		writeError(w, r, err)
		return false
	}
	defer func() { _ = guest.Close() }()
	client, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeError(w, r, fmt.Errorf("take over the connection: %w", err))
		return false
	}
	defer func() { _ = client.Close() }()
	_, err = fmt.Fprintf(client, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %d\r\n\r\n",
		protocol, api.HeaderAPIVersion, api.Version)
	if err != nil {
		return true
	}
	if n := buffered.Reader.Buffered(); n > 0 {
		head, _ := buffered.Reader.Peek(n)
		if _, err := guest.Write(head); err != nil {
			return true
		}
	}
	relay.Join(client, guest)
	return true
}

// watchPeer returns what tells, called at the end of a stream, whether the client process has exited; nil where it is not known.
func (s *Server) watchPeer(r *http.Request) (gone func() bool, release func()) {
	peer, ok := r.Context().Value(PeerKey{}).(Peer)
	if !ok {
		return nil, func() {}
	}
	fd, err := unix.PidfdOpen(peer.PID, 0)
	if err != nil {
		s.cfg.Log.Warn("watch the client", "pid", peer.PID, "err", err)
		return nil, func() {}
	}
	return func() bool { return exited(fd, ownerGrace) }, func() { _ = unix.Close(fd) }
}

func (s *Server) ownerGone(name, id string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.cfg.VMs.ExecOwnerGone(ctx, name, id); err != nil {
		s.cfg.Log.Debug("hang up", "vm", name, "exec", id, "err", err)
	}
}

// exited reports whether the process of a pidfd ends within d.
func exited(fd int, d time.Duration) bool {
	until := time.Now().Add(d)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(time.Until(until), 0)/time.Millisecond))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return err == nil && n > 0
	}
}

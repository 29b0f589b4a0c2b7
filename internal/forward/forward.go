// Package forward holds the ports of the host that lead into running VMs. A connection to one is carried to the guest by
// whatever dials there, with the ends of its directions and with resets; datagrams are, a flow for each peer.
//
// spec.go reads and writes forwards, forward.go has the VMs and their ports, listen.go binds those and explains what keeps
// them from it, tcp.go and udp.go carry.
package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostports"
)

// Limits and times.
const (
	maxForwards    = 256  // of a VM
	maxConnections = 4096 // of a VM, over TCP, with those that are refused in the end
	dialWithin     = 30 * time.Second
	retryAfter     = 2 * time.Second
	retryRarely    = 2 * time.Minute
)

// ErrNotOpen says that no VM of that id has its forwards open.
var ErrNotOpen = errors.New("the vm's forwards are not open")

// Dial connects to a port of a guest; network is "tcp" or "udp". A connection of tcp has CloseWrite, which half-closes it; a reset by the
// guest is an error of Read that is not io.EOF, and Close without a CloseWrite before resets. Of udp each Write is a datagram and each Read
// returns one.
type Dial = func(ctx context.Context, network string, port uint16) (net.Conn, error)

// Config is what a Service needs.
type Config struct {
	Log *slog.Logger
	// Who says who has a port of the host; nil for hostports.Who.
	Who func(protocol string, at netip.AddrPort) string
	// RetryAfter is when a port that was taken is tried again first; 0 for 2 s.
	RetryAfter time.Duration
}

// Service holds the host's listeners of all VMs of a daemon.
type Service struct {
	cfg Config

	mu     sync.Mutex // guards what follows
	guests map[string]*guest
}

// VM is whose forwards they are. Dial reaches its guest.
type VM struct {
	ID, Name string
	Dial     Dial
}

// guest is a VM whose forwards are open.
type guest struct {
	vm  VM
	log *slog.Logger
	// ctx ends with Close.
	ctx         context.Context
	cancel      context.CancelFunc
	tasks       sync.WaitGroup
	connections atomic.Int64 // over TCP
	entries     []*entry     // guarded by Service.mu
}

// entry is a forward that is wanted.
type entry struct {
	f api.Forward
	// port is nil while the host's port cannot be had, err then says why.
	port *port
	err  error
}

// port is a port of the host that is open.
type port struct {
	guest  *guest
	f      api.Forward
	socket io.Closer // a net.Listener or a *udpSocket
	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
	open   atomic.Int64 // connections, or flows
}

// New returns a service that holds nothing.
func New(cfg Config) *Service {
	if cfg.Who == nil {
		cfg.Who = hostports.Who
	}
	if cfg.RetryAfter == 0 {
		cfg.RetryAfter = retryAfter
	}
	return &Service{cfg: cfg, guests: map[string]*guest{}}
}

// Open listens for a VM, at all the ports of list or, after an error, at none. It returns list with the ports that were chosen where it asked for
// any. From then on the VM's forwards are open, even if there are none, until Close.
func (s *Service) Open(vm VM, list []api.Forward) ([]api.Forward, error) {
	list, err := Normals(list)
	if err != nil {
		return nil, err
	}
	sockets, list, err := s.bindAll(list, func(api.Forward) bool { return false })
	if err != nil {
		return nil, err
	}
	g := s.newGuest(vm)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.guests[vm.ID] != nil {
		closeAll(sockets)
		return nil, api.Errorf(api.KindInternal, "open the forwards of vm %q: they are open", vm.Name)
	}
	s.guests[vm.ID] = g
	for i, f := range list {
		g.entries = append(g.entries, &entry{f: f, port: g.serve(f, sockets[i])})
	}
	return list, nil
}

// Keep is Open for a VM that runs already: what cannot be had at once is tried again until it can or the VM's forwards are closed. told hears
// of each that cannot, once, and with nil when it can.
func (s *Service) Keep(vm VM, list []api.Forward, told func(f api.Forward, err error)) {
	g := s.newGuest(vm)
	s.mu.Lock()
	if s.guests[vm.ID] != nil {
		s.mu.Unlock()
		return
	}
	s.guests[vm.ID] = g
	for _, f := range list {
		g.entries = append(g.entries, &entry{f: f})
	}
	missing := slices.Clone(g.entries)
	s.mu.Unlock()
	if missing = s.retry(g, missing, told); len(missing) == 0 {
		return
	}
	g.tasks.Go(func() {
		for wait := s.cfg.RetryAfter; len(missing) > 0; wait = min(2*wait, max(retryRarely, s.cfg.RetryAfter)) {
			t := time.NewTimer(wait)
			select {
			case <-t.C:
			case <-g.ctx.Done():
				t.Stop()
				return
			}
			missing = s.retry(g, missing, told)
		}
	})
}

func (s *Service) newGuest(vm VM) *guest {
	ctx, cancel := context.WithCancel(context.Background())
	return &guest{vm: vm, log: s.cfg.Log.With("vm", vm.Name), ctx: ctx, cancel: cancel}
}

// retry tries to listen for entries that do not, and returns those that still cannot.
func (s *Service) retry(g *guest, entries []*entry, told func(api.Forward, error)) []*entry {
	var missing []*entry
	for _, e := range entries {
		socket, f, err := s.bind(e.f)
		s.mu.Lock()
		if s.guests[g.vm.ID] != g || !slices.Contains(g.entries, e) { // closed or removed meanwhile
			s.mu.Unlock()
			if socket != nil {
				_ = socket.Close()
			}
			continue
		}
		before := e.err
		if e.err = err; err == nil {
			e.f, e.port = f, g.serve(f, socket)
		} else {
			missing = append(missing, e)
		}
		s.mu.Unlock()
		if (before == nil) != (err == nil) {
			told(f, err)
		}
	}
	return missing
}

// Add listens at one more port for a VM whose forwards are open, else it returns ErrNotOpen. It returns the forward with the port that was chosen.
func (s *Service) Add(id string, f api.Forward) (api.Forward, error) {
	f, err := Normal(f)
	if err != nil {
		return f, err
	}
	if s.guest(id) == nil {
		return f, ErrNotOpen
	}
	socket, f, err := s.bind(f)
	if err != nil {
		return f, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[id]
	if g == nil {
		_ = socket.Close()
		return f, ErrNotOpen
	}
	g.entries = append(g.entries, &entry{f: f, port: g.serve(f, socket)})
	return f, nil
}

// Remove stops listening for a forward, and resets the connections through it. It reports whether there was such a forward.
func (s *Service) Remove(id string, f api.Forward) bool {
	s.mu.Lock()
	g := s.guests[id]
	i := -1
	if g != nil {
		i = slices.IndexFunc(g.entries, func(e *entry) bool { return e.f == f })
	}
	if i < 0 {
		s.mu.Unlock()
		return false
	}
	e := g.entries[i]
	g.entries = slices.Delete(g.entries, i, i+1)
	s.mu.Unlock()
	if e.port != nil {
		e.port.close()
	}
	return true
}

// Close stops listening for a VM and resets the connections into it. A VM whose forwards are not open is fine.
func (s *Service) Close(id string) {
	s.mu.Lock()
	g := s.guests[id]
	delete(s.guests, id)
	s.mu.Unlock()
	if g != nil {
		g.close()
	}
}

// CloseAll is Close for all VMs.
func (s *Service) CloseAll() {
	s.mu.Lock()
	all := s.guests
	s.guests = map[string]*guest{}
	s.mu.Unlock()
	for _, g := range all {
		g.close()
	}
}

// close ends a guest that is in no map any more, and so gets no more entries.
func (g *guest) close() {
	g.cancel()
	for _, e := range g.entries {
		if e.port != nil {
			e.port.close()
		}
	}
	g.tasks.Wait()
}

// Status tells how the forwards of a VM are, in the order they came; nil where they are not open.
func (s *Service) Status(id string) []api.ForwardStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.guests[id]
	if g == nil {
		return nil
	}
	out := make([]api.ForwardStatus, 0, len(g.entries))
	for _, e := range g.entries {
		st := api.ForwardStatus{Forward: e.f, Listening: e.port != nil}
		if e.port != nil {
			st.Connections = int(e.port.open.Load())
		} else if e.err != nil {
			st.Error = e.err.Error()
		}
		out = append(out, st)
	}
	return out
}

// Check finds out whether list could be listened at, without holding it, and returns it with a port chosen where it asks for any: one that
// avoid does not name.
func (s *Service) Check(list []api.Forward, avoid func(api.Forward) bool) ([]api.Forward, error) {
	list, err := Normals(list)
	if err != nil {
		return nil, err
	}
	sockets, list, err := s.bindAll(list, avoid)
	closeAll(sockets)
	return list, err
}

func (s *Service) guest(id string) *guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.guests[id]
}

// ownerOf is the name of the VM that has the port a forward wants; empty where it is none of banger's.
func (s *Service) ownerOf(f api.Forward) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, g := range s.guests {
		for _, e := range g.entries {
			if e.port != nil && Overlap(e.f, f) {
				return g.vm.Name
			}
		}
	}
	return ""
}

// serve carries what comes to a socket, in the background.
func (g *guest) serve(f api.Forward, socket io.Closer) *port {
	p := &port{guest: g, f: f, socket: socket}
	p.ctx, p.cancel = context.WithCancel(g.ctx)
	switch socket := socket.(type) {
	case *udpSocket:
		p.tasks.Go(func() { p.serveUDP(socket) })
	case net.Listener:
		p.tasks.Go(func() { p.serveTCP(socket) })
	}
	return p
}

// close frees the port and waits until nothing of it is left.
func (p *port) close() {
	p.cancel()
	_ = p.socket.Close()
	p.tasks.Wait()
}

package preview

import (
	"cmp"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// host is VMs whose guests' ports are servers of the test, on its loopback.
type host struct {
	mu    sync.Mutex // guards what follows
	vms   map[string]api.VM
	ports map[string]map[uint16]string // by VM: port → address of the server
	procs map[uint16]string
	dials int
	// wait, where it is not nil, is what Dial waits for.
	wait chan struct{}

	open atomic.Int64 // connections to guests
}

func newHost(names ...string) *host {
	h := &host{vms: map[string]api.VM{}, ports: map[string]map[uint16]string{}, procs: map[uint16]string{}}
	for _, n := range names {
		h.vms[n] = api.VM{ID: "id-" + n, Name: n, State: api.StateRunning, Image: "debian-bookworm", CPUs: 2, MemoryBytes: 2 << 30,
			Address: netip.MustParseAddr("172.16.0.2")}
		h.ports[n] = map[uint16]string{}
	}
	return h
}

func (h *host) set(name string, change func(*api.VM)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := h.vms[name]
	change(&v)
	h.vms[name] = v
}

// listen has a server stand for a port of a VM.
func (h *host) listen(vm string, port uint16, address string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ports[vm][port] = address
}

// serve has a handler answer at a port of a VM.
func (h *host) serve(t testing.TB, vm string, port uint16, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	srv := httptest.NewServer(handler)
	t.Cleanup(srv.Close)
	h.listen(vm, port, srv.Listener.Addr().String())
	return srv
}

// raw has fn answer each connection to a port of a VM.
func (h *host) raw(t testing.TB, vm string, port uint16, fn func(net.Conn)) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				fn(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
	h.listen(vm, port, ln.Addr().String())
}

func (h *host) List(context.Context) ([]api.VM, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []api.VM
	for _, v := range h.vms {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b api.VM) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

func (h *host) VM(_ context.Context, nameOrID string) (api.VM, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, v := range h.vms {
		if v.Name == nameOrID || v.ID == nameOrID {
			return v, nil
		}
	}
	return api.VM{}, api.Errorf(api.KindNotFound, "vm %q does not exist", nameOrID)
}

func (h *host) Ports(_ context.Context, name string) ([]api.GuestPort, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if p := h.vms[name].Reason; p == "mute" {
		return nil, api.Errorf(api.KindGuest, "ask vm %q: its agent does not answer", name)
	}
	var out []api.GuestPort
	for p := range h.ports[name] {
		for _, a := range []string{"127.0.0.1", "::1"} {
			out = append(out, api.GuestPort{Protocol: api.TCP, Port: p, Address: netip.MustParseAddr(a), Process: h.procs[p]})
		}
	}
	return append(out, api.GuestPort{Protocol: api.UDP, Port: 68}), nil
}

// guestConn counts the connections that are open.
type guestConn struct {
	*net.TCPConn
	h    *host
	once sync.Once
}

func (c *guestConn) Close() error {
	c.once.Do(func() { c.h.open.Add(-1) })
	return c.TCPConn.Close()
}

func (h *host) Dial(ctx context.Context, nameOrID, network string, port uint16) (net.Conn, error) {
	vm, err := h.VM(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.dials++
	address, wait := h.ports[vm.Name][port], h.wait
	h.mu.Unlock()
	if wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if vm.State != api.StateRunning {
		return nil, api.Errorf(api.KindConflict, "vm %q is %s", vm.Name, vm.State)
	}
	if address == "" {
		return nil, vmm.ErrRefused
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, address)
	if err != nil {
		return nil, vmm.ErrRefused
	}
	h.open.Add(1)
	return &guestConn{TCPConn: c.(*net.TCPConn), h: h}, nil
}

func (h *host) dialled() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.dials
}

// site is a server under test and clients of it.
type site struct {
	t      testing.TB
	server *Server
	addr   string // host:port
	port   string
	client *http.Client
}

// start serves h on the loopback, and sees at the end that nothing is left.
func start(t testing.TB, h *host) *site {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, addr: ln.Addr().String()}
	_, s.port, _ = net.SplitHostPort(s.addr)
	s.server = New(Config{VMs: h, Dial: h.Dial, Address: func() string { return s.addr }, Log: slog.New(slog.DiscardHandler)})
	served := make(chan error, 1)
	go func() { served <- s.server.Serve(ln) }()
	tr := &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "tcp", s.addr)
		}}
	s.client = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	t.Cleanup(func() {
		tr.CloseIdleConnections()
		s.server.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		// A transport closes what it has done with behind the one who asked.
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for late := time.Now().Add(20 * time.Second); h.open.Load() != 0; <-tick.C {
			if time.Now().After(late) {
				t.Errorf("%d connections to guests are left", h.open.Load())
				break
			}
		}
	})
	return s
}

// url is a name that the server serves.
func (s *site) url(host string) string { return "http://" + host + ":" + s.port + "/" }

func (s *site) request(method, url string, body io.Reader, header ...string) *http.Request {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, url, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Add(header[i], header[i+1])
	}
	return r
}

// get asks, and returns status and body.
func (s *site) get(url string, header ...string) (int, string) {
	s.t.Helper()
	res, body := s.do(s.request("GET", url, nil, header...))
	return res.StatusCode, body
}

func (s *site) do(r *http.Request) (*http.Response, string) {
	s.t.Helper()
	res, err := s.client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res, string(b)
}

// dial connects as a client does.
func (s *site) dial() *net.TCPConn {
	s.t.Helper()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c.(*net.TCPConn)
}

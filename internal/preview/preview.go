// Package preview serves the daemon's web port: the ports of VMs, each under a name of its own that browsers take for this
// host, http://PORT.NAME.localhost:7777/, a page per VM at NAME.localhost, and one of all VMs at localhost.
//
// Web pages of strangers and other users of the host can reach that port, too. Who asks is looked at before what is asked:
// peer.go tells whose the connection is, host.go which name was asked for, guard.go whether the page that asks may.
// proxy.go carries requests to guests, page.go and page.html are the pages, trouble.go says what went wrong, graceful.go ends connections.
//
// What a guest answers is the guest's: it is shown under the guest's own names, which no other VM's and none of banger's pages share.
package preview

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// VMs are the VMs of the daemon.
type VMs interface {
	List(ctx context.Context) ([]api.VM, error)
	VM(ctx context.Context, nameOrID string) (api.VM, error)
	Ports(ctx context.Context, nameOrID string) ([]api.GuestPort, error)
}

// Config is what a Server needs. Every field is required.
type Config struct {
	VMs VMs
	// Dial connects to a port of a VM; network is "tcp". Where the connection has CloseWrite, that ends one direction, and Close without
	// it is a reset. The error is an *api.Error, of KindNotFound where there is no such VM and KindConflict where it does not
	// run, or vmm.ErrRefused where nobody listens.
	Dial func(ctx context.Context, nameOrID, network string, port uint16) (net.Conn, error)
	// Address returns the host:port that is served, for texts.
	Address func() string
	Log     *slog.Logger
}

const (
	// headerWithin is how long a client may take to send a request's header, idleClient how long it may keep a connection without one.
	headerWithin, idleClient = 10 * time.Second, 2 * time.Minute
	// closeWithin is how long requests may take to end when the server is closed, before their connections are cut.
	closeWithin = time.Second
)

// Server is the web port. Its Serve gives it connections; as a handler it serves only those that came that way.
type Server struct {
	cfg   Config
	uid   int
	http  *http.Server
	proxy *proxy
	// ctx ends with the server; every request hangs on it.
	ctx    context.Context
	cancel context.CancelFunc

	mu     sync.Mutex // guards closed, and tasks against an Add beside Wait
	closed bool
	tasks  sync.WaitGroup
}

// New returns a server that serves nothing yet.
func New(cfg Config) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{cfg: cfg, uid: os.Getuid(), ctx: ctx, cancel: cancel}
	s.proxy = newProxy(s)
	s.http = &http.Server{
		Handler:                      s,
		ReadHeaderTimeout:            headerWithin,
		IdleTimeout:                  idleClient,
		DisableGeneralOptionsHandler: true, // OPTIONS * is the guest's to answer, too
		ErrorLog:                     slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		BaseContext:                  func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*peerConn); ok {
				return context.WithValue(ctx, peerKey{}, p)
			}
			return ctx
		},
	}
	return s
}

// Serve serves the connections of a TCP listener until Close, then returns nil. It may be called for several listeners.
func (s *Server) Serve(ln net.Listener) error {
	err := s.http.Serve(newListener(ln, s.uid, s.cfg.Log))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Close ends listeners, requests and connections to guests, and waits until nothing of them is left.
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), closeWithin)
	defer cancel()
	if s.http.Shutdown(ctx) != nil { // somebody is in the middle of sending or of reading
		_ = s.http.Close()
	}
	s.proxy.close()
	s.tasks.Wait()
}

// begin has Close wait until the returned function is called; false where the server is closed.
func (s *Server) begin() (end func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	s.tasks.Add(1)
	return s.tasks.Done, true
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	end, ok := s.begin()
	if !ok {
		panic(http.ErrAbortHandler)
	}
	defer end()
	if tr := s.unwelcome(r); tr != nil {
		s.tell(w, r, *tr)
		return
	}
	to, _ := parseHost(r.Host) // it was looked at
	switch {
	case to.port != 0:
		s.proxy.serve(w, r, to)
	case to.vm != "":
		s.vmPage(w, r, to)
	default:
		s.indexPage(w, r, to)
	}
}

// unwelcome says why a request is not served; nil where it is.
func (s *Server) unwelcome(r *http.Request) *trouble {
	p, ok := r.Context().Value(peerKey{}).(*peerConn)
	if !ok {
		return &trouble{status: http.StatusForbidden, title: "Not for you", text: "It is not known who asks."}
	}
	if p.err != nil {
		return &trouble{status: http.StatusForbidden, title: "Not for you", text: sentence(p.err.Error()), end: true}
	}
	to, err := parseHost(r.Host)
	if err != nil {
		return &trouble{status: http.StatusMisdirectedRequest, title: "Not a name that is served here", text: sentence(err.Error()),
			hint: "the VMs are at " + URL(s.cfg.Address(), "", 0) + ", port 3000 of the VM web at " + URL(s.cfg.Address(), "web", 3000)}
	}
	if err := admit(r, to); err != nil {
		return &trouble{status: http.StatusForbidden, title: "Not for other sites", text: sentence(err.Error()),
			hint: "pages elsewhere may link to " + r.Host + ", and nothing more: open it from the address bar or by a link"}
	}
	return nil
}

// URL is where a browser on this host finds a port of a VM, with port 0 the VM's page, with no VM the page of all. address is
// the host:port that is served; where that is empty or no such thing so is the URL.
func URL(address, vm string, port uint16) string {
	host, web, err := net.SplitHostPort(address)
	if err != nil {
		return ""
	}
	switch {
	case port != 0:
		host = strconv.Itoa(int(port)) + "." + vm + ".localhost"
	case vm != "":
		host = vm + ".localhost"
	default:
		return api.DaemonStatus{WebAddress: net.JoinHostPort(host, web)}.WebURL()
	}
	return "http://" + net.JoinHostPort(host, web) + "/"
}

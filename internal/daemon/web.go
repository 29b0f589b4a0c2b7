package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"

	"git.thaloco.com/thaloco/banger/internal/hostports"
	"git.thaloco.com/thaloco/banger/internal/preview"
	"git.thaloco.com/thaloco/banger/internal/vm"
)

// webPorts is how many ports after the configured one are tried where that is taken, before any that is free.
const webPorts = 20

// web is the daemon's web port, open from the start so that its address is known. A daemon without one is a daemon all the same.
type web struct {
	log *slog.Logger
	lns []net.Listener // none where there is no web port
	// address is its host:port, empty for none; warning says why it is not the configured one, or what is odd about that one.
	address, warning string
	server           *preview.Server // nil until it serves
}

// openWeb opens the web port at the configured address or a port near it.
func openWeb(configured string, log *slog.Logger) *web {
	w := &web{log: log}
	if configured == "" {
		return w
	}
	w.lns, w.warning = bindWeb(configured)
	if len(w.lns) > 0 {
		w.address = w.lns[0].Addr().String()
	}
	if w.warning != "" {
		log.Warn("web port", "warning", w.warning)
	}
	return w
}

// port is the web port; 0 where there is none.
func (w *web) port() uint16 {
	if len(w.lns) == 0 {
		return 0
	}
	return uint16(w.lns[0].Addr().(*net.TCPAddr).Port)
}

// bindWeb listens at host:port, or where that is not to be had at one of the ports that follow, or at any. The first listener is at the
// configured host.
func bindWeb(configured string) (lns []net.Listener, warning string) {
	host, text, err := net.SplitHostPort(configured)
	first, errPort := strconv.Atoi(text)
	if err := errors.Join(err, errPort); err != nil {
		return nil, fmt.Sprintf("web_listen_addr %q: %v", configured, err) // the configuration was checked
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Sprintf("web_listen_addr %q: %v", configured, err)
	}
	ports := []int{first}
	for p := first + 1; first != 0 && p <= min(first+webPorts, 65535); p++ {
		ports = append(ports, p)
	}
	var cause error
	for _, port := range append(ports, 0) {
		lns, err = bindBoth(addr, port)
		if err == nil {
			break
		}
		if cause == nil {
			cause = whyTaken(err)
		}
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EACCES) {
			break
		}
	}
	switch {
	case err != nil:
		return nil, fmt.Sprintf("there are no web pages: %v", cause)
	case cause != nil:
		return lns, fmt.Sprintf("%v; it is %s instead", cause, lns[0].Addr())
	case addr.IsUnspecified():
		return lns, fmt.Sprintf("web_listen_addr is %s, but none but this host's own connections to 127.0.0.1 are served", configured)
	case addr.IsLoopback() && len(lns) == 1 && addr.Is4() && addr != loopback4:
		return lns, fmt.Sprintf("web_listen_addr is %s, but browsers look for the names of VMs, which end in localhost, at 127.0.0.1", configured)
	case !addr.IsLoopback():
		return lns, fmt.Sprintf("web_listen_addr is %s, where nobody is served: set it to an address of this host's loopback, such as 127.0.0.1:%d", configured, first)
	}
	return lns, ""
}

// boundError is a failure to listen, with where.
type boundError struct {
	at  netip.AddrPort
	err error
}

func (e boundError) Error() string { return fmt.Sprintf("listen on %s: %v", e.at, e.err) }
func (e boundError) Unwrap() error { return e.err }

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// bindBoth listens at an address. For the one that localhost stands for it listens at IPv6's, too, where there is IPv6: browsers ask either, and
// must not find somebody else there.
func bindBoth(addr netip.Addr, port int) ([]net.Listener, error) {
	other := map[netip.Addr]netip.Addr{loopback4: netip.IPv6Loopback(), netip.IPv6Loopback(): loopback4}[addr]
	for try := 0; ; try++ {
		ln, err := bindOne(addr, port)
		if err != nil || !other.IsValid() {
			return []net.Listener{ln}, err
		}
		second, err := bindOne(other, ln.Addr().(*net.TCPAddr).Port)
		if err == nil {
			return []net.Listener{ln, second}, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EACCES) {
			return []net.Listener{ln}, nil // there is no such address here
		}
		_ = ln.Close()
		if port != 0 || try == webPorts {
			return nil, err
		}
	}
}

func bindOne(addr netip.Addr, port int) (net.Listener, error) {
	at := netip.AddrPortFrom(addr, uint16(port))
	ln, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
	if err != nil {
		if op, ok := errors.AsType[*net.OpError](err); ok {
			err = op.Err
		}
		return nil, boundError{at, err}
	}
	return ln, nil
}

// whyTaken says who has the port, where that can be told.
func whyTaken(err error) error {
	b, ok := errors.AsType[boundError](err)
	if !ok {
		return err
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		if who := hostports.Who("tcp", b.at); who != "" {
			return fmt.Errorf("the web port %s is used by %s", b.at, who)
		}
		return fmt.Errorf("the web port %s is used by another program", b.at)
	}
	return fmt.Errorf("the web port cannot be opened: %w", err)
}

// url is vm.Config's PreviewURL.
func (w *web) url(vm string, port uint16) string { return preview.URL(w.address, vm, port) }

// serve starts to serve what connects.
func (w *web) serve(vms *vm.Service) {
	if w.address == "" {
		return
	}
	w.server = preview.New(preview.Config{VMs: vms, Dial: vms.DialPort, Address: func() string { return w.address }, Log: w.log})
	for _, ln := range w.lns {
		go func() {
			if err := w.server.Serve(ln); err != nil {
				w.log.Error("serve the web port", "address", ln.Addr().String(), "err", err)
			}
		}()
	}
	var at []string
	for _, ln := range w.lns {
		at = append(at, ln.Addr().String())
	}
	w.log.Info("web port open", "url", preview.URL(w.address, "", 0), "addresses", strings.Join(at, " "))
}

// close ends the web port and every request. It may be called more than once.
func (w *web) close() {
	if w.server != nil {
		w.server.Close()
	}
	for _, ln := range w.lns {
		_ = ln.Close()
	}
}

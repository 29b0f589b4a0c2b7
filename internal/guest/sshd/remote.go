package sshd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/crypto/ssh"
)

// forward is what a client has asked the guest to listen on.
type forward struct {
	listeners []net.Listener
	remove    func() // what the listeners leave behind; may be nil
}

func (f *forward) close() {
	for _, l := range f.listeners {
		_ = l.Close()
	}
	if f.remove != nil {
		f.remove()
	}
}

// forwardTCP listens on an address of the guest for the client. The reply holds the port where the client left its choice to us.
func (c *connection) forwardTCP(payload []byte) (reply []byte, err error) {
	addr, asked, err := parseForward(payload)
	if err != nil {
		return nil, err
	}
	listeners, port, err := listenTCP(addr, asked)
	if err != nil {
		return nil, err
	}
	open := func(conn net.Conn) (ssh.Channel, <-chan *ssh.Request, error) {
		from, fromPort := addrPort(conn.RemoteAddr())
		n, _ := strconv.Atoi(fromPort) // it was made by Itoa
		return c.ssh.OpenChannel("forwarded-tcpip", ssh.Marshal(struct {
			Addr       string
			Port       uint32
			Origin     string
			OriginPort uint32
		}{addr, uint32(port), from, uint32(n)}))
	}
	if err := c.addForward(forwardKey(addr, port), &forward{listeners: listeners}, open); err != nil {
		return nil, err
	}
	if asked == 0 {
		reply = ssh.Marshal(struct{ Port uint32 }{uint32(port)})
	}
	return reply, nil
}

func (c *connection) cancelTCP(payload []byte) error {
	addr, port, err := parseForward(payload)
	if err != nil {
		return err
	}
	return c.cancelForward(forwardKey(addr, port))
}

// forwardUnix listens on a socket that belongs to the user.
func (c *connection) forwardUnix(payload []byte) error {
	path, err := parseSocketPath(payload)
	if err != nil {
		return err
	}
	l, err := c.listenUnix(path)
	if err != nil {
		return err
	}
	open := func(net.Conn) (ssh.Channel, <-chan *ssh.Request, error) {
		return c.ssh.OpenChannel("forwarded-streamlocal@openssh.com", ssh.Marshal(struct{ Path, Reserved string }{Path: path}))
	}
	remove := func() { _ = asUser(c.user, func() error { return os.Remove(path) }) } // it may be gone
	return c.addForward(path, &forward{listeners: []net.Listener{l}, remove: remove}, open)
}

func (c *connection) cancelUnix(payload []byte) error {
	path, err := parseSocketPath(payload)
	if err != nil {
		return err
	}
	return c.cancelForward(path)
}

// listenUnix makes a socket with the user's rights. It is the caller's to remove.
func (c *connection) listenUnix(path string) (l *net.UnixListener, err error) {
	err = asUser(c.user, func() error {
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // that would be done with the agent's rights
	return l, nil
}

// openFunc opens a channel to the client for a connection that came in.
type openFunc func(net.Conn) (ssh.Channel, <-chan *ssh.Request, error)

// addForward keeps a forward, and accepts what comes in through it. It closes one it does not keep.
func (c *connection) addForward(key string, f *forward, open openFunc) error {
	c.mu.Lock()
	var err error
	switch {
	case c.ended:
		err = net.ErrClosed
	case c.forwards[key] != nil:
		err = fmt.Errorf("%q is forwarded already", key)
	case len(c.forwards) >= c.s.cfg.Limits.Forwards:
		err = fmt.Errorf("%d forwards are open already", c.s.cfg.Limits.Forwards)
	default:
		c.forwards[key] = f
	}
	c.mu.Unlock()
	if err != nil {
		f.close()
		return err
	}
	for _, l := range f.listeners {
		c.accept(l, open)
	}
	return nil
}

func (c *connection) cancelForward(key string) error {
	c.mu.Lock()
	f := c.forwards[key]
	delete(c.forwards, key)
	c.mu.Unlock()
	if f == nil {
		return fmt.Errorf("%q is not forwarded", key)
	}
	f.close()
	return nil
}

// accept gives every connection that comes in to the client, in a channel of its own, until l is closed.
func (c *connection) accept(l net.Listener, open openFunc) {
	c.wg.Go(func() {
		_ = acceptAll(c.ctx, l, func(conn net.Conn) {
			if !c.take() {
				_ = conn.Close()
				return
			}
			c.wg.Go(func() {
				defer c.give()
				ch, requests, err := open(conn)
				if err != nil {
					_ = conn.Close()
					return
				}
				c.relay(ch, requests, conn)
			})
		})
	})
}

// listenTCP listens on what RFC 4254 section 7.1 lets a client call an address: an IP address, "localhost" (of both families), or
// everything ("" and "*"). A name would have to be looked up, and is refused. All listeners have the same port.
func listenTCP(addr string, asked uint16) ([]net.Listener, uint16, error) {
	hosts, network := []string{addr}, "tcp"
	switch addr {
	case "", "*":
		hosts[0] = ""
	case "0.0.0.0":
		network = "tcp4"
	case "::":
		network = "tcp6"
	case "localhost":
		hosts = []string{"127.0.0.1", "::1"}
	default:
		if _, err := netip.ParseAddr(addr); err != nil {
			return nil, 0, fmt.Errorf("listen on %q: not an address", addr)
		}
	}
	var listeners []net.Listener
	var errs []error
	port := asked
	for _, host := range hosts {
		l, err := net.Listen(network, net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		listeners = append(listeners, l)
		port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	}
	if len(listeners) == 0 {
		return nil, 0, errors.Join(errs...)
	}
	return listeners, port, nil
}

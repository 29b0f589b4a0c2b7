package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// TestResetConnections has a guest that only reads: the connections that the host carried end, all others go on.
func TestResetConnections(t *testing.T) {
	ns := nettest.NewNS(t)
	conf := network{address: netip.MustParsePrefix("172.16.0.2/24"), gateway: netip.MustParseAddr("172.16.0.1")}
	var list net.Listener
	ns.Do(t, func() (err error) {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []string{"172.16.0.2", "172.16.0.1", "172.16.0.3", "172.17.0.1", "203.0.113.5"} { // all are reached without leaving
			addr, err := netlink.ParseAddr(a + "/32")
			if err == nil {
				err = netlink.AddrAdd(lo, addr)
			}
			if err != nil {
				return fmt.Errorf("add %s: %w", a, err)
			}
		}
		list, err = net.Listen("tcp4", "0.0.0.0:80")
		return err
	})
	t.Cleanup(func() { _ = list.Close() })
	go func() {
		for {
			c, err := list.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	type conn struct {
		what  string
		c     net.Conn
		reset bool
	}
	var conns []conn
	for _, tc := range []struct {
		family        int
		local, remote string
		reset         bool
	}{
		{unix.AF_INET, "172.16.0.2", "203.0.113.5", true},
		{unix.AF_INET6, "172.16.0.2", "203.0.113.5", true},
		{unix.AF_INET, "172.16.0.2", "172.16.0.1", true},
		{unix.AF_INET, "172.16.0.2", "172.16.0.3", false},
		{unix.AF_INET6, "172.16.0.2", "172.16.0.3", false},
		{unix.AF_INET, "172.16.0.2", "172.16.0.2", false},
		{unix.AF_INET, "172.17.0.1", "203.0.113.5", false}, // not by eth0
		{unix.AF_INET, "127.0.0.1", "127.0.0.1", false},
	} {
		c := dialFrom(t, ns, tc.family, netip.MustParseAddr(tc.local), netip.MustParseAddrPort(tc.remote+":80"))
		if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn{fmt.Sprintf("from %s to %s, family %d", tc.local, tc.remote, tc.family), c, tc.reset})
	}
	if half, ok := conns[0].c.(*net.TCPConn); ok {
		must(t, half.CloseWrite()) // it has said its last, and waits for an answer
	}
	count := 0
	ns.Do(t, func() (err error) {
		count, err = resetConnections(conf)
		return err
	})
	if count != 3 {
		t.Errorf("%d connections were reset, want 3", count)
	}
	for _, c := range conns {
		if !c.reset {
			_ = c.c.SetReadDeadline(time.Now().Add(time.Millisecond))
		}
		_, err := c.c.Read(make([]byte, 1))
		if c.reset != errors.Is(err, syscall.ECONNABORTED) || c.reset == errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	ns.Do(t, func() (err error) {
		count, err = resetConnections(conf)
		return err
	})
	if count != 0 {
		t.Errorf("again %d connections were reset", count)
	}
}

// dialFrom connects inside a namespace by a socket of either family.
func dialFrom(t *testing.T, ns *nettest.NS, family int, local netip.Addr, remote netip.AddrPort) net.Conn {
	t.Helper()
	address := func(a netip.Addr, port uint16) unix.Sockaddr {
		if family == unix.AF_INET6 {
			return &unix.SockaddrInet6{Addr: a.As16(), Port: int(port)}
		}
		return &unix.SockaddrInet4{Addr: a.As4(), Port: int(port)}
	}
	var c net.Conn
	ns.Do(t, func() error {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), "socket")
		defer f.Close()
		if err := errors.Join(unix.Bind(fd, address(local, 0)), unix.Connect(fd, address(remote.Addr(), remote.Port()))); err != nil {
			return err
		}
		c, err = net.FileConn(f)
		return err
	})
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

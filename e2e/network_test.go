//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// startIn starts the host's daemon inside a network namespace: all that guests send out leaves there.
func (h *host) startIn(ns *nettest.NS) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	c := h.cmd(ctx, "daemon", "start")
	if err := ns.Start(c); err != nil {
		h.t.Fatal(err)
	}
	if err := c.Wait(); err != nil {
		h.t.Fatalf("banger daemon start: %v", err)
	}
}

// inGuest runs a shell script in a VM and returns what it prints.
func (h *host) inGuest(vm, script string) string {
	h.t.Helper()
	return h.ok("vm", "exec", vm, "--", "bash", "-euc", script)
}

// TestGuestNetwork is a guest on the machine the tests run on: what it may reach there, which is next to nothing, and what
// it may not.
func TestGuestNetwork(t *testing.T) {
	h := box(t)
	vm := h.vm("box")
	got := h.inGuest("box", `
		ip -4 -o addr show eth0 | awk '{print $4}'
		ip route show default | awk '{print $3}'
		cat /sys/class/net/eth0/mtu
		awk '/^nameserver/{print $2}' /etc/resolv.conf
		ip -6 addr show eth0 | wc -l
		ping -c1 -W5 172.16.0.1 >/dev/null && echo echo
		getent hosts gateway.vm host.vm | awk '{print $1}'
		getent hosts nosuch.vm || echo none`)
	want := vm.Address.String() + "/24\n172.16.0.1\n65520\n172.16.0.1\n0\necho\n172.16.0.1\n172.16.0.1\nnone\n"
	if got != want {
		t.Errorf("in the guest:\n%swant:\n%s", got, want)
	}
	if !strings.Contains(h.ok("vm", "list"), vm.Address.String()) || !strings.Contains(h.ok("vm", "show", "box"), vm.Address.String()) {
		t.Errorf("vm list and vm show do not tell %s", vm.Address)
	}

	// Whatever this host listens on, at whichever of its addresses: a guest does not reach it.
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	reached := make(chan net.Addr, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			reached <- c.RemoteAddr()
			c.Close()
		}
	}()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	port := netip.MustParseAddrPort("0.0.0.0:" + l.Addr().String()[strings.LastIndexByte(l.Addr().String(), ':')+1:]).Port()
	targets := []string{"172.16.0.1", "172.16.0.99", "169.254.169.254", "0.0.0.0.1", "10.0.0.1", "100.64.0.1", "192.168.0.1", "240.0.0.1", "224.0.0.1", "255.255.255.255"}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() {
			targets = append(targets, p.Addr().String())
		}
	}
	script := fmt.Sprintf("for a in %s; do timeout 8 bash -c \"exec 3<>/dev/tcp/$a/%d\" 2>/dev/null && echo $a; done; true", strings.Join(targets, " "), port)
	if got := h.inGuest("box", script); got != "" {
		t.Errorf("the guest connected to %q", got)
	}
	select {
	case a := <-reached:
		t.Errorf("a connection from %s arrived at the host", a)
	default:
	}
}

// TestAptInGuest installs a package with the guest's ordinary apt, from the mirror its image was made from.
func TestAptInGuest(t *testing.T) {
	h := box(t)
	h.ok("vm", "exec", "box", "--", "sh", "-ec", "apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y hello >/dev/null && hello")
}

// guestNet is what a guest tries on an internet that is not there: a line for each.
const guestNet = `
import os, socket, sys, time, urllib.request
def line(name, f):
    try:
        print(name, f(), flush=True)
    except Exception as e:
        print(name, type(e).__name__, getattr(e, 'errno', '') or '', flush=True)
def tcp(host, port, timeout=20):
    return socket.create_connection((host, port), timeout)
def echo():
    s = tcp('echo.example.test', 7)
    data = os.urandom(3000000)
    import threading
    t = threading.Thread(target=lambda: (s.sendall(data), s.shutdown(socket.SHUT_WR)))
    t.start()
    got = b''
    while True:
        b = s.recv(1 << 16)
        if not b: break
        got += b
    t.join()
    return got == data
def udp(n):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)
    s.connect(('203.0.113.7', 7)); d = os.urandom(n); s.send(d)
    return s.recv(65535) == d
def udp_refused():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(20)
    s.connect(('198.51.100.1', 12)); s.send(b'x')
    return s.recv(10)
def silent():
    s = tcp('198.51.100.1', 10); s.settimeout(1)
    return s.recv(1)
def reset():
    s = tcp('198.51.100.1', 11); s.send(b'x')
    return s.recv(1)
def resolve(name):
    return sorted({a[4][0] for a in socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)})
line('http', lambda: urllib.request.urlopen('http://www.example.test/x', timeout=20).read())
line('echo', echo)
line('udp', lambda: udp(1000))
line('udp big', lambda: udp(60000))
line('udp refused', udp_refused)
line('refused', lambda: tcp('198.51.100.1', 12))
line('silent', silent)
line('reset', reset)
line('blackhole', lambda: tcp('198.51.100.66', 80, 2))
line('alias', lambda: resolve('alias.example.test'))
line('both', lambda: resolve('both.example.test'))
line('big', lambda: len(resolve('big.example.test')))
line('missing', lambda: resolve('missing.example.test'))
line('broken', lambda: resolve('broken.example.test'))
line('private', lambda: tcp('private.example.test', 7))
line('loopback', lambda: tcp('loopback.example.test', 7))
line('host', lambda: tcp('192.0.2.2', 22))
`

// wantNet is what it finds.
const wantNet = `http b'hello from www.example.test /x\n'
echo True
udp True
udp big True
udp refused ConnectionRefusedError 111
refused ConnectionRefusedError 111
silent TimeoutError 
reset ConnectionResetError 104
blackhole TimeoutError 
alias ['203.0.113.10']
both ['203.0.113.10']
big 100
missing gaierror -2
broken gaierror -3
private ConnectionRefusedError 111
loopback ConnectionRefusedError 111
host ConnectionRefusedError 111
`

// TestInternet puts the daemon into a network namespace of the test's own, with an internet around it: two VMs, names, TCP and
// UDP out with every kind of answer, and a daemon that is killed and comes back.
func TestInternet(t *testing.T) {
	box(t) // image and kernel are local from here on: that internet has no mirror
	h := newHost(t)
	in := nettest.NewInternet(t)
	h.config(fmt.Sprintf("default_dns = [%q]\n", nettest.DNS.Addr()))
	h.startIn(in.Host)
	wire := in.Host.NewCapture(t, nettest.HostInterface)
	h.ok("vm", "run", "--name", "one", "--detach", "--memory", "256MiB")
	h.ok("vm", "run", "--name", "two", "--detach", "--memory", "256MiB")
	if got := h.feed(strings.NewReader(guestNet), "vm", "exec", "one", "--", "python3", "-"); got.stdout != wantNet {
		t.Errorf("the guest found\n%swant\n%s%s", got.stdout, wantNet, got.stderr)
	}
	one, two := h.vm("one").Address, h.vm("two").Address
	h.inGuest("two", "nohup python3 -m http.server 8000 >/dev/null 2>&1 & sleep 1; exit 0")
	got := h.inGuest("one", fmt.Sprintf(`
		ping -c1 -W5 two >/dev/null && echo ping
		getent hosts two.vm | awk '{print $1}'
		getent hosts %[1]s | awk '{print $2}'
		for i in $(seq 40); do curl -sf -o /dev/null http://two.vm:8000/ && break; sleep 0.5; done; echo http $?`, two))
	if want := fmt.Sprintf("ping\n%s\ntwo.vm\nhttp 0\n", two); got != want {
		t.Errorf("one sees of two:\n%swant:\n%s", got, want)
	}

	// A neighbour that is gone: nothing for it leaves by the host's sockets.
	h.ok("vm", "stop", "two", "--timeout", "1s")
	h.inGuest("one", fmt.Sprintf("curl -s -m 3 http://%s:8000/ && echo reached; curl -s -m 3 http://172.16.0.77/ && echo reached; true", two))
	for _, p := range wire.Packets() {
		if p.Dst == one || p.Dst == two || p.Dst.IsLoopback() || p.Dst == nettest.PrivatePeer.Addr() ||
			netip.MustParsePrefix("172.16.0.0/24").Contains(p.Dst) {
			t.Errorf("a packet for %s port %d left the host", p.Dst, p.DstPort)
		}
	}

	h.busy(t, "one", 64)

	// A connection that is open when the daemon dies is reset; the next one works as soon as there is a daemon again.
	pid := h.daemonPID()
	script := `
import socket, urllib.request
s = socket.create_connection(('203.0.113.7', 7)); s.settimeout(60)
s.send(b'a'); s.recv(1); print('open', flush=True)
input()
try:
    s.send(b'b'); print('got', s.recv(1))
except (ConnectionResetError, ConnectionAbortedError): # by the new daemon, or by the guest's agent
    print('reset')
print(urllib.request.urlopen('http://www.example.test/', timeout=20).status)
`
	h.feed(strings.NewReader(script), "vm", "exec", "one", "--", "sh", "-c", "cat > /root/open.py")
	c := h.begin("vm", "exec", "one", "--", "python3", "/root/open.py")
	c.await("open\n")
	kill(t, pid)
	h.startIn(in.Host)
	c.say("\n")
	c.await("open\nreset\n200\n")
	if code := c.wait(); code != 0 {
		t.Errorf("exit status %d", code)
	}

	// A guest that only receives is told as well, by the daemon that stops, and by the one that comes after one that was killed.
	h.feed(strings.NewReader(`
import socket
s = socket.create_connection(('198.51.100.1', 10)); print('open', flush=True)
try:
    print('got', s.recv(1))
except OSError as e:
    print(type(e).__name__)
`), "vm", "exec", "one", "--", "sh", "-c", "cat > /root/receive.py")
	for _, end := range []struct {
		what string
		do   func()
		want string
	}{
		{"stopped", func() { h.ok("daemon", "stop") }, "open\nConnectionResetError\n"},
		{"killed", func() { kill(t, h.daemonPID()) }, "open\nConnectionAbortedError\n"},
	} {
		h.inGuest("one", "nohup python3 /root/receive.py >/root/received 2>&1 & for i in $(seq 100); do grep -q open /root/received && exit 0; sleep 0.2; done; exit 1")
		end.do()
		h.startIn(in.Host)
		var got string
		if err := waitFor(waitShort, func() bool { got = h.inGuest("one", "cat /root/received"); return got != "open\n" }); err != nil || got != end.want {
			t.Errorf("the daemon was %s, the guest saw %q, %v", end.what, got, err)
		}
	}
}

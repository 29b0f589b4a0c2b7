//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// bridgeNet is what a guest on the bridge tries on an internet that is not there. What differs from user mode is how the kernel refuses.
const bridgeNet = guestNet + `
line('metadata', lambda: tcp('169.254.169.254', 80, 20))
line('gateway', lambda: tcp('172.16.0.1', 22, 20).recv(1))
line('gateway by name', lambda: resolve('host.banger.vm'))
`

const wantBridge = `http b'hello from www.example.test /x\n'
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
metadata ConnectionRefusedError 111
gateway ConnectionResetError 104
gateway by name ['172.16.0.1']
`

// bridged is a daemon in bridge mode inside a namespace, with an internet around it.
type bridged struct {
	*host
	in *nettest.Internet
}

// newBridged starts one. Docker has been there: the host's firewall forwards nothing of itself.
func newBridged(t testing.TB, more string) *bridged {
	t.Helper()
	return bridgedFor(t, newHost(t), more)
}

func bridgedFor(t testing.TB, h *host, more string) *bridged {
	t.Helper()
	in := nettest.NewInternet(t)
	h.config(fmt.Sprintf("network = \"bridge\"\ntap_pool_size = 4\ndefault_dns = [%q]\n%s", nettest.DNS.Addr(), more))
	b := &bridged{h, in}
	b.program("iptables", "-N", "DOCKER-USER")
	b.program("iptables", "-A", "DOCKER-USER", "-j", "RETURN")
	b.program("iptables", "-A", "FORWARD", "-j", "DOCKER-USER")
	b.program("iptables", "-P", "FORWARD", "DROP")
	h.startIn(in.Host)
	return b
}

// program runs a program inside the host's namespace.
func (b *bridged) program(argv ...string) string {
	b.t.Helper()
	var out strings.Builder
	c := exec.Command(argv[0], argv[1:]...)
	c.Stdout, c.Stderr = &out, &out
	err := b.in.Host.Start(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		b.t.Fatalf("%v: %v\n%s", argv, err, out.String())
	}
	return out.String()
}

// TestBridge is bridge mode with all its parts: a bridge and TAPs that the daemon, as root, made in a namespace of the test's own.
func TestBridge(t *testing.T) {
	box(t) // image and kernel are local from here on
	b := newBridged(t, "")
	wire := b.in.Host.NewCapture(t, nettest.HostInterface)
	b.ok("vm", "run", "--name", "one", "--detach", "--memory", "256MiB")
	port := b.greeter(t)
	b.ok("vm", "run", "--name", "two", "--detach", "--memory", "256MiB", "--host-port", port)
	one, two := b.vm("one").Address, b.vm("two").Address
	if one.String() != "172.16.0.2" || two.String() != "172.16.0.3" {
		t.Errorf("addresses %s and %s: not those of user mode", one, two)
	}
	got := b.inGuest("one", `
		ip -4 -o addr show eth0 | awk '{print $4}'
		cat /sys/class/net/eth0/mtu
		ping -c1 -W5 172.16.0.1 >/dev/null && echo gateway
		ping -c1 -W5 two >/dev/null && echo neighbour
		getent hosts two.vm | awk '{print $1}'
		getent hosts `+two.String()+` | awk '{print $2}'
		getent hosts nosuch.vm || echo none`)
	if want := "172.16.0.2/24\n1500\ngateway\nneighbour\n172.16.0.3\ntwo.vm\nnone\n"; got != want {
		t.Errorf("in the guest:\n%swant:\n%s", got, want)
	}
	if got := b.feed(strings.NewReader(bridgeNet), "vm", "exec", "one", "--", "python3", "-"); got.stdout != wantBridge {
		t.Errorf("the guest found\n%swant\n%s%s", got.stdout, wantBridge, got.stderr)
	}
	guests := netip.MustParsePrefix("172.16.0.0/24")
	for _, p := range wire.Packets() {
		if p.Src != nettest.HostAddr && !guests.Contains(p.Src) {
			continue // it came in
		}
		if guests.Contains(p.Src) || guests.Contains(p.Dst) || p.Dst == nettest.PrivatePeer.Addr() || p.Dst.IsLinkLocalUnicast() {
			t.Errorf("a packet from %s for %s port %d left the host", p.Src, p.Dst, p.DstPort)
		}
	}
	b.busy(t, "one", 64)
	b.fromHost(t, two)
	if got := b.inGuest("two", "exec 3<>/dev/tcp/host.banger.vm/"+port+"; cat <&3"); got != "hello from the host\n" {
		t.Errorf("the host's port says %q", got)
	}
	if got := b.inGuest("one", "exec 3<>/dev/tcp/host.banger.vm/"+port+" && cat <&3 || true"); got != "" {
		t.Errorf("to a VM that was not let through it says %q", got)
	}
	b.waysIn(t, "two")
	b.spoof(t, one, two)

	// A connection to the outside goes on while there is no daemon.
	b.feed(strings.NewReader(`
import socket, urllib.request
s = socket.create_connection(('203.0.113.7', 7)); s.settimeout(60)
s.send(b'a'); s.recv(1); print('open', flush=True)
input()
s.send(b'b'); print(s.recv(1), flush=True)
print(urllib.request.urlopen('http://www.example.test/', timeout=20).status)
`), "vm", "exec", "one", "--", "sh", "-c", "cat > /root/open.py")
	c := b.begin("vm", "exec", "one", "--", "python3", "/root/open.py")
	c.await("open\n")
	kill(t, b.daemonPID())
	b.startIn(b.in.Host)
	c.say("\n")
	c.await("open\nb'b'\n200\n")
	c.wait()

	st := decode[api.VMStats](t, b.ok("vm", "stats", "one", "-o", "json"))
	if n := st.Network; n == nil || n.Mode != "bridge" || n.SentBytes == 0 || n.ReceivedPackets == 0 || n.Flows != nil || n.Refused != nil {
		text, _ := json.Marshal(st)
		t.Errorf("stats: %s", text)
	}
}

// greeter listens on the host's loopback and greets who connects; it returns the port.
func (b *bridged) greeter(t *testing.T) string {
	t.Helper()
	var ln net.Listener
	b.in.Host.Do(t, func() (err error) {
		ln, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello from the host\n")
			_ = c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// fromHost reaches a VM from the host by address and by name, which DNS on the bridge has.
func (b *bridged) fromHost(t *testing.T, two netip.Addr) {
	t.Helper()
	b.inGuest("two", "nohup python3 -m http.server 8000 >/dev/null 2>&1 & for i in $(seq 50); do curl -sf -o /dev/null http://127.0.0.1:8000/ && exit 0; sleep 0.2; done; exit 1")
	b.in.Host.Do(t, func() error {
		for _, network := range []string{"udp", "tcp"} {
			m, _, err := (&dns.Client{Net: network, Timeout: waitShort}).Exchange(new(dns.Msg).SetQuestion("two.vm.", dns.TypeA), "172.16.0.1:53")
			if err != nil {
				return fmt.Errorf("ask the bridge by %s: %w", network, err)
			}
			if len(m.Answer) != 1 || m.Answer[0].(*dns.A).A.String() != two.String() {
				t.Errorf("two.vm by %s: %v", network, m)
			}
		}
		conn, err := net.DialTimeout("tcp", netip.AddrPortFrom(two, 8000).String(), waitShort)
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(waitShort))
		fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: two.vm\r\n\r\n")
		text, err := io.ReadAll(conn)
		if err == nil && !strings.HasPrefix(string(text), "HTTP/1.0 "+fmt.Sprint(http.StatusOK)) {
			t.Errorf("two answers %q", text)
		}
		return err
	})
}

// spoof has one VM take another's address, and then its hardware address as well: nothing of it arrives.
func (b *bridged) spoof(t *testing.T, one, two netip.Addr) {
	t.Helper()
	got := b.inGuest("one", fmt.Sprintf(`
		mac=$(cat /sys/class/net/eth0/address)
		ip addr add %[2]s/24 dev eth0
		ping -c1 -W2 -I %[2]s 172.16.0.1 >/dev/null 2>&1 && echo another address
		ip addr del %[2]s/24 dev eth0
		ip link set eth0 down; ip link set eth0 address 52:54:ac:10:00:03; ip link set eth0 up; ip route add default via 172.16.0.1
		ping -c1 -W2 172.16.0.1 >/dev/null 2>&1 && echo another hardware address
		ip addr flush dev eth0; ip addr add %[2]s/24 dev eth0; ip route add default via 172.16.0.1
		ping -c1 -W2 172.16.0.1 >/dev/null 2>&1 && echo both
		ip link set eth0 down; ip link set eth0 address $mac; ip addr flush dev eth0; ip addr add %[1]s/24 dev eth0; ip link set eth0 up; ip route add default via 172.16.0.1
		ping -c1 -W5 172.16.0.1 >/dev/null && echo own`, one, two))
	if got != "own\n" {
		t.Errorf("what went through: %q", got)
	}
	if got := b.inGuest("two", "ping -c1 -W5 172.16.0.1 >/dev/null && echo there"); got != "there\n" {
		t.Errorf("and the other VM: %q", got)
	}
}

// TestBridgeFirecracker is Firecracker's driver on the bridge: it is given the TAP by name. What runs is a stand-in, see TestFirecrackerStandIn.
func TestBridgeFirecracker(t *testing.T) {
	box(t)
	h := newHost(t)
	_, config := h.standIn(t)
	b := bridgedFor(t, h, config)
	b.ok("vm", "run", "--name", "fc", "--detach", "--memory", "256MiB")
	looks := func() {
		t.Helper()
		got := b.inGuest("fc", `
			ip -4 -o addr show eth0 | awk '{print $4}'
			cat /sys/class/net/eth0/mtu
			ls -l /sys/class/net/eth0/device/driver | grep -o virtio_net
			getent hosts fc.vm | awk '{print $1}'
			curl -s http://www.example.test/x`)
		if want := "172.16.0.2/24\n1500\nvirtio_net\n172.16.0.2\nhello from www.example.test /x\n"; got != want {
			t.Errorf("in the guest:\n%swant:\n%s", got, want)
		}
	}
	looks()
	b.run("vm", "exec", "fc", "--", "reboot")
	b.await("fc", "a second boot", func(vm api.VM) bool { return vm.Restarts == 1 && vm.State == api.StateRunning })
	b.ok("vm", "start", "fc")
	looks()
	b.noViolation(t)
}

package sshd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

// echoUpper serves l: it reads to the end and then answers with what came, in capitals.
func echoUpper(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer conn.Close()
			b, _ := io.ReadAll(conn)
			_, _ = conn.Write(bytes.ToUpper(b))
		}()
	}
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// exchange says text, ends its direction, and returns the whole answer.
func exchange(conn net.Conn, text string) (string, error) {
	defer conn.Close()
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		return "", err
	}
	b, err := io.ReadAll(conn)
	return string(b), err
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sshd") //nolint:usetesting // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func TestDirect(t *testing.T) {
	c := newGuest(t, nil).dial()
	tcp := listen(t, "tcp", "127.0.0.1:0")
	go echoUpper(tcp)
	sock := listen(t, "unix", filepath.Join(shortDir(t), "s"))
	go echoUpper(sock)
	for _, l := range []net.Listener{tcp, sock} {
		conn, err := c.Dial(l.Addr().Network(), l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if got, err := exchange(conn, "half-close"); got != "HALF-CLOSE" || err != nil {
			t.Errorf("%s: %q %v", l.Addr(), got, err)
		}
	}
}

func TestDirectRefused(t *testing.T) {
	c := newGuest(t, nil).dial()
	closed := listen(t, "tcp", "127.0.0.1:0")
	_ = closed.Close()
	for _, tc := range []struct {
		kind    string
		payload []byte
		reason  ssh.RejectionReason
		text    string
	}{
		{"direct-tcpip", direct("127.0.0.1", uint32(closed.Addr().(*net.TCPAddr).Port)), ssh.ConnectionFailed, "connection refused"},
		{"direct-tcpip", direct("name.invalid", 80), ssh.ConnectionFailed, ""},
		{"direct-tcpip", direct("127.0.0.1", 0), ssh.ConnectionFailed, "out of range"},
		{"direct-tcpip", direct("127.0.0.1", 65536+22), ssh.ConnectionFailed, "out of range"},
		{"direct-tcpip", []byte{1, 2, 3}, ssh.ConnectionFailed, ""},
		{"direct-streamlocal@openssh.com", directPath("/no/such/socket"), ssh.ConnectionFailed, "no such file"},
		{"direct-streamlocal@openssh.com", directPath("@abstract"), ssh.ConnectionFailed, "no path"},
		{"x11", nil, ssh.UnknownChannelType, ""},
		{"tun@openssh.com", nil, ssh.UnknownChannelType, ""},
		{"forwarded-tcpip", nil, ssh.UnknownChannelType, ""},
	} {
		_, _, err := c.OpenChannel(tc.kind, tc.payload)
		var x *ssh.OpenChannelError
		if !errors.As(err, &x) || x.Reason != tc.reason || !strings.Contains(x.Message, tc.text) {
			t.Errorf("%s %q: %v", tc.kind, tc.payload, err)
		}
	}
}

func direct(host string, port uint32) []byte {
	return ssh.Marshal(struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}{host, port, "127.0.0.1", 1})
}

func directPath(path string) []byte {
	return ssh.Marshal(struct {
		Path, Reserved string
		Reserved2      uint32
	}{Path: path})
}

// TestDirectEnds: what a client had sent before it closed its channel arrives, a target that breaks off ends the
// channel, and a target that is silent is let go when the client is.
func TestDirectEnds(t *testing.T) {
	c := newGuest(t, nil).dial()
	l := listen(t, "tcp", "127.0.0.1:0")
	open := func() (ssh.Channel, *net.TCPConn) {
		ch, reqs, err := c.OpenChannel("direct-tcpip", direct("127.0.0.1", uint32(l.Addr().(*net.TCPAddr).Port)))
		if err != nil {
			t.Fatal(err)
		}
		go ssh.DiscardRequests(reqs)
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		return ch, conn.(*net.TCPConn)
	}
	ch, conn := open()
	sent := bytes.Repeat([]byte("x"), 1<<20)
	if _, err := ch.Write(sent); err != nil {
		t.Fatal(err)
	}
	_ = ch.Close()
	if got, err := io.ReadAll(conn); len(got) != len(sent) || err != nil {
		t.Errorf("%d bytes arrived, %v", len(got), err)
	}
	ch, conn = open()
	_ = conn.SetLinger(0)
	_ = conn.Close()
	if _, err := io.ReadAll(ch); err != nil {
		t.Error(err)
	}
	if _, err := ch.Write(sent); err == nil {
		eventually(t, "the channel is closed", func() bool { _, err := ch.Write([]byte("x")); return err != nil })
	}
	ch, conn = open()
	_ = ch.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the target reads %v", err)
	}
}

// forwards is a client that takes forwarded channels itself and answers like echoUpper.
func forwards(t *testing.T, g *guest) *ssh.Client {
	t.Helper()
	c := g.dial()
	for _, kind := range []string{"forwarded-tcpip", "forwarded-streamlocal@openssh.com"} {
		chans := c.HandleChannelOpen(kind)
		go func() {
			for nch := range chans {
				go func() {
					ch, reqs, err := nch.Accept()
					if err != nil {
						return
					}
					go ssh.DiscardRequests(reqs)
					b, _ := io.ReadAll(ch)
					_, _ = ch.Write(bytes.ToUpper(b))
					_ = ch.CloseWrite()
					_ = ch.Close()
				}()
			}
		}()
	}
	return c
}

func bind(addr string, port uint32) []byte {
	return ssh.Marshal(struct {
		Addr string
		Port uint32
	}{addr, port})
}

func TestRemoteTCP(t *testing.T) {
	c := forwards(t, newGuest(t, nil))
	v6 := true
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		v6 = false
	} else {
		_ = l.Close()
	}
	for _, tc := range []struct{ addr, dial string }{
		{"127.0.0.1", "127.0.0.1"}, {"localhost", "127.0.0.1"}, {"localhost", "::1"}, {"", "127.0.0.1"},
		{"", "::1"}, {"*", "127.0.0.1"}, {"0.0.0.0", "127.0.0.1"}, {"::", "::1"}, {"::1", "::1"},
	} {
		if tc.dial == "::1" && !v6 {
			continue
		}
		ok, reply, err := c.SendRequest("tcpip-forward", true, bind(tc.addr, 0))
		var port struct{ Port uint32 }
		if err != nil || !ok || ssh.Unmarshal(reply, &port) != nil || port.Port == 0 {
			t.Fatalf("%q: %v %q %v", tc.addr, ok, reply, err)
		}
		target := net.JoinHostPort(tc.dial, fmt.Sprint(port.Port))
		conn, err := net.Dial("tcp", target)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := exchange(conn, "back"); got != "BACK" || err != nil {
			t.Errorf("%q: %q %v", tc.addr, got, err)
		}
		if ok, _, _ := c.SendRequest("tcpip-forward", true, bind(tc.addr, port.Port)); ok {
			t.Errorf("%q: forwarded twice", tc.addr)
		}
		if ok, reply, _ := c.SendRequest("cancel-tcpip-forward", true, bind(tc.addr, port.Port)); !ok || len(reply) > 0 {
			t.Errorf("%q: not cancelled", tc.addr)
		}
		if conn, err := net.Dial("tcp", target); err == nil {
			_ = conn.Close()
			t.Errorf("%q: still there", tc.addr)
		}
		// A port that was asked for is not answered.
		if ok, reply, _ := c.SendRequest("tcpip-forward", true, bind(tc.addr, port.Port)); !ok || len(reply) > 0 {
			t.Errorf("%q: port asked for: %v %q", tc.addr, ok, reply)
		}
		_, _, _ = c.SendRequest("cancel-tcpip-forward", true, bind(tc.addr, port.Port))
	}
	for _, bad := range [][]byte{nil, {0, 0}, bind("host.invalid", 0), bind("192.0.2.1", 0), bind("127.0.0.1", 70000), bind("a b", 0)} {
		if ok, _, err := c.SendRequest("tcpip-forward", true, bad); ok || err != nil {
			t.Errorf("%q: %v %v", bad, ok, err)
		}
		if ok, _, err := c.SendRequest("cancel-tcpip-forward", true, bad); ok || err != nil {
			t.Errorf("cancel %q: %v %v", bad, ok, err)
		}
	}
}

func TestRemoteUnix(t *testing.T) {
	c := forwards(t, newGuest(t, nil))
	path := filepath.Join(shortDir(t), "remote")
	payload := ssh.Marshal(struct{ Path string }{path})
	if ok, _, err := c.SendRequest("streamlocal-forward@openssh.com", true, payload); !ok || err != nil {
		t.Fatal(ok, err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := exchange(conn, "back"); got != "BACK" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	if ok, _, _ := c.SendRequest("streamlocal-forward@openssh.com", true, payload); ok {
		t.Error("forwarded twice")
	}
	if ok, _, _ := c.SendRequest("cancel-streamlocal-forward@openssh.com", true, payload); !ok {
		t.Error("not cancelled")
	}
	if _, err := os.Lstat(path); err == nil {
		t.Error("the socket is left")
	}
}

// TestForwardsEndWithTheirConnection also shows that they are that connection's alone.
func TestForwardsEndWithTheirConnection(t *testing.T) {
	g := newGuest(t, nil)
	a, b := forwards(t, g), forwards(t, g)
	ok, reply, err := a.SendRequest("tcpip-forward", true, bind("127.0.0.1", 0))
	var port struct{ Port uint32 }
	if !ok || err != nil || ssh.Unmarshal(reply, &port) != nil {
		t.Fatal(ok, err)
	}
	if ok, _, _ := b.SendRequest("cancel-tcpip-forward", true, bind("127.0.0.1", port.Port)); ok {
		t.Error("another connection cancelled it")
	}
	_ = a.Close()
	eventually(t, "the port is free", func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port.Port))
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
}

func TestLimits(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.Limits = Limits{Channels: 5, Forwards: 3, Connections: 2} })
	c := g.dial()
	var open []*ssh.Session
	for range 5 {
		open = append(open, newSession(t, c))
	}
	var x *ssh.OpenChannelError
	if _, err := c.NewSession(); !errors.As(err, &x) || x.Reason != ssh.ResourceShortage {
		t.Errorf("a sixth channel: %v", err)
	}
	_ = open[0].Close()
	eventually(t, "a channel is free again", func() bool {
		s, err := c.NewSession()
		if err == nil {
			_ = s.Close()
		}
		return err == nil
	})
	for i := range 4 {
		if ok, _, err := c.SendRequest("tcpip-forward", true, bind("127.0.0.1", 0)); ok != (i < 3) || err != nil {
			t.Errorf("forward %d: %v %v", i, ok, err)
		}
	}
	g.dial()
	if _, err := g.dialAs(g.config()); err == nil {
		t.Error("a third connection was taken")
	}
}

// TestFlood: a client that wants more than there is costs nothing but its own connection.
func TestFlood(t *testing.T) {
	g := newGuest(t, nil)
	c := g.dial()
	s := newSession(t, c)
	refused := 0
	for i := range 2 * maxEnv {
		if s.Setenv(fmt.Sprintf("K%d", i), strings.Repeat("v", 200)) != nil {
			refused++
		}
	}
	if refused < maxEnv {
		t.Errorf("only %d variables were refused", refused)
	}
	for _, kv := range [][2]string{{"", "v"}, {"A=B", "v"}, {"A", "v\x00"}} {
		if newSession(t, c).Setenv(kv[0], kv[1]) == nil {
			t.Errorf("%q was taken", kv)
		}
	}
	if out, err := s.Output("echo $K0"); len(out) != 201 || err != nil {
		t.Errorf("%q %v", out, err)
	}
	for _, req := range []string{"x11-req", "break", "xon-xoff", "pty-req", "env", "exec", "signal", "window-change"} {
		if ok, err := newSession(t, c).SendRequest(req, true, []byte{0, 0, 0, 9, 'x'}); ok || err != nil {
			t.Errorf("%s: %v %v", req, ok, err)
		}
	}
	if ok, _, err := c.SendRequest("keepalive@openssh.com", true, nil); !ok || err != nil {
		t.Errorf("keepalive: %v %v", ok, err)
	}
	if ok, _, err := c.SendRequest("no-such-request", true, nil); ok || err != nil {
		t.Errorf("unknown request: %v %v", ok, err)
	}
	s = newSession(t, c)
	if err := s.Start("cat"); err != nil {
		t.Fatal(err)
	}
	if ok, err := s.SendRequest("exec", true, ssh.Marshal(struct{ C string }{"true"})); ok || err != nil {
		t.Errorf("a second command in one session: %v %v", ok, err)
	}
}

// TestLogins: clients of a listener that do not log in keep out no more than their number.
func TestLogins(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.Limits.Handshaking = 2 })
	sock := g.listen()
	dial := func() net.Conn {
		conn, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		return conn
	}
	login := func(conn net.Conn) error {
		c, chans, reqs, err := ssh.NewClientConn(conn, "guest", g.config())
		if err == nil {
			t.Cleanup(func() { _ = ssh.NewClient(c, chans, reqs).Close() })
		}
		return err
	}
	var silent []net.Conn
	for range 2 {
		conn := dial()
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil { // it is being served
			t.Fatal(err)
		}
		silent = append(silent, conn)
	}
	if err := login(dial()); err == nil {
		t.Error("a third client about to log in was taken")
	}
	_ = silent[0].Close()
	eventually(t, "a place is free", func() bool { return login(dial()) == nil })
	for range 4 { // those who have logged in do not count, once the server knows that they have
		eventually(t, "a place is free", func() bool { return login(dial()) == nil })
	}
}

func TestAuthAgent(t *testing.T) {
	g := newGuest(t, nil)
	c := g.dial()
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: g.key.raw, Comment: "the key"}); err != nil {
		t.Fatal(err)
	}
	if err := agent.ForwardToAgent(c, ring); err != nil {
		t.Fatal(err)
	}
	out, err := newSession(t, c).Output("echo -$SSH_AUTH_SOCK-")
	if string(out) != "--\n" || err != nil {
		t.Errorf("without asking: %q %v", out, err)
	}
	s := newSession(t, c)
	if err := agent.RequestAgentForwarding(s); err != nil {
		t.Fatal(err)
	}
	out, err = s.Output("stat -c %a:%U ${SSH_AUTH_SOCK%/*}; ssh-add -l")
	if !strings.Contains(string(out), "700:"+g.user) || !strings.Contains(string(out), "the key") {
		t.Errorf("%q %v", out, err)
	}
}

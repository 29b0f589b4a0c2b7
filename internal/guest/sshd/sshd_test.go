package sshd

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"git.thaloco.com/thaloco/banger/internal/guest/process"
)

// TestMain is also the sftp server that the tests' server starts, and the proxy that the host's ssh connects through.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "sftp-server" {
		if err := ServeSFTP(os.Stdin, os.Stdout); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 3 && os.Args[1] == "proxy" {
		if err := proxy(os.Args[2]); err != nil {
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// proxy joins stdin and stdout with a unix socket.
func proxy(socket string) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(conn, os.Stdin)
		_ = conn.(*net.UnixConn).CloseWrite()
	}()
	_, err = io.Copy(os.Stdout, conn)
	return err
}

// key is a key pair in the forms the tests need.
type key struct {
	signer  ssh.Signer
	private string // OpenSSH, PEM
	line    string // of authorized_keys
	raw     ed25519.PrivateKey
}

func newKey(t testing.TB) key {
	t.Helper()
	_, raw, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(raw, "")
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(raw)
	if err != nil {
		t.Fatal(err)
	}
	return key{signer, string(pem.EncodeToMemory(block)), string(ssh.MarshalAuthorizedKey(signer.PublicKey())), raw}
}

// guest is a server with one authorized key.
type guest struct {
	t     testing.TB
	srv   *Server
	procs *process.Manager
	key   key
	host  key
	user  string
	ctx   context.Context
}

func newGuest(t testing.TB, change func(*Config)) *guest {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g := &guest{t: t, key: newKey(t), host: newKey(t), user: me.Username, ctx: ctx, procs: process.NewManager(process.Config{})}
	t.Cleanup(func() { _ = g.procs.Close() })
	t.Cleanup(cancel)
	cfg := Config{
		Processes: g.procs, HostKey: g.host.private, AuthorizedKeys: []string{g.key.line},
		SFTP: []string{"/proc/self/exe", "sftp-server"}, Version: "1.2-test",
	}
	if change != nil {
		change(&cfg)
	}
	if g.srv, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	return g
}

// listen serves a unix socket until the end of the test.
func (g *guest) listen() string {
	g.t.Helper()
	dir, err := os.MkdirTemp("", "sshd")
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		g.t.Fatal(err)
	}
	go func() { _ = g.srv.ServeListener(g.ctx, l) }()
	return path
}

// pair returns the two ends of a connected socket.
func pair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			close(got)
			return
		}
		got <- c
	}()
	client, err = net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return client, <-got
}

// dialAs connects and logs in.
func (g *guest) dialAs(cfg *ssh.ClientConfig) (*ssh.Client, error) {
	client, server := pair(g.t)
	go func() { _ = g.srv.Serve(g.ctx, server) }()
	_ = client.SetDeadline(time.Now().Add(time.Minute))
	c, chans, reqs, err := ssh.NewClientConn(client, "guest", cfg)
	if err != nil {
		_ = client.Close()
		return nil, err
	}
	return ssh.NewClient(c, chans, reqs), nil
}

func (g *guest) config() *ssh.ClientConfig {
	return &ssh.ClientConfig{
		User: g.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(g.key.signer)},
		HostKeyCallback: ssh.FixedHostKey(g.host.signer.PublicKey()),
	}
}

func (g *guest) dial() *ssh.Client {
	g.t.Helper()
	c, err := g.dialAs(g.config())
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

func newSession(t testing.TB, c *ssh.Client) *ssh.Session {
	t.Helper()
	s, err := c.NewSession()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// eventually waits until ok holds, which something outside this process decides.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}

func TestExec(t *testing.T) {
	c := newGuest(t, nil).dial()
	for _, tc := range []struct {
		name, command, stdin, out, err string
		status                         int
		signal                         string
	}{
		{name: "output", command: "echo out; echo err >&2", out: "out\n", err: "err\n"},
		{name: "status", command: "exit 7", status: 7},
		{name: "stdin", command: "cat; exit 3", stdin: "hello", out: "hello", status: 3},
		{name: "shell syntax", command: "for i in 1 2; do echo $i; done | tail -n 1", out: "2\n"},
		{name: "signal", command: "kill -TERM $$", signal: "TERM", status: 143},
		{name: "signal RFC 4254 does not know", command: "kill -XCPU $$", signal: "XCPU@openssh.com"},
		{name: "not found", command: "/no/such/command 2>/dev/null", status: 127},
		{name: "home", command: `[ "$PWD" = "$(cd; pwd)" ] && echo ok`, out: "ok\n"},
		{name: "background", command: "sleep 60 & echo done", out: "done\n"},
		{name: "stdin closed", command: "exec <&-; echo ok", stdin: strings.Repeat("x", 4<<20), out: "ok\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newSession(t, c)
			var out, errOut bytes.Buffer
			s.Stdout, s.Stderr, s.Stdin = &out, &errOut, strings.NewReader(tc.stdin)
			err := s.Start(tc.command)
			if err == nil {
				err = s.Wait()
			}
			status, signal := 0, ""
			if x := (*ssh.ExitError)(nil); errors.As(err, &x) {
				status, signal = x.ExitStatus(), x.Signal()
			} else if err != nil && tc.stdin == "" {
				t.Fatal(err)
			}
			if signal != "" && tc.signal != "TERM" {
				status = 0 // of the client's making
			}
			if out.String() != tc.out || errOut.String() != tc.err || status != tc.status || signal != tc.signal {
				t.Errorf("out %q err %q status %d signal %q", out.String(), errOut.String(), status, signal)
			}
		})
	}
}

func TestLogin(t *testing.T) {
	g := newGuest(t, nil)
	wrong := newKey(t)
	for _, tc := range []struct {
		name string
		user string
		auth ssh.AuthMethod
		want string
	}{
		{"authorized", g.user, ssh.PublicKeys(g.key.signer), ""},
		{"the right key after others", g.user, ssh.PublicKeys(append(manyKeys(t, 12), g.key.signer)...), ""},
		{"wrong key", g.user, ssh.PublicKeys(wrong.signer), "unable to authenticate"},
		{"password", g.user, ssh.Password(""), "unable to authenticate"},
		{"questions", g.user, ssh.KeyboardInteractive(func(string, string, []string, []bool) ([]string, error) { return nil, nil }), "unable to authenticate"},
		{"unknown user", "no-such-user", ssh.PublicKeys(g.key.signer), "unable to authenticate"},
		{"number", "0", ssh.PublicKeys(g.key.signer), "unable to authenticate"},
		{"unknown number", "54321", ssh.PublicKeys(g.key.signer), "unable to authenticate"},
		{"user and group", g.user + ":0", ssh.PublicKeys(g.key.signer), "unable to authenticate"},
		{"nobody's name", "", ssh.PublicKeys(g.key.signer), "unable to authenticate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := g.config()
			cfg.User, cfg.Auth = tc.user, []ssh.AuthMethod{tc.auth}
			c, err := g.dialAs(cfg)
			if err == nil {
				_ = c.Close()
			}
			switch {
			case tc.want == "" && err != nil:
				t.Fatal(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Fatalf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func manyKeys(t *testing.T, n int) []ssh.Signer {
	var out []ssh.Signer
	for range n {
		out = append(out, newKey(t).signer)
	}
	return out
}

func TestGreeting(t *testing.T) {
	g := newGuest(t, nil)
	if got := string(g.dial().ServerVersion()); got != "SSH-2.0-OpenSSH_compatible_banger_1.2_test" {
		t.Errorf("greeting %q", got)
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{HostKey: "nonsense"}); err == nil {
		t.Error("a host key that is none was taken")
	}
	var log bytes.Buffer
	g := newGuest(t, func(c *Config) {
		c.AuthorizedKeys = append([]string{"nonsense", `command="x" ` + newKey(t).line}, c.AuthorizedKeys...)
		c.Log = textLog(&log)
	})
	g.dial()
	if n := strings.Count(log.String(), "left out"); n != 2 {
		t.Errorf("%d lines were left out:\n%s", n, log.String())
	}
}

// TestHandshakeDeadline: a client that says nothing is let go, and so is one that says nonsense.
func TestHandshakeDeadline(t *testing.T) {
	g := newGuest(t, func(c *Config) { c.Limits.Handshake = 50 * time.Millisecond })
	for _, say := range []string{"", "GET / HTTP/1.1\r\n\r\n", "SSH-2.0-x\r\n\xff\xff\xff\xff\xff"} {
		client, server := pair(t)
		done := make(chan error, 1)
		go func() { done <- g.srv.Serve(g.ctx, server) }()
		_, _ = io.WriteString(client, say)
		if err := <-done; err == nil {
			t.Errorf("%q: no error", say)
		}
		_ = client.Close()
	}
}

// TestNothingIsLeft: sessions, forwards and agents of connections that ended in any way leave no goroutine and no file.
func TestNothingIsLeft(t *testing.T) {
	g := newGuest(t, nil)
	before := runtime.NumGoroutine()
	for i := range 10 {
		client, server := pair(t)
		done := make(chan error, 1)
		go func() { done <- g.srv.Serve(g.ctx, server) }()
		cc, chans, reqs, err := ssh.NewClientConn(client, "guest", g.config())
		if err != nil {
			t.Fatal(err)
		}
		c := ssh.NewClient(cc, chans, reqs)
		s, err := c.NewSession()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); err != nil {
			t.Fatal(err)
		}
		out, err := s.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Start("echo $SSH_AUTH_SOCK; exec sleep 1000"); err != nil {
			t.Fatal(err)
		}
		var sock string
		if _, err := fmt.Fscanln(out, &sock); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			_ = client.Close()
		} else {
			_ = c.Close()
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(filepath.Dir(sock)); err == nil {
			t.Errorf("%s is left", sock)
		}
	}
	eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+2 })
	eventually(t, "processes end", func() bool {
		for _, p := range g.procs.List() {
			if p.Exit == nil {
				return false
			}
		}
		return true
	})
}
func textLog(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

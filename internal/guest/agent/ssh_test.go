package agent

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

func TestSFTPRole(t *testing.T) {
	for _, tc := range []struct {
		args []string
		pid  int
		want role
	}{
		{[]string{"/proc/self/exe", sftpArg}, 300, roleSFTP},
		{[]string{"/proc/self/exe", sftpArg}, 1, roleInit},
		{[]string{"modprobe", sftpArg}, 300, roleModprobe}, // a module may have that name
		{[]string{"/proc/self/exe", sftpArg, "more"}, 300, roleUsage},
		{[]string{sftpArg}, 300, roleUsage},
	} {
		if got := chooseRole(tc.args, tc.pid); got != tc.want {
			t.Errorf("%q as %d: %s, want %s", tc.args, tc.pid, got, tc.want)
		}
	}
}

// hostKey is an ssh host key in PEM, and its public half.
func hostKey(t *testing.T) (string, ssh.PublicKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	block, err := ssh.MarshalPrivateKey(private, "")
	must(t, err)
	key, err := ssh.NewPublicKey(public)
	must(t, err)
	return string(pem.EncodeToMemory(block)), key
}

// socketPair returns two ends that can both write before they read, as ssh does.
func socketPair(t *testing.T) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	defer l.Close()
	client, err = net.Dial("unix", l.Addr().String())
	must(t, err)
	server, err = l.Accept()
	must(t, err)
	return client, server
}

// TestServeSSH: a stream for the ssh server is served with the host key of the identity the guest has by then.
func TestServeSSH(t *testing.T) {
	a := &agent{log: slog.New(slog.DiscardHandler), procs: process.NewManager(process.Config{}), welcomed: make(chan struct{})}
	t.Cleanup(func() { _ = a.procs.Close() })
	close(a.welcomed)
	_, server := net.Pipe()
	if a.serve(t.Context(), wire.PortSSH, server) {
		t.Error("served without a host key")
	}
	a.id.SSHHostKey = "nonsense"
	if a.serve(t.Context(), wire.PortSSH, server) {
		t.Error("served with nonsense for a host key")
	}
	for range 2 {
		private, public := hostKey(t)
		a.mu.Lock()
		a.id.SSHHostKey = private
		a.mu.Unlock()
		must(t, a.renewSSH())
		client, server := socketPair(t)
		if !a.serve(t.Context(), wire.PortSSH, server) {
			t.Fatal("refused")
		}
		_ = client.SetDeadline(time.Now().Add(20 * time.Second))
		// Nobody is authorized, so that all that works is to see who is there.
		_, _, _, err := ssh.NewClientConn(client, "guest", &ssh.ClientConfig{User: "root", HostKeyCallback: ssh.FixedHostKey(public)})
		if err == nil || !strings.Contains(err.Error(), "unable to authenticate") {
			t.Errorf("logging in: %v", err)
		}
	}
}

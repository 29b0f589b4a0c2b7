package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"

	"git.thaloco.com/thaloco/banger/internal/buildinfo"
	"git.thaloco.com/thaloco/banger/internal/guest/sshd"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// sshPort is the port of the VM on which the agent's ssh server is there for everybody with a key.
const sshPort = ":22"

// sshPrograms are the ssh servers an image may bring. Where one starts, the port is its.
var sshPrograms = []string{"/usr/sbin/sshd", "/usr/bin/sshd", "/usr/sbin/dropbear"}

// sftpArg makes this binary the sftp server. It is started by a link that every process has to its own program: the file
// itself is where only root can see it.
const sftpArg = "sftp-server"

// sftpMain serves the files of the guest on stdin and stdout.
func sftpMain() int {
	if err := sshd.ServeSFTP(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "banger: sftp:", err)
		return 1
	}
	return 0
}

// sshServer makes the ssh server when it is first needed: boots that nobody comes to by ssh do not pay for it.
type sshServer struct {
	mu  sync.Mutex // guards srv
	srv *sshd.Server
}

// sshd returns the ssh server, nil where the guest's identity has no host key.
func (a *agent) sshd() *sshd.Server {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	if a.ssh.srv != nil {
		return a.ssh.srv
	}
	id := a.identity()
	if id.SSHHostKey == "" {
		return nil
	}
	srv, err := sshd.New(sshd.Config{
		Processes: a.procs, HostKey: id.SSHHostKey, AuthorizedKeys: id.AuthorizedKeys,
		SFTP: []string{"/proc/self/exe", sftpArg}, Version: buildinfo.Version, Log: a.log,
	})
	if err != nil {
		a.log.Error("no ssh server", "error", err)
		return nil
	}
	a.ssh.srv = srv
	return srv
}

// renewSSH gives the ssh server, if there is one yet, the keys of the present identity.
func (a *agent) renewSSH() error {
	a.ssh.mu.Lock()
	defer a.ssh.mu.Unlock()
	id := a.identity()
	if a.ssh.srv == nil || id.SSHHostKey == "" {
		return nil
	}
	return a.ssh.srv.SetKeys(id.SSHHostKey, id.AuthorizedKeys)
}

func (a *agent) identity() wire.Identity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.id
}

// serveSSH serves a stream of the host, which it refuses where the guest has no host key.
func (a *agent) serveSSH(ctx context.Context, conn net.Conn) bool {
	srv := a.sshd()
	if srv == nil {
		return false
	}
	go func() {
		if err := srv.Serve(ctx, conn); err != nil {
			a.log.Debug("an ssh connection ended", "error", err)
		}
	}()
	return true
}

// keepSSHPort serves the VM's ssh port, unless the image does.
func (a *agent) keepSSHPort(ctx context.Context) {
	srv := a.sshd()
	if srv == nil {
		return
	}
	port := sshd.Port{
		Listen:   func() (net.Listener, error) { return net.Listen("tcp", sshPort) },
		Serve:    func(l net.Listener) { _ = srv.ServeListener(ctx, l) },
		Programs: sshPrograms, Log: a.log,
	}
	if err := port.Keep(ctx); err != nil {
		a.log.Warn("the ssh port is not served", "error", err)
	}
}

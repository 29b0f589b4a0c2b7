package fakeguest

import (
	"context"
	"net"
	"sync"

	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/sshd"
)

// sshServer serves the agent's ssh on connections that are handed to it. Who logs in is a user of the host.
type sshServer struct {
	server *sshd.Server
	ctx    context.Context
	cancel context.CancelFunc
	conns  sync.WaitGroup
}

func newSSHServer(cfg Config, procs *process.Manager) (*sshServer, error) {
	server, err := sshd.New(sshd.Config{Processes: procs, HostKey: cfg.Identity.SSHHostKey,
		AuthorizedKeys: cfg.Identity.AuthorizedKeys, SFTP: cfg.SFTP, Version: Version, Log: cfg.Log})
	if err != nil {
		return nil, err
	}
	s := &sshServer{server: server}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// accept serves a connection; false where the guest is ending.
func (s *sshServer) accept(conn net.Conn) bool {
	if s.ctx.Err() != nil {
		return false
	}
	s.conns.Go(func() { _ = s.server.Serve(s.ctx, conn) }) // who could not log in knows
	return true
}

// close ends all connections.
func (s *sshServer) close() {
	s.cancel()
	s.conns.Wait()
}

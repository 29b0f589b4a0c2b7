package apiserver

import (
	"context"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
)

// UpgradeSSH is the protocol an ssh stream is upgraded to.
const UpgradeSSH = "banger-ssh"

func (s *Server) sshTarget(ctx context.Context, in *ByName) (*reply[api.SSHTarget], error) {
	return answer(s.cfg.VMs.SSHTarget(ctx, in.Name))
}

// ssh joins a client with the ssh server of a guest's agent.
func (s *Server) ssh(w http.ResponseWriter, r *http.Request) {
	s.joinGuest(w, r, UpgradeSSH, s.cfg.VMs.DialSSH)
}

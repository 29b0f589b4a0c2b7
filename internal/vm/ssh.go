package vm

import (
	"cmp"
	"context"
	"errors"
	"net"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/sshkeys"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// giveHostKey gives a record without one a host key.
func giveHostKey(rec *store.VM) error {
	if rec.SSHHostKey != "" {
		return nil
	}
	pair, err := sshkeys.Generate("")
	if err != nil {
		return err
	}
	rec.SSHHostKey, rec.SSHHostPublic = pair.Private, pair.Public
	return nil
}

// sshKeys prepares a VM that is about to start for ssh: it returns the key that is let in, and rec has a host key.
func (s *Service) sshKeys(ctx context.Context, rec *store.VM) (sshkeys.UserKey, error) {
	user, err := s.cfg.Host.SSHKey()
	if err != nil || rec.SSHHostKey != "" {
		return user, err
	}
	*rec, err = s.cfg.Records.UpdateVM(ctx, rec.ID, giveHostKey)
	if err == nil {
		s.syncKnownHosts(ctx)
	}
	return user, err
}

// syncKnownHosts makes the file of known hosts what the records say. Where that fails ssh will tell its user that it does
// not know the host; nothing else depends on it.
func (s *Service) syncKnownHosts(ctx context.Context) {
	s.knownHosts.Lock() // the records are read under it, or an older list would be written last
	defer s.knownHosts.Unlock()
	recs, err := s.cfg.Records.VMs(context.WithoutCancel(ctx))
	if err != nil {
		s.cfg.Log.Error("known hosts", "err", err)
		return
	}
	known := make([]sshkeys.Known, 0, len(recs))
	for _, r := range recs {
		if r.SSHHostPublic != "" {
			known = append(known, sshkeys.Known{ID: r.ID, Name: r.Name, Key: r.SSHHostPublic})
		}
	}
	if err := sshkeys.SyncKnownHosts(s.cfg.Paths.KnownHosts(), known); err != nil {
		s.cfg.Log.Error("known hosts", "err", err)
	}
}

// SSHTarget returns what an ssh client must know to connect to a VM whose agent answers.
func (s *Service) SSHTarget(ctx context.Context, nameOrID string) (api.SSHTarget, error) {
	_, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return api.SSHTarget{}, err
	}
	if rec.SSHHostPublic == "" {
		return api.SSHTarget{}, noSSHServer(rec)
	}
	user, err := s.cfg.Host.SSHKey()
	if err != nil {
		return api.SSHTarget{}, err
	}
	img, err := s.cfg.Supplies.ImageByDigest(ctx, rec.ImageDigest)
	if err != nil {
		return api.SSHTarget{}, err
	}
	s.syncKnownHosts(ctx)
	name, _, _ := strings.Cut(img.User, ":")
	return api.SSHTarget{ID: rec.ID, Name: rec.Name, HostKeyAlias: rec.ID, User: cmp.Or(name, "root"),
		KnownHosts: s.cfg.Paths.KnownHosts(), IdentityFile: user.Identity, HostKey: rec.SSHHostPublic}, nil
}

// noSSHServer is the error of a VM that an older banger started.
func noSSHServer(rec store.VM) error {
	return api.Errorf(api.KindConflict, "vm %q runs without an ssh server: an older banger started it", rec.Name).
		WithHint("restart it (banger vm restart %s), or use banger vm exec -it %s", rec.Name, rec.Name)
}

// DialSSH connects to the ssh server of a VM's agent.
func (s *Service) DialSSH(ctx context.Context, nameOrID string) (net.Conn, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	s.syncKnownHosts(ctx) // the client reads it once the server has spoken
	conn, err := dialGuest(ctx, l, rec, wire.PortSSH)
	if errors.Is(err, vmm.ErrRefused) {
		return nil, noSSHServer(rec)
	}
	return conn, err
}

package apiserver

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
)

func (s *Server) daemonStatus(ctx context.Context, _ *none) (*reply[api.DaemonStatus], error) {
	return answer(s.cfg.Daemon.Status(ctx))
}

func (s *Server) daemonStop(context.Context, *none) (*none, error) {
	s.cfg.Daemon.Stop()
	return nil, nil
}

func (s *Server) configShow(context.Context, *none) (*reply[api.ConfigView], error) {
	return answer(s.cfg.Daemon.Config(), nil)
}

func (s *Server) listOperations(ctx context.Context, _ *none) (*reply[[]api.Operation], error) {
	return answer(s.cfg.Operations.List(ctx))
}

func (s *Server) showOperation(ctx context.Context, in *byID) (*reply[api.Operation], error) {
	return answer(s.cfg.Operations.Get(ctx, in.ID))
}

func (s *Server) cancelOperation(ctx context.Context, in *byID) (*none, error) {
	return nil, s.cfg.Operations.Cancel(ctx, in.ID)
}

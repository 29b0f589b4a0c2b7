package apiserver

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
)

func (s *Server) listForwards(ctx context.Context, in *ByName) (*reply[[]api.ForwardStatus], error) {
	return answer(s.cfg.VMs.Forwards(ctx, in.Name))
}

func (s *Server) addForward(ctx context.Context, in *struct {
	ByName
	Body api.Forward
}) (*reply[api.ForwardStatus], error) {
	return answer(s.cfg.VMs.AddForward(ctx, in.Name, in.Body))
}

func (s *Server) removeForward(ctx context.Context, in *struct {
	ByName
	Body api.RemoveForward
}) (*reply[api.Forward], error) {
	return answer(s.cfg.VMs.RemoveForward(ctx, in.Name, in.Body))
}

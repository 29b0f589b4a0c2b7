package apiserver

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func (s *Server) listKernels(ctx context.Context, _ *none) (*reply[[]api.Kernel], error) {
	return answer(s.cfg.Kernels.List(ctx))
}

func (s *Server) showKernel(ctx context.Context, in *ByName) (*reply[api.Kernel], error) {
	return answer(s.cfg.Kernels.Kernel(ctx, in.Name))
}

func (s *Server) pullKernel(ctx context.Context, in *struct{ Body api.PullKernel }) (*reply[api.Operation], error) {
	if err := s.cfg.Kernels.CheckPull(ctx, in.Body); err != nil {
		return nil, err
	}
	return s.operation(ctx, "kernel.pull", in.Body.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.Kernels.Pull(ctx, in.Body, rep)
	})
}

func (s *Server) registerKernel(ctx context.Context, in *struct{ Body api.RegisterKernel }) (*reply[api.Operation], error) {
	if err := s.cfg.Kernels.CheckRegister(ctx, in.Body); err != nil {
		return nil, err
	}
	return s.operation(ctx, "kernel.register", in.Body.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.Kernels.Register(ctx, in.Body, rep)
	})
}

func (s *Server) deleteKernel(ctx context.Context, in *ByName) (*none, error) {
	return nil, s.cfg.Kernels.Delete(ctx, in.Name)
}

package apiserver

import (
	"context"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// ByName is the part of an input that names a VM, an image or a kernel. It is exported because huma binds exported fields only.
type ByName struct {
	Name string `path:"name"`
}

type byID struct {
	ID string `path:"id"`
}

type none struct{}

type reply[T any] struct{ Body T }

func answer[T any](v T, err error) (*reply[T], error) {
	if err != nil {
		return nil, err
	}
	return &reply[T]{Body: v}, nil
}

func (s *Server) listVMs(ctx context.Context, _ *none) (*reply[[]api.VM], error) {
	return answer(s.cfg.VMs.List(ctx))
}

func (s *Server) showVM(ctx context.Context, in *ByName) (*reply[api.VM], error) {
	return answer(s.cfg.VMs.VM(ctx, in.Name))
}

func (s *Server) vmPorts(ctx context.Context, in *ByName) (*reply[[]api.GuestPort], error) {
	return answer(s.cfg.VMs.Ports(ctx, in.Name))
}

func (s *Server) vmStats(ctx context.Context, in *ByName) (*reply[api.VMStats], error) {
	return answer(s.cfg.VMs.Stats(ctx, in.Name))
}

func (s *Server) createVM(ctx context.Context, in *struct{ Body api.CreateVM }) (*reply[api.Operation], error) {
	if err := s.cfg.VMs.CheckCreate(ctx, in.Body); err != nil {
		return nil, err
	}
	if err := s.cfg.Images.CheckPull(ctx, api.PullImage{Name: in.Body.Image}); err != nil {
		return nil, err
	}
	return s.operation(ctx, "vm.create", in.Body.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.Create(ctx, in.Body, rep)
	})
}

func (s *Server) startVM(ctx context.Context, in *struct {
	ByName
	Body api.StartVM
}) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.start", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.Start(ctx, in.Name, in.Body.Wait, rep)
	})
}

type stopInput struct {
	ByName
	Body api.StopVM
}

func (s *Server) stopVM(ctx context.Context, in *stopInput) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.stop", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.Stop(ctx, in.Name, time.Duration(in.Body.TimeoutSeconds)*time.Second, rep)
	})
}

func (s *Server) restartVM(ctx context.Context, in *stopInput) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.restart", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.Restart(ctx, in.Name, time.Duration(in.Body.TimeoutSeconds)*time.Second, in.Body.Wait, rep)
	})
}

func (s *Server) killVM(ctx context.Context, in *ByName) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.kill", in.Name, func(ctx context.Context, _ progress.Reporter) (any, error) {
		return s.cfg.VMs.Kill(ctx, in.Name)
	})
}

func (s *Server) deleteVM(ctx context.Context, in *struct {
	ByName
	Force   bool `query:"force"`
	Discard bool `query:"discard"`
}) (*reply[api.Operation], error) {
	return s.vmOperation(ctx, "vm.delete", in.Name, func(ctx context.Context, _ progress.Reporter) (any, error) {
		return none{}, s.cfg.VMs.Delete(ctx, in.Name, api.DeleteVM{Force: in.Force, Discard: in.Discard})
	})
}

func (s *Server) releaseVM(ctx context.Context, in *struct {
	ByName
	Body api.Release
}) (*reply[api.Operation], error) {
	return s.operation(ctx, "vm.release", in.Name, func(ctx context.Context, _ progress.Reporter) (any, error) {
		return none{}, s.cfg.VMs.Release(ctx, in.Name, in.Body)
	})
}

// vmOperation starts an operation on a VM that is there.
func (s *Server) vmOperation(ctx context.Context, kind, name string, run func(context.Context, progress.Reporter) (any, error)) (*reply[api.Operation], error) {
	if _, err := s.cfg.VMs.VM(ctx, name); err != nil {
		return nil, err
	}
	return s.operation(ctx, kind, name, run)
}

func (s *Server) operation(ctx context.Context, kind, target string, run func(context.Context, progress.Reporter) (any, error)) (*reply[api.Operation], error) {
	return answer(s.cfg.Operations.Start(ctx, kind, target, run))
}

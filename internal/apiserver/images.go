package apiserver

import (
	"context"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func (s *Server) listImages(ctx context.Context, _ *none) (*reply[[]api.Image], error) {
	return answer(s.cfg.Images.List(ctx))
}

func (s *Server) showImage(ctx context.Context, in *ByName) (*reply[api.Image], error) {
	return answer(s.cfg.Images.Image(ctx, in.Name))
}

func (s *Server) pullImage(ctx context.Context, in *struct{ Body api.PullImage }) (*reply[api.Operation], error) {
	if err := s.cfg.Images.CheckPull(ctx, in.Body); err != nil {
		return nil, err
	}
	return s.operation(ctx, "image.pull", in.Body.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.Images.Pull(ctx, in.Body, rep)
	})
}

func (s *Server) deleteImage(ctx context.Context, in *ByName) (*none, error) {
	return nil, s.cfg.Images.Delete(ctx, in.Name)
}

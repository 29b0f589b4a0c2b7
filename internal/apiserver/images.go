package apiserver

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func (s *Server) listImages(ctx context.Context, _ *none) (*reply[[]api.Image], error) {
	return answer(s.cfg.Images.List(ctx))
}

func (s *Server) imageCatalog(ctx context.Context, _ *none) (*reply[[]api.Image], error) {
	return answer(s.cfg.Images.Catalog(ctx))
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

func (s *Server) registerImage(ctx context.Context, in *struct{ Body api.RegisterImage }) (*reply[api.Operation], error) {
	if err := s.cfg.Images.CheckRegister(ctx, in.Body); err != nil {
		return nil, err
	}
	return s.operation(ctx, "image.register", in.Body.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.Images.Register(ctx, in.Body, rep)
	})
}

func (s *Server) promoteImage(ctx context.Context, in *struct{ Body api.PromoteImage }) (*reply[api.Operation], error) {
	if err := s.cfg.Images.CheckPromote(ctx, in.Body); err != nil {
		return nil, err
	}
	return s.operation(ctx, "image.promote", in.Body.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.Images.Promote(ctx, in.Body, rep)
	})
}

func (s *Server) importImage(ctx context.Context, in *struct{ Body api.ImportImage }) (*reply[api.Operation], error) {
	if err := s.cfg.Images.CheckImport(ctx, in.Body); err != nil {
		return nil, err
	}
	return s.operation(ctx, "image.import", in.Body.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.Images.Import(ctx, in.Body, rep)
	})
}

func (s *Server) exportImage(ctx context.Context, in *struct {
	ByName
	Body api.ExportImage
}) (*reply[api.Operation], error) {
	if err := s.cfg.Images.CheckExport(ctx, in.Name, in.Body); err != nil {
		return nil, err
	}
	return s.operation(ctx, "image.export", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.Images.Export(ctx, in.Name, in.Body, rep)
	})
}

func (s *Server) tagImage(ctx context.Context, in *struct {
	ByName
	Body api.TagImage
}) (*reply[api.Image], error) {
	return answer(s.cfg.Images.Tag(ctx, in.Name, in.Body))
}

func (s *Server) pruneImages(ctx context.Context, in *struct{ Body api.Prune }) (*reply[api.Operation], error) {
	return s.operation(ctx, "image.prune", "", func(ctx context.Context, _ progress.Reporter) (any, error) {
		return s.cfg.Images.Prune(ctx, in.Body)
	})
}

// imageFiles answers with a line of JSON for each file of an image. A stream that is not whole is cut.
func (s *Server) imageFiles(w http.ResponseWriter, r *http.Request) {
	out := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(out)
	begun := false
	err := s.cfg.Images.Files(r.Context(), r.PathValue("name"), func(f api.ImageFile) error {
		if !begun {
			w.Header().Set("Content-Type", "application/jsonl")
			begun = true
		}
		return enc.Encode(f)
	})
	if err == nil {
		err = out.Flush()
	}
	switch {
	case err != nil && !begun:
		writeError(w, r, err)
	case err != nil:
		s.streamEnded(r, err)
		panic(http.ErrAbortHandler) // net/http's way to cut an answer
	}
}

func (s *Server) deleteImage(ctx context.Context, in *ByName) (*none, error) {
	return nil, s.cfg.Images.Delete(ctx, in.Name)
}

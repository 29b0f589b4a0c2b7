package vm

import (
	"context"
	"fmt"
	"io"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filestream"
)

// copyBuffer is the size of the buffer between a guest and a client, in bytes.
const copyBuffer = 256 << 10

// PutFiles has a guest take a tar stream as req says.
func (s *Service) PutFiles(ctx context.Context, nameOrID string, req api.PutFiles, r io.Reader) (api.FilesResult, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return api.FilesResult{}, err
	}
	res, err := s.guest(l).CopyFiles(ctx, req, r)
	if err != nil {
		return res, fmt.Errorf("vm %q: %w", rec.Name, err)
	}
	return res, nil
}

// Files writes a file, link or directory of a guest to w as a tar stream. What it holds is the guest's. An error
// after the first byte means that the stream is not whole.
func (s *Service) Files(ctx context.Context, nameOrID string, req api.GetFiles, w io.Writer) (api.FilesResult, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return api.FilesResult{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := s.guest(l).Files(ctx, req)
	if err != nil {
		return api.FilesResult{}, fmt.Errorf("vm %q: %w", rec.Name, err)
	}
	return passOn(rec.Name, in, w)
}

// Root writes the root file system of a guest to w as a tar stream, without what its users have in their homes when clean. What it
// holds is the guest's. An error after the first byte means that the stream is not whole.
func (s *Service) Root(ctx context.Context, nameOrID string, clean bool, w io.Writer) (api.FilesResult, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return api.FilesResult{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, err := s.guest(l).Root(ctx, clean)
	if err != nil {
		return api.FilesResult{}, fmt.Errorf("vm %q: %w", rec.Name, err)
	}
	return passOn(rec.Name, in, w)
}

// passOn copies a stream of a guest to its end, and closes it.
func passOn(vm string, in *filestream.Stream, w io.Writer) (api.FilesResult, error) {
	defer func() { _ = in.Close() }()
	// An io.Writer alone: the shortcut of an http.ResponseWriter has small buffers.
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, in, make([]byte, copyBuffer)); err != nil {
		return api.FilesResult{}, fmt.Errorf("vm %q: %w", vm, err)
	}
	return in.Result(), nil
}

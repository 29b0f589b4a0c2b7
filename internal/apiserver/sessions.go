package apiserver

import (
	"context"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// BySession is the part of an input that names a session of a VM. It is exported because huma binds exported fields only.
type BySession struct {
	ByName
	Session string `path:"session"`
}

func (s *Server) listSessions(ctx context.Context, in *ByName) (*reply[[]api.Session], error) {
	return answer(s.cfg.VMs.Sessions(ctx, in.Name))
}

func (s *Server) startSession(ctx context.Context, in *struct {
	ByName
	Body api.StartSession
}) (*reply[api.Session], error) {
	return answer(s.cfg.VMs.StartSession(ctx, in.Name, in.Body))
}

func (s *Server) showSession(ctx context.Context, in *BySession) (*reply[api.Session], error) {
	return answer(s.cfg.VMs.Session(ctx, in.Name, in.Session))
}

func (s *Server) waitSession(ctx context.Context, in *BySession) (*reply[api.Session], error) {
	return answer(s.cfg.VMs.WaitSession(ctx, in.Name, in.Session))
}

func (s *Server) stopSession(ctx context.Context, in *struct {
	BySession
	Body api.StopSession
}) (*reply[api.Operation], error) {
	if _, err := s.cfg.VMs.Session(ctx, in.Name, in.Session); err != nil {
		return nil, err
	}
	return s.operation(ctx, "vm.session.stop", in.Name, func(ctx context.Context, rep progress.Reporter) (any, error) {
		return s.cfg.VMs.StopSession(ctx, in.Name, in.Session, in.Body, rep)
	})
}

func (s *Server) deleteSession(ctx context.Context, in *struct {
	BySession
	Force bool `query:"force"`
}) (*none, error) {
	return nil, s.cfg.VMs.DeleteSession(ctx, in.Name, in.Session, in.Force)
}

func (s *Server) sessionLogs(w http.ResponseWriter, r *http.Request) {
	want, err := api.ParseSessionLogs(r.URL.Query())
	if err != nil {
		writeError(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	out := &flusher{w: w, c: http.NewResponseController(w), each: want.Follow}
	err = s.cfg.VMs.SessionLogs(r.Context(), r.PathValue("name"), r.PathValue("session"), want, out)
	switch {
	case err != nil && !out.wrote:
		writeError(w, r, err)
	case err != nil:
		s.streamEnded(r, err)
		panic(http.ErrAbortHandler) // net/http's way to cut an answer: it is not all of the log
	}
}

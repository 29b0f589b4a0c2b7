package guestapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"slices"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/session"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// maxRequest bounds the JSON of a request in bytes.
const maxRequest = 256 << 10

// State is what only the agent knows of the guest.
type State struct {
	// Agent is its build version, Init "systemd", "other" or "none".
	Agent, Init string
	Mark        api.Mark
}

// Config is what the handler serves. Where a function is nil its route answers that the guest cannot do it.
type Config struct {
	Processes *process.Manager
	State     func() State
	// Shutdown asks the guest's init for an end; it returns once that is asked.
	Shutdown func(ctx context.Context, verb string) error
	// End makes the data durable and ends the guest at once; it returns only where it cannot. The answer has been sent before.
	End func(ctx context.Context, verb string) error
	// Sync writes everything to disk; nil for sync(2).
	Sync func(ctx context.Context) error
	// GrowDisk grows the data file system to bytes, 0 for the size of its drive, and returns its size.
	GrowDisk func(ctx context.Context, bytes int64) (int64, error)
	// SetIdentity gives the guest an identity.
	SetIdentity func(ctx context.Context, id wire.Identity) error
	// ResetOutside ends the guest's TCP connections that the host carried, and returns how many.
	ResetOutside func(ctx context.Context) (int, error)
	// Logs writes the agent's log to w, and with follow what comes until ctx ends.
	Logs func(ctx context.Context, w io.Writer, follow bool) error
	// Root writes the root file system as a tar stream.
	Root func(ctx context.Context, w io.Writer, clean bool) (files.Result, error)
	// Started is called with the pid of every program the API runs that is not one of Processes; may be nil.
	Started func(pid int)
	// Sessions are those of the guest.
	Sessions *session.Sessions
	// DataDir is a directory on the data file system; empty for /.
	DataDir string
	// Log receives failures of the agent's own; nil for none.
	Log *slog.Logger
}

// Handler returns the agent's HTTP API.
func Handler(cfg Config) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.DataDir == "" {
		cfg.DataDir = "/"
	}
	if cfg.Sync == nil {
		cfg.Sync = func(context.Context) error { unix.Sync(); return nil }
	}
	s := &server{cfg}
	mux := http.NewServeMux()
	for pattern, h := range map[string]func(http.ResponseWriter, *http.Request) (any, error){
		"GET /v1/health":                     s.health,
		"GET /v1/stats":                      s.stats,
		"GET /v1/ports":                      s.ports,
		"GET /v1/processes":                  s.processes,
		"POST /v1/processes/{id}/owner-gone": s.ownerGone,
		"POST /v1/processes/{id}/signal":     s.signal,
		"GET /v1/sessions":                   s.listSessions,
		"POST /v1/sessions":                  s.startSession,
		"POST /v1/sessions/{name}/signal":    s.signalSession,
		"DELETE /v1/sessions/{name}":         s.removeSession,
		"GET /v1/sessions/{name}/log":        s.sessionLog,
		"PUT /v1/files":                      s.putFiles,
		"GET /v1/files":                      s.getFiles,
		"GET /v1/root":                       s.getRoot,
		"GET /v1/tree":                       s.listTree,
		"POST /v1/tree/hash":                 s.hashTree,
		"POST /v1/tree/pack":                 s.packTree,
		"POST /v1/tree/remove":               s.removeTree,
		"GET /v1/logs":                       s.logs,
		"POST /v1/shutdown":                  s.shutdown,
		"POST /v1/end":                       s.end,
		"POST /v1/sync":                      s.sync,
		"POST /v1/disk/grow":                 s.grow,
		"PUT /v1/identity":                   s.identity,
		"POST /v1/connections/reset":         s.resetOutside,
	} {
		mux.Handle(pattern, s.route(h))
	}
	return mux
}

type server struct{ cfg Config }

// answered says that a handler has written its answer itself.
type answered struct{}

// route writes what a handler returns: JSON, nothing (204), or an error.
func (s *server) route(h func(http.ResponseWriter, *http.Request) (any, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		out, err := h(w, r)
		if _, done := out.(answered); done {
			return
		}
		if err != nil {
			e := asError(err)
			if e.Kind == api.KindInternal {
				s.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
			}
			reply(w, e.Kind.Status(), api.ErrorReply{Error: e})
			return
		}
		if out == nil {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		reply(w, http.StatusOK, out)
	})
}

func reply(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client has gone where this fails
}

// asError gives what the packages below return a kind.
func asError(err error) *api.Error {
	var x *wire.ExecError
	switch {
	case errors.As(err, &x) && (x.Code == wire.ExecNoProcess || x.Code == wire.ExecNoSession):
		return api.Errorf(api.KindNotFound, "%w", err)
	case errors.As(err, &x) && x.Code == wire.ExecExists:
		return api.Errorf(api.KindConflict, "%w", err)
	case errors.As(err, &x):
		return api.Errorf(api.KindInvalid, "%w", err)
	case errors.Is(err, fs.ErrNotExist):
		return api.Errorf(api.KindNotFound, "%w", err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return api.Errorf(api.KindUnavailable, "%w", err).WithHint("free space in the guest, or give the VM a larger disk")
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EISDIR), errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return api.Errorf(api.KindInvalid, "%w", err)
	}
	return api.AsError(err)
}

// decode reads a request's JSON.
func decode(r *http.Request, v any) error {
	d := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return api.Errorf(api.KindInvalid, "read request: %w", err)
	}
	return nil
}

func unsupported(what string) error {
	return api.Errorf(api.KindUnavailable, "this guest cannot %s", what)
}

func (s *server) health(http.ResponseWriter, *http.Request) (any, error) {
	h := Health{Version: wire.Version}
	if s.cfg.State != nil {
		st := s.cfg.State()
		h.Agent, h.Init, h.Mark = st.Agent, st.Init, st.Mark
	}
	return h, readHealth(&h)
}

func (s *server) stats(http.ResponseWriter, *http.Request) (any, error) {
	var st Stats
	for _, p := range s.cfg.Processes.List() {
		if p.Exit == nil {
			st.Commands++
		}
	}
	return st, readStats(&st, s.cfg.DataDir)
}

func (s *server) ports(http.ResponseWriter, *http.Request) (any, error) { return readPorts() }

func (s *server) processes(http.ResponseWriter, *http.Request) (any, error) {
	return s.cfg.Processes.List(), nil
}

func (s *server) ownerGone(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, s.cfg.Processes.OwnerGone(r.PathValue("id"))
}

func (s *server) signal(_ http.ResponseWriter, r *http.Request) (any, error) {
	var in Signal
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	return nil, s.cfg.Processes.Signal(r.PathValue("id"), in.Name)
}

func (s *server) logs(w http.ResponseWriter, r *http.Request) (any, error) {
	if s.cfg.Logs == nil {
		return nil, unsupported("show its agent's log")
	}
	follow := r.URL.Query().Get("follow") == "true"
	out := &lateWriter{w: w, contentType: "text/plain; charset=utf-8", flush: follow}
	err := s.cfg.Logs(r.Context(), out, follow)
	if r.Context().Err() != nil {
		err = nil
	}
	return out.end(err)
}

// lateWriter answers with a stream; until its first byte an error can still be an answer, later
// the connection is cut.
type lateWriter struct {
	w           http.ResponseWriter
	contentType string
	flush       bool
	begun       bool
}

func (l *lateWriter) Write(p []byte) (int, error) {
	l.begin()
	n, err := l.w.Write(p)
	if l.flush && err == nil {
		err = http.NewResponseController(l.w).Flush()
	}
	return n, err
}

func (l *lateWriter) begin() {
	if !l.begun {
		l.begun = true
		l.w.Header().Set("Content-Type", l.contentType)
		l.w.WriteHeader(http.StatusOK)
	}
}

func (l *lateWriter) end(err error) (any, error) {
	if err != nil && l.begun {
		panic(http.ErrAbortHandler)
	}
	if err != nil {
		return nil, err
	}
	l.begin()
	return answered{}, nil
}

// verb reads the verb of an end.
func verb(r *http.Request) (string, error) {
	var in End
	if err := decode(r, &in); err != nil {
		return "", err
	}
	if !slices.Contains([]string{VerbPoweroff, VerbReboot, VerbHalt}, in.Verb) {
		return "", api.Errorf(api.KindInvalid, "verb %q is neither poweroff, reboot nor halt", in.Verb)
	}
	return in.Verb, nil
}

func (s *server) shutdown(_ http.ResponseWriter, r *http.Request) (any, error) {
	v, err := verb(r)
	if err != nil {
		return nil, err
	}
	if s.cfg.Shutdown == nil {
		return nil, unsupported("shut down")
	}
	return nil, s.cfg.Shutdown(r.Context(), v)
}

func (s *server) end(w http.ResponseWriter, r *http.Request) (any, error) {
	v, err := verb(r)
	if err != nil {
		return nil, err
	}
	if s.cfg.End == nil {
		return nil, unsupported("end at once")
	}
	w.WriteHeader(http.StatusAccepted)
	_ = http.NewResponseController(w).Flush()
	if err := s.cfg.End(context.WithoutCancel(r.Context()), v); err != nil {
		s.cfg.Log.Error("end the guest", "verb", v, "error", err)
	}
	return answered{}, nil
}

func (s *server) sync(_ http.ResponseWriter, r *http.Request) (any, error) {
	return nil, s.cfg.Sync(r.Context())
}

func (s *server) grow(_ http.ResponseWriter, r *http.Request) (any, error) {
	var in Grow
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if in.Bytes < 0 {
		return nil, api.Errorf(api.KindInvalid, "a file system of %d bytes is not possible", in.Bytes)
	}
	if s.cfg.GrowDisk == nil {
		return nil, unsupported("grow its file system")
	}
	n, err := s.cfg.GrowDisk(r.Context(), in.Bytes)
	return Grow{Bytes: n}, err
}

func (s *server) identity(_ http.ResponseWriter, r *http.Request) (any, error) {
	var in wire.Identity
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	if s.cfg.SetIdentity == nil {
		return nil, unsupported("take an identity")
	}
	return nil, s.cfg.SetIdentity(r.Context(), in)
}

func (s *server) resetOutside(_ http.ResponseWriter, r *http.Request) (any, error) {
	if s.cfg.ResetOutside == nil {
		return nil, unsupported("reset its connections")
	}
	n, err := s.cfg.ResetOutside(r.Context())
	return Reset{Connections: n}, err
}

package guestapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/guest/session"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// sessionWait is the longest that a request waits for a change of the sessions.
const sessionWait = 50 * time.Second

// Bounds of what an agent says of a session, in bytes; of a command it says the beginning.
const (
	maxCommand = 4 << 10
	maxDir     = 4 << 10
	maxUser    = 256
)

// SessionLog says what of a session's log is wanted.
type SessionLog struct {
	// Stream is "stdout" or "stderr"; empty for both.
	Stream string
	// Since is how far back it goes; 0 for all the way.
	Since time.Duration
	// Tail is how many lines; negative for all.
	Tail   int
	Follow bool
}

// Print is l for a journal, at a time.
func (l SessionLog) Print(now time.Time) journal.Print {
	p := journal.Print{Stdout: l.Stream == "stdout", Stderr: l.Stream == "stderr", Tail: l.Tail}
	if l.Since > 0 {
		p.Since = now.Add(-l.Since)
	}
	return p
}

// Sessions returns the sessions of the guest, once they have changed since the list with that Seq, or after a while.
func (c *Client) Sessions(ctx context.Context, after uint64) (wire.SessionList, error) {
	list, err := call[wire.SessionList](ctx, c, "GET", "/v1/sessions?after="+strconv.FormatUint(after, 10), nil)
	if err != nil {
		return list, err
	}
	return list, checkSessions(list)
}

// checkSessions refuses what no agent says of its sessions.
func checkSessions(list wire.SessionList) error {
	if n := len(list.Sessions); n > wire.MaxSessions+wire.MaxEndedSessions+1 {
		return api.Errorf(api.KindGuest, "the guest's agent tells of %d sessions", n)
	}
	for _, s := range list.Sessions {
		if err := checkSession(s); err != nil {
			return err
		}
	}
	return nil
}

func checkSession(s wire.SessionStatus) error {
	if !wire.ValidSessionName(s.Name) || !wire.ValidSessionStdin(s.Stdin) || len(s.ID) > 64 {
		return api.Errorf(api.KindGuest, "the guest's agent tells of a session %.80q that cannot be", s.Name)
	}
	command := 0
	for _, arg := range s.Argv {
		command += len(arg) + 1
	}
	if command > maxCommand || len(s.Dir) > maxDir || len(s.User) > maxUser || s.PID < 0 || s.PID == 0 && !s.Ended {
		return api.Errorf(api.KindGuest, "the guest's agent tells of a process %d of session %q that cannot be", s.PID, s.Name)
	}
	if e := s.Exit; e != nil && (e.Status < 0 || e.Status > 255 || len(e.Signal) > 16) {
		return api.Errorf(api.KindGuest, "the guest's agent tells of exit status %d of session %q", e.Status, s.Name)
	}
	return nil
}

// StartSession starts a session. A command that cannot be started is a *wire.ExecError.
func (c *Client) StartSession(ctx context.Context, req wire.SessionStart) (wire.SessionStatus, error) {
	out, err := call[wire.SessionStarted](ctx, c, "POST", "/v1/sessions", req)
	switch {
	case err != nil:
		return wire.SessionStatus{}, err
	case out.Error != nil:
		return wire.SessionStatus{}, &wire.ExecError{Code: cut(out.Error.Code), Message: cut(out.Error.Message)}
	case out.Session == nil:
		return wire.SessionStatus{}, api.Errorf(api.KindGuest, "the guest's agent answered garbage: no session")
	}
	return *out.Session, checkSession(*out.Session)
}

// SignalSession signals the process group of a session; Name is as "TERM".
func (c *Client) SignalSession(ctx context.Context, name, signal string) error {
	return c.do(ctx, "POST", "/v1/sessions/"+url.PathEscape(name)+"/signal", Signal{Name: signal})
}

// RemoveSession removes an ended session with its log.
func (c *Client) RemoveSession(ctx context.Context, name string) error {
	return c.do(ctx, "DELETE", "/v1/sessions/"+url.PathEscape(name), nil)
}

// SessionLog returns the log of a session as text, with Follow until it has ended or ctx has.
func (c *Client) SessionLog(ctx context.Context, name string, l SessionLog) (io.ReadCloser, error) {
	q := url.Values{"stream": {l.Stream}, "since": {l.Since.String()}, "tail": {strconv.Itoa(l.Tail)}, "follow": {strconv.FormatBool(l.Follow)}}
	return c.stream(ctx, "/v1/sessions/"+url.PathEscape(name)+"/log?"+q.Encode())
}

// sessions returns what the handler serves sessions of.
func (s *server) sessions() (*session.Sessions, error) {
	if s.cfg.Sessions == nil {
		return nil, unsupported("run sessions")
	}
	return s.cfg.Sessions, nil
}

func (s *server) listSessions(_ http.ResponseWriter, r *http.Request) (any, error) {
	all, err := s.sessions()
	if err != nil {
		return nil, err
	}
	after, err := strconv.ParseUint(r.URL.Query().Get("after"), 10, 64)
	if err != nil || after == 0 {
		return all.List(), nil
	}
	ctx, cancel := context.WithTimeout(r.Context(), sessionWait)
	defer cancel()
	return all.Wait(ctx, after), nil
}

func (s *server) startSession(_ http.ResponseWriter, r *http.Request) (any, error) {
	all, err := s.sessions()
	if err != nil {
		return nil, err
	}
	var in wire.SessionStart
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	st, err := all.Start(r.Context(), in)
	if x, ok := errors.AsType[*wire.ExecError](err); ok {
		return wire.SessionStarted{Error: x}, nil
	}
	return wire.SessionStarted{Session: &st}, err
}

func (s *server) signalSession(_ http.ResponseWriter, r *http.Request) (any, error) {
	all, err := s.sessions()
	if err != nil {
		return nil, err
	}
	var in Signal
	if err := decode(r, &in); err != nil {
		return nil, err
	}
	return nil, all.Signal(r.PathValue("name"), in.Name)
}

func (s *server) removeSession(_ http.ResponseWriter, r *http.Request) (any, error) {
	all, err := s.sessions()
	if err != nil {
		return nil, err
	}
	return nil, all.Remove(r.PathValue("name"))
}

func (s *server) sessionLog(w http.ResponseWriter, r *http.Request) (any, error) {
	all, err := s.sessions()
	if err != nil {
		return nil, err
	}
	q := r.URL.Query()
	l := SessionLog{Stream: q.Get("stream"), Follow: q.Get("follow") == "true"}
	var errTail error
	l.Since, err = time.ParseDuration(q.Get("since"))
	l.Tail, errTail = strconv.Atoi(q.Get("tail"))
	if err := errors.Join(err, errTail); err != nil {
		return nil, api.Errorf(api.KindInvalid, "read request: %w", err)
	}
	out := &lateWriter{w: w, contentType: "text/plain; charset=utf-8", flush: l.Follow}
	err = all.Log(r.Context(), r.PathValue("name"), out, l.Print(time.Now()), l.Follow)
	if r.Context().Err() != nil {
		err = nil
	}
	return out.end(err)
}

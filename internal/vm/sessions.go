package vm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// SessionLimits bound the log of a session in its guest: Files files of Bytes each.
type SessionLimits struct {
	Bytes int64
	Files int
}

// Times of sessions.
const (
	// sessionsAnswer bounds the wait for what the agent says of its sessions where a record would do.
	sessionsAnswer = 2 * time.Second
	// sessionStopTimeout is how long a session may take to end when it is asked to, sessionKillTimeout when it is killed.
	sessionStopTimeout = 10 * time.Second
	sessionKillTimeout = 10 * time.Second
	// MaxSessionWait is the longest that WaitSession waits.
	MaxSessionWait = 30 * time.Second
)

// Sessions returns the sessions of a VM, the oldest first, also those that have ended.
func (s *Service) Sessions(ctx context.Context, nameOrID string) ([]api.Session, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	all, err := s.cfg.Records.Sessions(ctx, rec.ID)
	if err != nil {
		return nil, err
	}
	seen := s.seenSessions(ctx, rec, all)
	out := make([]api.Session, 0, len(all))
	for _, v := range all {
		out = append(out, s.sessionView(rec, v, seen))
	}
	return out, nil
}

// Session returns a session of a VM.
func (s *Service) Session(ctx context.Context, nameOrID, name string) (api.Session, error) {
	rec, v, err := s.session(ctx, nameOrID, name)
	if err != nil {
		return api.Session{}, err
	}
	all := []store.Session{v}
	seen := s.seenSessions(ctx, rec, all)
	return s.sessionView(rec, all[0], seen), nil
}

// session finds the records of a session and of its VM.
func (s *Service) session(ctx context.Context, nameOrID, name string) (store.VM, store.Session, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return rec, store.Session{}, err
	}
	v, err := s.cfg.Records.Session(ctx, rec.ID, name)
	if err != nil {
		e := api.AsError(err)
		e.Message = fmt.Sprintf("vm %q has no session %q", rec.Name, name)
		if e.Kind == api.KindNotFound {
			err = e.WithHint("%s", cmp.Or(e.Hint, "banger vm session list "+rec.Name))
		}
	}
	return rec, v, err
}

// seenSessions asks the agent about sessions of which at least one runs; those that have ended meanwhile are recorded, in all as well. Where it
// does not answer soon, what is recorded must do.
func (s *Service) seenSessions(ctx context.Context, rec store.VM, all []store.Session) map[string]wire.SessionStatus {
	l := s.running(rec.ID)
	if l == nil || !slices.ContainsFunc(all, func(v store.Session) bool { return v.State == api.SessionRunning }) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, sessionsAnswer)
	defer cancel()
	list, err := s.guest(l).Sessions(ctx, 0)
	if err != nil {
		return nil
	}
	out := map[string]wire.SessionStatus{}
	for _, st := range list.Sessions {
		out[st.ID] = st
	}
	for i, v := range all {
		if st, ok := out[v.ID]; ok && st.Ended && v.State == api.SessionRunning {
			all[i] = s.takeSession(ctx, rec, v, st, true)
		}
	}
	return out
}

// sessionView joins a record with what the agent has just said.
func (s *Service) sessionView(rec store.VM, v store.Session, seen map[string]wire.SessionStatus) api.Session {
	out := api.Session{VM: rec.Name, Name: v.Name, ID: v.ID, State: v.State, Command: v.Command, Dir: v.Dir, User: v.User, Stdin: v.Stdin, PID: v.PID,
		CreatedAt: v.CreatedAt, EndedAt: v.EndedAt, Status: v.Status, Signal: v.Signal, Reason: v.Reason,
		StdoutBytes: v.StdoutBytes, StderrBytes: v.StderrBytes, DroppedBytes: v.DroppedBytes}
	if st, ok := seen[v.ID]; ok && v.State == api.SessionRunning {
		out.Writer, out.Readers, out.PID = st.Writer, st.Readers, st.PID
		out.StdoutBytes, out.StderrBytes, out.DroppedBytes = st.Stdout, st.Stderr, st.Dropped
	}
	if v.State == api.SessionRunning {
		out.Socket = s.sockets.path(rec.ID, v.Name)
	}
	return out
}

// StartSession starts a session in a running VM. A command that cannot be started is no error: the session has failed then, with the
// status a shell would have, and nothing is left.
func (s *Service) StartSession(ctx context.Context, nameOrID string, req api.StartSession) (api.Session, error) {
	req.Stdin = cmp.Or(req.Stdin, wire.SessionNone)
	if err := checkSession(req); err != nil {
		return api.Session{}, err
	}
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return api.Session{}, err
	}
	if l.isEnding() {
		return api.Session{}, api.Errorf(api.KindConflict, "vm %q is ending", rec.Name).WithHint("start it: banger vm start %s", rec.Name)
	}
	if req.Name == "" {
		if req.Name, err = s.sessionName(ctx, rec.ID, req.Command); err != nil {
			return api.Session{}, err
		}
	}
	v := store.Session{VM: rec.ID, Name: req.Name, State: api.SessionStarting, ID: exec.NewID(), Command: req.Command, Dir: req.Dir, User: req.User,
		Stdin: req.Stdin, CreatedAt: s.cfg.Host.Now(), LogBytes: s.cfg.Sessions.Bytes, LogFiles: s.cfg.Sessions.Files}
	done := s.beginSession(rec.ID, v.Name)
	defer func() {
		done()
		s.kickSessions(l) // where it is not known whether it runs, the agent says
		if l.isEnding() { // which may not have seen it
			s.endSessions(rec.ID, reasonGone)
		}
	}()
	if err := s.cfg.Records.InsertSession(ctx, v); err != nil {
		return api.Session{}, sessionExists(rec, req.Name, err)
	}
	st, err := s.startInGuest(ctx, l, v, req)
	var x *wire.ExecError
	switch {
	case errors.As(err, &x):
		return s.sessionFailed(ctx, rec, v, x)
	case err != nil:
		if refused(err) {
			if err := s.cfg.Records.DeleteSession(context.WithoutCancel(ctx), rec.ID, v.Name); err != nil {
				return api.Session{}, err
			}
		}
		return api.Session{}, fmt.Errorf("start session %q in vm %q: %w", v.Name, rec.Name, unknownToAgent(rec, err))
	}
	v, err = s.cfg.Records.UpdateSession(context.WithoutCancel(ctx), rec.ID, v.Name, func(v *store.Session) error {
		if v.State == api.SessionStarting {
			v.State, v.PID = api.SessionRunning, st.PID
		}
		return nil
	})
	if err != nil {
		return api.Session{}, err
	}
	if v.State == api.SessionRunning {
		s.openSocket(l, rec, v)
	}
	s.emit("session.started", rec.Name, v.Name)
	return s.sessionView(rec, v, nil), nil
}

// checkSession refuses what no guest can do.
func checkSession(req api.StartSession) error {
	switch {
	case req.Name != "" && !wire.ValidSessionName(req.Name):
		return api.Errorf(api.KindInvalid, "session name %.80q is not valid", req.Name).WithHint("use letters, digits, and . _ - within, %d at most", wire.MaxSessionName)
	case !wire.ValidSessionStdin(req.Stdin):
		return api.Errorf(api.KindInvalid, "stdin mode %.40q is none of none, pipe, pty", req.Stdin)
	}
	return nil
}

// sessionName is a name for a session that was given none: its command's, with a number where that is taken.
func (s *Service) sessionName(ctx context.Context, id string, command []string) (string, error) {
	base := "shell"
	if len(command) > 0 {
		base = path.Base(command[0])
	}
	if base = base[:min(len(base), wire.MaxSessionName-8)]; !wire.ValidSessionName(base) {
		base = "session"
	}
	all, err := s.cfg.Records.Sessions(ctx, id)
	if err != nil {
		return "", err
	}
	name := base
	for n := 2; slices.ContainsFunc(all, func(v store.Session) bool { return v.Name == name }); n++ {
		name = fmt.Sprintf("%s-%d", base, n)
	}
	return name, nil
}

// sessionExists says what to do about a name that is taken.
func sessionExists(rec store.VM, name string, err error) error {
	if api.KindOf(err) != api.KindConflict {
		return err
	}
	return api.Errorf(api.KindConflict, "vm %q has a session %q already", rec.Name, name).
		WithHint("choose another name, or, when it has ended, remove it: banger vm session delete %s %s", rec.Name, name)
}

// refused tells whether an agent's answer to a start says that nothing was started. Where there is no answer nobody knows yet.
func refused(err error) bool {
	switch api.KindOf(err) {
	case api.KindNotFound, api.KindUnavailable, api.KindInvalid, api.KindConflict:
		return true
	}
	return withoutSessions(err)
}

// withoutSessions tells whether an answer to a start is that of an agent of an earlier banger.
func withoutSessions(err error) bool {
	return noSessions(err) || strings.Contains(err.Error(), "without a reason")
}

// noSessions tells whether an agent knows nothing of sessions.
func noSessions(err error) bool {
	return api.KindOf(err) == api.KindNotFound || strings.Contains(err.Error(), "answered 404")
}

// unknownToAgent explains an agent of an earlier banger.
func unknownToAgent(rec store.VM, err error) error {
	if withoutSessions(err) {
		return api.Errorf(api.KindConflict, "the agent in the VM is one of an earlier banger, which has no sessions").
			WithHint("restart the VM: banger vm restart %s", rec.Name)
	}
	return err
}

// startInGuest has the agent start a session. What is left there of one whose record was deleted is removed.
func (s *Service) startInGuest(ctx context.Context, l *live, v store.Session, req api.StartSession) (wire.SessionStatus, error) {
	guest := s.guest(l)
	start := wire.SessionStart{Version: wire.Version, ID: v.ID, Name: v.Name, Argv: req.Command, Dir: req.Dir, Env: req.Env, User: req.User,
		Stdin: req.Stdin, Rows: req.Rows, Cols: req.Cols, LogBytes: v.LogBytes, LogFiles: v.LogFiles}
	st, err := guest.StartSession(ctx, start)
	var x *wire.ExecError
	if errors.As(err, &x) && x.Code == wire.ExecExists {
		if err := guest.RemoveSession(ctx, v.Name); err != nil && api.KindOf(err) != api.KindNotFound {
			return st, wire.ExecErrorf(wire.ExecExists, "another one of that name: %v", err)
		}
		st, err = guest.StartSession(ctx, start)
	}
	return st, err
}

// sessionFailed is a session whose command could not be started.
func (s *Service) sessionFailed(ctx context.Context, rec store.VM, v store.Session, x *wire.ExecError) (api.Session, error) {
	if err := s.cfg.Records.DeleteSession(context.WithoutCancel(ctx), rec.ID, v.Name); err != nil {
		return api.Session{}, err
	}
	status := x.Status()
	if status == 0 {
		return api.Session{}, api.Errorf(api.KindGuest, "start session %q in vm %q: %s", v.Name, rec.Name, x.Message)
	}
	v.State, v.Status, v.Reason = api.SessionFailed, &status, x.Message
	return s.sessionView(rec, v, nil), nil
}

// WaitSession waits until a session has ended, at most for MaxSessionWait, and returns it as it is then.
func (s *Service) WaitSession(ctx context.Context, nameOrID, name string) (api.Session, error) {
	rec, _, err := s.session(ctx, nameOrID, name)
	if err != nil {
		return api.Session{}, err
	}
	if _, err := s.sessionEnds(ctx, rec.ID, name, MaxSessionWait); err != nil {
		return api.Session{}, err
	}
	return s.Session(ctx, rec.ID, name)
}

// sessionEnds waits until a session is recorded as ended, at most for d, and tells whether it is.
func (s *Service) sessionEnds(ctx context.Context, id, name string, d time.Duration) (bool, error) {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		changed := s.sessionNews()
		v, err := s.cfg.Records.Session(ctx, id, name)
		if err != nil {
			return false, err
		}
		if v.State == api.SessionEnded {
			return true, nil
		}
		select {
		case <-changed:
		case <-t.C:
			return false, nil
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-s.ctx.Done():
			return false, nil
		}
	}
}

// StopSession asks a session to end by a signal, and kills it where it has not within a time. One that has ended is fine.
func (s *Service) StopSession(ctx context.Context, nameOrID, name string, req api.StopSession, rep progress.Reporter) (api.Session, error) {
	rec, v, err := s.session(ctx, nameOrID, name)
	if err != nil {
		return api.Session{}, err
	}
	signal := strings.TrimPrefix(strings.ToUpper(cmp.Or(req.Signal, "TERM")), "SIG")
	timeout := cmp.Or(time.Duration(req.TimeoutSeconds)*time.Second, sessionStopTimeout)
	if v.State == api.SessionEnded {
		return s.Session(ctx, rec.ID, name)
	}
	if signal == "KILL" {
		timeout = sessionKillTimeout
	}
	for {
		ended, err := s.signalSession(ctx, rec, name, signal, timeout, rep)
		if err != nil {
			return api.Session{}, fmt.Errorf("stop session %q of vm %q: %w", name, rec.Name, err)
		}
		if ended {
			return s.Session(ctx, rec.ID, name)
		}
		if signal == "KILL" {
			return api.Session{}, api.Errorf(api.KindGuest, "session %q of vm %q was killed and does not end", name, rec.Name)
		}
		rep.Note(fmt.Sprintf("session %q did not end within %s of SIG%s: killing it", name, timeout, signal))
		signal, timeout = "KILL", sessionKillTimeout
	}
}

// signalSession signals a session and waits for its end.
func (s *Service) signalSession(ctx context.Context, rec store.VM, name, signal string, timeout time.Duration, rep progress.Reporter) (bool, error) {
	l, _, err := s.reachable(ctx, rec.ID)
	if err != nil {
		return false, err
	}
	_, err = s.cfg.Records.UpdateSession(ctx, rec.ID, name, func(v *store.Session) error {
		if v.Asked {
			return errSessionUnchanged
		}
		v.Asked = true
		return nil
	})
	if err != nil && !errors.Is(err, errSessionUnchanged) {
		return false, err
	}
	rep.Step(fmt.Sprintf("send SIG%s to %s", signal, name))
	if err := s.guest(l).SignalSession(ctx, name, signal); err != nil {
		return false, err
	}
	return s.sessionEnds(ctx, rec.ID, name, timeout)
}

// DeleteSession removes an ended session with its log. One that runs is refused, unless force is set; it is killed then.
func (s *Service) DeleteSession(ctx context.Context, nameOrID, name string, force bool) error {
	rec, v, err := s.session(ctx, nameOrID, name)
	if err != nil {
		return err
	}
	if v.State != api.SessionEnded {
		if !force {
			return api.Errorf(api.KindConflict, "session %q of vm %q is %s", name, rec.Name, v.State).
				WithHint("stop it first (banger vm session stop %s %s), or delete it as it is: banger vm session delete --force %s %s", rec.Name, name, rec.Name, name)
		}
		if _, err := s.StopSession(ctx, rec.ID, name, api.StopSession{Signal: "KILL"}, progress.Discard); err != nil {
			return err
		}
	}
	// In a guest that does not run the log stays until it does: the watcher removes what no record names.
	if l := s.running(rec.ID); l != nil && l.now().Mark.Reached(api.MarkAgent) && !l.isEnding() {
		if err := s.guest(l).RemoveSession(ctx, name); err != nil && api.KindOf(err) != api.KindNotFound {
			return fmt.Errorf("delete session %q of vm %q: %w", name, rec.Name, err)
		}
	}
	return s.cfg.Records.DeleteSession(context.WithoutCancel(ctx), rec.ID, name)
}

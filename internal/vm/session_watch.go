package vm

import (
	"context"
	"errors"
	"slices"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// How soon an agent that did not answer is asked again about its sessions, at first and at last.
const (
	sessionsAgainMin = 100 * time.Millisecond
	sessionsAgainMax = 2 * time.Second
)

// A wait for news of sessions that was shorter than sessionsEarly had some soon. Of such in a row sessionsBurst are fine.
const (
	sessionsEarly = time.Second
	sessionsBurst = 16
)

// pace bounds how often a guest may have news of its sessions: each is worth some work of the host. The zero value is ready.
type pace struct {
	early int
	wait  time.Duration
}

// after is how long to wait after one wait for news.
func (p *pace) after(waited time.Duration) time.Duration {
	if waited >= sessionsEarly {
		*p = pace{}
		return 0
	}
	if p.early++; p.early > sessionsBurst {
		p.wait = min(max(2*p.wait, sessionsAgainMin), sessionsAgainMax)
	}
	return p.wait
}

// signalledAtEnd is how long before the end of a VM a session may have ended by a signal and is taken to have ended of it.
const signalledAtEnd = 15 * time.Second

// Reasons of sessions that did not end by themselves.
const (
	reasonRestarted  = "the guest restarted"
	reasonStopped    = "the VM was stopped"
	reasonKilled     = "the VM was killed"
	reasonHalted     = "the guest halted"
	reasonNotStarted = "it was not started: the daemon or the VM ended meanwhile"
	reasonGone       = "the VM ended"
	reasonUnseen     = "the VM ended while no daemon ran"
)

// errSessionUnchanged keeps the record of a session.
var errSessionUnchanged = errors.New("nothing changed")

// sessionNews returns a channel that is closed when the record of a session has changed.
func (s *Service) sessionNews() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessionChange
}

func (s *Service) tellSessions() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.sessionChange)
	s.sessionChange = make(chan struct{})
}

// beginSession notes that a session is being started: until done nobody else judges its record.
func (s *Service) beginSession(id, name string) (done func()) {
	key := [2]string{id, name}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.starting[key]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.starting[key]--; s.starting[key] == 0 {
			delete(s.starting, key)
		}
	}
}

func (s *Service) isStarting(id, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.starting[[2]string{id, name}] > 0
}

// kickSessions has a VM's sessions looked at.
func (s *Service) kickSessions(l *live) {
	select {
	case l.sessions <- struct{}{}:
	default:
	}
}

// followSessions keeps the records of a VM's sessions true, and their sockets open, for as long as the VM runs. Where none runs it
// asks the guest nothing, until it is kicked.
func (s *Service) followSessions(rec store.VM, l *live) {
	defer close(l.unfollowed)
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	go func() {
		select {
		case <-l.ending:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer s.sockets.closeAll(rec.ID)
	for {
		all, err := s.cfg.Records.Sessions(ctx, rec.ID)
		if err == nil && len(all) > 0 {
			s.askSessions(ctx, rec, l)
		}
		select {
		case <-l.sessions:
		case <-ctx.Done():
			return
		}
	}
}

// askSessions follows the agent's sessions until none runs, or ctx ends.
func (s *Service) askSessions(ctx context.Context, rec store.VM, l *live) {
	var seq uint64
	again := sessionsAgainMin
	var news pace
	for {
		if _, err := l.until(ctx, func(st vmm.Status) bool { return st.Mark.Reached(api.MarkAgent) }); err != nil {
			return
		}
		asked := time.Now()
		list, kicked, err := s.pollSessions(ctx, l, seq)
		if kicked {
			seq, news = 0, pace{}
			continue
		}
		pause := again
		switch {
		case err == nil:
			seq, again, pause = list.Seq, sessionsAgainMin, news.after(time.Since(asked))
			if !s.takeSessions(ctx, rec, l, list.Sessions) {
				return
			}
		case api.KindOf(err) == api.KindUnavailable, noSessions(err): // a guest without sessions
			return
		default:
			s.cfg.Log.Debug("ask about sessions", "vm", rec.Name, "err", err)
			seq, again = 0, min(2*again, sessionsAgainMax)
		}
		select {
		case <-time.After(pause):
		case <-l.sessions:
			seq, news = 0, pace{}
		case <-ctx.Done():
			return
		}
	}
}

// pollSessions waits for news of the agent's sessions, or for a kick.
func (s *Service) pollSessions(ctx context.Context, l *live, seq uint64) (list wire.SessionList, kicked bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		list, err = s.guest(l).Sessions(ctx, seq)
	}()
	select {
	case <-done:
	case <-l.sessions:
		kicked = true
		cancel()
		<-done
	}
	return list, kicked, err
}

// takeSessions records what the agent says of its sessions, and tells whether one runs.
func (s *Service) takeSessions(ctx context.Context, rec store.VM, l *live, seen []wire.SessionStatus) bool {
	byID := map[string]wire.SessionStatus{}
	for _, st := range seen {
		byID[st.ID] = st
	}
	all, err := s.cfg.Records.Sessions(ctx, rec.ID)
	if err != nil {
		s.cfg.Log.Error("read sessions", "vm", rec.Name, "err", err)
		return true
	}
	runs := false
	known := map[string]bool{}
	for _, v := range all {
		known[v.ID] = true
		if v.State == api.SessionEnded {
			continue
		}
		if v.State == api.SessionStarting && s.isStarting(rec.ID, v.Name) {
			runs = true
			continue
		}
		st, ok := byID[v.ID]
		now := s.takeSession(ctx, rec, v, st, ok)
		if now.State == api.SessionRunning {
			runs = true
			s.openSocket(l, rec, now)
		}
	}
	for _, st := range seen {
		if !known[st.ID] && !s.isStarting(rec.ID, st.Name) {
			runs = s.unknownSession(ctx, rec, l, st) || runs
		}
	}
	return runs
}

// takeSession brings one record up to date, and returns it.
func (s *Service) takeSession(ctx context.Context, rec store.VM, v store.Session, st wire.SessionStatus, known bool) store.Session {
	now, err := s.cfg.Records.UpdateSession(context.WithoutCancel(ctx), rec.ID, v.Name, func(v *store.Session) error {
		switch {
		case v.State == api.SessionEnded:
			return errSessionUnchanged
		case !known && v.State == api.SessionStarting:
			s.endSession(v, reasonNotStarted)
		case !known:
			s.endSession(v, "the guest does not know it any more")
		case !st.Ended && v.State == api.SessionRunning: // whatever pid it is said to have now
			return errSessionUnchanged
		case !st.Ended:
			v.State, v.PID = api.SessionRunning, st.PID
		default:
			reason := ""
			if vm, err := s.cfg.Records.VM(ctx, rec.ID); st.Exit == nil {
				reason = reasonRestarted
			} else if err == nil && vm.State == api.StateStopping && !v.Asked {
				reason = reasonStopped
			}
			s.endSession(v, reason)
			v.StdoutBytes, v.StderrBytes, v.DroppedBytes = st.Stdout, st.Stderr, st.Dropped
			if st.Exit != nil {
				status := st.Exit.Status
				v.Status, v.Signal = &status, st.Exit.Signal
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errSessionUnchanged):
		if now.Name != "" {
			return now
		}
		return v
	case err != nil:
		if api.KindOf(err) != api.KindNotFound {
			s.cfg.Log.Error("record session", "vm", rec.Name, "session", v.Name, "err", err)
		}
		return v
	}
	if now.State == api.SessionEnded {
		s.sessionEnded(rec, now)
	}
	return now
}

// endSession makes a record that of an ended session.
func (s *Service) endSession(v *store.Session, reason string) {
	at := s.cfg.Host.Now()
	v.State, v.PID, v.EndedAt, v.Reason = api.SessionEnded, 0, &at, reason
}

// sessionEnded is what follows once the end of a session is recorded.
func (s *Service) sessionEnded(rec store.VM, v store.Session) {
	s.sockets.close(rec.ID, v.Name)
	s.pruneSessions(rec)
	s.tellSessions()
	s.emit("session.ended", rec.Name, v.Name)
	s.cfg.Log.Info("session ended", "vm", rec.Name, "session", v.Name, "reason", v.Reason)
}

// pruneSessions forgets the oldest ended sessions, of which the guest keeps no logs any more.
func (s *Service) pruneSessions(rec store.VM) {
	ctx := context.WithoutCancel(s.ctx)
	all, err := s.cfg.Records.Sessions(ctx, rec.ID)
	if err != nil {
		s.cfg.Log.Error("read sessions", "vm", rec.Name, "err", err)
		return
	}
	ended := slices.DeleteFunc(all, func(v store.Session) bool { return v.State != api.SessionEnded || v.EndedAt == nil })
	slices.SortFunc(ended, func(a, b store.Session) int { return a.EndedAt.Compare(*b.EndedAt) })
	for _, v := range ended[:max(0, len(ended)-wire.MaxEndedSessions)] {
		if err := s.cfg.Records.DeleteSession(ctx, rec.ID, v.Name); err != nil {
			s.cfg.Log.Error("forget session", "vm", rec.Name, "session", v.Name, "err", err)
		}
	}
}

// unknownSession is one the agent has and no record: what was deleted while the VM did not run goes, what runs is recorded. It tells whether it
// runs.
func (s *Service) unknownSession(ctx context.Context, rec store.VM, l *live, st wire.SessionStatus) bool {
	if st.Ended {
		if err := s.guest(l).RemoveSession(ctx, st.Name); err != nil {
			s.cfg.Log.Debug("remove a session without a record", "vm", rec.Name, "session", st.Name, "err", err)
		}
		return false
	}
	v := store.Session{VM: rec.ID, Name: st.Name, State: api.SessionRunning, ID: st.ID, Command: st.Argv, Dir: st.Dir, User: st.User, Stdin: st.Stdin,
		PID: st.PID, CreatedAt: s.cfg.Host.Now()}
	if err := s.cfg.Records.InsertSession(ctx, v); err != nil {
		s.cfg.Log.Warn("a session without a record", "vm", rec.Name, "session", st.Name, "err", err)
		return false
	}
	s.openSocket(l, rec, v)
	return true
}

// endedWith tells whether a session that has ended just before its VM did ended of that: by a signal that the end of a guest sends.
func endedWith(v store.Session, now time.Time) bool {
	if v.State != api.SessionEnded || v.Reason != "" || v.Asked || v.EndedAt == nil || now.Sub(*v.EndedAt) >= signalledAtEnd {
		return false
	}
	return v.Signal == "TERM" || v.Signal == "HUP" || v.Signal == "KILL"
}

// endSessions records that a VM has ended, for its sessions. Those that its end ended just before are given the reason.
func (s *Service) endSessions(id, reason string) {
	ctx := context.WithoutCancel(s.ctx)
	rec, err := s.cfg.Records.VM(ctx, id)
	if err != nil {
		return
	}
	all, err := s.cfg.Records.Sessions(ctx, id)
	if err != nil {
		s.cfg.Log.Error("read sessions", "vm", rec.Name, "err", err)
		return
	}
	now := s.cfg.Host.Now()
	for _, v := range all {
		late := v.State == api.SessionEnded
		if late && !endedWith(v, now) {
			continue
		}
		v, err = s.cfg.Records.UpdateSession(ctx, id, v.Name, func(v *store.Session) error {
			if late = v.State == api.SessionEnded; !late {
				s.endSession(v, reason)
			} else if endedWith(*v, now) {
				v.Reason = reason
			}
			return nil
		})
		if err != nil {
			s.cfg.Log.Error("record session", "vm", rec.Name, "session", v.Name, "err", err)
			continue
		}
		if late { // its end was told
			s.tellSessions()
			continue
		}
		s.sessionEnded(rec, v)
	}
}

// sessionReason says what the end of a VM was to its sessions.
func sessionReason(end *vmm.End) string {
	if end == nil {
		return reasonUnseen
	}
	switch end.Cause {
	case vmm.EndPoweroff:
		return reasonStopped
	case vmm.EndKilled:
		return reasonKilled
	case vmm.EndHalt:
		return reasonHalted
	}
	_, reason := ended(end)
	return "the VM ended: " + reason
}

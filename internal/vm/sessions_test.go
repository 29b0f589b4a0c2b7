package vm

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
)

// withGuests gives the machines of a world guests in which commands run.
func withGuests(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.paths.Runtime = t.TempDir()
	w.svc.Close()
	w.svc = w.service()
	dir := t.TempDir()
	var guest atomic.Pointer[fakeguest.Guest]
	boot := func() {
		g, err := fakeguest.New(fakeguest.Config{Dir: dir, Log: slog.New(slog.DiscardHandler), OnVerb: func(string) {}})
		if err != nil {
			t.Fatal(err)
		}
		guest.Store(g)
	}
	boot()
	w.engine.dialGuest = func(port uint32) (net.Conn, error) {
		near, far := net.Pipe()
		if w.engine.unreachable.Load() {
			return nil, errInjected
		}
		if !guest.Load().Accept(port, far) {
			return nil, vmm.ErrRefused
		}
		return near, nil
	}
	w.engine.bootGuest = func() { guest.Load().Close(); boot() }
	t.Cleanup(func() { guest.Load().Close() })
	return w
}

func (w *world) startSession(req api.StartSession) api.Session {
	w.t.Helper()
	s, err := w.svc.StartSession(w.t.Context(), "box", req)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// untilSession waits for a session that is as wanted.
func (w *world) untilSession(name string, ok func(api.Session) bool) api.Session {
	w.t.Helper()
	for {
		changed := w.svc.sessionNews()
		s, err := w.svc.Session(w.t.Context(), "box", name)
		if err != nil {
			w.t.Fatal(err)
		}
		if ok(s) {
			return s
		}
		select {
		case <-changed:
		case <-time.After(10 * time.Millisecond): // a socket is opened without news
		case <-w.t.Context().Done():
			w.t.Fatalf("session %+v", s)
		}
	}
}

func isEnded(s api.Session) bool   { return s.State == api.SessionEnded }
func hasSocket(s api.Session) bool { return s.Socket != "" }

func dialSocket(t *testing.T, s api.Session) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", s.Socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	return conn.(*net.UnixConn)
}

func expect(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(r, got); err != nil || string(got) != want {
		t.Errorf("read %q, %v; want %q", got[:n], err, want)
	}
}

// TestSessionSocket: raw bytes both ways by the socket: who writes misses nothing that was not sent yet, another one reads, closing
// leaves, and half an end is one of stdin.
func TestSessionSocket(t *testing.T) {
	w := withGuests(t)
	w.create(api.CreateVM{Name: "box", Start: true})
	s := w.startSession(api.StartSession{Name: "s", Stdin: "pipe", Command: []string{"sh", "-c", "echo ready; cat; exit 4"}})
	if st, err := os.Stat(s.Socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket %q: %v, %v", s.Socket, st, err)
	}
	a := dialSocket(t, s)
	expect(t, a, "ready\n") // printed before anybody was there
	b := dialSocket(t, s)
	w.untilSession("s", func(s api.Session) bool { return s.Writer && s.Readers == 1 })
	_, _ = io.WriteString(b, "not heard\n")
	_, _ = io.WriteString(a, "one\n")
	expect(t, a, "one\n")
	expect(t, b, "one\n")
	_, _ = a.Close(), b.Close()
	w.untilSession("s", func(s api.Session) bool { return !s.Writer && s.Readers == 0 })
	if s := w.untilSession("s", func(api.Session) bool { return true }); s.State != api.SessionRunning {
		t.Fatalf("after its clients have left: %+v", s)
	}
	c := dialSocket(t, s)
	_, _ = io.WriteString(c, "two\n")
	expect(t, c, "two\n")
	_, _ = io.WriteString(c, "last")
	_ = c.CloseWrite()
	if rest, err := io.ReadAll(c); err != nil || string(rest) != "last" {
		t.Errorf("after the end of stdin: %q, %v", rest, err)
	}
	s = w.untilSession("s", isEnded)
	if s.Status == nil || *s.Status != 4 || s.Socket != "" {
		t.Errorf("ended as %+v", s)
	}
	for left, _ := os.ReadDir(w.paths.Sessions()); len(left) != 0; left, _ = os.ReadDir(w.paths.Sessions()) {
		if t.Context().Err() != nil {
			t.Fatalf("left %v", left)
		}
		runtime.Gosched() // it goes right after the end is recorded
	}
}

// TestSocketWithoutStdin: a client of a session that takes no stdin has left once it closes its connection.
func TestSocketWithoutStdin(t *testing.T) {
	w := withGuests(t)
	w.create(api.CreateVM{Name: "box", Start: true})
	s := w.startSession(api.StartSession{Name: "s", Command: []string{"sh", "-c", "echo begun; exec sleep 1000"}})
	conn := dialSocket(t, s)
	expect(t, conn, "begun\n")
	w.untilSession("s", func(s api.Session) bool { return s.Writer })
	_, _ = io.WriteString(conn, "not heard\n")
	_ = conn.Close()
	w.untilSession("s", func(s api.Session) bool { return !s.Writer && s.Readers == 0 })
}

// TestSessionsAfterRestart: a new daemon finds the sessions that run, with their sockets, and knows of those that have ended.
func TestSessionsAfterRestart(t *testing.T) {
	w := withGuests(t)
	w.create(api.CreateVM{Name: "box", Start: true})
	w.startSession(api.StartSession{Name: "runs", Stdin: "pipe", Command: []string{"sh", "-c", "echo ready; cat"}})
	s := w.startSession(api.StartSession{Name: "ends", Stdin: "pipe", Command: []string{"sh", "-c", "read l; exit 6"}})
	conn := dialSocket(t, w.untilSession("runs", hasSocket))
	expect(t, conn, "ready\n")
	_, _ = io.WriteString(conn, "one\n")
	expect(t, conn, "one\n")
	_ = dialSocket(t, s)
	w.svc.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("the connection after the daemon's end: %v", err)
	}
	if left, _ := os.ReadDir(w.paths.Sessions()); len(left) != 0 {
		t.Errorf("left %v", left)
	}
	send(t, w, "ends", "go\n") // while there is no daemon
	w.svc = w.service()
	if err := w.svc.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.untilSession("ends", isEnded); s.Status == nil || *s.Status != 6 {
		t.Errorf("what ended meanwhile: %+v", s)
	}
	again := dialSocket(t, w.untilSession("runs", hasSocket))
	_, _ = io.WriteString(again, "two\n")
	expect(t, again, "two\n")
}

// send writes to a session as another client of the agent.
func send(t *testing.T, w *world, name, text string) {
	t.Helper()
	_, err := exec.Run(t.Context(), exec.Options{Stdin: strings.NewReader(text), Session: &exec.Session{Name: name, Write: true, SendOnly: true, KeepOpen: true},
		Dial: func(context.Context) (net.Conn, error) { return w.engine.dialGuest(wire.PortExec) }})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSessionsOfEndedVM: however a VM ends, its sessions have ended, and it is said of what.
func TestSessionsOfEndedVM(t *testing.T) {
	for want, end := range map[string]func(*world) error{
		reasonStopped: func(w *world) error { _, err := w.svc.Stop(w.t.Context(), "box", 0, progress.Discard); return err },
		reasonKilled:  func(w *world) error { _, err := w.svc.Kill(w.t.Context(), "box"); return err },
		"the VM ended: the VMM failed": func(w *world) error {
			vm, err := w.svc.VM(w.t.Context(), "box")
			w.machine(vm).end(vmm.EndCrashed)
			return err
		},
	} {
		t.Run(want, func(t *testing.T) {
			w := withGuests(t)
			w.create(api.CreateVM{Name: "box", Start: true})
			w.startSession(api.StartSession{Name: "s", Command: []string{"sleep", "1000"}})
			if err := end(w); err != nil {
				t.Fatal(err)
			}
			if s := w.untilSession("s", isEnded); s.Reason != want || s.Status != nil || s.Socket != "" {
				t.Errorf("%+v", s)
			}
			_, err := w.svc.StartSession(t.Context(), "box", api.StartSession{Name: "late"})
			if e := api.AsError(err); e.Kind != api.KindConflict || !strings.Contains(e.Hint, "vm start box") {
				t.Errorf("start in a VM that does not run: %v, hint %q", err, e.Hint)
			}
			if err := w.svc.DeleteSession(t.Context(), "box", "s", false); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSessionsOfRestartedGuest: the sessions of a guest that restarted have ended of that.
func TestSessionsOfRestartedGuest(t *testing.T) {
	w := withGuests(t)
	w.create(api.CreateVM{Name: "box", Start: true})
	w.startSession(api.StartSession{Name: "s", Command: []string{"sh", "-c", "echo begun; exec sleep 1000"}})
	w.engine.bootGuest()
	s := w.untilSession("s", isEnded)
	if s.Reason != reasonRestarted && s.Signal != "KILL" { // the fake's end may be seen as one of the process
		t.Errorf("%+v", s)
	}
}

// TestStopSession: the signal first, then KILL, which is said.
func TestStopSession(t *testing.T) {
	w := withGuests(t)
	ctx := t.Context()
	w.create(api.CreateVM{Name: "box", Start: true})
	w.startSession(api.StartSession{Name: "s", Stdin: "pipe", Command: []string{"sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.1; done"}})
	expect(t, dialSocket(t, w.untilSession("s", hasSocket)), "deaf\n")
	if err := w.svc.DeleteSession(ctx, "box", "s", false); api.KindOf(err) != api.KindConflict {
		t.Errorf("delete one that runs: %v", err)
	}
	notes := &noted{}
	s, err := w.svc.StopSession(ctx, "box", "s", api.StopSession{TimeoutSeconds: 1}, notes)
	if err != nil || s.State != api.SessionEnded || s.Signal != "KILL" || !strings.Contains(notes.String(), "did not end within 1s of SIGTERM: killing it") {
		t.Errorf("%+v, %v, %s", s, err, notes)
	}
	if _, err := w.svc.StopSession(ctx, "box", "s", api.StopSession{}, progress.Discard); err != nil {
		t.Errorf("stop one that has ended: %v", err)
	}
	if s, err := w.svc.WaitSession(ctx, "box", "s"); err != nil || s.State != api.SessionEnded {
		t.Errorf("wait for one that has ended: %+v, %v", s, err)
	}
}

// TestSessionsThatFail: what does not start leaves no record, or one that is settled.
func TestSessionsThatFail(t *testing.T) {
	w := withGuests(t)
	ctx := t.Context()
	w.create(api.CreateVM{Name: "box", Start: true})
	s, err := w.svc.StartSession(ctx, "box", api.StartSession{Name: "s", Command: []string{"no-such"}})
	if err != nil || s.State != api.SessionFailed || s.Status == nil || *s.Status != 127 {
		t.Errorf("%+v, %v", s, err)
	}
	for _, req := range []api.StartSession{{Name: "a/b"}, {Name: "s", Stdin: "tty"}, {Name: "s", Dir: "/no/such"}, {Name: "s", User: "nobody-here"}} {
		if _, err := w.svc.StartSession(ctx, "box", req); err == nil {
			t.Errorf("%+v was started", req)
		}
	}
	if all, err := w.svc.Sessions(ctx, "box"); err != nil || len(all) != 0 {
		t.Errorf("left %+v, %v", all, err)
	}
	w.engine.unreachable.Store(true)
	if _, err := w.svc.StartSession(ctx, "box", api.StartSession{Name: "s", Command: []string{"true"}}); err == nil {
		t.Error("started without a guest")
	}
	w.engine.unreachable.Store(false)
	if s := w.untilSession("s", isEnded); s.Reason != reasonNotStarted {
		t.Errorf("%+v", s)
	}
}

// TestRefusedSession: what an agent refused to start leaves no record.
func TestRefusedSession(t *testing.T) {
	for _, answer := range []string{
		"404 Not Found\r\nContent-Length: 0\r\n\r\n",
		"503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 49\r\n\r\n" + `{"error":{"kind":"unavailable","message":"full"}}`,
	} {
		w := withGuests(t)
		var refuses atomic.Bool
		guest := w.engine.dialGuest
		w.engine.dialGuest = func(port uint32) (net.Conn, error) {
			if !refuses.Load() {
				return guest(port)
			}
			near, far := net.Pipe()
			go func() {
				defer far.Close()
				r, err := http.ReadRequest(bufio.NewReader(far))
				if err == nil {
					_, _ = io.Copy(io.Discard, r.Body)
					_, _ = io.WriteString(far, "HTTP/1.1 "+answer)
				}
			}()
			return near, nil
		}
		w.create(api.CreateVM{Name: "box", Start: true})
		refuses.Store(true)
		if s, err := w.svc.StartSession(t.Context(), "box", api.StartSession{Name: "s", Command: []string{"true"}}); err == nil {
			t.Errorf("%.3s: started %+v", answer, s)
		}
		if all, err := w.svc.Sessions(t.Context(), "box"); err != nil || len(all) != 0 {
			t.Errorf("%.3s: left %+v, %v", answer, all, err)
		}
		refuses.Store(false)
	}
}

// TestPace: news that come all the time are asked for less and less often, until there are none for a while.
func TestPace(t *testing.T) {
	var p pace
	for range sessionsBurst {
		if d := p.after(0); d != 0 {
			t.Errorf("waits for %s at once", d)
		}
	}
	for _, want := range []time.Duration{sessionsAgainMin, 2 * sessionsAgainMin, 4 * sessionsAgainMin} {
		if d := p.after(0); d != want {
			t.Errorf("waits for %s, want %s", d, want)
		}
	}
	for range 10 {
		p.after(0)
	}
	if d := p.after(0); d != sessionsAgainMax {
		t.Errorf("waits for %s at last", d)
	}
	if d := p.after(sessionsEarly); d != 0 {
		t.Errorf("waits for %s after a while without news", d)
	}
}

// TestEndedWith: of what has ended before its VM only what a signal of a guest's end has ended is taken to have ended of that.
func TestEndedWith(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	before := now.Add(-time.Second)
	long := now.Add(-time.Hour)
	for _, tt := range []struct {
		v    store.Session
		want bool
	}{
		{store.Session{State: api.SessionEnded, Signal: "TERM", EndedAt: &before}, true},
		{store.Session{State: api.SessionEnded, Signal: "KILL", EndedAt: &before}, true},
		{store.Session{State: api.SessionEnded, Signal: "SEGV", EndedAt: &before}, false},
		{store.Session{State: api.SessionEnded, EndedAt: &before}, false},
		{store.Session{State: api.SessionEnded, Signal: "TERM", EndedAt: &long}, false},
		{store.Session{State: api.SessionEnded, Signal: "TERM", EndedAt: &before, Asked: true}, false},
		{store.Session{State: api.SessionEnded, Signal: "TERM", EndedAt: &before, Reason: reasonRestarted}, false},
		{store.Session{State: api.SessionRunning}, false},
	} {
		if got := endedWith(tt.v, now); got != tt.want {
			t.Errorf("%+v: %v", tt.v, got)
		}
	}
}

// TestSessionWithoutRecord: an ended one is removed from the guest, so that its name is free.
func TestSessionWithoutRecord(t *testing.T) {
	w := withGuests(t)
	ctx := t.Context()
	vm := w.create(api.CreateVM{Name: "box", Start: true})
	w.startSession(api.StartSession{Name: "s", Command: []string{"true"}})
	w.untilSession("s", isEnded)
	if err := w.db.DeleteSession(ctx, vm.ID, "s"); err != nil {
		t.Fatal(err)
	}
	w.startSession(api.StartSession{Name: "s", Command: []string{"sh", "-c", "exit 2"}})
	if s := w.untilSession("s", isEnded); s.Status == nil || *s.Status != 2 {
		t.Errorf("%+v", s)
	}
}

// TestManySessions: of those that have ended the oldest are forgotten, in the records as in the guest.
func TestManySessions(t *testing.T) {
	w := withGuests(t)
	w.create(api.CreateVM{Name: "box", Start: true})
	for i := range wire.MaxEndedSessions + 2 {
		name := fmt.Sprint("s", i)
		w.startSession(api.StartSession{Name: name, Command: []string{"true"}})
		w.untilSession(name, isEnded)
	}
	for {
		all, err := w.svc.Sessions(t.Context(), "box")
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == wire.MaxEndedSessions && all[0].Name == "s2" {
			return
		}
		runtime.Gosched() // right after the last end is recorded
	}
}

// TestSessionSpeaksRPC is an agent host at a session's socket: JSON-RPC by lines, messages of a megabyte both ways, in pieces of any size.
func TestSessionSpeaksRPC(t *testing.T) {
	w := withGuests(t)
	w.create(api.CreateVM{Name: "box", Start: true})
	s := w.startSession(api.StartSession{Name: "rpc", Stdin: "pipe", Command: []string{"cat"}})
	conn := dialSocket(t, s)
	rnd := rand.New(rand.NewPCG(1, 2))
	go func() {
		for i := range 6 {
			msg, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": i, "params": strings.Repeat(fmt.Sprint(i), 1<<20)})
			for msg = append(msg, '\n'); len(msg) > 0; {
				n := min(len(msg), 1+rnd.IntN(100_000))
				if _, err := conn.Write(msg[:n]); err != nil {
					return
				}
				msg = msg[n:]
			}
		}
	}()
	d := json.NewDecoder(conn)
	for i := range 6 {
		var msg struct {
			ID     int    `json:"id"`
			Params string `json:"params"`
		}
		if err := d.Decode(&msg); err != nil || msg.ID != i || msg.Params != strings.Repeat(fmt.Sprint(i), 1<<20) {
			t.Fatalf("message %d: id %d, %d bytes, %v", i, msg.ID, len(msg.Params), err)
		}
	}
}

// TestSessionLogs of a VM that runs, and of one whose drive shows nothing.
func TestSessionLogs(t *testing.T) {
	w := withGuests(t)
	ctx := t.Context()
	w.create(api.CreateVM{Name: "box", Start: true})
	w.startSession(api.StartSession{Name: "s", Command: []string{"sh", "-c", "echo out; echo err >&2"}})
	w.untilSession("s", isEnded)
	var out bytes.Buffer
	if err := w.svc.SessionLogs(ctx, "box", "s", api.SessionLogs{Tail: -1, Stream: "stderr"}, &out); err != nil || out.String() != "err\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if _, err := w.svc.Stop(ctx, "box", 0, progress.Discard); err != nil {
		t.Fatal(err)
	}
	err := w.svc.SessionLogs(ctx, "box", "s", api.SessionLogs{Tail: -1}, &out)
	if e := api.AsError(err); e.Kind != api.KindConflict || !strings.Contains(e.Hint, "vm start box") {
		t.Errorf("%v, hint %q", err, e.Hint)
	}
}

// noted keeps notes.
type noted struct {
	progress.Reporter
	text string
}

func (n *noted) Step(string)      {}
func (n *noted) Note(text string) { n.text += text }
func (n *noted) String() string   { return n.text }

// TestLogBudget: what is read off a drive is bounded by what the session was given.
func TestLogBudget(t *testing.T) {
	limits := SessionLimits{Bytes: 1 << 20, Files: 3}
	for _, tt := range []struct {
		v    store.Session
		want int64
	}{
		{store.Session{}, 3 << 20},
		{store.Session{LogBytes: 100 << 20, LogFiles: 4}, 400 << 20},
		{store.Session{LogBytes: 1 << 40, LogFiles: 16}, maxDriveLog},
		{store.Session{LogBytes: 1, LogFiles: 1}, 2 * 128 << 10},
	} {
		if got := logBudget(tt.v, limits); got != tt.want {
			t.Errorf("%d files of %d bytes: %d, want %d", tt.v.LogFiles, tt.v.LogBytes, got, tt.want)
		}
	}
}

// TestReasons: what ends while its VM is stopped ended of that, unless somebody asked for its end; one that failed by itself just before did not.
func TestReasons(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	vm := w.create(api.CreateVM{Name: "box"})
	rec, err := w.db.UpdateVM(ctx, vm.ID, func(r *store.VM) error { r.State = api.StateStopping; return nil })
	if err != nil {
		t.Fatal(err)
	}
	insert := func(v store.Session) store.Session {
		t.Helper()
		v.VM, v.ID, v.CreatedAt = rec.ID, exec.NewID(), w.svc.cfg.Host.Now()
		if v.State == api.SessionEnded {
			v.EndedAt = &v.CreatedAt
		}
		if err := w.db.InsertSession(ctx, v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	handles := insert(store.Session{Name: "handles", State: api.SessionRunning, PID: 7})
	asked := insert(store.Session{Name: "asked", State: api.SessionRunning, PID: 8, Asked: true})
	insert(store.Session{Name: "term", State: api.SessionEnded, Signal: "TERM"})
	insert(store.Session{Name: "segv", State: api.SessionEnded, Signal: "SEGV"})
	if v := w.svc.takeSession(ctx, rec, handles, wire.SessionStatus{ID: handles.ID, PID: 9}, true); v.PID != 7 || v.State != api.SessionRunning {
		t.Errorf("with another pid: %+v", v)
	}
	ended := wire.SessionStatus{Ended: true, Exit: &wire.ExecExit{}}
	w.svc.takeSession(ctx, rec, handles, ended, true)
	w.svc.takeSession(ctx, rec, asked, ended, true)
	w.svc.endSessions(rec.ID, reasonStopped)
	for name, want := range map[string]string{"handles": reasonStopped, "asked": "", "term": reasonStopped, "segv": ""} {
		if v, err := w.db.Session(ctx, rec.ID, name); err != nil || v.State != api.SessionEnded || v.Reason != want {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
}

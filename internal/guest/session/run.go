package session

import (
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// session is one session, running or ended.
type session struct {
	table *Sessions
	name  string
	meta  meta
	up    chan struct{} // closed once it was started: what is not, nobody finds
	done  chan struct{} // closed when it has ended
	sizes chan exec.Size

	mu      sync.Mutex // guards what follows
	news    *sync.Cond // for everybody who waits for anything of this session
	pid     int
	journal *journal.Journal // while it runs
	end     *end             // nil while it runs
	in      *wire.Ring       // stdin that the process was not given yet
	inEOF   bool
	inShut  bool // nothing more is taken
	last    byte // the last of stdin
	keys    keys
	writer  *attachment
	wrote   string // the id of the writer before, or of the one there is
	readers map[*attachment]struct{}
	// read is what of the output writers have acknowledged.
	read [2]uint64
	free bool // nobody is waited for
}

func newSession(s *Sessions, req wire.SessionStart) *session {
	e := &session{table: s, name: req.Name, up: make(chan struct{}), done: make(chan struct{}), sizes: make(chan exec.Size, 1),
		in: wire.NewRing(0, wire.StdinWindow), readers: map[*attachment]struct{}{},
		meta: meta{Version: wire.Version, ID: req.ID, Argv: req.Argv, Dir: req.Dir, User: req.User, Stdin: req.Stdin, StartedAt: s.cfg.Now().UTC()}}
	e.news = sync.NewCond(&e.mu)
	e.inShut = req.Stdin == wire.SessionNone
	return e
}

// start makes the session's directory, starts its process and waits until that runs.
func (e *session) start(ctx context.Context, req wire.SessionStart) error {
	root := e.table.cfg.Dir
	if err := root.RemoveAll(e.name); err != nil { // what no boot could read
		return err
	}
	if err := root.Mkdir(e.name, 0o700); err != nil {
		return err
	}
	dir, err := root.OpenRoot(e.name)
	if err != nil {
		return errors.Join(err, root.RemoveAll(e.name))
	}
	undo := func(err error) error { return errors.Join(err, root.RemoveAll(e.name)) }
	if err := writeJSON(dir, metaFile, e.meta); err != nil {
		return undo(errors.Join(err, dir.Close()))
	}
	if e.journal, err = journal.Create(dir, journal.Limits{SegmentBytes: req.LogBytes, Segments: req.LogFiles}); err != nil {
		return undo(errors.Join(err, dir.Close()))
	}
	started, failed := make(chan int, 1), make(chan error, 1)
	e.table.wg.Go(func() {
		runs := false
		exit, err := exec.Run(context.WithoutCancel(ctx), e.runOptions(req, func(st wire.ExecStarted) {
			runs = true
			started <- st.PID
		}))
		if !runs {
			failed <- cmp.Or(err, errNotStarted)
			return
		}
		<-e.up
		e.finish(exit, err)
	})
	select {
	case e.pid = <-started: // nobody else knows the session yet
		close(e.up)
		return nil
	case err := <-failed:
		return undo(errors.Join(err, e.journal.Close()))
	}
}

// errNotStarted is a run that ended without having begun.
var errNotStarted = errors.New("the command was not started")

// finish records the end of the session's process.
func (e *session) finish(exit wire.ExecExit, err error) {
	if err != nil && !errors.As(err, new(*exec.OutputError)) {
		// The guest is going down, and its next boot will say so.
		e.table.cfg.Log.Info("a session was cut off", "session", e.name, "error", err)
		e.mu.Lock()
		e.free, e.inShut = true, true
		e.news.Broadcast()
		e.mu.Unlock()
		return
	}
	_ = e.journal.Sync() // a full disk has been told of at every write
	out, dropped := e.journal.End()
	last := &end{At: e.table.cfg.Now().UTC(), Exit: &exit, Stdout: out[0], Stderr: out[1], Dropped: dropped}
	dir, derr := e.table.cfg.Dir.OpenRoot(e.name)
	if derr == nil {
		derr = errors.Join(writeJSON(dir, endFile, last), dir.Close())
	}
	if derr != nil {
		e.table.cfg.Log.Error("record the end of a session", "session", e.name, "error", derr)
	}
	e.mu.Lock()
	e.end, e.inShut = last, true
	close(e.done)
	e.news.Broadcast()
	e.mu.Unlock()
	e.table.bump()
	e.table.evict()
}

// isUp tells whether the session was started.
func (e *session) isUp() bool {
	select {
	case <-e.up:
		return true
	default:
		return false
	}
}

func (e *session) hasEnded() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

// endedAt is when it ended; it has.
func (e *session) endedAt() time.Time {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.end.At
}

// letGo makes nobody be waited for any more.
func (e *session) letGo() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.free = true
	e.news.Broadcast()
}

// disconnect ends all attachments.
func (e *session) disconnect() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for a := range e.readers {
		a.hangUp(nil)
	}
	if e.writer != nil {
		e.writer.hangUp(nil)
	}
	e.inEOF = true
	e.news.Broadcast()
}

// close lets go of the journal.
func (e *session) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.journal != nil {
		_ = e.journal.Close()
	}
}

// openJournal returns the session's output, and what lets go of it.
func (e *session) openJournal() (*journal.Journal, func(), error) {
	e.mu.Lock()
	j := e.journal
	e.mu.Unlock()
	if j != nil {
		return j, func() {}, nil
	}
	dir, err := e.table.cfg.Dir.OpenRoot(e.name)
	if err != nil {
		return nil, nil, err
	}
	defer dir.Close()
	if j, err = journal.OpenDir(dir); err != nil {
		return nil, nil, err
	}
	return j, func() { _ = j.Close() }, nil
}

func (e *session) status() wire.SessionStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	m := e.meta
	st := wire.SessionStatus{ID: m.ID, Name: e.name, Argv: shortened(m.Argv), Dir: m.Dir, User: m.User, Stdin: m.Stdin, PID: e.pid, StartedAt: m.StartedAt,
		Writer: e.writer != nil && !e.writer.mute, Readers: len(e.readers)}
	if e.end != nil {
		st.Ended, st.EndedAt, st.Exit, st.PID = true, e.end.At, e.end.Exit, 0
		st.Stdout, st.Stderr, st.Dropped = e.end.Stdout, e.end.Stderr, e.end.Dropped
	} else if e.journal != nil {
		out, dropped := e.journal.End()
		st.Stdout, st.Stderr, st.Dropped = out[0], out[1], dropped
	}
	return st
}

// maxListed is how much of a command a list shows, in bytes: the host takes lists of a megabyte.
const maxListed = 2 << 10

// shortened is the beginning of a command.
func shortened(argv []string) []string {
	left := maxListed
	for i, arg := range argv {
		if left -= len(arg) + 1; left < 0 {
			return append(slices.Clone(argv[:i]), "…")
		}
	}
	return argv
}

// sink takes output of the process, and makes it wait for who must not lose any.
type sink struct {
	e      *session
	stream int
}

// Write implements io.Writer.
func (k sink) Write(p []byte) (int, error) {
	e := k.e
	e.mu.Lock()
	defer e.mu.Unlock()
	for done := 0; done < len(p); {
		piece := p[done:min(len(p), done+journal.MaxData)]
		for {
			upTo, drops := e.journal.Drops(len(piece))
			if !drops || e.free || e.writer == nil || e.writer.has(upTo) {
				break
			}
			e.news.Wait()
		}
		if err := e.journal.Append(e.table.cfg.Now(), k.stream, piece); err != nil {
			e.table.cfg.Log.Warn("output of a session was dropped", "session", e.name, "error", err)
		}
		done += len(piece)
		e.news.Broadcast()
	}
	return len(p), nil
}

// endKey is what is typed to say that the input of a terminal has ended.
const endKey = 0x04

// keys are those that end a terminal's input once, and not for good: who comes later can type on.
type keys struct {
	at   uint64 // behind so much of stdin
	by   string // the id of the writer, which may say it twice where its connection broke
	left int    // not typed yet
}

// typeEnd has the end of a terminal's input typed, twice where a line was begun. The lock is held.
func (e *session) typeEnd(by string) {
	at := e.in.End()
	if e.keys.by == by && e.keys.at == at {
		return
	}
	e.keys = keys{at: at, by: by, left: 1}
	if e.last != 0 && e.last != '\n' && e.last != '\r' {
		e.keys.left = 2
	}
	e.last = 0 // what comes begins a line
}

// source is the process's stdin.
type source struct{ e *session }

// Read implements io.Reader.
func (r source) Read(p []byte) (int, error) {
	e := r.e
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.in.Base() == e.in.End() && e.keys.left == 0 && !e.inEOF && !e.inShut {
		e.news.Wait()
	}
	if before := e.keys.at - e.in.Base(); e.keys.left > 0 && before < uint64(len(p)) {
		p = p[:before]
	}
	n := e.in.CopyAt(p, e.in.Base())
	if n == 0 && e.keys.left > 0 {
		e.keys.left--
		return copy(p[:1], []byte{endKey}), nil
	}
	if n == 0 {
		e.inShut = true
		return 0, io.EOF
	}
	e.in.Ack(e.in.Base() + uint64(n))
	e.news.Broadcast()
	return n, nil
}

// resize passes a size on, the latest where several wait.
func (e *session) resize(rows, cols uint16) {
	size := exec.Size{Rows: rows, Cols: cols}
	for {
		select {
		case e.sizes <- size:
			return
		default:
		}
		select {
		case <-e.sizes:
		default:
		}
	}
}

// dial connects to processes of this agent.
func dial(m *process.Manager) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) { return m.Connect(), nil }
}

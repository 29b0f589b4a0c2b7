package session

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// world is the sessions of a guest that is this host.
type world struct {
	t    *testing.T
	path string
	all  *Sessions
	m    *process.Manager
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, path: t.TempDir()}
	w.boot()
	t.Cleanup(w.end)
	return w
}

// boot starts the guest.
func (w *world) boot() {
	w.t.Helper()
	dir, err := os.OpenRoot(w.path)
	if err != nil {
		w.t.Fatal(err)
	}
	home := w.t.TempDir()
	w.m = process.NewManager(process.Config{
		Defaults: func() process.Defaults {
			return process.Defaults{Env: []string{"PATH=" + os.Getenv("PATH")}, WorkDir: home}
		},
		Session: func(ctx context.Context, req wire.ExecAttach, conn net.Conn, fr *wire.FrameReader) error {
			return w.all.Serve(ctx, req, conn, fr)
		}})
	if w.all, err = New(Config{Dir: dir, Processes: w.m}); err != nil {
		w.t.Fatal(err)
	}
}

// end ends the guest.
func (w *world) end() {
	_ = w.m.Close()
	_ = w.all.Close()
}

func (w *world) start(name, stdin string, argv ...string) wire.SessionStatus {
	w.t.Helper()
	st, err := w.all.Start(w.t.Context(), wire.SessionStart{Version: wire.Version, ID: exec.NewID(), Name: name, Argv: argv, Stdin: stdin, LogBytes: journal.MinSegment, LogFiles: 2})
	if err != nil {
		w.t.Fatal(err)
	}
	return st
}

// ended waits for the end of a session.
func (w *world) ended(name string) wire.SessionStatus {
	w.t.Helper()
	for list := w.all.List(); ; list = w.all.Wait(w.t.Context(), list.Seq) {
		for _, s := range list.Sessions {
			if s.Name == name && s.Ended {
				return s
			}
		}
		if w.t.Context().Err() != nil {
			w.t.Fatalf("session %q did not end", name)
		}
	}
}

func (w *world) log(name string) string {
	w.t.Helper()
	var out bytes.Buffer
	if err := w.all.Log(w.t.Context(), name, &out, journal.Print{Tail: -1}, false); err != nil {
		w.t.Fatal(err)
	}
	return out.String()
}

// buffer is written and waited for.
type buffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	news *sync.Cond
}

func newBuffer() *buffer {
	b := &buffer{}
	b.news = sync.NewCond(&b.mu)
	return b
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer b.news.Broadcast()
	return b.b.Write(p)
}

// until waits for a text.
func (b *buffer) until(want string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for !strings.Contains(b.b.String(), want) {
		b.news.Wait()
	}
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// attached is a client of a session.
type attached struct {
	out, err *buffer
	in       *io.PipeWriter
	readOnly chan struct{}
	dropped  [2]uint64
	cancel   context.CancelCauseFunc
	done     chan error
	exit     wire.ExecExit
	mu       sync.Mutex
	conn     net.Conn
}

var errLeft = errors.New("left")

func (w *world) attach(s exec.Session) *attached {
	w.t.Helper()
	ctx, cancel := context.WithCancelCause(context.Background())
	pr, pw := io.Pipe()
	a := &attached{out: newBuffer(), err: newBuffer(), in: pw, readOnly: make(chan struct{}), cancel: cancel, done: make(chan error, 1)}
	started := make(chan struct{})
	opts := exec.Options{Session: &s, Stdin: pr, Stdout: a.out, Stderr: a.err,
		Dial: func(context.Context) (net.Conn, error) {
			a.mu.Lock()
			defer a.mu.Unlock()
			a.conn = w.m.Connect()
			return a.conn, nil
		},
		OnStarted:  func(wire.ExecStarted) { close(started) },
		OnReadOnly: func() { close(a.readOnly) },
		OnDropped:  func(i int, n uint64) { a.dropped[i] += n },
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var err error
		a.exit, err = exec.Run(ctx, opts)
		a.done <- err
	}()
	select {
	case <-started:
	case <-ended:
	}
	w.t.Cleanup(func() { cancel(nil); _ = pw.Close() })
	return a
}

// breakConn cuts the connection, as a daemon that dies does.
func (a *attached) breakConn() {
	a.mu.Lock()
	defer a.mu.Unlock()
	_ = a.conn.Close()
}

func (a *attached) leave(t *testing.T) {
	t.Helper()
	a.cancel(errLeft)
	if err := <-a.done; !errors.Is(err, errLeft) {
		t.Errorf("left with %v", err)
	}
}

func (a *attached) say(t *testing.T, text string) {
	t.Helper()
	if _, err := io.WriteString(a.in, text); err != nil {
		t.Error(err)
	}
}

// TestLife: a session goes on without a client, is come back to, and ends with its status.
func TestLife(t *testing.T) {
	w := newWorld(t)
	st := w.start("planner", wire.SessionPipe, "sh", "-c", `echo ready; while read l; do echo "got $l"; test "$l" = end && exit 7; done`)
	if st.PID == 0 || st.Ended {
		t.Errorf("started %+v", st)
	}
	if _, err := w.all.Start(t.Context(), wire.SessionStart{Version: wire.Version, ID: exec.NewID(), Name: "planner", Stdin: wire.SessionNone, Argv: []string{"true"}}); err == nil {
		t.Error("a second session of the name")
	}
	a := w.attach(exec.Session{Name: "planner", Write: true, Tail: wire.TailAll, KeepOpen: true})
	a.out.until("ready\n")
	a.say(t, "one\n")
	a.out.until("got one\n")
	a.leave(t)
	b := w.attach(exec.Session{Name: "planner", Write: true, Tail: 8, KeepOpen: true})
	b.out.until("got one\n")
	b.say(t, "end\n")
	if err := <-b.done; err != nil || b.exit.Status != 7 || b.out.String() != "got one\ngot end\n" {
		t.Errorf("ended with %v, %+v, %q", err, b.exit, b.out.String())
	}
	if got := w.ended("planner"); got.Exit == nil || got.Exit.Status != 7 || got.EndedAt.IsZero() {
		t.Errorf("listed as %+v", got)
	}
	c := w.attach(exec.Session{Name: "planner", Tail: wire.TailAll})
	if err := <-c.done; err != nil || c.exit.Status != 7 || c.out.String() != "ready\ngot one\ngot end\n" {
		t.Errorf("attached after the end: %v, %+v, %q", err, c.exit, c.out.String())
	}
	if err := w.all.Remove("planner"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(w.path, "planner")); !os.IsNotExist(err) {
		t.Errorf("its directory: %v", err)
	}
}

// TestOneWrites: a second writer is told and reads; the place is free once the first has detached, or has lost its connection and another asks.
func TestOneWrites(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "cat")
	a := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: true})
	b := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: true})
	<-b.readOnly
	b.say(t, "not heard\n")
	a.say(t, "heard\n")
	a.out.until("heard\n")
	b.out.until("heard\n")
	send := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: true, SendOnly: true})
	var x *wire.ExecError
	if err := <-send.done; !errors.As(err, &x) || x.Code != wire.ExecTakenOver {
		t.Errorf("sent beside a writer: %v", err)
	}
	a.leave(t)
	c := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: true})
	c.say(t, "and again\n")
	b.out.until("and again\n")
	if got := b.out.String(); got != "heard\nand again\n" {
		t.Errorf("the reader has %q", got)
	}
	st := w.all.List().Sessions[0]
	if !st.Writer || st.Readers != 1 {
		t.Errorf("listed as %+v", st)
	}
}

// TestSend: what is sent arrives as a whole before send returns, and stays open, or not.
func TestSend(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "sh", "-c", "wc -c")
	for i, last := range []bool{false, true} {
		a := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: !last, SendOnly: true})
		a.say(t, strings.Repeat("x", 700_000))
		_ = a.in.Close()
		if err := <-a.done; err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if st := w.ended("s"); st.Exit.Status != 0 {
		t.Errorf("%+v", st.Exit)
	}
	if got := strings.TrimSpace(w.log("s")); got != "1400000" {
		t.Errorf("the session had %s bytes", got)
	}
	again := w.attach(exec.Session{Name: "s", Write: true, SendOnly: true})
	var x *wire.ExecError
	if err := <-again.done; !errors.As(err, &x) || x.Code != wire.ExecInvalid {
		t.Errorf("sent after the end: %v", err)
	}
}

// TestReconnect breaks the connection of a writer again and again while both directions are busy: nothing is lost, nothing comes twice.
func TestReconnect(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "cat")
	a := w.attach(exec.Session{Name: "s", Write: true})
	text := strings.Repeat("0123456789abcdef", 100_000)
	go func() {
		for i := 0; i < len(text); i += 32_000 {
			if _, err := io.WriteString(a.in, text[i:min(len(text), i+32_000)]); err != nil {
				return
			}
			if i%128_000 == 0 {
				a.breakConn()
			}
		}
		_ = a.in.Close()
	}()
	if err := <-a.done; err != nil || a.out.String() != text {
		t.Errorf("err = %v, %d bytes of %d are the same: %v", err, len(a.out.String()), len(text), a.out.String() == text)
	}
	if a.dropped != [2]uint64{} {
		t.Errorf("dropped %v", a.dropped)
	}
}

// slowly takes output when it is told to.
type slowly struct {
	*buffer
	goOn chan struct{}
}

func (s slowly) Write(p []byte) (int, error) {
	<-s.goOn
	return s.buffer.Write(p)
}

// TestBackpressure: the writer loses nothing however slow it is; a reader loses the oldest and is told exactly how much; and with nobody
// there the process is not held up.
func TestBackpressure(t *testing.T) {
	const size = 3_000_000
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "sh", "-c", fmt.Sprintf("read l; head -c %d /dev/zero; echo end; read l", size))
	goOn := make(chan struct{})
	out := slowly{newBuffer(), goOn}
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		_, err := exec.Run(t.Context(), exec.Options{Dial: dial(w.m), Session: &exec.Session{Name: "s", Write: true, KeepOpen: true}, Stdin: pr, Stdout: out,
			OnDropped: func(int, uint64) { t.Error("the writer was made to lose output") },
			OnStarted: func(wire.ExecStarted) { close(began) }})
		done <- err
	}()
	<-began
	_, _ = io.WriteString(pw, "go\n")
	goOn <- struct{}{} // some of it has come
	if st := w.all.List().Sessions[0]; st.Stdout > 2*journal.MinSegment+1<<20 {
		t.Errorf("the process could write %d bytes to nobody", st.Stdout)
	}
	close(goOn)
	out.until("end\n")
	if n := len(out.String()); n != size+4 {
		t.Errorf("the writer has %d bytes of %d", n, size+4)
	}
	_, _ = io.WriteString(pw, "bye\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	r := w.attach(exec.Session{Name: "s", Tail: wire.TailAll})
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	if got := uint64(len(r.out.String())) + r.dropped[0]; got != size+4 || r.dropped[0] == 0 {
		t.Errorf("a reader has %d bytes and was told of %d more, in all %d of %d", len(r.out.String()), r.dropped[0], got, size+4)
	}
}

// TestHour is a session that prints for an hour, quickly: neither memory nor disk grow.
func TestHour(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionNone, "sh", "-c", "yes 'a line that somebody prints every few milliseconds for an hour' | head -c 100000000")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	st := w.ended("s")
	runtime.GC()
	runtime.ReadMemStats(&after)
	if st.Stdout != 100_000_000 || st.Dropped < 99_000_000 {
		t.Errorf("%+v", st)
	}
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the memory grew by %d bytes", grown)
	}
	entries, _ := os.ReadDir(filepath.Join(w.path, "s"))
	total := int64(0)
	for _, e := range entries {
		info, _ := e.Info()
		total += info.Size()
	}
	if total > 2*journal.MinSegment+4096 {
		t.Errorf("%d bytes on the disk", total)
	}
	if got := w.log("s"); !strings.HasPrefix(got, fmt.Sprintf("[banger: %d bytes were dropped here]\n", st.Dropped)) {
		t.Errorf("the log begins %.80q", got)
	}
}

// TestTerminal: a session with a terminal has the size of who attaches, and its interrupt.
func TestTerminal(t *testing.T) {
	w := newWorld(t)
	w.start("tty", wire.SessionPTY, "sh", "-c", "test -t 0 && echo yes; read l; until test \"$(stty size)\" = '33 99'; do sleep 0.05; done; stty size; echo as''leep; exec sleep 1000")
	pr, pw := io.Pipe()
	out := newBuffer()
	sizes := make(chan exec.Size, 1)
	sizes <- exec.Size{Rows: 33, Cols: 99}
	signals := make(chan string, 1)
	done := make(chan wire.ExecExit, 1)
	go func() {
		exit, _ := exec.Run(t.Context(), exec.Options{Dial: dial(w.m), Session: &exec.Session{Name: "tty", Write: true, Tail: wire.TailAll, KeepOpen: true},
			Stdin: pr, Stdout: out, Resize: sizes, Signals: signals})
		done <- exit
	}()
	out.until("yes")
	_, _ = io.WriteString(pw, "\n")
	out.until("33 99")
	out.until("asleep") // a shell between two commands may miss an interrupt
	_, _ = io.WriteString(pw, "\x03")
	if exit := <-done; exit.Status != 130 {
		t.Errorf("%+v", exit)
	}
}

// TestEndOfGuest: a session that runs when its guest ends is an ended one of the next boot, with its log.
func TestEndOfGuest(t *testing.T) {
	w := newWorld(t)
	w.start("cut", wire.SessionNone, "sh", "-c", "echo begun; exec sleep 1000")
	w.start("over", wire.SessionNone, "sh", "-c", "echo done; exit 3")
	a := w.attach(exec.Session{Name: "cut", Tail: wire.TailAll})
	a.out.until("begun\n")
	w.ended("over")
	a.cancel(errLeft)
	<-a.done
	w.end()
	if err := os.MkdirAll(filepath.Join(w.path, "not finished"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.boot()
	list := w.all.List().Sessions
	if len(list) != 2 || list[0].Name != "cut" || !list[0].Ended || list[0].Exit != nil || !list[1].Ended || list[1].Exit == nil || list[1].Exit.Status != 3 {
		t.Errorf("after the boot: %+v", list)
	}
	if got := w.log("cut"); got != "begun\n" {
		t.Errorf("its log: %q", got)
	}
	if err := w.all.Signal("cut", "TERM"); err != nil {
		t.Errorf("signal one that has ended: %v", err)
	}
	late := w.attach(exec.Session{Name: "cut", Tail: wire.TailAll})
	if err := <-late.done; err == nil || !strings.Contains(err.Error(), "ended with its guest") || late.out.String() != "begun\n" {
		t.Errorf("attached: %v, %q", err, late.out.String())
	}
	if err := w.all.Remove("cut"); err != nil {
		t.Error(err)
	}
}

// TestFullDisk: a session that was cut off, and whose end cannot be written, keeps its log.
func TestFullDisk(t *testing.T) {
	w := newWorld(t)
	w.start("cut", wire.SessionNone, "sh", "-c", "echo begun; exec sleep 1000")
	w.start("bad", wire.SessionNone, "sh", "-c", "exec sleep 1000")
	a := w.attach(exec.Session{Name: "cut", Tail: wire.TailAll})
	a.out.until("begun\n")
	a.leave(t)
	w.end()
	if err := os.Mkdir(filepath.Join(w.path, "cut", endFile+".new"), 0o700); err != nil { // in the way of a file
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.path, "bad", metaFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		w.boot()
		if list := w.all.List().Sessions; len(list) != 1 || list[0].Name != "cut" || !list[0].Ended || list[0].Stdout != 6 {
			t.Errorf("after the boot: %+v", list)
		}
		if got := w.log("cut"); got != "begun\n" {
			t.Errorf("its log: %q", got)
		}
		w.end()
	}
	w.boot()
}

// TestNotStarted: what cannot be started leaves nothing.
func TestNotStarted(t *testing.T) {
	w := newWorld(t)
	for code, req := range map[string]wire.SessionStart{
		wire.ExecNotFound: {ID: exec.NewID(), Name: "s", Stdin: wire.SessionNone, Argv: []string{"no-such-command"}},
		wire.ExecBadDir:   {ID: exec.NewID(), Name: "s", Stdin: wire.SessionNone, Argv: []string{"true"}, Dir: "/no/such"},
		wire.ExecInvalid:  {ID: exec.NewID(), Name: "../s", Stdin: wire.SessionNone, Argv: []string{"true"}},
	} {
		_, err := w.all.Start(t.Context(), req)
		var x *wire.ExecError
		if !errors.As(err, &x) || x.Code != code {
			t.Errorf("%s: %v", code, err)
		}
	}
	if entries, err := os.ReadDir(w.path); err != nil || len(entries) != 0 || len(w.all.List().Sessions) != 0 {
		t.Errorf("left %v, %v", entries, err)
	}
}

// TestKillWhileHeld: a session that waits for a writer who does not read is killed all the same.
func TestKillWhileHeld(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "yes")
	block := make(chan struct{})
	defer close(block)
	began := make(chan struct{})
	go func() {
		_, _ = exec.Run(t.Context(), exec.Options{Dial: dial(w.m), Session: &exec.Session{Name: "s", Write: true}, Stdin: blocked(block), Stdout: slowly{newBuffer(), block},
			OnStarted: func(wire.ExecStarted) { close(began) }})
	}()
	<-began
	if err := w.all.Signal("s", "KILL"); err != nil {
		t.Fatal(err)
	}
	if st := w.ended("s"); st.Exit.Signal != "KILL" {
		t.Errorf("%+v", st.Exit)
	}
}

// blocked is a stdin that says nothing.
type blocked chan struct{}

func (b blocked) Read([]byte) (int, error) {
	<-b
	return 0, io.EOF
}

// TestGrace: a writer that is gone for long holds nobody up.
func TestGrace(t *testing.T) {
	w := newWorld(t)
	w.all.cfg.Grace = time.Millisecond
	w.start("s", wire.SessionPipe, "sh", "-c", "read l; head -c 2000000 /dev/zero")
	conn := w.m.Connect()
	if err := greet(conn, "s", "go\n"); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close() // without a word
	if st := w.ended("s"); st.Stdout != 2_000_000 {
		t.Errorf("%+v", st)
	}
}

// greet attaches by hand, and sends a line.
func greet(conn net.Conn, name, text string) error {
	fw := wire.NewFrameWriter(conn)
	err := fw.JSON(wire.FrameAttach, wire.ExecAttach{Version: wire.Version, ID: exec.NewID(), Session: &wire.SessionAttach{Name: name, Write: true}})
	if err == nil {
		err = fw.Flush()
	}
	if err != nil {
		return err
	}
	if _, err := wire.NewFrameReader(conn).ReadFrame(); err != nil {
		return err
	}
	copy(fw.Chunk(wire.FrameStdin, 0, len(text)), text)
	return fw.Flush()
}

// TestReaderReconnects: one who only reads goes on where it was, and nobody is held up.
func TestReaderReconnects(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "cat")
	r := w.attach(exec.Session{Name: "s", Tail: 16 << 10, KeepOpen: true})
	for _, text := range []string{"one\n", "two\n", "three\n"} {
		a := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: true, SendOnly: true})
		a.say(t, text)
		_ = a.in.Close()
		if err := <-a.done; err != nil {
			t.Fatal(err)
		}
		r.out.until(text)
		r.breakConn()
	}
	if got := r.out.String(); got != "one\ntwo\nthree\n" {
		t.Errorf("read %q", got)
	}
}

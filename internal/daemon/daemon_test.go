package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestLockHasOneHolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	l, err := takeLock(path, "/run/x.sock")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeLock(path, "/run/other.sock"); !errors.Is(err, ErrRunning) {
		t.Errorf("a second lock: %v, want ErrRunning", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "/run/x.sock\n" {
		t.Errorf("the lock holds %q, %v", b, err)
	}
	l.release()
	again, err := takeLock(path, "/run/other.sock")
	if err != nil {
		t.Fatal(err)
	}
	again.release()
}

func TestListenReplacesAStaleSocketAndComesBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "x.sock")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	_ = stale.Close()

	l, err := listen(path, quiet())
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan net.Conn, 4)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				close(accepted)
				return
			}
			accepted <- c
		}
	}()
	dial := func() {
		t.Helper()
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		got := <-accepted
		p, ok := got.(*peerConn)
		if !ok || p.peer.PID != os.Getpid() {
			t.Errorf("accepted %#v, want a connection of process %d", got, os.Getpid())
		}
		_ = got.Close()
	}
	dial()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := os.RemoveAll(filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * socketCheck); ; {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the socket does not come back")
		}
		<-time.After(50 * time.Millisecond)
	}
	dial()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, open := <-accepted; open {
		t.Error("Accept goes on after Close")
	}
}

func TestListenSaysThatAPathIsTooLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if _, err := listen(path, quiet()); err == nil || !strings.Contains(err.Error(), "XDG_RUNTIME_DIR") {
		t.Errorf("err = %v", err)
	}
}

func TestOwnerGone(t *testing.T) {
	c := exec.Command("cat")
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := hostproc.Identify(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	owner := api.Owner(p)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, other := range map[string]api.Owner{
		"another start": {PID: p.PID, StartTime: p.StartTime + 1, BootID: p.BootID},
		"another boot":  {PID: p.PID, StartTime: p.StartTime, BootID: "x"},
	} {
		select {
		case <-ownerGone(ctx, other):
		default:
			t.Errorf("%s: the process counts as the owner", name)
		}
	}
	gone := ownerGone(ctx, owner)
	select {
	case <-gone:
		t.Fatal("gone while it lives")
	default:
	}
	_ = stdin.Close()
	_ = c.Wait()
	select {
	case <-gone:
	case <-ctx.Done():
		t.Error("its end was not seen")
	}
	select {
	case <-ownerGone(ctx, owner):
	default:
		t.Error("a process that ended counts as alive")
	}
}

func TestAgentIsMissing(t *testing.T) {
	a := agents{exe: filepath.Join(t.TempDir(), "bin", "bangerd")}
	_, err := a.Archive(t.Context())
	if api.KindOf(err) != api.KindUnavailable || !strings.Contains(api.AsError(err).Hint, agentBinary) {
		t.Errorf("err = %v", err)
	}
}

// TestServeFails: where the socket breaks, what runs is ended and recorded before the database is closed.
func TestServeFails(t *testing.T) {
	dir := t.TempDir()
	p := paths.Paths{Config: dir, State: filepath.Join(dir, "state"), Data: filepath.Join(dir, "data"), Cache: filepath.Join(dir, "cache"), Runtime: dir}
	db, err := store.Open(t.Context(), p.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	d := &Daemon{cfg: Config{Paths: p, Exe: filepath.Join(dir, "bangerd"), Getenv: func(string) string { return "" }},
		settings: config.Default(), log: quiet(), db: db, stopping: make(chan struct{})}
	if err := d.wire(); err != nil {
		t.Fatal(err)
	}
	op, err := d.ops.Start(t.Context(), "test", "x", func(ctx context.Context, _ progress.Reporter) (any, error) {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := listen(p.Socket(), quiet())
	if err != nil {
		t.Fatal(err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.serveHTTP(t.Context(), ln); !errors.Is(err, net.ErrClosed) {
		t.Errorf("err = %v", err)
	}
	if op, err = db.Operation(t.Context(), op.ID); err != nil || op.State != api.OperationCancelled {
		t.Errorf("the operation is %+v, %v", op, err)
	}
}

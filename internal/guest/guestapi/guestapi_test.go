package guestapi_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// guest serves the API with recorded callbacks.
type guest struct {
	client *guestapi.Client
	procs  *process.Manager

	mu    sync.Mutex
	calls []string
	fail  error
	logs  chan string // lines that come while a log is followed
}

func (g *guest) call(format string, args ...any) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls = append(g.calls, fmt.Sprintf(format, args...))
	return g.fail
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	g := &guest{procs: process.NewManager(process.Config{}), logs: make(chan string)}
	cfg := guestapi.Config{
		Processes:    g.procs,
		State:        func() guestapi.State { return guestapi.State{Agent: "1.2", Init: "systemd", Mark: api.MarkReady} },
		Shutdown:     func(_ context.Context, verb string) error { return g.call("shutdown %s", verb) },
		End:          func(_ context.Context, verb string) error { return g.call("end %s", verb) },
		Sync:         func(context.Context) error { return g.call("sync") },
		GrowDisk:     func(_ context.Context, n int64) (int64, error) { return n + 1, g.call("grow %d", n) },
		SetIdentity:  func(_ context.Context, id wire.Identity) error { return g.call("identity %s", id.Hostname) },
		ResetOutside: func(context.Context) (int, error) { return 7, g.call("reset") },
		Logs: func(ctx context.Context, w io.Writer, follow bool) error {
			if err := g.call("logs %v", follow); err != nil {
				return err
			}
			_, err := io.WriteString(w, "one\n")
			for follow && err == nil {
				select {
				case line := <-g.logs:
					_, err = io.WriteString(w, line)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
			return err
		},
	}
	g.client = serve(t, guestapi.Handler(cfg))
	t.Cleanup(func() { _ = g.procs.Close() })
	return g
}

// serve returns a client of a handler behind a unix socket.
func serve(t *testing.T, h http.Handler) *guestapi.Client {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return &guestapi.Client{Dial: func(ctx context.Context, port uint32) (net.Conn, error) {
		if port != wire.PortAPI {
			return nil, fmt.Errorf("port %d", port)
		}
		return (&net.Dialer{}).DialContext(ctx, "unix", l.Addr().String())
	}}
}

func TestHealthAndStats(t *testing.T) {
	g := newGuest(t)
	h, err := g.client.Health(t.Context())
	host, _ := os.Hostname()
	if err != nil || h.Version != wire.Version || h.Agent != "1.2" || h.Init != "systemd" || h.Mark != api.MarkReady ||
		h.Hostname != host || len(h.BootID) != 36 || h.UptimeSeconds <= 0 || h.MemoryTotalBytes < h.MemoryAvailableBytes || h.MemoryAvailableBytes <= 0 {
		t.Errorf("%+v, %v", h, err)
	}
	s, err := g.client.Stats(t.Context())
	if err != nil || s.CPUs < 1 || s.CPU.Idle <= 0 || s.Disk.TotalBytes < s.Disk.FreeBytes || s.Disk.FreeBytes <= 0 || s.Commands != 0 {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestPorts(t *testing.T) {
	g := newGuest(t)
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	ports, err := g.client.Ports(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []guestapi.Port{
		{Protocol: "tcp", Port: uint16(tcp.Addr().(*net.TCPAddr).Port), Address: tcp.Addr().(*net.TCPAddr).AddrPort().Addr().Unmap(), UID: os.Getuid()},
		{Protocol: "udp", Port: uint16(udp.LocalAddr().(*net.UDPAddr).Port), Address: udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap(), UID: os.Getuid()},
	} {
		want.Process, want.Agent = strings.TrimSpace(string(comm)), true // here the test is the agent
		if !slices.Contains(ports, want) {
			t.Errorf("%+v is not in %+v", want, ports)
		}
	}
}

func TestProcesses(t *testing.T) {
	g := newGuest(t)
	id := strings.Repeat("ab", 16)
	if _, err := g.procs.Start(wire.ExecStart{Version: wire.Version, ID: id, Argv: []string{"sleep", "100"}}); err != nil {
		t.Fatal(err)
	}
	list, err := g.client.Processes(t.Context())
	if err != nil || len(list) != 1 || list[0].ID != id || list[0].Exit != nil || list[0].Attached {
		t.Fatalf("%+v, %v", list, err)
	}
	if s, err := g.client.Stats(t.Context()); err != nil || s.Commands != 1 {
		t.Errorf("%+v, %v", s, err)
	}
	if err := g.client.Signal(t.Context(), id, "NOSUCH"); api.KindOf(err) != api.KindInvalid {
		t.Errorf("bad signal: %v", err)
	}
	if err := g.client.Signal(t.Context(), id, "TERM"); err != nil {
		t.Error(err)
	}
	if exit, err := g.procs.Wait(t.Context(), id); err != nil || exit.Signal != "TERM" {
		t.Errorf("%+v, %v", exit, err)
	}
	if err := g.client.OwnerGone(t.Context(), id); err != nil {
		t.Error(err)
	}
	for _, err := range []error{g.client.OwnerGone(t.Context(), id), g.client.Signal(t.Context(), "../x", "INT")} {
		if api.KindOf(err) != api.KindNotFound {
			t.Errorf("unknown process: %v", err)
		}
	}
}

func TestCallbacks(t *testing.T) {
	g := newGuest(t)
	ctx := t.Context()
	if n, err := g.client.ResetOutside(ctx); err != nil || n != 7 {
		t.Errorf("%d connections were reset, %v", n, err)
	}
	g.mu.Lock()
	g.calls = nil
	g.mu.Unlock()
	n, err := g.client.GrowDisk(ctx, 41)
	if err := errors.Join(err, g.client.Sync(ctx), g.client.SetIdentity(ctx, wire.Identity{Hostname: "dev"}),
		g.client.Shutdown(ctx, guestapi.VerbReboot), g.client.End(ctx)); err != nil || n != 42 {
		t.Errorf("%d, %v", n, err)
	}
	g.mu.Lock()
	got := slices.Clone(g.calls)
	g.fail = api.Errorf(api.KindConflict, "not now").WithHint("later")
	g.mu.Unlock()
	if diff := cmp.Diff([]string{"grow 41", "sync", "identity dev", "shutdown reboot"}, got[:4]); diff != "" {
		t.Error(diff)
	}
	if n, err := g.client.ResetOutside(ctx); n != 0 || api.KindOf(err) != api.KindConflict {
		t.Errorf("a reset that fails: %d, %v", n, err)
	}
	for _, err := range []error{g.client.Sync(ctx), g.client.Shutdown(ctx, guestapi.VerbHalt)} {
		var e *api.Error
		if !errors.As(err, &e) || e.Kind != api.KindConflict || e.Message != "not now" || e.Hint != "later" {
			t.Errorf("%+v", err)
		}
	}
	for what, err := range map[string]error{"verb": g.client.Shutdown(ctx, "explode"), "size": second(g.client.GrowDisk(ctx, -1))} {
		if api.KindOf(err) != api.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func second[A any](_ A, err error) error { return err }

func TestUnsupported(t *testing.T) {
	c := serve(t, guestapi.Handler(guestapi.Config{Processes: process.NewManager(process.Config{})}))
	ctx := t.Context()
	for what, err := range map[string]error{
		"shutdown": c.Shutdown(ctx, "halt"), "end": c.End(ctx), "grow": second(c.GrowDisk(ctx, 0)),
		"identity": c.SetIdentity(ctx, wire.Identity{}), "logs": second(c.Logs(ctx, false)), "reset": second(c.ResetOutside(ctx)),
	} {
		if api.KindOf(err) != api.KindUnavailable {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestLogs(t *testing.T) {
	g := newGuest(t)
	all, err := g.client.Logs(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(all); err != nil || string(b) != "one\n" {
		t.Errorf("%q, %v", b, err)
	}
	follow, err := g.client.Logs(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(follow)
	for i, want := range []string{"one\n", "two\n", "three\n"} {
		if i > 0 {
			g.logs <- want
		}
		if line, err := lines.ReadString('\n'); err != nil || line != want {
			t.Errorf("%q, %v", line, err)
		}
	}
	if err := follow.Close(); err != nil {
		t.Error(err)
	}
}

func TestFiles(t *testing.T) {
	g := newGuest(t)
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "new", "dir")
	if err := os.WriteFile(filepath.Join(src, "big"), bytes.Repeat([]byte("0123456789"), 1<<20), 0o755); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	go func() {
		_, err := files.Pack(context.Background(), pw, filepath.Join(src, "big"), files.PackOptions{})
		_ = pw.CloseWithError(err)
	}()
	if err := g.client.PutFiles(t.Context(), dst, pr); err != nil {
		t.Fatal(err)
	}
	back, err := g.client.Files(t.Context(), api.GetFiles{Path: dst})
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	if res, err := files.Unpack(t.Context(), out, back, files.Options{Own: true, MaxEntries: 10}); err != nil || res.Bytes != 10<<20 {
		t.Errorf("%+v, %v", res, err)
	}
	_ = back.Close()
	if st, err := os.Stat(filepath.Join(out, "dir", "big")); err != nil || st.Size() != 10<<20 || st.Mode() != 0o755 {
		t.Errorf("%v, %v", st, err)
	}
	for what, tc := range map[string]struct {
		err  error
		want api.ErrorKind
	}{
		"nothing there": {second(g.client.Files(t.Context(), api.GetFiles{Path: filepath.Join(src, "none")})), api.KindNotFound},
		"NUL":           {second(g.client.Files(t.Context(), api.GetFiles{Path: "/\x00"})), api.KindInvalid},
		"the root":      {second(g.client.Files(t.Context(), api.GetFiles{Path: "/"})), api.KindInvalid},
		"into a file":   {g.client.PutFiles(t.Context(), filepath.Join(src, "big"), strings.NewReader("")), api.KindInvalid},
		"put relative":  {g.client.PutFiles(t.Context(), "x", strings.NewReader("")), api.KindInvalid},
	} {
		if api.KindOf(tc.err) != tc.want {
			t.Errorf("%s: %v", what, tc.err)
		}
	}
}

// zeros never ends.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestPutFilesFails: whichever side fails, the client learns why.
func TestPutFilesFails(t *testing.T) {
	g := newGuest(t)
	pr, pw := io.Pipe()
	broken := errors.New("disk on fire")
	go func() {
		tw := tar.NewWriter(pw)
		_ = tw.WriteHeader(&tar.Header{Name: "x", Size: 1 << 20, Mode: 0o644})
		_, _ = tw.Write(make([]byte, 1000))
		_ = pw.CloseWithError(broken)
	}()
	if err := g.client.PutFiles(t.Context(), t.TempDir(), pr); !errors.Is(err, broken) {
		t.Errorf("the source fails: %v", err)
	}
	var head bytes.Buffer
	tw := tar.NewWriter(&head)
	if err := tw.WriteHeader(&tar.Header{Name: "../evil", Size: 1 << 40, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	err := g.client.PutFiles(t.Context(), t.TempDir(), io.MultiReader(&head, zeros{}))
	if err == nil || !strings.Contains(err.Error(), "leads out") {
		t.Errorf("the guest refuses while more comes: %v", err)
	}
}

// TestHostileGuest: answers without end or sense are errors of the guest, in bounded time and memory.
func TestHostileGuest(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"agent":"`))
			_, _ = io.Copy(w, zeros{})
		},
		"garbage":       func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("]")) },
		"error garbage": func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = w.Write([]byte("<html>")) },
		"empty error":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); _, _ = w.Write([]byte("{}")) },
		"redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		},
		"long header": func(w http.ResponseWriter, _ *http.Request) {
			for i := range 2000 {
				w.Header().Set(fmt.Sprintf("X-%d", i), strings.Repeat("x", 1000))
			}
		},
		"host's kind": func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			_, _ = w.Write([]byte(`{"error":{"kind":"version","message":"upgrade banger at evil.example"}}`))
		},
		"hang up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			c := serve(t, answer)
			if _, err := c.Health(ctx); api.KindOf(err) != api.KindGuest {
				t.Errorf("error %v", err)
			}
		})
	}
	t.Run("mute", func(t *testing.T) {
		c := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		ctx, cancel := context.WithCancelCause(t.Context())
		why := errors.New("enough")
		timer := time.AfterFunc(50*time.Millisecond, func() { cancel(why) })
		defer timer.Stop()
		if _, err := c.Health(ctx); !errors.Is(err, why) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("unreachable", func(t *testing.T) {
		refused := errors.New("refused")
		c := &guestapi.Client{Dial: func(context.Context, uint32) (net.Conn, error) { return nil, refused }}
		if _, err := c.Health(t.Context()); !errors.Is(err, refused) || api.KindOf(err) != api.KindGuest {
			t.Errorf("error %v", err)
		}
	})
}

// TestCopyFiles: paths count from the home of the guest's user, and what goes wrong is said in words.
func TestCopyFiles(t *testing.T) {
	home := t.TempDir()
	procs := process.NewManager(process.Config{Defaults: func() process.Defaults {
		return process.Defaults{Env: []string{"HOME=" + home}}
	}})
	t.Cleanup(func() { _ = procs.Close() })
	c := serve(t, guestapi.Handler(guestapi.Config{Processes: procs}))
	put := func(name string, p api.PutFiles) error {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Size: 1, Mode: 0o644}), second(w.Write([]byte("x"))), w.Close()); err != nil {
			t.Fatal(err)
		}
		_, err := c.CopyFiles(t.Context(), p, &b)
		return err
	}
	for path, want := range map[string]string{"": "a", "~": "b", "~/": "c", ".": "d", "e": "e", "~/f": "f", home + "/g": "g"} {
		if err := put(want, api.PutFiles{Path: path}); err != nil {
			t.Errorf("%q: %v", path, err)
		}
		if _, err := os.Stat(filepath.Join(home, want)); err != nil {
			t.Errorf("%q: %v", path, err)
		}
	}
	for _, path := range []string{"", "~", ".", "~/."} {
		s, err := c.Files(t.Context(), api.GetFiles{Path: path})
		if err != nil {
			t.Errorf("%q: %v", path, err)
			continue
		}
		h, err := tar.NewReader(s).Next()
		_ = s.Close()
		if err != nil || h.Name != filepath.Base(home)+"/" {
			t.Errorf("%q: %+v, %v", path, h, err)
		}
	}
	for what, tc := range map[string]struct {
		err  error
		kind api.ErrorKind
		text string
	}{
		"no parent":      {put("x", api.PutFiles{Path: "no/x"}), api.KindNotFound, "no directory"},
		"below a file":   {put("x", api.PutFiles{Path: "a/x"}), api.KindInvalid, "is not a directory"},
		"several":        {put("x", api.PutFiles{Path: "a", Into: true}), api.KindInvalid, "is not a directory"},
		"contents":       {put("x", api.PutFiles{Path: "~", Contents: true}), api.KindInvalid, "is not a directory"},
		"a cut stream":   {second(c.CopyFiles(t.Context(), api.PutFiles{Path: "~"}, strings.NewReader(""))), api.KindGuest, "cut"},
		"nothing there":  {second(c.Files(t.Context(), api.GetFiles{Path: "none"})), api.KindNotFound, "no such file or directory in the guest"},
		"not a file":     {second(c.Files(t.Context(), api.GetFiles{Path: "/dev/null"})), api.KindInvalid, "neither file"},
		"the whole root": {second(c.Files(t.Context(), api.GetFiles{Path: "/"})), api.KindInvalid, "root directory"},
	} {
		if api.KindOf(tc.err) != tc.kind || tc.err == nil || !strings.Contains(tc.err.Error(), tc.text) {
			t.Errorf("%s: %s %v", what, api.KindOf(tc.err), tc.err)
		}
	}
}

package vm

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/sshkeys"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

var errInjected = errors.New("injected failure")

// fakeEngine runs machines in memory: they outlive the service that started them, as real ones do.
type fakeEngine struct {
	mu       sync.Mutex // guards what follows
	machines map[string]*fakeMachine
	// startErr is what Start fails with, startErrs what it fails with by engine and acceleration, as "qemu/tcg"; hold makes guests stay
	// without an agent.
	startErr  error
	startErrs map[string]error
	specs     []vmm.Spec // of all starts
	// crashes are how VMMs end that come up, by engine and acceleration, before their guests are anywhere.
	crashes map[string]vmm.Status
	hold    bool
	// attachErr is what Attach fails with.
	attachErr error
	// linkErr is what OpenLink fails with: the first linkFails times, or ever where that is 0.
	linkErr   error
	linkFails int32
	linkTries atomic.Int32
	// deaf guests do not power off when asked; stubborn ones do not end by /v1/end either.
	deaf, stubborn bool
	starts         int
	// taken are what guests were given as files: the names and modes in it, or why they take none.
	taken   []string
	takeErr *api.Error
	// dialled is what a dial of wire.PortDial gets; nil for a refusal.
	dialled func() (net.Conn, error)
	// dialGuest reaches guests in which commands run, and bootGuest restarts them; nil where there are none.
	dialGuest func(port uint32) (net.Conn, error)
	bootGuest func()
	// unreachable guests are not reached by dialGuest.
	unreachable atomic.Bool
	// reset gets a token whenever a guest resets its connections; nil for guests that cannot.
	reset chan struct{}
}

func (e *fakeEngine) String() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []string
	for dir, m := range e.machines {
		out = append(out, filepath.Base(dir)+"="+string(m.Status().Phase))
	}
	return strings.Join(out, " ")
}

func (e *fakeEngine) Start(ctx context.Context, dir string, spec vmm.Spec) (vmm.Machine, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.starts++
	e.specs = append(e.specs, spec)
	if err := cmp.Or(e.startErr, e.startErrs[spec.Engine+"/"+spec.Accel]); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, paths.VMData)); err != nil {
		return nil, fmt.Errorf("the data drive: %w", err)
	}
	m := &fakeMachine{engine: e, change: make(chan struct{}), status: vmm.Status{Seq: 1, Phase: vmm.PhaseRunning, Boots: 1, VMMPID: 100 + e.starts, SupervisorPID: 200 + e.starts}}
	if e.machines == nil {
		e.machines = map[string]*fakeMachine{}
	}
	e.machines[dir] = m
	if crash, ok := e.crashes[spec.Engine+"/"+spec.Accel]; ok {
		m.update(func(st *vmm.Status) {
			st.Phase, st.End, st.Agent, st.Boots = vmm.PhaseEnded, crash.End, crash.Agent, crash.Boots
		})
	} else if !e.hold {
		m.update(func(st *vmm.Status) { st.Mark = api.MarkFull })
	}
	return m, nil
}

func (e *fakeEngine) Attach(_ context.Context, dir string) (vmm.Machine, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.attachErr != nil {
		return nil, e.attachErr
	}
	m := e.machines[dir]
	if m == nil {
		return nil, &vmm.GoneError{Dir: dir}
	}
	if st := m.Status(); st.Phase == vmm.PhaseEnded {
		return nil, &vmm.GoneError{Dir: dir, End: st.End}
	}
	return m, nil
}

// running counts the machines that have not ended.
func (e *fakeEngine) running() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	n := 0
	for _, m := range e.machines {
		if m.Status().Phase != vmm.PhaseEnded {
			n++
		}
	}
	return n
}

type fakeMachine struct {
	engine *fakeEngine
	mu     sync.Mutex // guards status and change
	status vmm.Status
	change chan struct{}
}

func (m *fakeMachine) update(f func(*vmm.Status)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.status.Phase == vmm.PhaseEnded {
		return
	}
	f(&m.status)
	m.status.Seq++
	close(m.change)
	m.change = make(chan struct{})
}

func (m *fakeMachine) end(cause vmm.EndCause) {
	m.update(func(st *vmm.Status) {
		st.Phase, st.Mark, st.VMMPID = vmm.PhaseEnded, "", 0
		st.End = &vmm.End{Cause: cause, At: time.Now()}
	})
}

func (m *fakeMachine) Status() vmm.Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.status
}

func (m *fakeMachine) Next(ctx context.Context, after uint64) (vmm.Status, error) {
	for {
		m.mu.Lock()
		st, change := m.status, m.change
		m.mu.Unlock()
		if st.Seq > after {
			return st, nil
		}
		select {
		case <-change:
		case <-ctx.Done():
			return st, ctx.Err()
		}
	}
}

// Dial reaches an agent that knows how to end.
func (m *fakeMachine) Dial(_ context.Context, port uint32) (net.Conn, error) {
	if port == wire.PortDial && m.engine.dialled != nil {
		return m.engine.dialled()
	}
	if m.engine.dialGuest != nil && port == wire.PortExec {
		return m.engine.dialGuest(port)
	}
	if port != wire.PortAPI {
		return nil, vmm.ErrRefused
	}
	near, far := net.Pipe()
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/shutdown", func(w http.ResponseWriter, _ *http.Request) {
		if !m.engine.deaf {
			defer m.end(vmm.EndPoweroff)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("GET /v1/stats", func(w http.ResponseWriter, r *http.Request) {
		if m.engine.deaf {
			<-r.Context().Done()
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(guestapi.Stats{CPUs: 3, UptimeSeconds: 7, CPU: guestapi.CPUTimes{User: 2, System: 1, Idle: 9}, Disk: guestapi.Disk{TotalBytes: 10, FreeBytes: 4}})
	})
	mux.HandleFunc("PUT /v1/files", m.engine.take)
	if m.engine.dialGuest != nil {
		mux.Handle("/v1/sessions", m.guestProxy())
		mux.Handle("/v1/sessions/", m.guestProxy())
	}
	mux.HandleFunc("POST /v1/sync", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	if m.engine.reset != nil {
		mux.HandleFunc("POST /v1/connections/reset", func(w http.ResponseWriter, _ *http.Request) {
			m.engine.reset <- struct{}{}
			w.WriteHeader(http.StatusNoContent)
		})
	}
	mux.HandleFunc("POST /v1/end", func(w http.ResponseWriter, _ *http.Request) {
		if m.engine.stubborn {
			http.Error(w, "{}", http.StatusInternalServerError)
			return
		}
		defer m.end(vmm.EndPoweroff)
		w.WriteHeader(http.StatusNoContent)
	})
	go func() { _ = http.Serve(&oneConn{c: far, done: make(chan struct{})}, mux) }()
	return near, nil
}

// take is a guest that is given files.
func (e *fakeEngine) take(w http.ResponseWriter, r *http.Request) {
	var got []string
	for tr := tar.NewReader(r.Body); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		b, _ := io.ReadAll(tr)
		got = append(got, fmt.Sprintf("%s:%s %o %s", r.URL.Query().Get("path"), h.Name, h.Mode, b))
	}
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/json")
	if e.takeErr != nil {
		w.WriteHeader(e.takeErr.Kind.Status())
		_ = json.NewEncoder(w).Encode(api.ErrorReply{Error: e.takeErr})
		return
	}
	e.mu.Lock()
	e.taken = append(e.taken, got...)
	e.mu.Unlock()
	_ = json.NewEncoder(w).Encode(api.FilesResult{Entries: len(got)})
}

// oneConn is a listener of a single connection.
type oneConn struct {
	mu   sync.Mutex // guards c
	c    net.Conn
	done chan struct{}
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	c := l.c
	l.c = nil
	l.mu.Unlock()
	if c != nil {
		return c, nil
	}
	return nil, io.EOF
}
func (l *oneConn) Close() error   { return nil }
func (l *oneConn) Addr() net.Addr { return &net.UnixAddr{} }

func (m *fakeMachine) Pause(context.Context) error {
	m.update(func(st *vmm.Status) { st.Phase, st.PauseReason = vmm.PhasePaused, "asked" })
	return nil
}

func (m *fakeMachine) Resume(context.Context) error {
	m.update(func(st *vmm.Status) { st.Phase, st.PauseReason = vmm.PhaseRunning, "" })
	return nil
}

func (m *fakeMachine) OpenLink(context.Context) (vmm.Link, error) {
	tries, fails := m.engine.linkTries.Add(1), m.engine.linkFails
	if err := m.engine.linkErr; err != nil && (fails == 0 || tries <= fails) {
		return nil, err
	}
	return fakeLink{m}, nil
}

func (m *fakeMachine) ResizeDrive(context.Context, string) error { return nil }
func (m *fakeMachine) Kill(context.Context) error                { m.end(vmm.EndKilled); return nil }
func (m *fakeMachine) Close() error                              { return nil }

// fakeSupplies has one image and one kernel, and fails at a chosen step.
type fakeSupplies struct {
	failAt string
	db     *store.Store
	// imageKernel is the kernel the image is for; empty for krn.
	imageKernel string
	// engines are what runs VMs: the first, and each time one ends at its start the next.
	engines []probe.Decision
	// engineFailures are those that did.
	engineFailures []string
	failed         func() // told of each; nil for nothing
}

func (f *fakeSupplies) fail(step string) error {
	if f.failAt == step {
		return errInjected
	}
	return nil
}

func (f *fakeSupplies) EnsureImage(ctx context.Context, name string, _ progress.Reporter) (Image, error) {
	if name == "none" {
		return Image{}, api.Errorf(api.KindNotFound, "image %q", name)
	}
	img := api.Image{Name: "img", Digest: "sha256:" + strings.Repeat("1", 64), Arch: "amd64", Kernel: cmp.Or(f.imageKernel, "krn"), Local: true}
	return Image{Image: img, Rootfs: "/img"}, errors.Join(f.fail("image"), ctx.Err(), f.db.PutImage(context.WithoutCancel(ctx), img))
}

func (f *fakeSupplies) CheckKernel(_ context.Context, name string) error {
	if name != "krn" && name != "own" {
		return api.Errorf(api.KindNotFound, "kernel %q is not known", name)
	}
	return nil
}

func (f *fakeSupplies) EnsureKernel(ctx context.Context, name string, _ progress.Reporter) (Kernel, error) {
	krn := api.Kernel{Name: "krn", Digest: "sha256:" + strings.Repeat("2", 64), Arch: "amd64", Local: true}
	if name == "own" {
		krn.Name, krn.Digest = name, "sha256:"+strings.Repeat("3", 64)
	}
	return Kernel{Kernel: krn, Vmlinux: "/vmlinux"}, errors.Join(f.fail("kernel"), f.db.PutKernel(context.WithoutCancel(ctx), krn))
}

func (f *fakeSupplies) ImageByDigest(ctx context.Context, _ string) (Image, error) {
	if err := f.fail("open image"); err != nil {
		return Image{}, err
	}
	return f.EnsureImage(ctx, "", progress.Discard)
}

func (f *fakeSupplies) KernelByDigest(ctx context.Context, _ string) (Kernel, error) {
	if err := f.fail("open kernel"); err != nil {
		return Kernel{}, err
	}
	return f.EnsureKernel(ctx, "", progress.Discard)
}

func (f *fakeSupplies) RemoveUnused(context.Context) error { return f.fail("remove unused") }

func (f *fakeSupplies) AgentArchive(context.Context) (string, error) {
	return "/agent", f.fail("agent")
}

func (f *fakeSupplies) Engine(context.Context, progress.Reporter) (probe.Decision, error) {
	if len(f.engines) > 0 {
		return f.engines[0], f.fail("engine")
	}
	return probe.Decision{Engine: "qemu", Accel: "tcg", Binary: "/qemu"}, f.fail("engine")
}

func (f *fakeSupplies) EngineFailed(_ context.Context, d probe.Decision, cause error) (probe.Decision, bool) {
	f.engineFailures = append(f.engineFailures, d.Engine+"/"+d.Accel+": "+cause.Error())
	for i, e := range f.engines[:max(0, len(f.engines)-1)] {
		if e.Engine == d.Engine && e.Accel == d.Accel {
			next := f.engines[i+1]
			if f.failed != nil {
				f.failed()
			}
			return next, true
		}
	}
	return probe.Decision{}, false
}

// fakeLink is the end of a VM's frames; nothing is on the wire.
type fakeLink struct{ vm *fakeMachine }

func (l fakeLink) ReadFrame([]byte) (int, error) { return 0, net.ErrClosed }
func (l fakeLink) WriteFrame([][]byte) error     { return net.ErrClosed }
func (l fakeLink) Close() error                  { return nil }

// fakeNetwork is a network that only keeps the list of who joined and who was detached.
type fakeNetwork struct {
	db     *store.Store
	joined chan NetworkVM
	err    error

	mu    sync.Mutex               // guards what follows
	lost  map[string]chan struct{} // of those attached, by id
	ended []string                 // ids
}

func (f *fakeNetwork) Lease(ctx context.Context, id string) (Lease, error) {
	if f.err != nil {
		return Lease{}, f.err
	}
	a, err := f.db.Lease(ctx, id, store.Pool{CIDR: netip.MustParsePrefix("172.16.0.0/24"), Gateway: netip.MustParseAddr("172.16.0.1")})
	return Lease{Network: wire.Network{Address: a.String() + "/24"}}, err
}

func (f *fakeNetwork) Warning() string { return "" }

func (f *fakeNetwork) Attach(v NetworkVM, _ vmm.Link) (<-chan struct{}, error) {
	f.mu.Lock()
	lost := make(chan struct{})
	f.lost[v.ID] = lost
	f.mu.Unlock()
	f.joined <- v
	return lost, nil
}

func (f *fakeNetwork) Detach(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.lost, id)
	f.ended = append(f.ended, id)
}

func (f *fakeNetwork) Stats(id string) (api.NetworkStats, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return api.NetworkStats{Mode: "user", SentBytes: 42}, f.lost[id] != nil
}

// forget detaches all, as the network of a daemon that ends.
func (f *fakeNetwork) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.lost)
}

// lose breaks the link of a VM.
func (f *fakeNetwork) lose(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.lost[id])
}

// world is a service on a fake host.
type world struct {
	t        *testing.T
	svc      *Service
	db       *store.Store
	engine   *fakeEngine
	supplies *fakeSupplies
	network  *fakeNetwork
	paths    paths.Paths
	owners   map[int]chan struct{}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, engine: &fakeEngine{}, owners: map[int]chan struct{}{},
		paths: paths.Paths{Config: filepath.Join(dir, "config"), State: filepath.Join(dir, "state"), Data: filepath.Join(dir, "data"), Cache: dir}}
	if err := os.MkdirAll(w.paths.VMs(), 0o700); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(t.Context(), w.paths.Database())
	if err != nil {
		t.Fatal(err)
	}
	w.db, w.supplies = db, &fakeSupplies{db: db}
	w.network = &fakeNetwork{db: db, joined: make(chan NetworkVM, 100), lost: map[string]chan struct{}{}}
	w.svc = w.service()
	t.Cleanup(func() {
		w.svc.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) service() *Service {
	return New(Config{Records: w.db, Supplies: w.supplies, Engine: w.engine, Network: w.network, Paths: w.paths, Log: slog.New(slog.DiscardHandler),
		Defaults: Defaults{Image: "img", CPUs: func(bool) int { return 1 }, MemoryBytes: 512 << 20, DiskBytes: 1 << 30},
		Host: Host{CPUs: 4, MemoryBytes: 8 << 30, Now: time.Now, OwnerGone: func(_ context.Context, o api.Owner) <-chan struct{} {
			if w.owners[o.PID] == nil {
				w.owners[o.PID] = make(chan struct{})
			}
			return w.owners[o.PID]
		}, SSHKey: func() (sshkeys.UserKey, error) { return sshkeys.User("", w.paths.SSHKey()) }}})
}

// restart is a daemon that was killed and started again.
func (w *world) restart() {
	w.t.Helper()
	w.svc.Close()
	w.svc = w.service()
	if err := w.svc.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// empty checks that nothing is left of any VM.
func (w *world) empty() {
	w.t.Helper()
	vms, err := w.svc.List(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	entries, err := os.ReadDir(w.paths.VMs())
	if err != nil {
		w.t.Fatal(err)
	}
	if len(vms) != 0 || len(entries) != 0 || w.engine.running() != 0 {
		w.t.Errorf("left: records %+v, directories %v, machines %s", vms, entries, w.engine)
	}
}

// state waits until a VM is in a state.
func (w *world) state(name string, want api.VMState) api.VM {
	w.t.Helper()
	return w.until(name, func(vm api.VM) bool { return vm.State == want })
}

func (w *world) until(name string, ok func(api.VM) bool) api.VM {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		vm, err := w.svc.VM(w.t.Context(), name)
		if err == nil && ok(vm) {
			return vm
		}
		select {
		case <-deadline:
			w.t.Fatalf("vm %q is not as it should be: %+v, %v", name, vm, err)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// machine waits until the engine has started a VM.
func (w *world) machine(vm api.VM) *fakeMachine {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		w.engine.mu.Lock()
		m := w.engine.machines[w.paths.VM(vm.ID)]
		w.engine.mu.Unlock()
		if m != nil {
			return m
		}
		select {
		case <-deadline:
			w.t.Fatalf("vm %q has no machine", vm.Name)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// gone waits until a VM is not there any more.
func (w *world) gone(name string) {
	w.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		if _, err := w.svc.VM(w.t.Context(), name); api.KindOf(err) == api.KindNotFound {
			return
		}
		select {
		case <-deadline:
			w.t.Fatalf("vm %q is still there", name)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// notes collects the notes of a piece of work.
type notes struct {
	progress.Reporter
	mu    sync.Mutex // guards lines
	lines []string
}

func newNotes() *notes { return &notes{Reporter: progress.Discard} }

func (n *notes) Note(text string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lines = append(n.lines, text)
}

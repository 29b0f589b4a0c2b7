package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// fakeDaemon is banger's API over a unix socket, with VMs that are entries of a map and whose
// commands run on the host. It keeps what its clients did to it.
type fakeDaemon struct {
	t      *testing.T
	socket string
	procs  *process.Manager
	server *http.Server

	mu      sync.Mutex // guards what follows
	version string     // what it answers as its API version
	vms     map[string]*api.VM
	owners  map[string]*api.Owner
	images  []api.Image
	kernels []api.Kernel
	// registered is the last kernel that was.
	registered api.RegisterKernel
	ops        map[string]*fakeOp
	nextOp     int
	requests   []string // "METHOD path"
	copied     []string // paths of workspaces
	work       fakeWork
	accel      string   // of VMs that are made
	owned      []string // ids of processes that are to go with their client, "" for none, per exec stream
	stopped    bool
	web        [2]string // address and warning of the web port
	// looked, where it is not nil, is called with a VM after somebody asked for it.
	looked func(*api.VM)
	// before are called in an operation of a kind before it does its work.
	before map[string]func(ctx context.Context, op *fakeOp) error
}

// errEnded is what a hook returns that has ended its operation itself.
var errEnded = errors.New("ended")

type fakeOp struct {
	d       *fakeDaemon
	op      api.Operation
	changed chan struct{} // closed and replaced at every change
	cancel  context.CancelFunc
}

// startFake starts a fake daemon at the socket that env leads to.
func startFake(t *testing.T, env map[string]string) *fakeDaemon {
	t.Helper()
	d := &fakeDaemon{
		t: t, socket: filepath.Join(env["XDG_RUNTIME_DIR"], "banger", "bangerd.sock"), version: strconv.Itoa(api.Version),
		procs: process.NewManager(process.Config{}),
		vms:   map[string]*api.VM{}, owners: map[string]*api.Owner{}, ops: map[string]*fakeOp{},
		before: map[string]func(context.Context, *fakeOp) error{},
	}
	if err := os.MkdirAll(filepath.Dir(d.socket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	d.server = &http.Server{Handler: d.handler()}
	go d.server.Serve(l)
	t.Cleanup(func() {
		d.server.Close()
		d.procs.Close()
	})
	return d
}

// String lists the VMs with their states.
func (d *fakeDaemon) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []string
	for _, vm := range d.vms {
		out = append(out, vm.Name+" "+string(vm.State))
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}

// asked counts the requests that start with prefix, such as "POST /v1/vms".
func (d *fakeDaemon) asked(prefix string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, r := range d.requests {
		if strings.HasPrefix(r, prefix) {
			n++
		}
	}
	return n
}

// add adds a VM.
func (d *fakeDaemon) add(vm api.VM) {
	d.mu.Lock()
	defer d.mu.Unlock()
	vm.ID = "id-" + vm.Name
	d.vms[vm.Name] = &vm
}

// on has hook called in operations of a kind before they do their work.
func (d *fakeDaemon) on(kind string, hook func(context.Context, *fakeOp) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before[kind] = hook
}

func (d *fakeDaemon) handler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(r *http.Request) (int, any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			status, v, err := h(r)
			if err != nil {
				e := api.AsError(err)
				status, v = e.Kind.Status(), api.ErrorReply{Error: e}
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			if v != nil {
				json.NewEncoder(w).Encode(v)
			}
		})
	}
	d.daemonRoutes(handle)
	d.vmRoutes(handle)
	d.forwardRoutes(handle)
	d.statsRoutes(handle)
	d.portsRoutes(handle)
	d.workspaceRoutes(handle)
	d.storeRoutes(handle)
	handle("PUT /v1/vms/{name}/files", d.putFiles)
	mux.HandleFunc("GET /v1/operations/{id}/events", d.operationEvents)
	mux.HandleFunc("GET /v1/vms/{name}/exec", d.exec)
	mux.HandleFunc("GET /v1/vms/{name}/ssh", d.ssh)
	mux.HandleFunc("GET /v1/vms/{name}/logs", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s of %s\r\n\x1b[32mgreen\x1b[0m \x1b]0;title\a\n", r.URL.Query().Get("source"), r.PathValue("name"))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		d.requests = append(d.requests, r.Method+" "+r.URL.Path)
		version := d.version
		d.mu.Unlock()
		w.Header().Set(api.HeaderAPIVersion, version)
		w.Header().Set(api.HeaderBuildVersion, "fake")
		if v := r.Header.Get(api.HeaderAPIVersion); v != version {
			w.WriteHeader(api.KindVersion.Status())
			json.NewEncoder(w).Encode(api.ErrorReply{Error: api.Errorf(api.KindVersion, "versions differ")})
			return
		}
		if _, pattern := mux.Handler(r); pattern == "" {
			d.t.Errorf("the fake daemon does not know %s %s", r.Method, r.URL.Path)
		}
		mux.ServeHTTP(w, r)
	})
}

type handleFunc = func(pattern string, h func(r *http.Request) (int, any, error))

// putFiles takes what is copied into a VM that runs, and forgets it.
func (d *fakeDaemon) putFiles(r *http.Request) (int, any, error) {
	d.mu.Lock()
	_, err := d.running(r.PathValue("name"))
	d.mu.Unlock()
	n, _ := io.Copy(io.Discard, r.Body)
	return http.StatusOK, api.FilesResult{Bytes: n}, err
}

func (d *fakeDaemon) daemonRoutes(handle handleFunc) {
	handle("GET /v1/daemon", func(*http.Request) (int, any, error) {
		d.mu.Lock()
		v, _ := strconv.Atoi(d.version)
		web := d.web
		d.mu.Unlock()
		return 200, api.DaemonStatus{WebAddress: web[0], WebWarning: web[1], PID: 4711, Version: "fake", APIVersion: v, Socket: d.socket, UptimeSeconds: 61.5, Engine: "qemu"}, nil
	})
	handle("POST /v1/daemon/stop", func(*http.Request) (int, any, error) {
		d.mu.Lock()
		d.stopped = true
		d.mu.Unlock()
		go d.server.Close()
		return 204, nil, nil
	})
	handle("DELETE /v1/operations/{id}", func(r *http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.ops[r.PathValue("id")].cancel()
		return 204, nil, nil
	})
}

func (d *fakeDaemon) vmRoutes(handle handleFunc) {
	handle("GET /v1/vms", func(*http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		out := []api.VM{}
		for _, vm := range d.vms {
			out = append(out, *vm)
		}
		sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
		return 200, out, nil
	})
	handle("GET /v1/vms/{name}", func(r *http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		vm, err := d.find(r.PathValue("name"))
		if err != nil {
			return 0, nil, err
		}
		seen := *vm
		if d.looked != nil {
			d.looked(vm)
		}
		return 200, seen, nil
	})
	handle("POST /v1/vms", d.create)
	handle("GET /v1/vms/{name}/ssh-target", func(r *http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		vm, err := d.running(r.PathValue("name"))
		if err != nil {
			return 0, nil, err
		}
		return 200, api.SSHTarget{ID: vm.ID, Name: vm.Name, HostKeyAlias: vm.ID, User: "root",
			KnownHosts: "/state/known_hosts", IdentityFile: "/config/100% mine/id", HostKey: "ssh-ed25519 AAAA"}, nil
	})
	change := func(verb string, work func(r *http.Request, vm *api.VM) error) func(r *http.Request) (int, any, error) {
		return func(r *http.Request) (int, any, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			vm, err := d.find(r.PathValue("name"))
			if err != nil {
				return 0, nil, err
			}
			return d.start(verb, vm.Name, func(*fakeOp) (any, error) {
				d.mu.Lock()
				defer d.mu.Unlock()
				if err := work(r, vm); err != nil {
					return nil, err
				}
				return *vm, nil
			})
		}
	}
	set := func(s api.VMState, m api.Mark) func(*http.Request, *api.VM) error {
		return func(_ *http.Request, vm *api.VM) error { vm.State, vm.Mark = s, m; return nil }
	}
	handle("POST /v1/vms/{name}/start", change("vm.start", set(api.StateRunning, api.MarkReady)))
	handle("POST /v1/vms/{name}/restart", change("vm.restart", set(api.StateRunning, api.MarkReady)))
	handle("POST /v1/vms/{name}/stop", change("vm.stop", set(api.StateStopped, "")))
	handle("POST /v1/vms/{name}/kill", change("vm.kill", set(api.StateStopped, "")))
	handle("DELETE /v1/vms/{name}", change("vm.delete", func(r *http.Request, vm *api.VM) error {
		if vm.State == api.StateRunning && r.URL.Query().Get("force") != "true" {
			return api.Errorf(api.KindConflict, "delete vm %q: it runs", vm.Name).WithHint("banger vm delete --force %s", vm.Name)
		}
		if len(d.work.lost[vm.Name]) > 0 && r.URL.Query().Get("force") != "true" && r.URL.Query().Get("discard") != "true" {
			return api.Errorf(api.KindConflict, "delete vm %q: it has commits that were not pulled", vm.Name).WithHint("banger vm workspace pull %s", vm.Name)
		}
		delete(d.vms, vm.Name)
		return nil
	}))
	handle("POST /v1/vms/{name}/release", func(r *http.Request) (int, any, error) {
		var req api.Release
		json.NewDecoder(r.Body).Decode(&req)
		return change("vm.release", func(_ *http.Request, vm *api.VM) error {
			if o := d.owners[vm.Name]; o == nil || *o != req.Owner {
				return api.Errorf(api.KindConflict, "vm %q has another owner", vm.Name)
			}
			if req.Keep {
				vm.RemoveOnExit, d.owners[vm.Name] = false, nil
				return nil
			}
			delete(d.vms, vm.Name)
			return nil
		})(r)
	})
}

// find returns a VM by name or id; the caller holds mu.
func (d *fakeDaemon) find(name string) (*api.VM, error) {
	for _, vm := range d.vms {
		if vm.Name == name || vm.ID == name {
			return vm, nil
		}
	}
	return nil, api.Errorf(api.KindNotFound, "vm %q: there is none of that name", name).WithHint("banger vm list")
}

// running finds a VM that runs; the caller holds mu.
func (d *fakeDaemon) running(name string) (*api.VM, error) {
	vm, err := d.find(name)
	if err == nil && vm.State != api.StateRunning {
		err = api.Errorf(api.KindConflict, "vm %q is %s", vm.Name, vm.State).WithHint("start it: banger vm start %s", vm.Name)
	}
	return vm, err
}

func (d *fakeDaemon) create(r *http.Request) (int, any, error) {
	var req api.CreateVM
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil {
		return 0, nil, api.Errorf(api.KindInvalid, "%w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	asked := req.Name
	if req.Name == "" {
		req.Name = "quiet-otter"
	}
	if _, err := d.find(req.Name); err == nil {
		return 0, nil, api.Errorf(api.KindConflict, "vm %q already exists", req.Name)
	}
	return d.start("vm.create", asked, func(*fakeOp) (any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		vm := &api.VM{ID: "id-" + req.Name, Name: req.Name, State: api.StateStopped, Image: req.Image, Kernel: req.Kernel, CPUs: req.CPUs, Env: req.Env, Forwards: req.Forwards, RemoveOnExit: req.RemoveOnExit}
		if req.Start {
			vm.State, vm.Mark, vm.Engine, vm.Accel = api.StateRunning, req.Wait, "qemu", d.accel
		}
		d.vms[vm.Name], d.owners[vm.Name] = vm, req.Owner
		return *vm, nil
	})
}

func (d *fakeDaemon) storeRoutes(handle handleFunc) {
	handle("GET /v1/images", func(*http.Request) (int, any, error) { return 200, d.images, nil })
	handle("GET /v1/kernels", func(*http.Request) (int, any, error) { return 200, d.kernels, nil })
	handle("GET /v1/images/{name}", func(r *http.Request) (int, any, error) {
		for _, im := range d.images {
			if im.Name == r.PathValue("name") {
				return 200, im, nil
			}
		}
		return 0, nil, api.Errorf(api.KindNotFound, "no image %q", r.PathValue("name"))
	})
	handle("GET /v1/kernels/{name}", func(r *http.Request) (int, any, error) {
		for _, k := range d.kernels {
			if k.Name == r.PathValue("name") {
				return 200, k, nil
			}
		}
		return 0, nil, api.Errorf(api.KindNotFound, "no kernel %q", r.PathValue("name"))
	})
	handle("POST /v1/kernels/register", func(r *http.Request) (int, any, error) {
		var req api.RegisterKernel
		json.NewDecoder(r.Body).Decode(&req)
		d.mu.Lock()
		defer d.mu.Unlock()
		d.registered = req
		return d.start("kernel.register", req.Name, func(*fakeOp) (any, error) {
			return api.Kernel{Name: req.Name, Digest: "sha256:def", Release: "6.12.1"}, nil
		})
	})
	handle("POST /v1/images/pull", func(r *http.Request) (int, any, error) {
		var req api.PullImage
		json.NewDecoder(r.Body).Decode(&req)
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.start("image.pull", req.Name, func(*fakeOp) (any, error) {
			return api.Image{Name: req.Name, Digest: "sha256:abc"}, nil
		})
	})
	handle("POST /v1/kernels/pull", func(r *http.Request) (int, any, error) {
		var req api.PullKernel
		json.NewDecoder(r.Body).Decode(&req)
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.start("kernel.pull", req.Name, func(*fakeOp) (any, error) {
			return api.Kernel{Name: req.Name, Digest: "sha256:def", Release: "6.12.1"}, nil
		})
	})
	drop := func(r *http.Request) (int, any, error) {
		if r.PathValue("name") == "used" {
			return 0, nil, api.Errorf(api.KindConflict, "%q is used by vm %q", "used", "web")
		}
		return 204, nil, nil
	}
	handle("DELETE /v1/images/{name}", drop)
	handle("DELETE /v1/kernels/{name}", drop)
}

// start starts an operation; the caller holds mu.
func (d *fakeDaemon) start(kind, target string, work func(*fakeOp) (any, error)) (int, any, error) {
	d.nextOp++
	ctx, cancel := context.WithCancel(context.Background())
	o := &fakeOp{d: d, changed: make(chan struct{}), cancel: cancel,
		op: api.Operation{ID: fmt.Sprintf("op%d", d.nextOp), Kind: kind, Target: target, State: api.OperationRunning}}
	d.ops[o.op.ID] = o
	first, before := o.op, d.before[kind]
	go func() {
		var err error
		if before != nil {
			err = before(ctx, o)
		}
		if errors.Is(err, errEnded) {
			return
		}
		var result any
		if err == nil {
			result, err = work(o)
		}
		data, _ := json.Marshal(result)
		o.set(func(op *api.Operation) {
			switch {
			case ctx.Err() != nil:
				op.State, op.Error = api.OperationCancelled, api.Errorf(api.KindCancelled, "%s: cancelled", kind)
			case err != nil:
				op.State, op.Error = api.OperationFailed, api.AsError(err)
			default:
				op.State, op.Result = api.OperationDone, data
			}
		})
	}()
	return 202, first, nil
}

// set changes the operation and tells its watchers.
func (o *fakeOp) set(change func(*api.Operation)) {
	o.d.mu.Lock()
	defer o.d.mu.Unlock()
	change(&o.op)
	close(o.changed)
	o.changed = make(chan struct{})
}

func (d *fakeDaemon) operationEvents(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	o := d.ops[r.PathValue("id")]
	d.mu.Unlock()
	for {
		d.mu.Lock()
		op, changed := o.op, o.changed
		d.mu.Unlock()
		data, _ := json.Marshal(op)
		fmt.Fprintf(w, "data: %s\n\n", data)
		w.(http.Flusher).Flush()
		if op.Ended() {
			return
		}
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}

func (d *fakeDaemon) exec(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.owned = append(d.owned, r.URL.Query().Get("id"))
	d.mu.Unlock()
	if conn := d.upgrade(w, r, ""); conn != nil {
		d.procs.Serve(context.Background(), conn)
	}
}

// ssh greets as an ssh server does, in the same write as the answer, and sends back what comes, until that ends.
func (d *fakeDaemon) ssh(w http.ResponseWriter, r *http.Request) {
	conn := d.upgrade(w, r, "SSH-2.0-fake\r\n")
	if conn == nil {
		return
	}
	defer conn.Close()
	io.Copy(conn, conn)
	io.WriteString(conn, "end")
}

// upgrade makes a request for a VM that runs a stream that begins with greeting; nil where it was refused.
func (d *fakeDaemon) upgrade(w http.ResponseWriter, r *http.Request, greeting string) net.Conn {
	d.mu.Lock()
	_, err := d.running(r.PathValue("name"))
	d.mu.Unlock()
	if err != nil {
		w.WriteHeader(api.KindOf(err).Status())
		json.NewEncoder(w).Encode(api.ErrorReply{Error: api.AsError(err)})
		return nil
	}
	conn, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		d.t.Error(err)
		return nil
	}
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: %d\r\n\r\n%s",
		r.Header.Get("Upgrade"), api.HeaderAPIVersion, api.Version, greeting)
	if rw.Reader.Buffered() > 0 {
		d.t.Error("the client sent data before the upgrade was answered")
	}
	return conn
}

// testApp is an App over buffers, with directories of its own.
type testApp struct {
	*App
	out, err bytes.Buffer
	env      map[string]string
	signals  chan os.Signal
}

func newTestApp(t *testing.T) *testApp {
	t.Helper()
	home, err := os.MkdirTemp("", "banger-cli") //nolint:usetesting // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	a := &testApp{
		env:     map[string]string{"HOME": home, "XDG_RUNTIME_DIR": filepath.Join(home, "run"), "TERM": "xterm"},
		signals: make(chan os.Signal, 8),
	}
	lookup := func(k string) (string, bool) { v, ok := a.env[k]; return v, ok }
	a.App = &App{
		In: strings.NewReader(""), Out: &a.out, Err: &a.err,
		Terminal: Terminal{
			Size: func() (int, int) { return 24, 80 },
			Raw:  func() (func(), error) { t.Error("the terminal was made raw"); return func() {}, nil },
		},
		Getenv: func(k string) string { return a.env[k] }, LookupEnv: lookup,
		Now:         func() time.Time { return time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC) },
		Executable:  func() (string, error) { return filepath.Join(home, "bin", "banger"), nil },
		Signals:     a.signals,
		LookPath:    func(name string) (string, error) { return "", fmt.Errorf("%s: %w", name, hostexec.ErrNotInstalled) },
		AccountHome: func() (string, error) { return home, nil },
		Replace: func(argv []string) error {
			t.Errorf("banger became %q", argv)
			return io.ErrUnexpectedEOF
		},
		StartDaemon: func(context.Context) error {
			t.Error("the daemon was started")
			return io.ErrUnexpectedEOF
		},
	}
	return a
}

// run runs a command line and returns its status; what it printed before is forgotten.
func (a *testApp) run(args ...string) int {
	a.out.Reset()
	a.err.Reset()
	a.App.Err = &a.err
	return a.App.Run(context.Background(), args)
}

// interrupt sends SIGINT as the terminal would.
func (a *testApp) interrupt() { a.signals <- syscall.SIGINT }

// operationThatSteps is a hook that is in the middle of a download until go is closed.
func operationThatSteps(goOn <-chan struct{}) func(context.Context, *fakeOp) error {
	return func(_ context.Context, o *fakeOp) error {
		o.set(func(op *api.Operation) {
			op.Progress = api.Progress{Step: "download x", Done: 10 << 20, Total: 40 << 20}
		})
		<-goOn
		return nil
	}
}

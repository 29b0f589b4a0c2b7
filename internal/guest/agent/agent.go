package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/buildinfo"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/process"
	"git.thaloco.com/thaloco/banger/internal/guest/session"
	"git.thaloco.com/thaloco/banger/internal/guest/tunnel"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// standstill is how long a guest must have stood still for its clock to be set again.
const standstill = 2 * time.Second

// welcomeTimeout is how long a stream of the host waits for the call to be made.
const welcomeTimeout = 30 * time.Second

// agent is the process that serves the host.
type agent struct {
	conf     wire.Boot
	init     initKind
	dataDev  string
	data     *os.File // the data drive's file system
	log      *slog.Logger
	book     *logbook
	call     *caller
	procs    *process.Manager
	sessions *session.Sessions // nil where their directory cannot be used
	apiConns chan net.Conn
	ssh      sshServer
	tunnels  tunnel.Server
	tap      *tap          // nil for a guest whose eth0, if any, is the VMM's
	welcomed chan struct{} // closed after the first welcome: clock and entropy are the host's
	booted   time.Time     // when the guest was started, by the host's clock; of the goroutine that calls
	ending   sync.Mutex    // held by the one who ends the machine

	mu    sync.Mutex // guards what follows
	id    wire.Identity
	asked string // the verb an init other than systemd was asked for
}

// agentMain is the agent's process. It ends with the machine.
func agentMain() int {
	if err := runAgent(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "banger: agent:", err)
		return 1
	}
	return 0
}

func runAgent(ctx context.Context) error {
	terminated := setUpSelf()
	h, err := readHandover(fdHandover)
	if err != nil {
		return err
	}
	a := newAgent(h)
	control, err := listenControl(controlSocket)
	if err != nil {
		return err
	}
	go func() {
		err := serveControl(control, func(verb string) error { return a.end(ctx, verb) })
		a.log.Error("the control socket ended", "error", err)
	}()
	for _, line := range h.Log {
		a.book.add(line)
	}
	a.log.Info("agent started", "version", buildinfo.Version, "boot_ms", bootMillis())
	srv := &http.Server{Handler: a.handler(), ReadHeaderTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute}
	go func() { _ = srv.Serve(connListener(a.apiConns)) }()
	go a.settle(ctx)
	go func() {
		for range terminated {
			a.takeOver(ctx)
		}
	}()
	return serveLinks(ctx, h.Boot.Transport, a.useLink(ctx))
}

func newAgent(h handover) *agent {
	a := &agent{
		conf: h.Boot, init: initKind(h.Init), dataDev: h.DataDev, id: h.Boot.Identity,
		data:     os.NewFile(fdData, "data"),
		apiConns: make(chan net.Conn), welcomed: make(chan struct{}),
		tunnels: tunnel.Server{UDPListeners: guestapi.UDPListeners},
	}
	bootID, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // informative
	hello := wire.Call{Agent: buildinfo.Version, BootID: strings.TrimSpace(string(bootID)), Init: h.Init}
	a.call = newCaller(hello, h.Boot.Secret, a.welcome)
	a.conf.Secret = ""
	a.book = newLogbook(logFile, a.call.logLine)
	a.log = slog.New(slog.NewTextHandler(a.book, nil))
	a.call.log = a.log
	if n := a.id.Network; n != nil && n.Device == wire.DeviceTAP {
		a.tap = newTAP(a.call.currentToken, a.log)
	}
	a.procs = process.NewManager(process.Config{Log: a.log, Defaults: a.defaults, Started: started, Session: a.serveSession})
	a.openSessions()
	return a
}

// readHandover takes what PID 1 left in a descriptor.
func readHandover(fd uintptr) (handover, error) {
	var h handover
	f := os.NewFile(fd, "handover")
	defer f.Close()
	if err := json.NewDecoder(f).Decode(&h); err != nil {
		return h, fmt.Errorf("read what init hands over: %w", err)
	}
	for _, fd := range []int{fdData, fdModules, fdHeard} {
		unix.CloseOnExec(fd)
	}
	return h, nil
}

// setUpSelf makes the process hard to kill and closed to others. It does what the kernel lets it. The channel
// tells of SIGTERM.
func setUpSelf() <-chan os.Signal {
	terminated, deaf := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	// Handled and thrown away rather than ignored: commands would inherit that.
	signal.Notify(deaf, syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGUSR1, syscall.SIGUSR2)
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	_ = os.WriteFile("/proc/self/comm", []byte("banger-agent"), 0)
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("-1000"), 0)
	return terminated
}

// started lets the kernel kill a command for want of memory, which it may not do to the agent.
func started(pid int) {
	_ = os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte("0"), 0) // it may have ended
}

func (a *agent) defaults() process.Defaults {
	a.mu.Lock()
	defer a.mu.Unlock()
	return process.Defaults{Env: a.id.Env, WorkDir: a.id.WorkDir, User: a.id.User, Cmd: a.id.Cmd}
}

// welcome takes clock and entropy of the host; after the first the guest is reachable.
func (a *agent) welcome(r wire.CallReply, first bool) {
	now := time.Unix(0, r.TimeUnixNano)
	booted := now.Add(-time.Duration(bootMillis()) * time.Millisecond)
	err := addEntropy(r.Entropy)
	// By the host's clock the guest was started later than it was at first: it has stood still meanwhile. If not, the clock is left to
	// who may have set it in the guest.
	stood := !first && booted.Sub(a.booted) > standstill
	if first || stood {
		a.booted = booted
		err = errors.Join(err, setClock(now))
	}
	if err != nil {
		a.log.Warn("taking the host's clock and entropy", "error", err)
	}
	if stood && a.tap != nil {
		a.tap.again() // the guest may not have been told that its streams have ended (Firecracker, issue 4736)
	}
	if !first {
		return
	}
	close(a.welcomed)
	a.call.reached(api.MarkAgent)
	_ = unix.Close(fdHeard)
	a.log.Info("reachable", "boot_ms", bootMillis())
}

// useLink serves one link to the host until that ends.
func (a *agent) useLink(ctx context.Context) func(link) {
	return func(l link) {
		go a.call.run(ctx, l)
		if a.tap != nil {
			go a.tap.run(ctx, l)
		}
		if err := l.Serve(func(port uint32, conn net.Conn) bool { return a.serve(ctx, port, conn) }); err != nil {
			a.log.Warn("the channel to the host ended", "error", err)
		}
	}
}

// serve takes a stream of the host.
func (a *agent) serve(ctx context.Context, port uint32, conn net.Conn) bool {
	if !slices.Contains(ports, port) {
		return false
	}
	select {
	case <-a.welcomed:
	case <-time.After(welcomeTimeout):
		return false
	}
	switch port {
	case wire.PortAPI:
		a.apiConns <- conn
		return true
	case wire.PortSSH:
		return a.serveSSH(ctx, conn)
	case wire.PortDial:
		go func() {
			if err := a.tunnels.Serve(ctx, conn); err != nil {
				a.log.Debug("a connection to a port ended", "error", err)
			}
		}()
		return true
	}
	go func() {
		if err := a.procs.Serve(ctx, conn); err != nil {
			a.log.Debug("a stream of a command ended", "error", err)
		}
	}()
	return true
}

// connListener is a net.Listener of the streams that serve takes.
type connListener chan net.Conn

// Accept implements net.Listener.
func (l connListener) Accept() (net.Conn, error) {
	c, ok := <-l
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements net.Listener.
func (l connListener) Close() error { return nil }

// Addr implements net.Listener.
func (l connListener) Addr() net.Addr { return &net.UnixAddr{Name: "banger", Net: "unix"} }

// settle does what can wait until the host has been called: the network, the modules nothing needed so far, the marks,
// and the growth of a new data file system.
func (a *agent) settle(ctx context.Context) {
	select {
	case <-a.welcomed:
	case <-time.After(welcomeTimeout):
	}
	if n := a.conf.Identity.Network; n != nil {
		a.startNetwork(*n)
	}
	if err := loadRest(fdModules); err != nil {
		a.log.Warn("loading modules", "error", err)
	}
	if a.init != initSystemd {
		a.call.reached(api.MarkFull)
	}
	go a.growToIdentity()
	defer func() { go a.keepSSHPort(ctx) }() // an ssh server of the image has had its chance
	if a.init != initSystemd {
		return
	}
	for _, w := range []struct {
		pipe string
		mark api.Mark
	}{{readyPipe, api.MarkReady}, {fullPipe, api.MarkFull}} {
		if err := awaitFile(ctx, w.pipe); err != nil {
			a.log.Error("waiting for systemd", "mark", w.mark, "error", err)
			return
		}
		a.call.reached(w.mark)
		a.log.Info("systemd went on", "mark", w.mark, "boot_ms", bootMillis())
		if w.mark == api.MarkReady {
			a.ownCgroup()
		}
	}
}

// startNetwork sets the network of this boot up, before what else there is to do: somebody waits for it.
func (a *agent) startNetwork(n wire.Network) {
	say := func(format string, args ...any) {
		a.log.Warn("loading modules", "detail", fmt.Sprintf(format, args...))
	}
	err := loadNeeded(fdModules, networkModules(n), say)
	if err == nil {
		err = a.setUpNetwork(n)
	}
	if err != nil {
		a.log.Error("the guest has no network", "error", err)
		return
	}
	a.log.Info("network set up", "boot_ms", bootMillis())
}

// loadRest loads the boot modules PID 1 left, and frees their memory.
func loadRest(dir int) error {
	defer unix.Close(dir)
	order, err := readOrder(dir)
	if err != nil {
		return err
	}
	err = loadOrdered(dir, order) // those that are loaded say so, cheaply
	for _, f := range append(order, "order") {
		_ = unix.Unlinkat(dir, f, 0)
	}
	return err
}

// ownCgroup moves the agent and all it starts out of systemd's scope, into a cgroup that systemd leaves alone.
func (a *agent) ownCgroup() {
	const dir = "/sys/fs/cgroup/banger"
	err := os.Mkdir(dir, 0o755)
	if err == nil || errors.Is(err, fs.ErrExist) {
		err = os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0)
	}
	if err != nil {
		a.log.Warn("moving to a cgroup", "error", err)
	}
}

// growToIdentity makes the data file system as large as the host says it is to be. What is smaller is large
// enough to boot with.
func (a *agent) growToIdentity() {
	want := a.conf.Identity.DataBytes
	if want == 0 {
		return
	}
	have, err := superblockBytes(a.dataDev, a.data)
	if err == nil && have >= want {
		return
	}
	n, err := growData(a.data, a.dataDev, want)
	if err != nil {
		a.log.Error("growing the data file system", "error", err)
		return
	}
	a.log.Info("data file system grown", "bytes", n, "boot_ms", bootMillis())
}

// awaitFile waits until a file appears in its directory, which exists.
func awaitFile(ctx context.Context, file string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("await %q: %w", file, err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	if _, err := unix.InotifyAddWatch(fd, path.Dir(file), unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return fmt.Errorf("await %q: %w", file, err)
	}
	buf := make([]byte, 4096)
	for {
		if _, err := os.Lstat(file); err == nil {
			return nil
		}
		if _, err := events.Read(buf); err != nil {
			return fmt.Errorf("await %q: %w", file, err)
		}
	}
}

// state is what the API says of the guest.
func (a *agent) state() guestapi.State {
	return guestapi.State{Agent: buildinfo.Version, Init: a.init.wire(), Mark: a.call.current()}
}

// Package daemon is bangerd: it wires the services together, holds the lock and
// the socket, recovers what an earlier daemon left, and shuts down without touching a VM.
//
// daemon.go is the life of the process, supplies.go images and kernels as the
// services need them, engine.go what runs VMs, agent.go the guest agent's archive, listen.go and lock.go the socket and the
// lock, web.go the web port, owner.go the processes that --rm VMs live for, build_vm.go the VMs that images are built in.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gopkg.in/natefinch/lumberjack.v2"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/apiserver"
	"git.thaloco.com/thaloco/banger/internal/buildinfo"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/filesync"
	"git.thaloco.com/thaloco/banger/internal/operation"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/quarantine"
	"git.thaloco.com/thaloco/banger/internal/sshkeys"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vm"
	"git.thaloco.com/thaloco/banger/internal/workspace"
)

// Config is what a daemon needs. Every field is required.
type Config struct {
	Paths paths.Paths
	// Exe is the absolute path of bangerd itself: supervisors are started from it, and the agent is found beside it.
	Exe    string
	Getenv func(string) string
}

// shutdownGrace is how long requests and operations may take to end when the daemon stops.
const shutdownGrace = 10 * time.Second

// Daemon is one running daemon.
type Daemon struct {
	cfg      Config
	settings config.Config
	exists   bool // a configuration file
	log      *slog.Logger
	db       *store.Store
	ops      *operation.Service
	vms      *vm.Service
	supplies *supplies
	network  *network
	web      *web
	started  time.Time

	stopOnce sync.Once
	stopping chan struct{}
}

// Run is the life of a daemon: it returns when ctx ends, when a client asked it to stop, or
// at once with ErrRunning where another daemon serves the same state.
func Run(ctx context.Context, cfg Config) error {
	for _, dir := range []string{cfg.Paths.State, cfg.Paths.Data, cfg.Paths.Cache, cfg.Paths.VMs()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make banger's directories: %w", err)
		}
	}
	lock, err := takeLock(cfg.Paths.Lock(), cfg.Paths.Socket())
	if err != nil {
		return err
	}
	defer lock.release()
	settings, exists, err := config.Load(cfg.Paths.ConfigFile())
	if err != nil {
		return err
	}
	logs := &lumberjack.Logger{Filename: cfg.Paths.DaemonLog(), MaxSize: 8, MaxBackups: 1}
	defer func() { _ = logs.Close() }()
	d := &Daemon{cfg: cfg, settings: settings, exists: exists, started: time.Now(), stopping: make(chan struct{}),
		log: slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelInfo}))}
	if err := d.serve(ctx); err != nil {
		d.log.Error("daemon failed", "err", err)
		return err
	}
	return nil
}

// serve runs from the database to the last request.
func (d *Daemon) serve(ctx context.Context) error {
	db, err := store.Open(ctx, d.cfg.Paths.Database())
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	d.db = db
	if err := d.wire(); err != nil {
		return err
	}
	defer d.network.Close()
	defer d.web.close()
	d.network.begin(ctx)
	if n, err := db.FailRunningOperations(ctx, "the daemon stopped while this ran"); err != nil {
		return err
	} else if n > 0 {
		d.log.Warn("operations were cut off by the end of an earlier daemon", "count", n)
	}
	if err := d.vms.Recover(ctx); err != nil {
		d.log.Error("recover", "err", err) // what could be recovered is; the rest is tried again next time
	}
	d.sweep(ctx)
	ln, err := listen(d.cfg.Paths.Socket(), d.log)
	if err != nil {
		d.vms.Close() // before the database they record in
		return err
	}
	d.log.Info("daemon started", "pid", os.Getpid(), "version", buildinfo.Version, "socket", d.cfg.Paths.Socket())
	return d.serveHTTP(ctx, ln)
}

// wire makes the services.
func (d *Daemon) wire() error {
	sup, err := newSupplies(d)
	if err != nil {
		return err
	}
	d.supplies = sup
	d.ops = operation.New(operation.Config{Store: d.db, Log: d.log, Now: time.Now})
	mem, err := hostMemory()
	if err != nil {
		return err
	}
	defMem, errMem := disk.ParseSize(d.settings.DefaultMemory)
	defDisk, errDisk := disk.ParseSize(d.settings.DefaultDisk)
	logSize, errLog := disk.ParseSize(d.settings.SessionLogSize)
	if err := errors.Join(errMem, errDisk, errLog); err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if d.network, err = newNetwork(d.settings, d.db, d.log); err != nil {
		return err
	}
	d.web = openWeb(d.settings.WebListenAddr, d.log)
	d.network.web.Store(uint32(d.web.port()))
	d.vms = vm.New(vm.Config{Records: d.db, Supplies: sup, Engine: sup.engine, Network: d.network,
		Defaults: vm.Defaults{Image: d.settings.DefaultImageName, CPUs: d.settings.CPUs,
			MemoryBytes: defMem, DiskBytes: defDisk},
		Sessions: vm.SessionLimits{Bytes: logSize, Files: d.settings.SessionLogFiles},
		Paths:    d.cfg.Paths, Log: d.log, PreviewURL: d.web.url, FileSync: fileSync(d.settings),
		Host: vm.Host{CPUs: runtime.NumCPU(), MemoryBytes: mem, Home: d.cfg.Getenv("HOME"), OwnerGone: ownerGone, Now: time.Now,
			SSHKey: func() (sshkeys.UserKey, error) { return sshkeys.User(d.settings.SSHKeyPath, d.cfg.Paths.SSHKey()) }}})
	sup.images.vms = d.vms
	sup.images.files.BuildIn(&buildVMs{vms: d.vms, memory: min(buildMemory, mem)})
	return nil
}

// fileSync is what the configuration has every new VM get.
func fileSync(c config.Config) []filesync.Entry {
	var out []filesync.Entry
	for _, f := range c.FileSync {
		out = append(out, filesync.Entry{Host: f.Host, Guest: f.Guest, Mode: f.Mode})
	}
	return out
}

// hostMemory is the host's memory in bytes, rounded down to whole MiB.
func hostMemory() (int64, error) {
	var si unix.Sysinfo_t
	if err := unix.Sysinfo(&si); err != nil {
		return 0, fmt.Errorf("read the host's memory: %w", err)
	}
	return int64(si.Totalram) * int64(si.Unit) &^ (1<<20 - 1), nil
}

func (d *Daemon) serveHTTP(ctx context.Context, ln net.Listener) error {
	srv := &http.Server{
		Handler: apiserver.New(apiserver.Config{VMs: d.vms, Images: &d.supplies.images, Kernels: &d.supplies.kernels,
			Operations: d.ops, Daemon: d, Log: d.log}),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := c.(*peerConn); ok {
				return context.WithValue(ctx, apiserver.PeerKey{}, p.peer)
			}
			return ctx
		},
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	d.web.serve(d.vms)
	var err error
	select {
	case err = <-failed:
		err = fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	case <-d.stopping:
	}
	return errors.Join(err, d.shutdown(ctx, srv))
}

// shutdown ends operations, streams and the watching of VMs; the VMs go on.
func (d *Daemon) shutdown(ctx context.Context, srv *http.Server) error {
	d.log.Info("daemon stopping")
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	err := d.ops.Close(ctx)
	d.web.close()
	d.vms.Close()
	drain, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if e := srv.Shutdown(drain); e != nil { // streams that follow something never end by themselves
		err = errors.Join(err, srv.Close())
	}
	d.log.Info("daemon stopped")
	return err
}

// sweep removes what no record mentions any more.
func (d *Daemon) sweep(ctx context.Context) {
	inUse, err := d.vms.Archives(ctx)
	if err != nil {
		d.log.Error("sweep", "err", err)
		return
	}
	stale := errors.Join(workspace.RemoveStale(d.cfg.Paths.Cache), quarantine.RemoveStale(d.cfg.Paths.Cache))
	if err := errors.Join(d.supplies.sweep(ctx), d.supplies.agents.sweep(inUse), stale); err != nil {
		d.log.Error("sweep", "err", err)
	}
}

// Status implements apiserver.Daemon.
func (d *Daemon) Status(ctx context.Context) (api.DaemonStatus, error) {
	vms, err := d.vms.List(ctx)
	if err != nil {
		return api.DaemonStatus{}, err
	}
	st := api.DaemonStatus{PID: os.Getpid(), Version: buildinfo.Version, APIVersion: api.Version, Socket: d.cfg.Paths.Socket(),
		StateDir: d.cfg.Paths.State, LogFile: d.cfg.Paths.DaemonLog(), StartedAt: d.started,
		UptimeSeconds: time.Since(d.started).Seconds(), Network: d.settings.Network, VMs: len(vms),
		WebAddress: d.web.address, WebWarning: d.web.warning}
	for _, v := range vms {
		if v.VMMPID != 0 {
			st.RunningVMs++
		}
	}
	eng, err := d.supplies.engines.prober.Choose(ctx)
	if err != nil {
		st.Engine, st.EngineReason = "none", err.Error()
		return st, nil
	}
	st.Engine, st.EngineReason = eng.Engine+"/"+eng.Accel, eng.Reason
	if eng.Fetch && eng.Reason == "" {
		st.EngineReason = eng.Title() + " is not on this host yet: the first VM gets it"
	}
	return st, nil
}

// Config implements apiserver.Daemon.
func (d *Daemon) Config() api.ConfigView {
	return api.ConfigView{Path: d.cfg.Paths.ConfigFile(), Exists: d.exists, Values: d.settings.View()}
}

// Stop implements apiserver.Daemon.
func (d *Daemon) Stop() { d.stopOnce.Do(func() { close(d.stopping) }) }

// Exe returns the absolute path of the running program, symlinks resolved.
func Exe() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find my own program: %w", err)
	}
	return filepath.EvalSymlinks(exe)
}

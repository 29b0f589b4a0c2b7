package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/hostports"
	"git.thaloco.com/thaloco/banger/internal/image"
	"git.thaloco.com/thaloco/banger/internal/kernel"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

const (
	// programWithin is how long a program may take to tell its version, mirrorWithin the mirror to answer.
	programWithin, mirrorWithin = 5 * time.Second, 3 * time.Second
	// agentProgram is the name of the guest's agent.
	agentProgram = "banger-vsock-agent"
)

// Sources are what Observe does not know by itself. All are required but where it says otherwise.
type Sources struct {
	Paths  paths.Paths
	Getenv func(string) string
	// Version is that of this program.
	Version string
	// FindDaemon finds the program bangerd.
	FindDaemon func() (string, error)
	// AskDaemon asks the daemon for its status, and does not start it.
	AskDaemon func(context.Context) (api.DaemonStatus, error)
	// Online has the mirror asked whether it answers.
	Online bool
}

// Observe looks at this host, in a fraction of a second where nothing hangs. It writes nothing and starts no daemon.
func Observe(ctx context.Context, src Sources) Observations {
	o := Observations{
		UID: os.Geteuid(), Home: src.Getenv("HOME"), Version: src.Version,
		ConfigPath: src.Paths.ConfigFile(), CPUs: runtime.NumCPU(),
	}
	if o.Settings, o.ConfigExists, o.ConfigErr = config.Load(o.ConfigPath); o.ConfigErr != nil {
		o.Settings = config.Default()
	}
	o.Probe = probe.Observe(ctx, probe.Config{QEMUBin: o.Settings.QEMUBin, FirecrackerBin: o.Settings.FirecrackerBin,
		Bin: src.Paths.Bin(), Memory: src.Paths.EngineMemory()})
	o.Tuning = observeTuning()
	o.observeOwn(ctx, src)
	o.observePlaces(src)
	o.Git = observeProgram(ctx, "git", gitVersion, "--version")
	o.SSH = observeProgram(ctx, "ssh", sshVersion, "-V")
	o.observeSupplies(ctx, src)
	o.observeSSHConfig(src.Paths)
	o.observeKernel()
	if o.Settings.Network == config.NetworkBridge {
		o.Bridge, o.BridgeByDaemon = bridge.Ready(o.Settings.Bridge(os.Geteuid())), bridge.Privileged()
	}
	if o.Running == nil {
		o.Web = observeWeb(o.Settings.WebListenAddr)
	}
	return o
}

// observeWeb opens the web port and closes it at once.
func observeWeb(at string) WebPort {
	if at == "" {
		return WebPort{}
	}
	addr, err := net.ResolveTCPAddr("tcp", at) // an address or localhost: nobody is asked
	if err != nil {
		return WebPort{Err: err}
	}
	ln, err := net.ListenTCP("tcp", addr)
	if err == nil {
		_ = ln.Close()
		return WebPort{}
	}
	w := WebPort{Err: err, By: hostports.Who("tcp", addr.AddrPort())}
	if op, ok := errors.AsType[*net.OpError](err); ok {
		w.Err = op.Err
	}
	return w
}

// Forget has banger try again what it remembers as failed, which Observe saw: engines that ended at their start, and
// the fetch of Firecracker.
func Forget(p paths.Paths) error { return probe.Forget(p.EngineMemory()) }

// observeOwn looks for banger's programs and the daemon.
func (o *Observations) observeOwn(ctx context.Context, src Sources) {
	if o.Daemon.Path, o.DaemonErr = src.FindDaemon(); o.DaemonErr == nil {
		o.Daemon = observeProgram(ctx, o.Daemon.Path, ownVersion, "--version")
		o.Agent = findAgent(o.Daemon.Path)
	}
	asked, cancel := context.WithTimeout(ctx, programWithin)
	defer cancel()
	st, err := src.AskDaemon(asked)
	if o.RunningErr = err; err == nil {
		o.Running = &st
	}
	o.Socket = Socket{Path: src.Paths.Socket(), Runtime: src.Getenv("XDG_RUNTIME_DIR")}
	if !filepath.IsAbs(o.Socket.Runtime) { // counts as unset
		o.Socket.Runtime = ""
	}
	if _, err := os.Lstat(o.Socket.Path); err == nil {
		o.Socket.Exists = true
	}
	o.Socket.Locked = isLocked(src.Paths.Lock())
}

// findAgent looks for the agent where the daemon does.
func findAgent(daemon string) string {
	if real, err := filepath.EvalSymlinks(daemon); err == nil {
		daemon = real
	}
	dir := filepath.Dir(daemon)
	for _, p := range []string{filepath.Join(dir, "..", "lib", "banger", agentProgram), filepath.Join(dir, agentProgram)} {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return filepath.Clean(p)
		}
	}
	return ""
}

var (
	gitVersion = regexp.MustCompile(`^git version (\S+)`)
	sshVersion = regexp.MustCompile(`^OpenSSH(?:_for_\w+)?_([0-9]+\.[0-9]+\w*)`)
	ownVersion = regexp.MustCompile(`^bangerd (\S+)`)
)

// observeProgram finds a program and asks for its version, which it may tell on either stream.
func observeProgram(ctx context.Context, name string, version *regexp.Regexp, arg string) Program {
	path, err := hostexec.Runner{}.LookPath(name)
	if err != nil {
		return Program{}
	}
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	p := Program{Path: path}
	ctx, cancel := context.WithTimeout(ctx, programWithin)
	defer cancel()
	var out, errs bytes.Buffer // each is written to by a goroutine of its own
	err = hostexec.Runner{}.Run(ctx, hostexec.Cmd{
		Argv: []string{path, arg}, Dir: "/", Env: []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "HOME=/nonexistent"},
		Stdout: &out, Stderr: &errs,
	})
	if m := version.FindSubmatch(append(out.Bytes(), errs.Bytes()...)); err == nil && m != nil {
		p.Version = string(m[1])
	}
	return p
}

// observePlaces looks at banger's directories.
func (o *Observations) observePlaces(src Sources) {
	p := src.Paths
	for _, d := range []struct{ use, path string }{
		{"config", p.Config}, {"data", p.Data}, {"state", p.State}, {"cache", p.Cache}, {"runtime", p.Runtime},
	} {
		if d.use == "runtime" && d.path == p.State {
			continue
		}
		o.Places = append(o.Places, observePlace(d.use, d.path))
	}
	for _, dir := range []string{"/var/tmp", "/tmp"} { // those of the image store
		o.Scratch = append(o.Scratch, observePlace("scratch", dir))
	}
	if dir := o.Socket.Runtime; dir != "" {
		st, err := os.Stat(dir)
		switch {
		case err != nil:
			o.Socket.RuntimeErr = err
		case !st.IsDir():
			o.Socket.RuntimeErr = fmt.Errorf("%s is no directory", dir)
		}
		if errors.Is(err, fs.ErrNotExist) && o.placeWritable("runtime") {
			o.Socket.RuntimeErr = nil // the daemon makes it
		}
	}
}

func (o *Observations) placeWritable(use string) bool {
	return slices.ContainsFunc(o.Places, func(p Place) bool { return p.Use == use && p.Writable })
}

// observePlace looks at a directory, or at the first one above it that is there.
func observePlace(use, path string) Place {
	p := Place{Use: use, Path: path}
	at := path
	st, err := os.Stat(at)
	for errors.Is(err, fs.ErrNotExist) && filepath.Dir(at) != at {
		at = filepath.Dir(at)
		st, err = os.Stat(at)
	}
	if err != nil {
		p.Err = err
		return p
	}
	if !st.IsDir() {
		p.Err = fmt.Errorf("%s is no directory", at)
		return p
	}
	p.Exists, p.Mode = at == path, st.Mode()
	p.Writable = unix.Access(at, unix.W_OK|unix.X_OK) == nil
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		p.Owner, p.Device = int(sys.Uid), sys.Dev
	}
	var sf unix.Statfs_t
	if err := unix.Statfs(at, &sf); err != nil {
		p.Err = fmt.Errorf("%s: %w", at, err)
		return p
	}
	p.Free, p.NoExec = int64(sf.Bavail)*sf.Bsize, sf.Flags&unix.ST_NOEXEC != 0
	return p
}

// observeSupplies looks for the default image and kernel, and what it takes to make them.
func (o *Observations) observeSupplies(ctx context.Context, src Sources) {
	host := os.DirFS("/")
	mirrors := deb.ChooseMirrors(o.Settings.DebianMirror, host)
	o.Mirror, o.Image, o.Kernel = mirrors.Main, o.Settings.DefaultImageName, kernel.DefaultName
	images, err := image.New(image.Config{Dir: src.Paths.Images(), CacheDir: src.Paths.Cache, Mirrors: mirrors,
		Catalogs: o.Settings.ImageCatalog, Offline: !src.Online})
	if err == nil {
		here, _ := images.List() // what cannot be read is not here
		catalog, _ := images.Catalog(ctx)
		is := func(i api.Image) bool { return i.Name == o.Image || i.Digest == o.Image }
		o.ImageHere, o.ImageKnown = slices.ContainsFunc(here, is), slices.ContainsFunc(catalog, is)
		if i := slices.IndexFunc(slices.Concat(here, catalog), is); i >= 0 {
			if k := slices.Concat(here, catalog)[i].Kernel; k != "" {
				o.Kernel = k
			}
		}
	}
	kernels, err := kernel.New(kernel.Config{Dir: src.Paths.Kernels(), CacheDir: src.Paths.DebCache(), Mirrors: mirrors})
	if err == nil {
		here, _ := kernels.List()
		is := func(k api.Kernel) bool { return k.Name == o.Kernel }
		o.KernelHere, o.KernelKnown = slices.ContainsFunc(here, is), slices.ContainsFunc(kernels.Catalog(), is)
	}
	o.BuildErr = image.CheckHost()
	if o.MirrorAsked = src.Online; src.Online {
		o.MirrorErr = askMirror(ctx, mirrors.Main)
	}
}

// askMirror looks whether a mirror of Debian answers.
func askMirror(ctx context.Context, mirror string) error {
	ctx, cancel := context.WithTimeout(ctx, mirrorWithin)
	defer cancel()
	addr := mirror + "/dists/stable/InRelease"
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, addr, nil)
	if err != nil {
		return err
	}
	resp, err := deb.NewHTTPClient().Do(req)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s does not answer within %s", mirror, mirrorWithin)
	}
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", addr, resp.Status)
	}
	return nil
}

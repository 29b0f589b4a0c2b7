package image

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

//go:embed debian/customize.sh
var customizeScript string

// rootfsLabel is the volume name of base drives, rootfsMax their largest size in bytes.
const (
	rootfsLabel = "banger-base"
	rootfsMax   = 64 << 30
)

// killGrace is how long mmdebstrap has to clean up after itself when it is cancelled.
const killGrace = 5 * time.Second

// The keyrings of a build, in its scratch directory.
const (
	debianKeyring = "archive.gpg"
	dockerKeyring = "docker.gpg"
)

// aptSource is a line of a sources.list.
type aptSource struct {
	mirror, suite, component string
	keyring                  string // the file, in the scratch directory, of the keys it is signed by
	guestKey                 string // the file in the image; empty where apt knows the keys
	public                   string // the mirror that everybody reaches
}

// archive is what a build fetches from.
type archive struct {
	sources []aptSource
	date    time.Time          // of the newest release among them
	docker  openpgp.EntityList // the keys of Docker's archive; nil where it is not used
}

// add adds a source whose release is of the given date.
func (a *archive) add(s aptSource, date time.Time) {
	a.sources = append(a.sources, s)
	if date.After(a.date) {
		a.date = date
	}
}

// debian is one run of the recipe "debian".
type debian struct {
	store *Store
	src   source
	host  host
	rep   progress.Reporter
}

// build writes the base drive to out, in the directory dir of the build.
func (b *debian) build(ctx context.Context, dir, out string) error {
	if err := b.host.check(); err != nil {
		return err
	}
	arch, err := b.archive(ctx)
	if err != nil {
		return err
	}
	ns := b.host.userNS()
	scratch, err := b.store.makeScratch(dir, ns)
	if err != nil {
		return err
	}
	for name, keys := range map[string]openpgp.EntityList{debianKeyring: b.store.cfg.Keyring, dockerKeyring: arch.docker} {
		if err := writeKeyring(filepath.Join(scratch, name), keys); err != nil {
			return err
		}
	}
	cmd := hostexec.Cmd{Argv: b.argv(arch, scratch), Dir: "/", Grace: killGrace, UserNS: ns, Umask: "022", // the user's own may be narrow
		Env: b.store.programEnv("TMPDIR="+scratch, "SOURCE_DATE_EPOCH="+strconv.FormatInt(arch.date.Unix(), 10))}
	return b.run(ctx, cmd, arch.date, out)
}

// run runs mmdebstrap and makes a file system of the tar it writes, with mise before it.
func (b *debian) run(ctx context.Context, cmd hostexec.Cmd, date time.Time, out string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	rep := &lockedReporter{rep: b.rep}
	status := newStatus(rep)
	tarR, tarW := io.Pipe()
	miseR, miseW := io.Pipe()
	cmd.Stdout, cmd.Stderr = tarW, status

	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { miseW.CloseWithError(b.mise(ctx, miseW, date, rep)) })
	var runErr error
	wg.Go(func() {
		if runErr = b.store.cfg.Runner.Run(ctx, cmd); runErr != nil {
			cancel(runErr) // and with it the download of mise
		}
		// Where it failed, the end of what it wrote must not look like the end of a tar.
		tarW.CloseWithError(runErr)
	})
	root := &tarReader{r: tarR, rep: rep, writing: &status.writing}
	err := ext4.FromTar(ctx, io.MultiReader(miseR, root), out, ext4.Options{Label: rootfsLabel, MaxBytes: rootfsMax})
	if err != nil {
		cancel(err)
	}
	miseR.Close()
	tarR.Close()
	wg.Wait()
	if runErr != nil && (err == nil || errors.Is(err, runErr)) {
		return b.explain(runErr, status.complaints)
	}
	if err == nil && root.done == 0 {
		return errors.New("mmdebstrap wrote no file system")
	}
	return err
}

// archive looks up the suites of the release: that they are there, genuine, and of which day.
func (b *debian) archive(ctx context.Context) (archive, error) {
	s, m := b.src, b.store.cfg.Mirrors
	b.rep.Step("look up Debian " + s.Release)
	var a archive
	add := func(mirror, suite, public string) error {
		rel, err := b.store.deb.Release(ctx, mirror, suite)
		if err != nil {
			return err
		}
		a.add(aptSource{mirror: mirror, suite: suite, component: "main", keyring: debianKeyring, public: public}, rel.Date)
		return nil
	}
	for _, suite := range []string{s.Release, s.Updates} {
		if suite == "" {
			continue
		}
		if err := add(m.Main, suite, deb.PublicMirror); err != nil {
			return archive{}, err
		}
	}
	if s.Security != "" {
		err := firstReachable(m.Security, func(mirror string) error { return add(mirror, s.Security, deb.PublicSecurity) })
		if err != nil {
			return archive{}, err
		}
	}
	return a, b.dockerArchive(ctx, &a)
}

// firstReachable has try look at mirrors of the security archive until one can be reached.
func firstReachable(mirrors []string, try func(mirror string) error) error {
	var first error
	for _, mirror := range mirrors {
		err := try(mirror)
		if err == nil || !deb.IsUnreachable(err) {
			return err
		}
		first = cmp.Or(first, err)
	}
	if first == nil {
		return api.Errorf(api.KindUnavailable, "no mirror of the security archive is known").WithHint("set debian_mirror in config.toml")
	}
	return first
}

// dpkgOptions are dpkg's while an image is built, and those of paths ever after.
var dpkgOptions = []string{
	"force-unsafe-io", // a build that a crash breaks off is thrown away
	"path-exclude=/usr/share/man/*", "path-exclude=/usr/share/info/*", "path-exclude=/usr/share/lintian/*",
	"path-exclude=/usr/share/locale/*", "path-include=/usr/share/locale/locale.alias",
	"path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright",
	"path-exclude=/usr/share/vim/vim*/doc/*", "path-exclude=/usr/share/vim/vim*/lang/*", "path-exclude=/usr/share/vim/vim*/tutor/*",
	// Large programs that only those need who work on GCC, containerd and Docker themselves: 100 MB, a tenth of the image.
	"path-exclude=/usr/bin/*lto-dump*", "path-exclude=/usr/bin/dnet", "path-exclude=/usr/sbin/ovrouter", "path-exclude=/usr/bin/ctr",
	"path-exclude=/usr/bin/containerd-shim", "path-exclude=/usr/bin/containerd-shim-runc-v1",
}

// argv is the command that writes the root file system as a tar to its stdout; the keyrings are in the directory scratch.
func (b *debian) argv(a archive, scratch string) []string {
	argv := []string{"mmdebstrap", "--mode=unshare", "--variant=apt", "--format=tar", "--verbose",
		"--include=" + strings.Join(b.src.packagesOf(), ","), "--aptopt=Apt::Install-Recommends \"false\"",
		"--aptopt=Acquire::Retries \"3\"", "--aptopt=Acquire::http::Timeout \"30\""}
	for _, opt := range dpkgOptions {
		argv = append(argv, "--dpkgopt="+opt)
	}
	if a.docker != nil {
		// A hook is run by sh with the new root in $1; the directory's name has no character that means anything to it.
		argv = append(argv, `--customize-hook=install -D -m 644 "`+filepath.Join(scratch, dockerKeyring)+`" "$1`+guestDockerKey+`"`)
	}
	argv = append(argv, "--customize-hook="+strings.ReplaceAll(customizeScript, "@SOURCES@", guestSources(a.sources)), b.src.Release, "-")
	for _, s := range a.sources {
		argv = append(argv, fmt.Sprintf("deb [signed-by=%s] %s %s %s", filepath.Join(scratch, s.keyring), s.mirror, s.suite, s.component))
	}
	return argv
}

// writeKeyring writes keys where apt can read them, for the host may have none; no keys make no file.
func writeKeyring(path string, keys openpgp.EntityList) error {
	if keys == nil {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := serialize(f, keys); err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o644), f.Close()) // whatever the umask is
}

// serialize writes keys as apt reads them.
func serialize(w io.Writer, keys openpgp.EntityList) error {
	for _, key := range keys {
		if err := key.Serialize(w); err != nil {
			return fmt.Errorf("write keyring: %w", err)
		}
	}
	return nil
}

// mise writes the program mise as the beginning of a tar to w. What keeps it from being fetched becomes a
// note: an image without it is an image.
func (b *debian) mise(ctx context.Context, w io.Writer, date time.Time, rep progress.Reporter) error {
	if b.src.Mise == nil {
		return nil
	}
	s := b.store
	registry := npmRegistry(s.cfg.Getenv, b.host.files)
	tgz, err := b.src.Mise.fetch(ctx, s.cfg.HTTP, registry, filepath.Join(s.cfg.CacheDir, "npm"))
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		rep.Note(fmt.Sprintf("the image comes without mise, which could not be fetched: %v", err))
		return nil
	}
	return writeProgram(w, tgz, "usr/local/bin/mise", date)
}

// explain turns the failure of mmdebstrap into what the user can do about it.
func (b *debian) explain(err error, complaints []string) error {
	var exit *hostexec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	text := strings.Join(complaints, "; ")
	if text == "" {
		text = lastLine(exit.Stderr)
	}
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(text, w) || strings.Contains(exit.Stderr, w) {
				return true
			}
		}
		return false
	}
	how := fmt.Sprintf("exit status %d", exit.Status)
	if exit.Status < 0 { // out of memory, say
		how = "ended by signal " + exit.Signal.String()
	}
	out := api.Errorf(api.KindUnavailable, "mmdebstrap: %s: %s", how, text)
	switch {
	case has("No space left on device"):
		return out.WithHint("make room in %s", strings.Join(b.store.cfg.ScratchDirs, " or "))
	case unreachableMirror(text), unreachableMirror(exit.Stderr):
		return out.WithHint("is %s reachable? debian_mirror in config.toml names another mirror", b.store.cfg.Mirrors.Main)
	case has("newuidmap", "newgidmap", "unshare"):
		return out.WithHint("user namespaces may be restricted on this host: see sysctl kernel.unprivileged_userns_clone, " +
			"kernel.apparmor_restrict_unprivileged_userns and user.max_user_namespaces")
	}
	return out
}

// unreachableMirror tells whether apt says of a mirror that it cannot be reached.
func unreachableMirror(text string) bool {
	return slices.ContainsFunc([]string{"Failed to fetch", "Could not resolve", "Could not connect", "Unable to connect", "Connection failed", "Temporary failure"},
		func(words string) bool { return strings.Contains(text, words) })
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// tarReader tells how much of the file system has been written.
type tarReader struct {
	r    io.Reader
	rep  progress.Reporter
	done int64
	// writing tells whether the step it reports about has begun.
	writing *atomic.Bool
}

func (t *tarReader) Read(p []byte) (int, error) {
	n, err := t.r.Read(p)
	if n > 0 {
		t.done += int64(n)
		if t.writing.Load() {
			t.rep.Bytes(t.done, 0)
		}
	}
	return n, err
}

// lockedReporter lets several goroutines report the same work.
type lockedReporter struct {
	mu  sync.Mutex
	rep progress.Reporter // guarded by mu
}

func (l *lockedReporter) Step(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rep.Step(name)
}

func (l *lockedReporter) Bytes(done, total int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rep.Bytes(done, total)
}

func (l *lockedReporter) Note(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rep.Note(text)
}

// guestSources are the lines of the guest's sources.list: the mirrors the image was built from, which its user can
// reach. One that only this host reaches, or whose address holds a password, is replaced by the public one.
func guestSources(sources []aptSource) string {
	var out []string
	for _, s := range sources {
		mirror, options := s.mirror, ""
		if !forGuests(mirror) {
			mirror = s.public
		}
		if s.guestKey != "" {
			options = "[signed-by=" + s.guestKey + "] "
		}
		out = append(out, fmt.Sprintf("deb %s%s %s %s", options, mirror, s.suite, s.component))
	}
	return strings.Join(out, "\n")
}

func forGuests(mirror string) bool {
	u, err := url.Parse(mirror)
	if err != nil || u.User != nil || u.Hostname() == "" || u.Hostname() == "localhost" {
		return false
	}
	addr, err := netip.ParseAddr(u.Hostname())
	return err != nil || !addr.IsLoopback()
}

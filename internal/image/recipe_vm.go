package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"
	"unicode"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// removeTimeout is how long the end of a VM may take.
const removeTimeout = time.Minute

// buildLimit is how long a VM may take to become an image.
func buildLimit(emulated bool) time.Duration {
	if emulated {
		return time.Hour
	}
	return 20 * time.Minute
}

// What the guest of a build may send at most, in bytes: as output of one script, and as its root file system.
const (
	maxOutput = 4 << 20
	maxStream = rootfsMax
)

// maxComplaint is the length of a line of the guest's in an error, in characters.
const maxComplaint = 300

// policyFile keeps packages from starting their services, see invoke-rc.d(8).
const policyFile = "usr/sbin/policy-rc.d"

// buildInVM writes the base drive of img to out as build does, with apt in a VM of the recipe's base image in place of mmdebstrap.
func (b *debian) buildInVM(ctx context.Context, img api.Image, out string) (err error) {
	arch, err := b.archive(ctx)
	if err != nil {
		return err
	}
	vm, err := b.store.vms.StartBuild(ctx, b.src.Base, b.rep)
	if err != nil {
		return fmt.Errorf("start a VM of %q to build in: %w", b.src.Base, err)
	}
	limit := b.store.limit(vm.Emulated())
	building, cancel := context.WithTimeoutCause(ctx, limit, api.Errorf(api.KindUnavailable, "the build in a VM of %q is not done after %s", b.src.Base, limit))
	defer cancel()
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), removeTimeout)
		defer cancel()
		if rerr := vm.Remove(ctx); rerr != nil {
			err = errors.Join(err, fmt.Errorf("remove the VM of the build: %w", rerr))
		}
	}()
	err = b.buildWith(building, vm, arch, img, out)
	if err != nil && building.Err() != nil {
		return context.Cause(building)
	}
	return err
}

// buildWith is buildInVM with the VM there.
func (b *debian) buildWith(ctx context.Context, vm BuildVM, arch archive, img api.Image, out string) error {
	b.rep.Step("prepare the VM")
	if err := b.supply(ctx, vm, arch); err != nil {
		return fmt.Errorf("copy files into the VM of the build: %w", err)
	}
	for _, s := range b.scripts(arch) {
		b.rep.Step(s.step)
		if err := b.script(ctx, vm, s.text); err != nil {
			return err
		}
	}
	b.rep.Step(stepWrite)
	return b.takeRoot(ctx, vm, img, out)
}

// guestCAs is where the VM has the authorities this host believes, for mirrors that speak https: a base has none, mostly. What is in /run
// is in no image.
const guestCAs = "run/banger-build.crt"

// hostCAs are the files distributions have them in (Go's crypto/x509, root_linux.go).
var hostCAs = []string{"etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/ca-bundle.pem", "etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "etc/ssl/cert.pem"}

// authorities returns the authorities this host believes, empty where no mirror needs them.
func (b *debian) authorities(arch archive) string {
	if !strings.Contains(guestSources(arch.sources), "https://") {
		return ""
	}
	for _, name := range hostCAs {
		if data, err := fs.ReadFile(b.host.files, name); err == nil {
			return string(data)
		}
	}
	return ""
}

// supply puts what the recipe has beside packages into the VM.
func (b *debian) supply(ctx context.Context, vm BuildVM, arch archive) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := b.mise(ctx, w, arch.date, b.rep)
		if err == nil {
			err = b.writeConfig(w, arch)
		}
		w.CloseWithError(err)
		packed <- err
	}()
	err := vm.Put(ctx, r)
	r.CloseWithError(io.ErrClosedPipe) // who is still sending must not wait
	if err != nil {
		cancel() // and with it the download of mise
	}
	if perr := <-packed; err == nil {
		err = perr
	}
	return err
}

// writeConfig writes the files that apt and dpkg read as the end of a tar to w.
func (b *debian) writeConfig(w io.Writer, arch archive) error {
	out := tar.NewWriter(w)
	add := func(name string, mode int64, content string) error {
		err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: arch.date})
		if err == nil {
			_, err = io.WriteString(out, content)
		}
		return err
	}
	err := errors.Join(
		add("etc/apt/sources.list", 0o644, guestSources(arch.sources)+"\n"),
		// As mmdebstrap calls it: the script that adjusts the file system knows what to do with it.
		add("etc/dpkg/dpkg.cfg.d/99mmdebstrap", 0o644, strings.Join(dpkgOptions, "\n")+"\n"),
		add(policyFile, 0o755, "#!/bin/sh\nexit 101\n"))
	if err == nil && arch.docker != nil {
		var keys strings.Builder
		if err = serialize(&keys, arch.docker); err == nil {
			err = add(strings.TrimPrefix(guestDockerKey, "/"), 0o644, keys.String())
		}
	}
	if cas := b.authorities(arch); err == nil && cas != "" {
		err = add(guestCAs, 0o644, cas)
	}
	return errors.Join(err, out.Close())
}

// step is a script that is run in the VM, and what it does.
type step struct{ step, text string }

// scripts are what make the image of the base.
func (b *debian) scripts(arch archive) []step {
	apt := "apt-get -q -y --no-install-recommends -o Acquire::Retries=3 -o Acquire::http::Timeout=30 "
	if b.authorities(arch) != "" {
		apt += "-o Acquire::https::CaInfo=/" + guestCAs + " "
	}
	out := []step{
		// Where images for containers come from they are given settings of their own, and other sources.
		{"read Debian's package lists", `set -eu
if ! command -v apt-get >/dev/null; then echo 'E: it has no apt-get: the base has to be a Debian' >&2; exit 1; fi
rm -f /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/docker-* /etc/dpkg/dpkg.cfg.d/docker*
exec ` + apt + "-o APT::Update::Error-Mode=any update"},
		{"bring the base up to date", "exec " + apt + "dist-upgrade"},
	}
	if packages := b.src.packagesOf(); len(packages) > 0 {
		out = append(out, step{"download packages", "exec " + apt + "install -- " + strings.Join(packages, " ")})
	}
	script := strings.ReplaceAll(customizeScript, "@SOURCES@", guestSources(arch.sources))
	return append(out, step{"adjust the file system", "set -- /\n" + script + "\nrm -f /.dockerenv /" + policyFile + "\n"})
}

// script runs a script of the recipe in the VM.
func (b *debian) script(ctx context.Context, vm BuildVM, text string) error {
	out := &guestOutput{status: newStatus(b.rep), left: maxOutput}
	status, err := vm.Run(ctx, text, b.guestEnv(), out)
	if out.left < 0 {
		return api.Errorf(api.KindGuest, "the guest of the build wrote more than %d bytes of output", maxOutput)
	}
	if err != nil {
		return fmt.Errorf("run apt in the VM of the build: %w", err)
	}
	if status == 0 {
		return nil
	}
	return b.explainGuest(status, out.status)
}

// guestEnv is the environment of scripts: of the host only the proxy, where a guest can reach it and it holds no password.
func (b *debian) guestEnv() []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}
	for _, name := range []string{"http_proxy", "https_proxy"} {
		if v := b.store.cfg.Getenv(name); v != "" && forGuests(v) {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// explainGuest turns the failure of a script in the VM into what the user can do about it.
func (b *debian) explainGuest(status int, out *status) error {
	lines := out.complaints
	if len(lines) == 0 {
		lines = []string{out.last}
	}
	var shown []string
	for _, l := range lines {
		shown = append(shown, printable(l))
	}
	text := strings.Join(shown, "; ")
	err := api.Errorf(api.KindUnavailable, "build in a VM of %q: exit status %d: %s", b.src.Base, status, text)
	switch {
	case strings.Contains(text, "No space left on device"):
		return err.WithHint("default_disk in config.toml is the size of the VM's disk")
	case unreachableMirror(text):
		return err.WithHint("can VMs reach %s? debian_mirror in config.toml names another mirror", b.store.cfg.Mirrors.Main)
	}
	return err
}

// printable is a line of the guest's, cut, and without what means something to a terminal.
func printable(line string) string {
	r := []rune(strings.ToValidUTF8(line, "?"))
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, string(r[:min(len(r), maxComplaint)]))
}

// takeRoot makes the base drive of what the root of the VM holds.
func (b *debian) takeRoot(ctx context.Context, vm BuildVM, img api.Image, out string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	var res api.FilesResult
	read := make(chan error, 1)
	go func() {
		var err error
		res, err = vm.Root(ctx, w)
		w.CloseWithError(err)
		read <- err
	}()
	err := b.store.fromTar(ctx, &bounded{r: r, left: maxStream}, out, img, b.rep)
	r.CloseWithError(io.ErrClosedPipe) // who is still sending must not wait
	if rerr := <-read; err == nil {
		err = rerr
	}
	if err != nil {
		return fmt.Errorf("read the root of the VM of the build: %w", err)
	}
	for _, s := range res.Skipped[:min(len(res.Skipped), maxComplaints)] {
		b.rep.Note("not in the image: " + printable(s))
	}
	return nil
}

// errTooLong ends a stream of the guest's that is longer than any that is meant well.
var errTooLong = errors.New("the guest sends more than an image can hold")

// bounded reads a stream until it has gone on for too long.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, errTooLong
	}
	return n, err
}

// guestOutput reads the output of a script until it has gone on for too long.
type guestOutput struct {
	status *status
	left   int64
}

func (g *guestOutput) Write(p []byte) (int, error) {
	if g.left -= int64(len(p)); g.left < 0 {
		return 0, errTooLong
	}
	return g.status.Write(p)
}

// inVM tells whether the recipe has to be built in a VM, and can be: why is what the host lacks to build it itself.
func (b *debian) inVM(why error) bool { return why != nil && b.src.Base != "" && b.store.vms != nil }

// noteVM says why an image is built in a VM.
func noteVM(why error, rep progress.Reporter) {
	text := fmt.Sprintf("%v: the image is built in a VM, which takes longer", why)
	if hint := api.AsError(why).Hint; hint != "" {
		text += "; quicker, the next time, after: " + hint
	}
	rep.Note(text)
}

package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// fakeVMs is BuildVMs of VMs that do what a test wants at one of the steps, and else what they should.
type fakeVMs struct {
	at string                          // start, put, run N from 1, root or remove; empty for none
	do func(ctx context.Context) error // then done there, after some of the step
	// output is what each script writes, and the status it ends with; nil for nothing and 0.
	output func(w io.Writer) (int, error)
	root   []byte
	skip   []string

	// What became of it: how many VMs there are, and what came.
	running int
	base    string
	put     map[string]string // what came, by name
	scripts []string
	env     []string
}

func (f *fakeVMs) String() string {
	return fmt.Sprintf("%d VMs, %d scripts run", f.running, len(f.scripts))
}

func (f *fakeVMs) step(ctx context.Context, name string) error {
	if f.at != name {
		return context.Cause(ctx)
	}
	return f.do(ctx)
}

func (f *fakeVMs) StartBuild(ctx context.Context, base string, _ progress.Reporter) (BuildVM, error) {
	f.base = base
	if err := f.step(ctx, "start"); err != nil {
		return nil, err
	}
	f.running++
	return &fakeVM{f}, nil
}

// fakeVM is one of them.
type fakeVM struct{ *fakeVMs }

func (f *fakeVM) Emulated() bool { return true }

func (f *fakeVM) Put(ctx context.Context, r io.Reader) error {
	f.put = map[string]string{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err == nil {
			err = f.step(ctx, "put")
		}
		if err != nil {
			return err
		}
		b, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		f.put[h.Name] = fmt.Sprintf("%o %s", h.Mode, b)
	}
}

func (f *fakeVM) Run(ctx context.Context, script string, env []string, output io.Writer) (int, error) {
	f.scripts, f.env = append(f.scripts, script), env
	if err := f.step(ctx, fmt.Sprint("run ", len(f.scripts))); err != nil {
		return 0, err
	}
	if f.output != nil {
		return f.output(output)
	}
	return 0, nil
}

func (f *fakeVM) Root(ctx context.Context, w io.Writer) (api.FilesResult, error) {
	half := len(f.root) / 2
	_, err := w.Write(f.root[:half])
	if err == nil {
		err = f.step(ctx, "root")
	}
	if err == nil {
		_, err = w.Write(f.root[half:])
	}
	return api.FilesResult{Skipped: f.skip}, err
}

func (f *fakeVM) Remove(ctx context.Context) error {
	if err := f.step(ctx, "remove"); err != nil {
		return err
	}
	f.running--
	return nil
}

// newVMWorld is a world without mmdebstrap, whose image has a base.
func newVMWorld(t *testing.T) (*world, *fakeVMs) {
	t.Helper()
	w := newWorld(t, "exit 1")
	t.Setenv("PATH", t.TempDir())
	if _, err := w.cfg.Runner.LookPath("mmdebstrap"); err == nil {
		t.Skip("mmdebstrap is in an sbin directory here")
	}
	w.cfg.Catalog = bytes.Replace(w.cfg.Catalog, []byte("docker = "), []byte("base = \"reg.example/debian:12\"\ndocker = "), 1)
	w.open(t)
	f := &fakeVMs{root: tarOf(t, file{"etc/", ""}, file{"etc/greeting", "hello\n"}, file{"big", strings.Repeat("x", 1<<20)})}
	w.store.BuildIn(f)
	return w, f
}

func TestBuildInVM(t *testing.T) {
	w, f := newVMWorld(t)
	getenv := w.store.cfg.Getenv
	w.store.cfg.Getenv = func(name string) string {
		switch name {
		case "http_proxy":
			return "http://proxy.example:3128"
		case "https_proxy":
			return "http://user:secret@proxy.example:3128"
		}
		return getenv(name)
	}
	f.skip = []string{"etc/\x1b[31mgone: it went away"}
	f.output = func(w io.Writer) (int, error) {
		_, err := io.WriteString(w, "Need to get 1000 B of archives.\nGet:1 http://mirror bookworm/main amd64 one amd64 1.0 [1000 B]\nSetting up one (1.0) ...\n")
		return 0, err
	}
	rep := &recorder{}
	img, err := w.store.Pull(t.Context(), "debian-test", PullOptions{Build: true}, rep)
	if err != nil {
		t.Fatal(err)
	}
	w.assertClean(t, strings.Replace(img.Digest, ":", "-", 1))
	if f.running != 0 || f.base != "reg.example/debian:12" {
		t.Errorf("%v of %q", f, f.base)
	}
	if diff := cmp.Diff([]string{"dir /", "dir /etc", "file /big", "file /etc/greeting"}, listing(t, w.store, img.Digest)); diff != "" {
		t.Error(diff)
	}
	if img.Source != "built on this host from Debian bookworm, in a VM of reg.example/debian:12" || img.Kernel != "generic-6.12" || img.Env[0] != "PATH=/bin" {
		t.Errorf("%+v", img)
	}
	want := []string{"look up Debian bookworm", "prepare the VM", "read Debian's package lists", "install packages", "bring the base up to date", "install packages",
		"download packages", "install packages", "adjust the file system", "install packages", "write the base drive", "verify the base drive"}
	if diff := cmp.Diff(want, rep.steps); diff != "" || rep.problem != "" {
		t.Error(diff, rep.problem)
	}
	if len(rep.notes) != 2 || !strings.Contains(rep.notes[0], "mmdebstrap: not installed: the image is built in a VM") || !strings.Contains(rep.notes[1], "etc/?[31mgone") {
		t.Errorf("notes: %q", rep.notes)
	}
	for name, part := range map[string]string{
		"usr/local/bin/mise": "755 #!/bin/sh\necho mise\n", "etc/apt/sources.list": "644 deb http", "usr/sbin/policy-rc.d": "755 #!/bin/sh\nexit 101\n",
		"etc/dpkg/dpkg.cfg.d/99mmdebstrap": "path-exclude=/usr/share/man/*\n",
	} {
		if !strings.Contains(f.put[name], part) {
			t.Errorf("%s: %q", name, f.put[name])
		}
	}
	if len(f.scripts) != 4 || !strings.HasSuffix(f.scripts[2], "install -- one two") || !strings.Contains(f.scripts[3], "\ndeb http") || strings.Contains(f.scripts[3], "@SOURCES@") {
		t.Errorf("scripts: %q", f.scripts)
	}
	if !slices.Contains(f.env, "http_proxy=http://proxy.example:3128") || strings.Contains(fmt.Sprint(f.env), "secret") {
		t.Errorf("environment: %q", f.env)
	}
}

// TestAuthorities: a mirror that speaks https is verified by what this host believes.
func TestAuthorities(t *testing.T) {
	w, _ := newVMWorld(t)
	b := &debian{store: w.store, host: hostWith(0, "root", map[string]string{"etc/pki/tls/certs/ca-bundle.crt": "the authorities"})}
	for mirror, want := range map[string]string{"https://mirror.example/debian": "the authorities", "http://mirror.example/debian": ""} {
		arch := archive{sources: []aptSource{{mirror: mirror, suite: "bookworm", component: "main"}}}
		var packed bytes.Buffer
		if err := b.writeConfig(&packed, arch); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(packed.String(), "the authorities") != (want != "") || strings.Contains(b.scripts(arch)[0].text, "CaInfo=/run/") != (want != "") {
			t.Errorf("%s: %q, %q", mirror, packed.String(), b.scripts(arch)[0].text)
		}
	}
}

// TestBuildInVMWithout: without a base, or a way to build in VMs, the error is what the host lacks.
func TestBuildInVMWithout(t *testing.T) {
	for name, change := range map[string]func(w *world){
		"a base": func(w *world) { w.cfg.Catalog = bytes.Replace(w.cfg.Catalog, []byte("base = "), []byte("# "), 1) },
		"VMs":    func(w *world) {},
	} {
		t.Run(name, func(t *testing.T) {
			w, f := newVMWorld(t)
			change(w)
			w.open(t)
			if name == "a base" {
				w.store.BuildIn(f)
			}
			_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
			if api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "mmdebstrap: not installed") || !strings.Contains(api.AsError(err).Hint, "install") {
				t.Errorf("%v, hint %q", err, api.AsError(err).Hint)
			}
			w.assertClean(t)
		})
	}
}

var errBroken = errors.New("it broke")

// buildSteps are all that happens in a VM.
var buildSteps = []string{"start", "put", "run 1", "run 2", "run 3", "run 4", "root"}

// TestBuildInVMFails: whatever fails, neither a VM nor half an image is left.
func TestBuildInVMFails(t *testing.T) {
	for _, step := range buildSteps {
		t.Run(step, func(t *testing.T) {
			w, f := newVMWorld(t)
			f.at, f.do = step, func(context.Context) error { return errBroken }
			_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
			if !errors.Is(err, errBroken) {
				t.Error(err)
			}
			if f.running != 0 {
				t.Errorf("left: %v", f)
			}
			w.assertClean(t)
		})
	}
}

// TestBuildInVMStays: an image is not passed off as made while the VM it was made in is there.
func TestBuildInVMStays(t *testing.T) {
	w, f := newVMWorld(t)
	f.at, f.do = "remove", func(context.Context) error { return errBroken }
	if _, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard); !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "remove the VM") {
		t.Error(err)
	}
	w.assertClean(t)
}

// TestBuildInVMCancelled: who gives up leaves nothing either.
func TestBuildInVMCancelled(t *testing.T) {
	for _, step := range buildSteps {
		t.Run(step, func(t *testing.T) {
			w, f := newVMWorld(t)
			ctx, cancel := context.WithCancel(t.Context())
			f.at, f.do = step, func(ctx context.Context) error {
				cancel()
				<-ctx.Done()
				return ctx.Err()
			}
			if _, err := w.store.Pull(ctx, "debian-test", PullOptions{}, progress.Discard); api.KindOf(err) != api.KindCancelled {
				t.Errorf("%v: %v", api.KindOf(err), err)
			}
			if f.running != 0 {
				t.Errorf("left: %v", f)
			}
			w.assertClean(t)
		})
	}
}

// TestBuildInVMTakesTooLong: a guest that is never done is given up.
func TestBuildInVMTakesTooLong(t *testing.T) {
	for _, step := range buildSteps[1:] {
		t.Run(step, func(t *testing.T) {
			w, f := newVMWorld(t)
			w.store.limit = func(emulated bool) time.Duration {
				if !emulated {
					t.Error("not emulated")
				}
				return 100 * time.Millisecond
			}
			f.at, f.do = step, func(ctx context.Context) error {
				<-ctx.Done()
				return ctx.Err()
			}
			if _, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard); api.KindOf(err) != api.KindUnavailable || !strings.Contains(fmt.Sprint(err), "is not done after 100ms") {
				t.Errorf("%v: %v", api.KindOf(err), err)
			}
			if f.running != 0 {
				t.Errorf("left: %v", f)
			}
			w.assertClean(t)
		})
	}
}

// TestBuildInHostileVM: what the guest says and sends is bounded, and its words are harmless.
func TestBuildInHostileVM(t *testing.T) {
	for name, c := range map[string]struct {
		output     string // of the first script, again and again until it is cut off where endless
		endless    bool
		root       []byte
		kind       api.ErrorKind
		text, hint string
	}{
		"fails":                 {output: "all well\nE: Failed to fetch http://mirror\x1b[2J\n", kind: api.KindUnavailable, text: "exit status 100: Failed to fetch http://mirror?[2J", hint: "debian_mirror"},
		"fails without reason":  {output: "\x07sorry\n\n", kind: api.KindUnavailable, text: "exit status 100: ?sorry"},
		"fails with a novel":    {output: "E: " + strings.Repeat("x", 4000) + "\n", kind: api.KindUnavailable, text: strings.Repeat("x", maxComplaint)},
		"disk full":             {output: "dpkg: error: No space left on device\n", kind: api.KindUnavailable, text: "No space left", hint: "default_disk"},
		"talks for ever":        {output: "Get:1 http://m b a one a 1 [1 B]\n", endless: true, kind: api.KindGuest, text: "bytes of output"},
		"has no end of a line":  {output: strings.Repeat("y", 1000), endless: true, kind: api.KindGuest, text: "bytes of output"},
		"sends no tar":          {root: bytes.Repeat([]byte("garbage "), 1000), text: "read the root"},
		"sends what leads away": {root: tarOf(t, file{"../../etc/passwd", "x"}), kind: api.KindInvalid, text: "leads out of the directory"},
	} {
		t.Run(name, func(t *testing.T) {
			w, f := newVMWorld(t)
			if c.root != nil {
				f.root = c.root
			} else {
				f.output = func(w io.Writer) (int, error) {
					for {
						if _, err := io.WriteString(w, c.output); err != nil || !c.endless {
							return 100, err
						}
					}
				}
			}
			_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
			if err == nil || c.kind != "" && api.KindOf(err) != c.kind || !strings.Contains(err.Error(), c.text) || !strings.Contains(api.AsError(err).Hint, c.hint) {
				t.Errorf("%v: %v, hint %q", api.KindOf(err), err, api.AsError(err).Hint)
			}
			if err != nil && (len(err.Error()) > 4*maxComplaint || strings.ContainsAny(err.Error(), "\x1b\x07")) {
				t.Errorf("%d bytes: %q", len(err.Error()), err)
			}
			if f.running != 0 {
				t.Errorf("left: %v", f)
			}
			w.assertClean(t)
		})
	}
}

func TestBounded(t *testing.T) {
	b := &bounded{r: strings.NewReader("twelve bytes"), left: 12}
	if got, err := io.ReadAll(b); string(got) != "twelve bytes" || err != nil {
		t.Errorf("%q, %v", got, err)
	}
	b = &bounded{r: strings.NewReader("twelve bytes"), left: 11}
	if _, err := io.ReadAll(b); !errors.Is(err, errTooLong) {
		t.Error(err)
	}
}

// TestBase: what a catalog says is a base must be a reference.
func TestBase(t *testing.T) {
	const recipe = "[[image]]\nname = \"x\"\narch = \"amd64\"\n[[image.source]]\nrecipe = \"debian\"\nrelease = \"bookworm\"\nbase = %q\n"
	for base, ok := range map[string]bool{"docker.io/library/debian:bookworm-slim": true, "debian:12": true, "debian-trixie": false, "/etc/passwd": false, "A/B": false} {
		if _, err := parseCatalog(fmt.Appendf(nil, recipe, base)); (err == nil) != ok {
			t.Errorf("%s: %v", base, err)
		}
	}
	if _, err := parseCatalog([]byte("[[image]]\nname = \"x\"\narch = \"amd64\"\n[[image.source]]\noci = \"a/b@sha256:" + strings.Repeat("a", 64) + "\"\nbase = \"debian:12\"\n")); err == nil || !strings.Contains(err.Error(), "base") {
		t.Error(err)
	}
	s, err := New(Config{Dir: filepath.Join(t.TempDir(), "images"), CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	entries, _ := s.catalogs.entries(t.Context())
	for _, e := range entries {
		for _, src := range e.Sources {
			if src.kind() == sourceRecipe && src.Base == "" {
				t.Errorf("image %q cannot be built without mmdebstrap", e.Name)
			}
		}
	}
}

package image

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// recorder is a Reporter that remembers, and tells of each step on the way.
type recorder struct {
	mu      sync.Mutex
	step    string
	steps   []string
	notes   []string
	most    map[string]int64 // bytes done, by step
	problem string
	onStep  func(step string)
	onBytes func(step string, done int64)
}

func (r *recorder) Step(name string) {
	r.mu.Lock()
	r.step, r.steps = name, append(r.steps, name)
	r.mu.Unlock()
	if r.onStep != nil {
		r.onStep(name)
	}
}

func (r *recorder) Bytes(done, total int64) {
	r.mu.Lock()
	step := r.step
	if r.most == nil {
		r.most = map[string]int64{}
	}
	if done < 0 || total > 0 && done > total || done < r.most[step] {
		r.problem = fmt.Sprintf("step %q: %d of %d bytes after %d", step, done, total, r.most[step])
	}
	r.most[step] = done
	r.mu.Unlock()
	if r.onBytes != nil {
		r.onBytes(step, done)
	}
}

func (r *recorder) Note(text string) {
	r.mu.Lock()
	r.notes = append(r.notes, text)
	r.mu.Unlock()
}

// realStore is a Store over this host's mirrors and programs.
func realStore(t *testing.T) (*Store, Config) {
	t.Helper()
	if os.Getenv("BANGER_TEST_MIRROR") == "" {
		t.Skip("needs a Debian mirror: set BANGER_TEST_MIRROR=1")
	}
	if err := newHost(os.DirFS("/"), hostexec.Runner{}, os.Geteuid()).check(); err != nil {
		t.Skip(err)
	}
	dir := os.Getenv("BANGER_TEST_IMAGE_DIR") // kept, for a look at it
	if dir == "" {
		dir = t.TempDir()
	}
	cfg := Config{Dir: filepath.Join(dir, "images"), CacheDir: filepath.Join(dir, "cache"),
		Mirrors: deb.ChooseMirrors(os.Getenv("BANGER_TEST_DEBIAN_MIRROR"), os.DirFS("/"))}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s, cfg
}

// scratchLeft returns the scratch directories there are.
func scratchLeft(t *testing.T, dirs ...string) []string {
	t.Helper()
	var left []string
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(dir, scratchPrefix+"*"))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

// TestRealBuild builds the images of the catalog from a real mirror.
func TestRealBuild(t *testing.T) {
	for _, name := range []string{"debian-bookworm", "debian-trixie"} {
		t.Run(name, func(t *testing.T) { realBuild(t, name) })
	}
}

func realBuild(t *testing.T, name string) {
	s, cfg := realStore(t)
	started := time.Now()
	rep := &recorder{onStep: func(step string) { t.Logf("%6.1fs %s", time.Since(started).Seconds(), step) }}
	img, err := s.Pull(t.Context(), name, PullOptions{Build: true}, rep)
	if err != nil {
		t.Fatalf("%v\nhint: %s", err, api.AsError(err).Hint)
	}
	t.Logf("%6.1fs done: %s, %d bytes, %d on disk, notes %q, bytes %v", time.Since(started).Seconds(), img.Digest, img.SizeBytes, img.DiskBytes, rep.notes, rep.most)
	if rep.problem != "" {
		t.Error(rep.problem)
	}
	f, err := s.Files(t.Context(), img.Digest)
	if err != nil {
		t.Fatal(err)
	}
	fsck(t, f.Rootfs)
	if sb, err := ext4.Superblock(f.Rootfs); err != nil || sb.Label != rootfsLabel {
		t.Errorf("superblock %+v, %v", sb, err)
	}
	for path, want := range map[string]string{
		"/etc/machine-id":                  "Size: 0",
		"/etc/hostname":                    "File not found",
		"/etc/resolv.conf":                 "File not found",
		"/etc/systemd/system/getty.target": `"/dev/null"`,
		"/usr/bin/docker":                  "Type: regular",
		"/usr/bin/python":                  "python3",
		"/usr/bin/rg":                      "Type: regular",
		"/usr/local/bin/mise":              "Mode:  0755",
		"/usr/local/bin":                   "Mode:  0755",
		"/usr/lib/systemd/systemd":         "Type: regular",
		"/usr/lib/systemd/systemd-udevd":   "File not found",
		"/usr/sbin/sshd":                   "File not found",
		"/root/.bashrc":                    "Type: regular",
		"/usr/share/doc/bash/copyright":    "Type: regular",
		"/usr/share/man/man1/bash.1.gz":    "File not found",
		"/etc/systemd/system/sockets.target.wants/docker.socket":     "docker.socket",
		"/etc/systemd/system/multi-user.target.wants/docker.service": "File not found",
		"/usr/bin/newuidmap":                   "File not found",
		"/usr/sbin/ovrouter":                   "File not found",
		"/usr/bin/ctr":                         "File not found",
		"/etc/systemd/system/tmp.mount":        `"/dev/null"`,
		"/etc/apt/keyrings/docker.gpg":         "File not found",
		"/etc/systemd/system/ldconfig.service": `"/dev/null"`,
		"/usr/bin/sudo":                        "Mode:  04755",
	} {
		if got := debugfs(t, f.Rootfs, "stat "+path); !strings.Contains(got, want) {
			t.Errorf("%s: no %q in\n%s", path, want, got)
		}
	}
	if got := debugfs(t, f.Rootfs, "cat /etc/apt/sources.list"); strings.Count(got, "deb http://") != 3 || strings.Contains(got, "signed-by") {
		t.Errorf("sources.list:\n%s", got)
	}
	if len(rep.notes) > 0 {
		t.Errorf("notes: %q", rep.notes)
	}
	if left := scratchLeft(t, s.cfg.ScratchDirs...); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
	assertOnly(t, cfg.Dir, strings.Replace(img.Digest, ":", "-", 1))
}

// TestRealCancel cancels a real build while packages are installed: no process and no file is left.
func TestRealCancel(t *testing.T) {
	s, cfg := realStore(t)
	for _, at := range []string{"download packages", "install packages"} {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		rep := &recorder{onBytes: func(step string, done int64) {
			if step == at && done > 20e6 {
				cancel()
			}
		}}
		_, err := s.Pull(ctx, DefaultName, PullOptions{Build: true}, rep)
		if api.KindOf(err) != api.KindCancelled {
			t.Fatalf("%s: %v", at, err)
		}
		if left := scratchLeft(t, s.cfg.ScratchDirs...); len(left) > 0 {
			t.Errorf("%s: left behind: %q", at, left)
		}
		assertOnly(t, cfg.Dir)
		if got := processesIn(t, scratchPrefix); len(got) > 0 {
			t.Errorf("%s: still running: %q", at, got)
		}
	}
}

// processesIn returns the command lines that name part of a path.
func processesIn(t *testing.T, part string) []string {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range found {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), part) {
			out = append(out, strings.ReplaceAll(string(b), "\x00", " "))
		}
	}
	return out
}

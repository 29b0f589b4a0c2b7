package daemon

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// program writes a program that says what it is.
func program(t *testing.T, path, says string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho '"+says+"'\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

// hosting is a host with KVM, without Firecracker, and a site that has it.
type hosting struct {
	*engines
	dir   string
	asked atomic.Int32
	down  atomic.Bool
}

func newHosting(t *testing.T, engine string, qemu bool) *hosting {
	t.Helper()
	pin, ok := release.Pinned("amd64")
	if !ok {
		t.Fatal("no release is pinned")
	}
	var archive bytes.Buffer
	zw := gzip.NewWriter(&archive)
	tw := tar.NewWriter(zw)
	for name, says := range map[string]string{"firecracker": "Firecracker v" + pin.Version, "jailer": "Jailer v" + pin.Version} {
		text := "#!/bin/sh\necho " + says + "\n"
		full := "release-v" + pin.Version + "-" + pin.Arch + "/" + name + "-v" + pin.Version + "-" + pin.Arch
		if err := tw.WriteHeader(&tar.Header{Name: full, Typeflag: tar.TypeReg, Mode: 0o755, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	h := &hosting{dir: t.TempDir()}
	site := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		if h.down.Load() {
			http.Error(w, "", http.StatusForbidden)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(archive.Bytes()))
	}))
	t.Cleanup(site.Close)
	sum := sha256.Sum256(archive.Bytes())
	pin.URL, pin.SHA256 = site.URL, hex.EncodeToString(sum[:])
	cfg := probe.Config{Engine: engine, QEMUBin: filepath.Join(h.dir, "qemu"), Bin: filepath.Join(h.dir, "bin"), Memory: filepath.Join(h.dir, "memory")}
	if qemu {
		program(t, cfg.QEMUBin, "QEMU emulator version 9.0.0")
	}
	h.engines = &engines{log: quiet(), fetch: release.Config{Dir: cfg.Bin, Pin: pin, HTTP: site.Client(), RetryDelay: time.Millisecond},
		prober: &probe.Prober{Config: cfg, Adjust: func(o *probe.Observations) {
			o.Arch, o.KVMOpen, o.KVMVersion, o.KVMCreate, o.CPUFlags, o.Modules = "amd64", "", 12, "", []string{"vmx"}, nil
			o.Firecracker = slices.DeleteFunc(o.Firecracker, func(p release.Program) bool { return p.Source == release.Path })
		}}}
	return h
}

// noted collects notes and steps.
type noted struct {
	progress.Reporter
	notes, steps []string
	step         func(string)
}

func (n *noted) Note(s string) { n.notes = append(n.notes, s) }
func (n *noted) Step(s string) {
	n.steps = append(n.steps, s)
	if n.step != nil {
		n.step(s)
	}
}

// TestEngineFetches: Firecracker is fetched by the first who needs it, and then is there.
func TestEngineFetches(t *testing.T) {
	for _, engine := range []string{"", "auto", "firecracker"} {
		h := newHosting(t, engine, false)
		for range 2 {
			rep := &noted{Reporter: progress.Discard}
			d, err := h.choose(t.Context(), rep)
			if err != nil || d.Engine != probe.Firecracker || d.Fetch || d.Source != release.Own || d.Jailer == "" || len(rep.notes) != 0 {
				t.Fatalf("%q: %+v, %v, notes %q", engine, d, err, rep.notes)
			}
		}
		if h.asked.Load() != 1 {
			t.Errorf("%q: it was fetched %d times", engine, h.asked.Load())
		}
	}
}

// TestEngineCannotBeFetched: QEMU runs VMs, which is said once, until somebody runs doctor.
func TestEngineCannotBeFetched(t *testing.T) {
	h := newHosting(t, "auto", true)
	h.down.Store(true)
	for i := range 3 {
		rep := &noted{Reporter: progress.Discard}
		d, err := h.choose(t.Context(), rep)
		if err != nil || d.Engine != probe.QEMU || d.Accel != probe.KVM || !strings.Contains(d.Reason, "403") || len(d.Hints) == 0 {
			t.Fatalf("%+v, %v", d, err)
		}
		if said := len(rep.notes) == 1 && strings.Contains(rep.notes[0], "QEMU 9.0.0 with KVM runs the VM: Firecracker could not be fetched"); said != (i == 0) {
			t.Errorf("the notes of start %d: %q", i, rep.notes)
		}
	}
	if n := h.asked.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
	h.down.Store(false)
	if err := probe.Forget(h.prober.Memory); err != nil {
		t.Fatal(err)
	}
	if d, err := h.choose(t.Context(), progress.Discard); err != nil || d.Engine != probe.Firecracker {
		t.Errorf("once it is forgotten: %+v, %v", d, err)
	}
}

// TestEngineMustBeFetched: where nothing else runs VMs, or Firecracker is configured, each start tries, and says why it failed.
func TestEngineMustBeFetched(t *testing.T) {
	for engine, qemu := range map[string]bool{"auto": false, "firecracker": true} {
		h := newHosting(t, engine, qemu)
		h.down.Store(true)
		for i := range 2 {
			_, err := h.choose(t.Context(), progress.Discard)
			if e := api.AsError(err); e.Kind != api.KindUnavailable || !strings.Contains(e.Message, "403") || !strings.Contains(e.Hint, "curl -LO") || int(h.asked.Load()) != i+1 {
				t.Errorf("%s: %v after %d requests, hint %q", engine, err, h.asked.Load(), e.Hint)
			}
		}
		h.down.Store(false)
		if d, err := h.choose(t.Context(), progress.Discard); err != nil || d.Engine != probe.Firecracker {
			t.Errorf("%s, then: %+v, %v", engine, d, err)
		}
	}
}

// TestEngineArchiveIsWrong: what a user put in place is not passed over in silence, and not held against the next fetch.
func TestEngineArchiveIsWrong(t *testing.T) {
	h := newHosting(t, "auto", true)
	archive := program(t, filepath.Join(h.dir, "bin", h.fetch.Pin.Archive()), "no archive")
	for range 2 {
		if _, err := h.choose(t.Context(), progress.Discard); api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), archive) {
			t.Errorf("err = %v", err)
		}
	}
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	if d, err := h.choose(t.Context(), progress.Discard); err != nil || d.Engine != probe.Firecracker || h.asked.Load() != 1 {
		t.Errorf("without it: %+v, %v", d, err)
	}
}

// TestEngineFetchCancelled: Ctrl-C is no failure to remember.
func TestEngineFetchCancelled(t *testing.T) {
	h := newHosting(t, "auto", true)
	stop := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := h.choose(ctx, &noted{Reporter: progress.Discard, step: func(string) { cancel(stop) }})
	if !errors.Is(err, stop) {
		t.Errorf("err = %v", err)
	}
	if _, err := os.Stat(h.prober.Memory); err == nil {
		t.Error("it is remembered")
	}
}

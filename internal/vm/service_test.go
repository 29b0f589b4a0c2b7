package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

func (w *world) create(req api.CreateVM) api.VM {
	w.t.Helper()
	vm, err := w.svc.Create(w.t.Context(), req, progress.Discard)
	if err != nil {
		w.t.Fatal(err)
	}
	return vm
}

func TestLife(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	vm := w.create(api.CreateVM{Name: "a", Env: []string{"K=V"}, CPUs: 3, Memory: "1GiB", Disk: "2GiB"})
	if vm.State != api.StateStopped || vm.CPUs != 3 || vm.MemoryBytes != 1<<30 || vm.DiskBytes != 2<<30 {
		t.Errorf("created %+v", vm)
	}
	vm, err := w.svc.Start(ctx, "a", api.MarkFull, progress.Discard)
	if err != nil || vm.State != api.StateRunning || vm.Mark != api.MarkFull || vm.VMMPID == 0 {
		t.Fatalf("started %+v, %v", vm, err)
	}
	if again, err := w.svc.Start(ctx, "a", "", progress.Discard); err != nil || again.VMMPID != vm.VMMPID {
		t.Errorf("started again: %+v, %v", again, err)
	}
	if err := w.svc.Delete(ctx, "a", api.DeleteVM{}); api.KindOf(err) != api.KindConflict {
		t.Errorf("delete while it runs: %v", err)
	}
	for range 2 { // the second finds it stopped
		if vm, err = w.svc.Stop(ctx, "a", 0, progress.Discard); err != nil || vm.State != api.StateStopped || vm.Reason != "" {
			t.Errorf("stopped %+v, %v", vm, err)
		}
	}
	if vm, err = w.svc.Restart(ctx, vm.ID, 0, api.MarkAgent, progress.Discard); err != nil || vm.State != api.StateRunning {
		t.Errorf("restarted %+v, %v", vm, err)
	}
	if vm, err = w.svc.Kill(ctx, "a"); err != nil || vm.State != api.StateStopped {
		t.Errorf("killed %+v, %v", vm, err)
	}
	if err := w.svc.Delete(ctx, "a", api.DeleteVM{}); err != nil {
		t.Error(err)
	}
	w.empty()
}

// TestCreateFailsAtEveryStep: whatever fails, nothing is left, unless the VM was made and only did not come up.
func TestCreateFailsAtEveryStep(t *testing.T) {
	for _, step := range []string{"image", "kernel", "engine", "open image", "open kernel", "agent"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.supplies.failAt = step
			if _, err := w.svc.Create(t.Context(), api.CreateVM{Start: true}, progress.Discard); !errors.Is(err, errInjected) {
				t.Errorf("err = %v", err)
			}
			w.empty()
		})
	}
	t.Run("start", func(t *testing.T) {
		w := newWorld(t)
		w.engine.startErr = errInjected
		_, err := w.svc.Create(t.Context(), api.CreateVM{Name: "kept", Start: true}, progress.Discard)
		if !errors.Is(err, errInjected) || !strings.Contains(api.AsError(err).Hint, "kept") {
			t.Errorf("err = %v, hint %q: want the cause, and that the VM was kept", err, api.AsError(err).Hint)
		}
		w.state("kept", api.StateFailed)
		w.engine.startErr = nil
		if _, err := w.svc.Start(t.Context(), "kept", "", progress.Discard); err != nil {
			t.Errorf("start once the cause is gone: %v", err)
		}
	})
}

// TestCreateWithKernel: the kernel asked for is the VM's, the image's where nobody asks, and one that nobody knows is told before
// anything is made.
func TestCreateWithKernel(t *testing.T) {
	w := newWorld(t)
	for asked, want := range map[string]string{"": "krn", "own": "own"} {
		vm, err := w.svc.Create(t.Context(), api.CreateVM{Kernel: asked}, progress.Discard)
		if err != nil || vm.Kernel != want {
			t.Errorf("%q: kernel %q, %v", asked, vm.Kernel, err)
		}
	}
	if err := w.svc.CheckCreate(t.Context(), api.CreateVM{Kernel: "other"}); api.KindOf(err) != api.KindNotFound {
		t.Errorf("a kernel that nobody knows: %v", err)
	}
	w.supplies.imageKernel = "gone"
	_, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a"}, progress.Discard)
	if e := api.AsError(err); e.Kind != api.KindNotFound || !strings.HasPrefix(e.Message, `image "img" is for a kernel that is not here: `) || !strings.Contains(e.Hint, "--kernel") {
		t.Errorf("an image whose kernel is gone: %v, hint %q", err, e.Hint)
	}
	if _, err := w.svc.VM(t.Context(), "a"); err == nil {
		t.Error("a VM was made")
	}
	if _, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a", Kernel: "krn"}, progress.Discard); err != nil {
		t.Errorf("with another kernel: %v", err)
	}
}

func TestCreateWithoutItsDirectory(t *testing.T) {
	w := newWorld(t)
	if err := os.RemoveAll(w.paths.VMs()); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(w.paths.VMs(), nil, 0o600); err != nil { // a file in its way
		t.Fatal(err)
	}
	if _, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a"}, progress.Discard); err == nil {
		t.Error("created")
	}
	if vms, err := w.svc.List(t.Context()); err != nil || len(vms) != 0 {
		t.Errorf("left %+v, %v", vms, err)
	}
}

// TestCancel: Ctrl-C while the guest boots leaves nothing.
func TestCancel(t *testing.T) {
	w := newWorld(t)
	w.engine.hold = true
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := w.svc.Create(ctx, api.CreateVM{Name: "early", Start: true}, progress.Discard)
		done <- err
	}()
	w.state("early", api.StateStarting)
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	w.empty()
}

func TestGuestEndsBeforeItIsReady(t *testing.T) {
	w := newWorld(t)
	w.engine.hold = true
	done := make(chan error, 1)
	go func() {
		_, err := w.svc.Create(t.Context(), api.CreateVM{Name: "sick", Start: true, RemoveOnExit: true, Owner: &api.Owner{PID: 1}}, progress.Discard)
		done <- err
	}()
	vm := w.state("sick", api.StateStarting)
	w.machine(vm).end(vmm.EndBootTimeout)
	err := <-done
	if api.KindOf(err) != api.KindGuest || !strings.Contains(api.AsError(err).Hint, "banger vm logs sick") {
		t.Errorf("err = %v, hint %q", err, api.AsError(err).Hint)
	}
	if vm := w.state("sick", api.StateFailed); vm.Reason == "" {
		t.Error("no reason")
	}
	close(w.owners[1]) // the owner leaves: a VM that never became ready stays for its logs
	w.restart()
	w.svc.tasks.Wait() // what looked at the owner has done what it does
	w.state("sick", api.StateFailed)
}

func TestStopGetsHarder(t *testing.T) {
	for _, tc := range []struct {
		name           string
		deaf, stubborn bool
		notes          int
	}{{"willing", false, false, 0}, {"deaf", true, false, 1}, {"stubborn", true, true, 2}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			w.create(api.CreateVM{Name: "a", Start: true})
			w.engine.deaf, w.engine.stubborn = tc.deaf, tc.stubborn
			rep := newNotes()
			timeout := DefaultStopTimeout
			if tc.deaf {
				timeout = 20 * time.Millisecond
			}
			vm, err := w.svc.Stop(t.Context(), "a", timeout, rep)
			if err != nil || vm.State != api.StateStopped {
				t.Errorf("%+v, %v", vm, err)
			}
			if len(rep.lines) != tc.notes {
				t.Errorf("notes %q, want %d", rep.lines, tc.notes)
			}
		})
	}
}

func TestStopWithoutAnAgentKills(t *testing.T) {
	w := newWorld(t)
	w.engine.hold = true
	go func() { _, _ = w.svc.Create(t.Context(), api.CreateVM{Name: "a", Start: true}, progress.Discard) }()
	w.state("a", api.StateStarting)
	if vm, err := w.svc.Stop(t.Context(), "a", time.Hour, progress.Discard); err != nil || vm.State != api.StateStopped {
		t.Errorf("%+v, %v", vm, err)
	}
}

// TestStartSaysWhatItWaitsFor: a VM that boots already is waited for in so many words.
func TestStartSaysWhatItWaitsFor(t *testing.T) {
	w := newWorld(t)
	w.engine.hold = true
	vm, err := w.svc.Create(t.Context(), api.CreateVM{Name: "a"}, progress.Discard)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = w.svc.Start(t.Context(), "a", api.MarkAgent, progress.Discard) }()
	m := w.machine(vm)
	m.update(func(st *vmm.Status) { st.Phase, st.Mark = vmm.PhaseRunning, api.MarkAgent })
	w.state("a", api.StateRunning)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	rep := &steps{Reporter: progress.Discard, heard: func(string) { cancel() }}
	if _, err := w.svc.Start(ctx, "a", api.MarkFull, rep); err == nil {
		t.Error("the guest is not full, and nobody waited")
	}
	if want := []string{"wait for the guest to be full"}; !slices.Equal(rep.names, want) {
		t.Errorf("steps %q, want %q", rep.names, want)
	}
}

func TestStopOfAPausedVM(t *testing.T) {
	w := newWorld(t)
	vm := w.create(api.CreateVM{Name: "a", Start: true})
	_ = w.machine(vm).Pause(t.Context())
	if vm := w.state("a", api.StatePaused); vm.Reason != "asked" {
		t.Errorf("reason %q", vm.Reason)
	}
	if vm, err := w.svc.Stop(t.Context(), "a", 0, progress.Discard); err != nil || vm.State != api.StateStopped {
		t.Errorf("%+v, %v", vm, err)
	}
}

func TestOwners(t *testing.T) {
	owner := api.Owner{PID: 7, StartTime: 1, BootID: "b"}
	start := func(w *world) {
		w.create(api.CreateVM{Name: "a", Start: true, RemoveOnExit: true, Owner: &owner})
	}
	t.Run("release", func(t *testing.T) {
		w := newWorld(t)
		start(w)
		if err := w.svc.Release(t.Context(), "a", api.Release{Owner: api.Owner{PID: 8}}); api.KindOf(err) != api.KindConflict {
			t.Errorf("release by another: %v", err)
		}
		if err := w.svc.Release(t.Context(), "a", api.Release{Owner: owner}); err != nil {
			t.Error(err)
		}
		if err := w.svc.Release(t.Context(), "a", api.Release{Owner: owner}); err != nil {
			t.Errorf("released twice: %v", err)
		}
		w.empty()
	})
	t.Run("gone", func(t *testing.T) {
		w := newWorld(t)
		start(w)
		close(w.owners[7])
		w.gone("a")
		w.empty()
	})
	t.Run("gone while no daemon ran", func(t *testing.T) {
		w := newWorld(t)
		start(w)
		w.svc.Close()
		close(w.owners[7])
		w.restart()
		w.gone("a")
		w.empty()
	})
	t.Run("there while the daemon restarts", func(t *testing.T) {
		w := newWorld(t)
		start(w)
		w.restart()
		w.state("a", api.StateRunning)
	})
	t.Run("without an owner, at the end", func(t *testing.T) {
		w := newWorld(t)
		w.create(api.CreateVM{Name: "a", Start: true, RemoveOnExit: true})
		w.restart()
		w.state("a", api.StateRunning)
		if _, err := w.svc.Stop(t.Context(), "a", 0, progress.Discard); err != nil && api.KindOf(err) != api.KindNotFound {
			t.Error(err)
		}
		w.gone("a")
	})
}

// TestRecover kills the daemon in every recorded state, with the machine running and not.
func TestRecover(t *testing.T) {
	for _, tc := range []struct {
		state  api.VMState
		runs   bool
		want   api.VMState // empty: gone
		reason string
	}{
		{api.StateCreating, false, "", ""},
		{api.StateDeleting, false, "", ""},
		{api.StateDeleting, true, "", ""},
		{api.StateStopped, false, api.StateStopped, ""},
		{api.StateStopped, true, api.StateStopped, ""},
		{api.StateFailed, false, api.StateFailed, "why"},
		{api.StateStarting, true, api.StateRunning, ""},
		{api.StateStarting, false, api.StateStopped, "supervisor"},
		{api.StateRunning, true, api.StateRunning, ""},
		{api.StateRunning, false, api.StateStopped, "supervisor"},
		{api.StateStopping, true, api.StateRunning, ""},
		{api.StateStopping, false, api.StateStopped, "supervisor"},
		{api.StatePaused, true, api.StateRunning, ""},
	} {
		name := string(tc.state)
		if tc.runs {
			name += " and running"
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			vm := w.create(api.CreateVM{Name: "a", Start: tc.runs})
			w.svc.Close()
			if _, err := w.db.UpdateVM(t.Context(), vm.ID, func(r *store.VM) error {
				r.State, r.Reason = tc.state, "why"
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			w.restart()
			if tc.want == "" {
				w.empty()
				return
			}
			if got := w.state("a", tc.want); tc.reason != "" && !strings.Contains(got.Reason, tc.reason) {
				t.Errorf("reason %q, want %q", got.Reason, tc.reason)
			}
			if running := w.engine.running() == 1; running != (tc.want == api.StateRunning) {
				t.Errorf("%s, but a machine runs: %v", tc.want, running)
			}
		})
	}
}

// TestRecoveredVMIsReachable: a client that comes back to a command at once is let in.
func TestRecoveredVMIsReachable(t *testing.T) {
	w := newWorld(t)
	w.create(api.CreateVM{Name: "a", Start: true})
	w.restart()
	if _, _, err := w.svc.reachable(t.Context(), "a"); err != nil {
		t.Error(err)
	}
}

func TestRecoverSetsStrangersAside(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.paths.VMs(), "stranger")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, paths.VMData), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := w.engine.Start(t.Context(), dir, vmm.Spec{}); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(w.paths.VMs(), "nothing"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.empty()
	if _, err := os.Stat(filepath.Join(w.paths.Lost(), "stranger", paths.VMData)); err != nil {
		t.Errorf("the data of a VM whose record was lost: %v", err)
	}
	if _, err := os.Stat(filepath.Join(w.paths.Lost(), "nothing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an empty directory was kept: %v", err)
	}
}

// TestArchivesOfWhatMayRun: a VM that could not be attached to keeps the archive its guest reboots from.
func TestArchivesOfWhatMayRun(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"running", "stopped"} {
		vm := w.create(api.CreateVM{Name: name, Start: true})
		b, err := json.Marshal(vmm.Spec{Initramfs: []string{"/" + name}})
		if err == nil {
			err = os.WriteFile(filepath.Join(w.paths.VM(vm.ID), paths.VMSpec), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.svc.Stop(t.Context(), "stopped", 0, progress.Discard); err != nil {
		t.Fatal(err)
	}
	for _, attachErr := range []error{nil, errInjected} {
		w.svc.Close()
		w.engine.attachErr = attachErr
		w.svc = w.service()
		if err := w.svc.Recover(t.Context()); !errors.Is(err, attachErr) {
			t.Fatal(err)
		}
		inUse, err := w.svc.Archives(t.Context())
		if err != nil || !inUse("/running") || inUse("/stopped") {
			t.Errorf("attach %v: running %v, stopped %v, %v", attachErr, inUse("/running"), inUse("/stopped"), err)
		}
	}
}

func TestCheckCreate(t *testing.T) {
	w := newWorld(t)
	w.create(api.CreateVM{Name: "taken"})
	for name, tc := range map[string]struct {
		req  api.CreateVM
		kind api.ErrorKind
		text string
	}{
		"taken":         {api.CreateVM{Name: "taken"}, api.KindConflict, "taken"},
		"bad name":      {api.CreateVM{Name: "-"}, api.KindInvalid, "name"},
		"cpus":          {api.CreateVM{CPUs: 5}, api.KindInvalid, "5"},
		"negative cpus": {api.CreateVM{CPUs: -1}, api.KindInvalid, "-1"},
		"memory form":   {api.CreateVM{Memory: "much"}, api.KindInvalid, "much"},
		"memory small":  {api.CreateVM{Memory: "1MiB"}, api.KindInvalid, "1MiB"},
		"memory host":   {api.CreateVM{Memory: "16GiB"}, api.KindInvalid, "16GiB"},
		"disk form":     {api.CreateVM{Disk: "big"}, api.KindInvalid, "big"},
		"disk small":    {api.CreateVM{Disk: "1MiB"}, api.KindInvalid, "1MiB"},
		"disk host":     {api.CreateVM{Disk: "8000TiB"}, api.KindInvalid, "TiB"},
		"wait":          {api.CreateVM{Wait: "soon"}, api.KindInvalid, "soon"},
		"environment":   {api.CreateVM{Env: []string{"novalue"}}, api.KindInvalid, "novalue"},
		"no env name":   {api.CreateVM{Env: []string{"=x"}}, api.KindInvalid, "=x"},
		"env too large": {api.CreateVM{Env: []string{"A=" + strings.Repeat("x", maxEnv)}}, api.KindInvalid, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.svc.CheckCreate(t.Context(), tc.req)
			if api.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.text) || api.AsError(err).Hint == "" {
				t.Errorf("err = %v (%s), hint %q", err, api.KindOf(err), api.AsError(err).Hint)
			}
		})
	}
	if err := w.svc.CheckCreate(t.Context(), api.CreateVM{Name: "free", CPUs: 4, Memory: "8GiB", Disk: "1GiB", Env: []string{"A="}}); err != nil {
		t.Error(err)
	}
}

// TestDefaultCPUsFitTheHost: a configuration made for a larger host is no reason to refuse.
func TestDefaultCPUsFitTheHost(t *testing.T) {
	for def, want := range map[int]int{1: 1, 3: 3, 64: 4} {
		w := newWorld(t)
		w.svc.cfg.Defaults.CPUs = func(emulated bool) int {
			if !emulated {
				t.Error("asked for CPUs that are not emulated")
			}
			return def
		}
		if vm := w.create(api.CreateVM{Start: true}); vm.CPUs != want {
			t.Errorf("default %d: %d CPUs, want %d", def, vm.CPUs, want)
		}
	}
}

func TestGeneratedNamesDiffer(t *testing.T) {
	w := newWorld(t)
	a, b := w.create(api.CreateVM{}), w.create(api.CreateVM{})
	if a.Name == b.Name || a.ID == b.ID {
		t.Errorf("%+v and %+v", a, b)
	}
}

func TestExecNeedsARunningVM(t *testing.T) {
	w := newWorld(t)
	w.create(api.CreateVM{Name: "a"})
	if _, err := w.svc.DialExec(t.Context(), "a"); api.KindOf(err) != api.KindConflict || !strings.Contains(api.AsError(err).Hint, "vm start") {
		t.Errorf("err = %v", err)
	}
}

func TestLogs(t *testing.T) {
	w := newWorld(t)
	vm := w.create(api.CreateVM{Name: "a", Start: true})
	log := filepath.Join(w.paths.VM(vm.ID), paths.VMConsoleLog)
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(log+".1", "one\n")
	write(log, "two\n")
	var out bytes.Buffer
	if err := w.svc.Logs(t.Context(), "a", "", false, &out); err != nil || out.String() != "one\ntwo\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
	if err := w.svc.Logs(t.Context(), "a", "dmesg", false, &out); api.KindOf(err) != api.KindInvalid {
		t.Errorf("an unknown source: %v", err)
	}

	followed := &writes{got: make(chan string, 64)}
	done := make(chan error, 1)
	go func() { done <- w.svc.Logs(t.Context(), "a", "console", true, followed) }()
	followed.want(t, "one\ntwo\n")
	write(log, "two\nthree\n")
	followed.want(t, "three\n")
	if err := os.Rename(log, log+".1"); err != nil { // rotated
		t.Fatal(err)
	}
	write(log, "four\n")
	followed.want(t, "four\n")
	if _, err := w.svc.Kill(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil { // the VM ended, so does the following
		t.Error(err)
	}
}

// writes hands on what is written.
type writes struct{ got chan string }

func (w *writes) Write(p []byte) (int, error) {
	w.got <- string(p)
	return len(p), nil
}

func (w *writes) want(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	have := ""
	for have != text {
		select {
		case s := <-w.got:
			have += s
		case <-deadline:
			t.Fatalf("read %q, want %q", have, text)
		}
	}
}

func TestRemovable(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		rec  store.VM
		want bool
	}{
		"never started":                {store.VM{State: api.StateStopped}, true},
		"boots":                        {store.VM{State: api.StateStarting, StartedAt: &now}, true},
		"runs":                         {store.VM{State: api.StateRunning, StartedAt: &now}, true},
		"stopped after it was ready":   {store.VM{State: api.StateStopped, StartedAt: &now, WasReady: true}, true},
		"failed after it was ready":    {store.VM{State: api.StateFailed, StartedAt: &now, WasReady: true}, true},
		"panicked before it was ready": {store.VM{State: api.StateStopped, StartedAt: &now, Reason: "guest ended unexpectedly"}, false},
		"killed before it was ready":   {store.VM{State: api.StateStopped, StartedAt: &now}, true},
		"its agent never called":       {store.VM{State: api.StateFailed, StartedAt: &now}, false},
	} {
		if got := removable(tc.rec); got != tc.want {
			t.Errorf("%s: removable = %v", name, got)
		}
	}
}

func TestStopRefusesANegativeTimeout(t *testing.T) {
	w := newWorld(t)
	w.create(api.CreateVM{Name: "a", Start: true})
	if _, err := w.svc.Stop(t.Context(), "a", -time.Second, progress.Discard); api.KindOf(err) != api.KindInvalid {
		t.Errorf("err = %v", err)
	}
	w.state("a", api.StateRunning)
}

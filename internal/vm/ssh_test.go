package vm

import (
	"os"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/sshkeys"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// known are the names in the file of known hosts.
func (w *world) known() string {
	w.t.Helper()
	text, err := os.ReadFile(w.paths.KnownHosts())
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		if hosts, _, _ := strings.Cut(line, " "); hosts != "#" {
			_, name, _ := strings.Cut(hosts, ",")
			names = append(names, name)
		}
	}
	return strings.Join(names, " ")
}

func TestKnownHostsFollowTheVMs(t *testing.T) {
	w := newWorld(t)
	w.create(api.CreateVM{Name: "a"})
	w.create(api.CreateVM{Name: "b", Start: true})
	if got := w.known(); got != "a.vm b.vm" {
		t.Errorf("after two were created: %q", got)
	}
	if err := w.svc.Delete(t.Context(), "a", api.DeleteVM{}); err != nil {
		t.Fatal(err)
	}
	if got := w.known(); got != "b.vm" {
		t.Errorf("after one was deleted: %q", got)
	}
	lose := func() {
		t.Helper()
		if err := os.WriteFile(w.paths.KnownHosts(), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lose()
	w.restart()
	if got := w.known(); got != "b.vm" {
		t.Errorf("after a start of the daemon: %q", got)
	}
	lose()
	target, err := w.svc.SSHTarget(t.Context(), "b")
	if err != nil || w.known() != "b.vm" {
		t.Errorf("after somebody asked the way: %q, %v", w.known(), err)
	}
	key, err := w.svc.cfg.Host.SSHKey()
	if err != nil {
		t.Fatal(err)
	}
	want := api.SSHTarget{ID: target.ID, Name: "b", HostKeyAlias: target.ID, User: "root",
		KnownHosts: w.paths.KnownHosts(), IdentityFile: key.Identity, HostKey: target.HostKey}
	if target != want || !strings.HasPrefix(target.HostKey, "ssh-ed25519 ") || len(target.ID) != 32 {
		t.Errorf("%+v", target)
	}
	lose()
	// The fake guest has no ssh server, as one that an older banger started.
	_, err = w.svc.DialSSH(t.Context(), "b")
	if api.KindOf(err) != api.KindConflict || !strings.Contains(api.AsError(err).Hint, "banger vm restart b") || w.known() != "b.vm" {
		t.Errorf("dial: %v, known %q", err, w.known())
	}
}

// TestOldVMGetsAKeyAtItsNextStart: a VM whose record has no host key.
func TestOldVMGetsAKeyAtItsNextStart(t *testing.T) {
	w := newWorld(t)
	vm := w.create(api.CreateVM{Name: "old", Start: true})
	if _, err := w.db.UpdateVM(t.Context(), vm.ID, func(r *store.VM) error {
		r.SSHHostKey, r.SSHHostPublic = "", ""
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.svc.SSHTarget(t.Context(), "old"); api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "older banger") {
		t.Errorf("before: %v", err)
	}
	if _, err := w.svc.Restart(t.Context(), "old", 0, "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	target, err := w.svc.SSHTarget(t.Context(), "old")
	if err != nil || w.known() != "old.vm" {
		t.Errorf("after: %+v, %v, known %q", target, err, w.known())
	}
	if _, err := w.svc.Restart(t.Context(), "old", 0, "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	if again, err := w.svc.SSHTarget(t.Context(), "old"); err != nil || again != target {
		t.Errorf("it has another key: %+v, %v", again, err)
	}
}

func TestSSHNeedsARunningVMAndAKey(t *testing.T) {
	w := newWorld(t)
	w.create(api.CreateVM{Name: "a"})
	if _, err := w.svc.SSHTarget(t.Context(), "a"); api.KindOf(err) != api.KindConflict {
		t.Errorf("a VM that is stopped: %v", err)
	}
	if _, err := w.svc.DialSSH(t.Context(), "none"); api.KindOf(err) != api.KindNotFound {
		t.Errorf("a VM that is not there: %v", err)
	}
	w.svc.cfg.Host.SSHKey = func() (sshkeys.UserKey, error) { return sshkeys.User("/none", "/none") }
	_, err := w.svc.Start(t.Context(), "a", "", progress.Discard)
	if api.KindOf(err) != api.KindInvalid || !strings.Contains(api.AsError(err).Hint, "ssh_key_path") || w.engine.running() != 0 {
		t.Errorf("a key that is not there: %v", err)
	}
}

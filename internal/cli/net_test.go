package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"

	"golang.org/x/sys/unix"
)

// fakeNetwork is a host's network: which bridges are there, and what is kept for the boot.
type fakeNetwork struct {
	there, boot map[string]bridge.Config
	used        bool // VMs are on it
	err         error
}

func (n *fakeNetwork) Setup(_ context.Context, cfg bridge.Config) ([]string, error) {
	if n.err != nil || n.there[cfg.Name] == cfg {
		return nil, n.err
	}
	n.there[cfg.Name] = cfg
	return []string{"bridge " + cfg.Name}, nil
}

func (n *fakeNetwork) SetupAtBoot(ctx context.Context, cfg bridge.Config) ([]string, error) {
	done, err := n.Setup(ctx, cfg)
	if err == nil {
		n.boot[cfg.Name] = cfg
	}
	return done, err
}

func (n *fakeNetwork) Teardown(_ context.Context, name string, force bool) ([]string, error) {
	if n.used && !force {
		return nil, api.Errorf(api.KindConflict, "remove bridge %q: VMs that run are on it", name)
	}
	if _, ok := n.there[name]; !ok {
		return nil, n.err
	}
	delete(n.there, name)
	delete(n.boot, name)
	return []string{"removed bridge " + name}, n.err
}

func (n *fakeNetwork) Load(name string) (bridge.Config, error) {
	if cfg, ok := n.boot[name]; ok {
		return cfg, nil
	}
	return bridge.Config{}, api.Errorf(api.KindNotFound, "bridge %q is not set up for the boot", name)
}

func (n *fakeNetwork) Status(_ context.Context, cfg bridge.Config) (bridge.Report, error) {
	c := bridge.Check{Name: "bridge", State: bridge.OK, Detail: "there"}
	if n.there[cfg.Name] != cfg {
		c = bridge.Check{Name: "bridge", State: bridge.Missing, Detail: "not there", Hint: "sudo banger net setup\nor do without"}
	}
	return bridge.Report{Bridge: cfg.Name, Checks: []bridge.Check{c, {Name: "other firewalls", State: bridge.Unknown, Detail: "unseen"}}}, nil
}

// netApp is an app of root, called by alice with sudo, and alice's configuration.
func netApp(t *testing.T, config string) (*testApp, *fakeNetwork) {
	t.Helper()
	n := &fakeNetwork{there: map[string]bridge.Config{}, boot: map[string]bridge.Config{}}
	a := newTestApp(t)
	home := t.TempDir()
	dir := filepath.Join(home, ".config/banger")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600)); err != nil {
		t.Fatal(err)
	}
	a.env["SUDO_UID"] = "1000"
	a.App.Network, a.App.UID = n, func() int { return 0 }
	a.App.LookupUser = func(wanted string) (*user.User, error) {
		switch wanted {
		case "1000", "alice":
			return &user.User{Uid: "1000", Username: "alice", HomeDir: home}, nil
		case "0", "root":
			return &user.User{Uid: "0", Username: "root", HomeDir: "/nonexistent"}, nil
		}
		return nil, user.UnknownUserError(wanted)
	}
	return a, n
}

func TestNet(t *testing.T) {
	a, n := netApp(t, "cidr = \"10.9.0.0/24\"\nbridge_ip = \"10.9.0.1\"\ntap_pool_size = 3\n")
	expect := func(status int, out, errOut string, argv ...string) {
		t.Helper()
		got := a.run(argv...)
		gotOut, gotErr := a.out.String(), a.err.String()
		if got != status || !strings.Contains(gotOut, out) || (out == "") != (gotOut == "") || !strings.Contains(gotErr, errOut) || (errOut == "") != (gotErr == "") {
			t.Errorf("%v: %d\n%s%s", argv, got, gotOut, gotErr)
		}
	}
	expect(1, "hint: sudo banger net setup\n                                or do without\n", `network is "user"`, "net", "status")
	expect(0, "", "there is no bridge bngr0 of banger's", "net", "teardown")
	expect(0, "bridge bngr0\n", `now set network = "bridge" in `, "net", "setup")
	want := "{bngr0 10.9.0.1 10.9.0.0/24 3 1000 true}"
	if got := fmt.Sprint(n.boot["bngr0"]); got != want {
		t.Errorf("it set up %s, want %s", got, want)
	}
	expect(0, "", "all of it is there already", "net", "setup", "--owner", "alice")
	expect(0, "unseen", "network is", "net", "status")
	expect(0, `"state": "unknown"`, "", "net", "status", "-o", "json")

	delete(n.there, "bngr0") // a reboot
	expect(0, "bridge bngr0\n", "", "net", "setup", "--boot", "bngr0")
	expect(1, "", "not set up for the boot", "net", "setup", "--boot", "other")
	n.used = true
	expect(1, "", "VMs that run", "net", "teardown")
	expect(0, "removed bridge bngr0\n", "", "net", "teardown", "--force")
	if len(n.boot)+len(n.there) > 0 {
		t.Errorf("%v and %v are left", n.boot, n.there)
	}
	expect(0, "bridge bngr0\n", "now set", "net", "setup", "--no-boot")
	if len(n.boot) > 0 {
		t.Error("it is for the boot, too")
	}

	expect(2, "", `there is no user "nobody here"`, "net", "setup", "--owner", "nobody here")
	expect(2, "", "boot", "net", "setup", "--boot", "x", "--owner", "alice")
	expect(2, "", "takes", "net", "teardown", "a", "b")
	n.err = api.Errorf(api.KindUnavailable, "nft is not there").WithHint("install it")
	expect(1, "", "hint: install it", "net", "setup")
}

// TestNetMistakes has a configuration that is wrong: it is told, and a bridge can be removed by its name all the same.
func TestNetMistakes(t *testing.T) {
	a, n := netApp(t, "cidr = 7\n")
	for _, what := range []string{"setup", "status", "teardown"} {
		if got := a.run("net", what); got != 1 || !strings.Contains(a.err.String(), "config.toml:1:1: cidr") {
			t.Errorf("%s: %d %s", what, got, a.err.String())
		}
	}
	n.there["br1"] = bridge.Config{}
	if got := a.run("net", "teardown", "br1"); got != 0 || a.out.String() != "removed bridge br1\n" {
		t.Errorf("%d %s%s", got, a.out.String(), a.err.String())
	}
}

// TestNetNotRoot: who is not root gets the command that helps, with the whole path of the program, which sudo may not find by its name.
func TestNetNotRoot(t *testing.T) {
	a := newTestApp(t)
	exe, err := a.App.Executable()
	if err != nil {
		t.Fatal(err)
	}
	refused := api.Errorf(api.KindUnavailable, "this takes root").WithHint("another hint")
	other := api.Errorf(api.KindConflict, "VMs are on it").WithHint("another hint")
	hints := make(chan [2]string)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread, which has no capabilities then, ends with this
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
		}
		hints <- [2]string{api.AsError(a.App.netError(refused, "setup")).Hint, api.AsError(a.App.netError(other, "setup")).Hint}
	}()
	if got, want := <-hints, [2]string{"sudo " + exe + " net setup", "another hint"}; got != want {
		t.Errorf("hints %q, want %q", got, want)
	}
}

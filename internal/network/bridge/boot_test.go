package bridge

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// files are all that is below a directory: what links lead to, and what is in files.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		switch d.Type() {
		case fs.ModeDir:
			out[rel] = "directory"
		case fs.ModeSymlink:
			to, err := os.Readlink(path)
			out[rel] = "→ " + strings.TrimPrefix(to, root)
			return err
		default:
			data, err := os.ReadFile(path)
			out[rel] = string(data)
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBoot(t *testing.T) {
	root := t.TempDir()
	system := filepath.Join(root, "etc/systemd/system/multi-user.target.wants")
	if err := os.MkdirAll(system, 0o755); err != nil {
		t.Fatal(err)
	}
	before := files(t, root)
	b := Boot{Root: root, Program: "/opt/with space/banger"}
	cfg := testConfig()
	s := &setup{cfg: cfg, boot: &b}
	if err := s.forBoot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.done) != 1 || !strings.Contains(s.done[0], "systemd, which does not run here") {
		t.Errorf("it tells %q", s.done)
	}
	got := files(t, root)
	unit := got["etc/systemd/system/banger-net-bt0.service"]
	for _, want := range []string{`ExecStart="/opt/with space/banger" net setup --boot bt0` + "\n", "PartOf=nftables.service docker.service ufw.service firewalld.service\n"} {
		if !strings.Contains(unit, want) {
			t.Errorf("the unit lacks %q:\n%s", want, unit)
		}
	}
	for _, by := range []string{"multi-user.target", "nftables.service", "docker.service"} {
		if to := got["etc/systemd/system/"+by+".wants/banger-net-bt0.service"]; to != "→ /etc/systemd/system/banger-net-bt0.service" {
			t.Errorf("%s wants %q", by, to)
		}
	}
	if is, err := b.Load("bt0"); err != nil || is != cfg {
		t.Errorf("it reads %+v, %v", is, err)
	}
	s.done = nil
	if err := s.forBoot(t.Context()); err != nil || len(s.done) > 0 {
		t.Errorf("the second time: %q, %v", s.done, err)
	}

	// What was changed since is put right.
	broken := filepath.Join(root, "etc/systemd/system/docker.service.wants/banger-net-bt0.service")
	if err := errors.Join(os.Remove(broken), os.Symlink("/elsewhere", broken)); err != nil {
		t.Fatal(err)
	}
	s.cfg.Taps = 9
	if err := s.forBoot(t.Context()); err != nil || len(s.done) == 0 {
		t.Errorf("after a change: %q, %v", s.done, err)
	}
	if is, err := b.Load("bt0"); err != nil || is.Taps != 9 {
		t.Errorf("it reads %+v, %v", is, err)
	}
	if to := files(t, root)["etc/systemd/system/docker.service.wants/banger-net-bt0.service"]; to != "→ /etc/systemd/system/banger-net-bt0.service" {
		t.Errorf("docker wants %q", to)
	}

	s.done = nil
	if err := s.notForBoot(t.Context()); err != nil || len(s.done) != 1 {
		t.Errorf("removal: %q, %v", s.done, err)
	}
	want := before
	want["etc"], want["etc/systemd"], want["etc/systemd/system"] = "directory", "directory", "directory"
	if diff := cmp.Diff(want, files(t, root)); diff != "" {
		t.Errorf("it left %s", diff)
	}
	s.done = nil
	if err := s.notForBoot(t.Context()); err != nil || len(s.done) > 0 {
		t.Errorf("removal of nothing: %q, %v", s.done, err)
	}
}

// TestBootMistakes has a file that is none of banger's, and a place that cannot be written to.
func TestBootMistakes(t *testing.T) {
	b := Boot{Root: t.TempDir(), Program: "/usr/bin/banger"}
	if _, err := b.Load("bt0"); api.KindOf(err) != api.KindNotFound {
		t.Errorf("no file: %v", err)
	}
	if _, err := b.Load("../../x"); api.KindOf(err) != api.KindInvalid {
		t.Errorf("a path: %v", err)
	}
	for _, text := range []string{"", "[]", `{"version":2,"bridge":"bt0"}`, `{"version":1,"bridge":"other"}`} {
		if err := replaceFile(b.ConfigFile("bt0"), []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.Load("bt0"); api.KindOf(err) != api.KindInvalid || api.AsError(err).Hint == "" {
			t.Errorf("%q: %v", text, err)
		}
	}
	full := Boot{Root: filepath.Join(t.TempDir(), "file"), Program: "/usr/bin/banger"}
	if err := os.WriteFile(full.Root, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	s := &setup{cfg: testConfig(), boot: &full}
	if err := s.forBoot(t.Context()); err == nil {
		t.Error("it wrote below a file")
	}
}

// TestStatus looks at a host before, while and after it is set up.
func TestStatus(t *testing.T) {
	ns := newHost(t)
	cfg := testConfig()
	b := Boot{Root: t.TempDir(), Program: "/usr/bin/banger"}
	look := func(want map[string]State) {
		t.Helper()
		ns.Do(t, func() error {
			r, err := b.Status(t.Context(), cfg)
			got, failed := map[string]State{}, false
			for _, c := range r.Checks {
				got[c.Name] = c.State
				failed = failed || c.State == Missing
				if c.State == Missing && c.Hint == "" || c.Detail == "" {
					t.Errorf("%+v", c)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" || failed != r.Failed() || r.Bridge != cfg.Name {
				t.Errorf("failed %v: %s\n%+v", r.Failed(), diff, r)
			}
			return err
		})
	}
	ns.Do(t, func() error { return setForwarding("0") })
	// systemd-resolved is the host's, in whatever state, and of this test's namespace it knows nothing.
	names := Off
	if (&setup{cfg: cfg}).resolvedRuns(t.Context()) {
		names = Missing
	}
	look(map[string]State{"bridge": Missing, "taps": Missing, "device": OK, "rules": Missing, "other firewalls": OK, "forwarding": Missing, "names": names, "boot": Off})
	ns.Do(t, func() error { _, err := b.Setup(context.Background(), cfg); return err })
	there := map[string]State{"bridge": OK, "taps": OK, "device": OK, "rules": OK, "other firewalls": OK, "forwarding": OK, "names": names, "boot": Off}
	look(there)
	ns.Do(t, func() error {
		for _, c := range [][]string{{"nft", "flush", "ruleset"}, {"ip", "link", "del", "bt0-t1"}, {"ip", "addr", "flush", "dev", "bt0"}, {"iptables", "-P", "FORWARD", "DROP"}} {
			if out := run(c...); out != "" {
				t.Error(out)
			}
		}
		return nil
	})
	look(map[string]State{"bridge": Missing, "taps": Missing, "device": OK, "rules": Missing, "other firewalls": Missing, "forwarding": OK, "names": names, "boot": Off})
	ns.Do(t, func() error { _, err := b.Setup(context.Background(), cfg); return err })
	look(there)
	ns.Do(t, func() error { _, err := b.Teardown(context.Background(), cfg.Name, false); return err })
	ns.Do(t, func() error { return setForwarding("0") })
	look(map[string]State{"bridge": Missing, "taps": Missing, "device": OK, "rules": Missing, "other firewalls": Missing, "forwarding": Missing, "names": names, "boot": Off})
}

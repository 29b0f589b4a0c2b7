package cli

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

func TestVMList(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	if code := a.run("vm", "list"); code != 0 || a.out.String() != "NAME  STATE  IMAGE  ADDRESS  CPUS  MEMORY  DISK  AGE\n" {
		t.Errorf("an empty list: status %d, %q", code, a.out.String())
	}
	if a.run("vm", "list", "-o", "json"); a.out.String() != "[]\n" {
		t.Errorf("an empty list as JSON: %q", a.out.String())
	}
	at := a.Now().Add(-3 * time.Hour)
	d.add(api.VM{Name: "web", State: api.StateRunning, Mark: api.MarkFull, Image: "debian-bookworm", Address: netip.MustParseAddr("172.16.0.2"), CPUs: 2, MemoryBytes: 2 << 30, DiskBytes: 20 << 30, DiskUsedBytes: 3 << 19, CreatedAt: at})
	d.add(api.VM{Name: "db", State: api.StateStopped, Reason: "guest \x1b[31mended", MemoryBytes: 512 << 20, DiskBytes: 20 << 30, CreatedAt: at})
	if code := a.run("vm", "list"); code != 0 {
		t.Fatalf("status %d: %s", code, a.err.String())
	}
	want := `NAME  STATE                          IMAGE            ADDRESS     CPUS  MEMORY  DISK          AGE
db    stopped (guest \x1b[31mended)  -                -           -     512MiB  0B/20GiB      3h
web   running                        debian-bookworm  172.16.0.2  2     2GiB    1.5MiB/20GiB  3h
`
	if diff := cmp.Diff(want, a.out.String()); diff != "" {
		t.Error(diff)
	}
	if a.run("vm", "ls", "-o", "name"); a.out.String() != "db\nweb\n" {
		t.Errorf("names: %q", a.out.String())
	}
}

func TestVMShow(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning, Mark: api.MarkAgent, Engine: "qemu", Accel: "tcg", VMMPID: 12, Env: []string{"A=1"}})
	if code := a.run("vm", "show", "web"); code != 0 {
		t.Fatalf("status %d: %s", code, a.err.String())
	}
	for _, want := range []string{"state:            running (booting)", "engine:           qemu/tcg", "supervisor pid:   -", "environment:      A=1"} {
		if !strings.Contains(a.out.String(), want+"\n") {
			t.Errorf("no line %q in:\n%s", want, a.out.String())
		}
	}
	if code := a.run("vm", "show", "nope"); code != 1 || a.err.String() != "banger: vm \"nope\": there is none of that name\nhint: banger vm list\n" {
		t.Errorf("unknown: status %d, %q", code, a.err.String())
	}
}

func TestVMCreate(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	a.env["FROM_HOST"] = "yes"
	if code := a.run("vm", "create", "--name", "testbox", "--no-start", "-e", "K=V", "-e", "FROM_HOST", "-e", "NOT_SET", "-e", "K=W"); code != 0 {
		t.Fatalf("status %d: %s", code, a.err.String())
	}
	if a.out.String() != "testbox\n" || a.err.String() != "" {
		t.Errorf("printed %q and %q", a.out.String(), a.err.String())
	}
	if diff := cmp.Diff([]string{"FROM_HOST=yes", "K=W"}, d.vms["testbox"].Env); diff != "" {
		t.Error(diff)
	}
	if d.String() != "testbox stopped" {
		t.Errorf("the VMs are: %s", d)
	}
	if code := a.run("vm", "create", "--name", "testbox"); code != 1 || !strings.Contains(a.err.String(), "already exists") {
		t.Errorf("a duplicate: status %d, %q", code, a.err.String())
	}
	if a.run("vm", "create"); a.out.String() != "quiet-otter\n" {
		t.Errorf("a generated name: %q", a.out.String())
	}
}

func TestVMVerbs(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "a", State: api.StateStopped})
	d.add(api.VM{Name: "b", State: api.StateStopped})
	steps := []struct {
		args string
		code int
		out  string
		err  string // contained
		left string
	}{
		{"start a b a", 0, "a\nb\n", "", "a running\nb running"},
		{"stop --timeout 5s a", 0, "a\n", "", "a stopped\nb running"},
		{"restart a", 0, "a\n", "", "a running\nb running"},
		{"kill b", 0, "b\n", "", "a running\nb stopped"},
		{"delete b a nope", 1, "b\n", "delete vm \"a\": it runs\nhint: banger vm delete --force a", "a running"},
		{"rm -f a", 0, "a\n", "", ""},
		{"delete --all", 0, "", "", ""},
		{"delete", 2, "", "needs the name of a VM, or --all", ""},
		{"delete x --all", 2, "", "not both", ""},
		{"stop --timeout=-1s x", 2, "", "--timeout", ""},
		{"start nope", 1, "", "hint: banger vm list", ""},
	}
	for _, s := range steps {
		code := a.run(append([]string{"vm"}, strings.Fields(s.args)...)...)
		if code != s.code || a.out.String() != s.out || !strings.Contains(a.err.String(), s.err) {
			t.Errorf("vm %s: status %d, stdout %q, stderr %q; want %d, %q, … %q …", s.args, code, a.out.String(), a.err.String(), s.code, s.out, s.err)
		}
		if d.String() != s.left {
			t.Errorf("vm %s left %q, want %q", s.args, d, s.left)
		}
	}
}

func TestVMLogs(t *testing.T) {
	a := newTestApp(t)
	startFake(t, a.env)
	if code := a.run("vm", "logs", "web", "--source", "agent"); code != 0 || a.out.String() != "agent of web\r\n\x1b[32mgreen\x1b[0m \x1b]0;title\a\n" {
		t.Errorf("not on a terminal: status %d, %q", code, a.out.String())
	}
	a.Terminal.Out = true
	if a.run("vm", "logs", "web"); a.out.String() != "console of web\ngreen \\x1b]0;title\\a\n" {
		t.Errorf("on a terminal: %q", a.out.String())
	}
	if a.run("vm", "logs", "--raw", "web"); !strings.Contains(a.out.String(), "\x1b]0;title") {
		t.Errorf("raw: %q", a.out.String())
	}
	if code := a.run("vm", "logs", "web", "--source", "nope"); code != 2 {
		t.Errorf("a wrong source: status %d", code)
	}
}

func TestStores(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.images = []api.Image{{Name: "debian-bookworm", Local: true, Default: true, SizeBytes: 900 << 20, DiskBytes: 800 << 20, VMs: []string{"web"}, Description: "Debian 12"}}
	d.kernels = []api.Kernel{{Name: "generic-6.12", Default: true, Description: "x"}}
	steps := []struct {
		args string
		code int
		out  string
	}{
		{"image list", 0, "NAME             LOCAL  DEFAULT  SIZE    ON DISK  SHARED  VMS  AGE  DESCRIPTION\ndebian-bookworm  yes    yes      900MiB  800MiB   -       1    -    Debian 12\n"},
		{"image show debian-bookworm -o name", 0, "debian-bookworm\n"},
		{"image pull --build debian-bookworm", 0, "debian-bookworm sha256:abc\n"},
		{"image delete x used y", 1, "x\ny\n"},
		{"kernel list", 0, "NAME          LOCAL  DEFAULT  RELEASE  SIZE  VMS  AGE  PACKAGE\ngeneric-6.12  no     yes      -        -     0    -    -\n"},
		{"kernel show generic-6.12 -o name", 0, "generic-6.12\n"},
		{"kernel register --name mine --vmlinux x", 0, "mine 6.12.1 sha256:def\n"},
		{"kernel pull generic-6.12", 0, "generic-6.12 6.12.1 sha256:def\n"},
		{"kernel rm generic-6.12", 0, "generic-6.12\n"},
		{"kernel delete", 2, ""},
	}
	for _, s := range steps {
		code := a.run(strings.Fields(s.args)...)
		if code != s.code || a.out.String() != s.out {
			t.Errorf("%s: status %d, stdout:\n%s\nstderr: %s", s.args, code, a.out.String(), a.err.String())
		}
	}
}

func TestCompletion(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web"})
	d.add(api.VM{Name: "worker"})
	d.images = []api.Image{{Name: "debian-bookworm", Local: true}, {Name: "debian-trixie"}}
	d.kernels = []api.Kernel{{Name: "generic-6.12", Local: true}}
	for _, c := range []struct{ args, want string }{
		{"vm stop w", "web\nworker\n"},
		{"vm stop web wo", "worker\n"},
		{"vm show web x", ""},
		{"vm create --image deb", "debian-bookworm\ndebian-trixie\n"},
		{"image delete deb", "debian-bookworm\n"},
		{"vm create --kernel gen", "generic-6.12\n"},
		{"vm run --kernel-ref gen", "generic-6.12\n"},
		{"kernel show g", "generic-6.12\n"},
		{"kernel register --name g", ":4"},
		{"kernel register --vmlinux g", ":0"},
		{"kernel register --modules g", ":16"},
		{"vm start --wait r", "agent\nready\nfull\n"},
		{"vm list -o j", "table\njson\nname\n"},
	} {
		a.run(append([]string{"__complete"}, strings.Fields(c.args)...)...)
		got, _, _ := strings.Cut(a.out.String(), ":")
		if strings.HasPrefix(c.want, ":") {
			got = a.out.String()
		}
		if c.want == "" && got != "" || !strings.HasPrefix(got, c.want) {
			t.Errorf("complete %q: %q, want %q", c.args, got, c.want)
		}
	}
}

// TestEmulatedIsSaidOnce: with the first VM of a daemon that banger started, and not with the next, nor where VMs run on KVM.
func TestEmulatedIsSaidOnce(t *testing.T) {
	const note = "banger: VMs are emulated on this host, some ten times slower than with KVM; why: banger doctor\n"
	for _, c := range []struct {
		accel string
		args  []string
		want  string
	}{
		{"tcg", []string{"vm", "create"}, note},
		{"tcg", []string{"vm", "run", "--", "true"}, note},
		{"tcg", []string{"-q", "vm", "create"}, ""},
		{"tcg", []string{"vm", "create", "--no-start"}, ""},
		{"kvm", []string{"vm", "create"}, ""},
	} {
		a := newTestApp(t)
		a.StartDaemon = func(context.Context) error {
			startFake(t, a.env).accel = c.accel
			return nil
		}
		if code := a.run(c.args...); code != 0 {
			t.Errorf("%q: status %d, %s", c.args, code, a.err.String())
		}
		if got := strings.Contains(a.err.String(), note); got != (c.want != "") {
			t.Errorf("%q on %s: %q", c.args, c.accel, a.err.String())
		}
		next := &testApp{env: a.env, App: newTestApp(t).App}
		next.App.Getenv, next.App.Out, next.App.Err = a.App.Getenv, &next.out, &next.err
		if next.run("vm", "create", "--name", "two"); strings.Contains(next.err.String(), note) {
			t.Errorf("%q on %s: said again: %q", c.args, c.accel, next.err.String())
		}
	}
}

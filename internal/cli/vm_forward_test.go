package cli

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// freePort is what the fake daemon chooses, takenPort what it says somebody else has.
const (
	freePort  = 41234
	takenPort = 9999
)

// forwardRoutes are the forwards of VMs, which nobody listens for.
func (d *fakeDaemon) forwardRoutes(handle handleFunc) {
	status := func(vm *api.VM, f api.Forward) api.ForwardStatus {
		return api.ForwardStatus{Forward: f, Listening: vm.State == api.StateRunning}
	}
	// with decodes a body into v, and calls work with the VM and mu held.
	with := func(v any, r *http.Request, work func(*api.VM) (any, error)) (int, any, error) {
		if v != nil {
			if err := json.NewDecoder(r.Body).Decode(v); err != nil {
				return 0, nil, api.Errorf(api.KindInvalid, "%w", err)
			}
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		vm, err := d.find(r.PathValue("name"))
		if err != nil {
			return 0, nil, err
		}
		out, err := work(vm)
		return http.StatusOK, out, err
	}
	handle("GET /v1/vms/{name}/forwards", func(r *http.Request) (int, any, error) {
		return with(nil, r, func(vm *api.VM) (any, error) {
			out := []api.ForwardStatus{}
			for _, f := range vm.Forwards {
				out = append(out, status(vm, f))
			}
			return out, nil
		})
	})
	handle("POST /v1/vms/{name}/forwards", func(r *http.Request) (int, any, error) {
		var f api.Forward
		return with(&f, r, func(vm *api.VM) (any, error) {
			switch f.HostPort {
			case 0:
				f.HostPort = freePort
			case takenPort:
				return nil, api.Errorf(api.KindConflict, "listen on %s: the port is used by nginx (pid 123)", f).WithHint("use another")
			}
			vm.Forwards = append(vm.Forwards, f)
			return status(vm, f), nil
		})
	})
	handle("DELETE /v1/vms/{name}/forwards", func(r *http.Request) (int, any, error) {
		var which api.RemoveForward
		return with(&which, r, func(vm *api.VM) (any, error) {
			for i, f := range vm.Forwards {
				if f.HostPort == which.HostPort && (which.Protocol == "" || which.Protocol == f.Protocol) {
					vm.Forwards = slices.Delete(vm.Forwards, i, i+1)
					return f, nil
				}
			}
			return nil, api.Errorf(api.KindNotFound, "vm %q has no forward of port %d", vm.Name, which.HostPort)
		})
	})
}

// blanks are what columns are aligned with.
var blanks = regexp.MustCompile(`  +`)

func TestVMForward(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	d.add(api.VM{Name: "idle", State: api.StateStopped})
	for _, tc := range []struct {
		args     string
		code     int
		out, err string
	}{
		{"web", 0, "HOST GUEST PROTOCOL CONNECTIONS STATE\n", ""},
		{"web add 8080:80 0:3000 127.0.0.2:5353:53/udp", 0, "127.0.0.1:8080 → web:80\n127.0.0.1:41234 → web:3000\n127.0.0.2:5353 → web:53/udp\n", ""},
		{"web add 0.0.0.0:80:80 -o name", 0, "0.0.0.0:80:80\n", "banger: everybody who reaches this host at 0.0.0.0:80 reaches the VM\n"},
		{"web list", 0, "HOST GUEST PROTOCOL CONNECTIONS STATE\n" +
			"127.0.0.1:8080 80 tcp - listening\n" +
			"127.0.0.1:41234 3000 tcp - listening\n" +
			"127.0.0.2:5353 53 udp - listening\n" +
			"0.0.0.0:80 80 tcp - listening\n", ""},
		{"web -o name", 0, "8080:80\n41234:3000\n127.0.0.2:5353:53/udp\n0.0.0.0:80:80\n", ""},
		{"web remove 8080 5353/udp", 0, "127.0.0.1:8080 → web:80\n127.0.0.2:5353 → web:53/udp\n", ""},
		{"web remove 41234 8080", 1, "127.0.0.1:41234 → web:3000\n", "banger: vm \"web\" has no forward of port 8080\n"},
		{"web add 81:81 9999:80 82:82", 1, "127.0.0.1:81 → web:81\n", "banger: listen on 127.0.0.1:9999:80/tcp: the port is used by nginx (pid 123)\nhint: use another\n"},
		{"idle add 83:80", 0, "127.0.0.1:83 → idle:80\n", "banger: vm \"idle\" does not run: its forwards open when it starts\n"},
		{"idle", 0, "HOST GUEST PROTOCOL CONNECTIONS STATE\n127.0.0.1:83 80 tcp - closed\n", ""},
		{"nope", 1, "", "banger: vm \"nope\": there is none of that name\nhint: banger vm list\n"},
		{"", 2, "", "banger: vm forward needs the name of a VM\nhint: banger vm forward --help\n"},
		{"web 8080:80", 2, "", "banger: vm forward adds, removes or lists, it cannot \"8080:80\"\nhint: banger vm forward web add 8080:80\n"},
		{"add web 8080:80", 2, "", "banger: the VM's name comes before add\nhint: banger vm forward web add 8080:80\n"},
		{"web add", 2, "", "banger: vm forward NAME add needs a SPEC\nhint: banger vm forward web add 8080:80\n"},
		{"web list 80", 2, "", "banger: vm forward NAME list takes nothing more, not \"80\"\nhint: banger vm forward web\n"},
		{"web add 80-90:80", 2, "", "banger: forward \"80-90:80\": ranges of ports are not supported\nhint: give each port a forward of its own: -p 8080:80 -p 8081:81\n"},
	} {
		code := a.run(append([]string{"vm", "forward"}, strings.Fields(tc.args)...)...)
		got := blanks.ReplaceAllString(a.out.String(), " ")
		if code != tc.code || got != tc.out || a.err.String() != tc.err {
			t.Errorf("%s: status %d\n%s%s\nwant %d\n%s%s", tc.args, code, got, a.err.String(), tc.code, tc.out, tc.err)
		}
	}
	if a.run("vm", "forward", "web", "-o", "json"); !json.Valid(a.out.Bytes()) || !strings.Contains(a.out.String(), `"listening": true`) {
		t.Errorf("as JSON: %s", a.out.String())
	}
	if a.run("vm", "forward", "web", "add", "0:1", "-o", "json"); !json.Valid(a.out.Bytes()) || !strings.Contains(a.out.String(), fmt.Sprintf(`"host_port": %d`, freePort)) {
		t.Errorf("added, as JSON: %s", a.out.String())
	}
}

func TestCompleteForward(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning, Forwards: []api.Forward{
		{Protocol: api.TCP, HostPort: 8080, GuestPort: 80}, {Protocol: api.UDP, HostPort: 5353, GuestPort: 53}}})
	for args, want := range map[string]string{
		"":                    "web :4",
		"web ":                "add list remove :4",
		"web add ":            ":4",
		"web remove ":         "8080:80 5353:53/udp :4",
		"web remove 8080:80 ": "5353:53/udp :4",
		"nope remove ":        ":1",
	} {
		if code := a.run(append([]string{"__complete", "vm", "forward"}, strings.Split(args, " ")...)...); code != 0 {
			t.Errorf("%s: status %d, %s", args, code, a.err.String())
		}
		if got := strings.Join(strings.Fields(a.out.String()), " "); got != want {
			t.Errorf("%q: %q, want %q", args, got, want)
		}
	}
}

func TestPublish(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	if code := a.run("vm", "create", "--name", "web", "-p", "8080:80", "--publish", "[::1]:5353:53/udp"); code != 0 {
		t.Fatalf("status %d: %s", code, a.err.String())
	}
	var got []string
	for _, f := range d.vms["web"].Forwards {
		got = append(got, f.String())
	}
	if diff := cmp.Diff([]string{"127.0.0.1:8080:80/tcp", "[::1]:5353:53/udp"}, got); diff != "" {
		t.Error(diff)
	}
	if a.run("vm", "show", "web"); !strings.Contains(a.out.String(), "127.0.0.1:8080 → web:80, [::1]:5353 → web:53/udp\n") {
		t.Errorf("vm show:\n%s", a.out.String())
	}
	d.add(api.VM{Name: "db", State: api.StateStopped})
	if a.run("vm", "list"); !strings.Contains(a.out.String(), "FORWARDS\n") || !strings.Contains(a.out.String(), "8080:80 [::1]:5353:53/udp\n") {
		t.Errorf("vm list:\n%s", a.out.String())
	}
	if code := a.run("vm", "create", "-p", "80:x"); code != 2 || !strings.Contains(a.err.String(), `forward "80:x": "x" is not a port`) {
		t.Errorf("vm create: status %d, %s", code, a.err.String())
	}
	if code := a.run("vm", "run", "-p", "80-81:80", "--", "true"); code != 2 || !strings.Contains(a.err.String(), "ranges of ports") {
		t.Errorf("vm run: status %d, %s", code, a.err.String())
	}
	if d.asked("POST /v1/vms") != 1 {
		t.Error("a VM was made in spite of a wrong forward")
	}
}

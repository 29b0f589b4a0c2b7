package cli

import (
	"encoding/json"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// portsRoutes are what listens in VMs: in "idle" nothing does.
func (d *fakeDaemon) portsRoutes(handle handleFunc) {
	handle("GET /v1/vms/{name}/ports", func(r *http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		vm, err := d.find(r.PathValue("name"))
		if err != nil {
			return 0, nil, err
		}
		if vm.State != api.StateRunning {
			return 0, nil, api.Errorf(api.KindConflict, "vm %q is %s", vm.Name, vm.State).WithHint("start it: banger vm start %s", vm.Name)
		}
		if vm.Name == "idle" {
			return http.StatusOK, []api.GuestPort{}, nil
		}
		any4, loopback := netip.IPv4Unspecified(), netip.MustParseAddr("127.0.0.1")
		return http.StatusOK, []api.GuestPort{
			{Protocol: "tcp", Address: any4, Port: 22, Process: "exe", Agent: true},
			{Protocol: "tcp", Address: loopback, Port: 3000, UID: 1000, Process: "no\x1bde", URL: "http://3000.web.localhost:7777/", Forwards: []api.Forward{
				{Protocol: "tcp", HostAddress: loopback, HostPort: 8080, GuestPort: 3000}, {Protocol: "tcp", HostAddress: any4, HostPort: 81, GuestPort: 3000}}},
			{Protocol: "udp", Address: netip.MustParseAddr("::1"), Port: 53},
		}, nil
	})
}

func TestVMPorts(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	for _, name := range []string{"web", "idle"} {
		d.add(api.VM{Name: name, State: api.StateRunning})
	}
	d.add(api.VM{Name: "off", State: api.StateStopped})
	a.run("vm", "ports", "web")
	want := `PROTOCOL PORT ADDRESS PROCESS URL FORWARDED
tcp 22 0.0.0.0 banger's ssh - -
tcp 3000 127.0.0.1 no\x1bde http://3000.web.localhost:7777/ 8080:3000 0.0.0.0:81:3000
udp 53 ::1 - - -
`
	var got strings.Builder
	for line := range strings.Lines(a.out.String()) {
		got.WriteString(strings.Join(strings.Fields(line), " ") + "\n")
	}
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
	a.out.Reset()
	if code := a.run("vm", "ports", "web", "-o", "json"); code != 0 {
		t.Errorf("exit status %d", code)
	}
	var ports []api.GuestPort
	if err := json.Unmarshal(a.out.Bytes(), &ports); err != nil || len(ports) != 3 || ports[1].Forwards[0].HostPort != 8080 {
		t.Errorf("%v: %s", err, a.out.String())
	}
	a.err.Reset()
	if code := a.run("vm", "ports", "idle"); code != 0 || !strings.Contains(a.err.String(), "nothing listens") {
		t.Errorf("exit status %d, %q", code, a.err.String())
	}
	a.err.Reset()
	if code := a.run("vm", "ports", "off"); code != 1 || !strings.Contains(a.err.String(), "banger vm start off") {
		t.Errorf("exit status %d, %q", code, a.err.String())
	}
}

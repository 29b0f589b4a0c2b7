package apiserver

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// forwardVMs says what was asked of it.
type forwardVMs struct {
	fakeVMs
	added   api.Forward
	removed api.RemoveForward
}

func (f *forwardVMs) Forwards(_ context.Context, name string) ([]api.ForwardStatus, error) {
	return []api.ForwardStatus{{Forward: f.added, Listening: true, Connections: 3}}, nil
}

func (f *forwardVMs) AddForward(_ context.Context, name string, fwd api.Forward) (api.ForwardStatus, error) {
	if name != "web" {
		return api.ForwardStatus{}, api.Errorf(api.KindConflict, "the port is used by nginx (pid 123)").WithHint("use another")
	}
	f.added = fwd
	return api.ForwardStatus{Forward: fwd}, nil
}

func (f *forwardVMs) RemoveForward(_ context.Context, _ string, which api.RemoveForward) (api.Forward, error) {
	f.removed = which
	return f.added, nil
}

func TestForwards(t *testing.T) {
	vms := &forwardVMs{}
	srv, _ := serve(t, vms)
	const full = `{"protocol":"udp","host_address":"::1","host_port":5353,"guest_port":53`
	res, body := request(t, srv, "POST", "/v1/vms/web/forwards", full+"}")
	want := api.Forward{Protocol: "udp", HostAddress: netip.MustParseAddr("::1"), HostPort: 5353, GuestPort: 53}
	if res.StatusCode != 200 || vms.added != want || !strings.HasPrefix(body, full+`,"listening":false`) {
		t.Errorf("added %v: status %d, %s", vms.added, res.StatusCode, body)
	}
	if res, body = request(t, srv, "GET", "/v1/vms/web/forwards", ""); res.StatusCode != 200 || !strings.Contains(body, full+`,"listening":true,"connections":3}`) {
		t.Errorf("listed: status %d, %s", res.StatusCode, body)
	}
	res, _ = request(t, srv, "DELETE", "/v1/vms/web/forwards", `{"host_port":5353}`)
	if res.StatusCode != 200 || vms.removed != (api.RemoveForward{HostPort: 5353}) {
		t.Errorf("removed %+v: status %d", vms.removed, res.StatusCode)
	}
	if res, body = request(t, srv, "POST", "/v1/vms/web/forwards", `{"host_port":0,"guest_port":3000}`); res.StatusCode != 200 || vms.added != (api.Forward{GuestPort: 3000}) {
		t.Errorf("any port: %v: status %d, %s", vms.added, res.StatusCode, body)
	}
	for body, status := range map[string]int{`{"host_port":70000,"guest_port":1}`: 400, `{"host_port":1,"guest_port":1,"host_address":"x"}`: 400, `{`: 400, `{"host_port":-1,"guest_port":1}`: 400} {
		if res, text := request(t, srv, "POST", "/v1/vms/web/forwards", body); res.StatusCode != status {
			t.Errorf("%s: status %d, %s", body, res.StatusCode, text)
		}
	}
	if res, body = request(t, srv, "POST", "/v1/vms/db/forwards", `{"host_port":1,"guest_port":1}`); res.StatusCode != 409 || !strings.Contains(body, `"hint":"use another"`) {
		t.Errorf("a taken port: status %d, %s", res.StatusCode, body)
	}
}

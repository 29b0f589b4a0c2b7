package cli

import (
	"context"
	"encoding/json"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// statsRoutes are the counters of VMs: those of "silent" lack what its guest says.
func (d *fakeDaemon) statsRoutes(handle handleFunc) {
	handle("GET /v1/vms/{name}/stats", func(r *http.Request) (int, any, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		vm, err := d.find(r.PathValue("name"))
		if err != nil {
			return 0, nil, err
		}
		if vm.State != api.StateRunning {
			return 0, nil, api.Errorf(api.KindConflict, "vm %q is %s", vm.Name, vm.State).WithHint("start it: banger vm start %s", vm.Name)
		}
		st := api.VMStats{ID: "id-" + vm.Name, Name: vm.Name, Host: api.HostStats{MemoryBytes: 300 << 20, CPUSeconds: 12.34, DiskUsedBytes: 5 << 20}}
		if vm.Name != "silent" {
			st.Guest = &api.GuestStats{UptimeSeconds: 125, Load: [3]float64{0.5, 0.25, 1}, CPUs: 2, BusySeconds: 7.25,
				MemoryTotalBytes: 2 << 30, MemoryAvailableBytes: 1536 << 20, DiskTotalBytes: 20 << 30, DiskFreeBytes: 19 << 30}
			st.Network = &api.NetworkStats{Mode: "user", SentBytes: 2048, SentPackets: 3, ReceivedBytes: 1 << 20, ReceivedPackets: 700,
				Overrun: 2, Dropped: new(uint64(1)), Flows: new(uint64(9)), Refused: new(uint64(4)), OpenTCP: new(5), OpenUDP: new(6)}
		}
		if vm.Name == "bridged" {
			st.Guest, st.Network = nil, &api.NetworkStats{Mode: "bridge", SentBytes: 2048, SentPackets: 3, ReceivedBytes: 1024, ReceivedPackets: 7, Overrun: 2}
		}
		return http.StatusOK, st, nil
	})
}

func TestVMStats(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	for _, name := range []string{"web", "silent", "bridged"} {
		d.add(api.VM{Name: name, State: api.StateRunning})
	}
	d.add(api.VM{Name: "idle", State: api.StateStopped})
	for args, want := range map[string]string{
		"web": `name: web
id: id-web
guest uptime: 2m
guest load: 0.50 0.25 1.00
guest cpu: 7.2s busy, 2 CPUs
guest memory: 512MiB used of 2GiB
guest disk: 1GiB used of 20GiB
host cpu: 12.3s
host memory: 300MiB
host disk: 5MiB
network: user
sent: 2KiB in 3 packets
received: 1MiB in 700 packets
dropped: 1 not valid, 2 not taken in time
flows: 9 let out, 4 refused
open: 5 TCP, 6 UDP
`,
		"bridged": `name: bridged
id: id-bridged
guest: does not answer
host cpu: 12.3s
host memory: 300MiB
host disk: 5MiB
network: bridge
sent: 2KiB in 3 packets
received: 1KiB in 7 packets
dropped: - not valid, 2 not taken in time
flows: - let out, - refused
open: - TCP, - UDP
`,
		"silent": `name: silent
id: id-silent
guest: does not answer
host cpu: 12.3s
host memory: 300MiB
host disk: 5MiB
network: none
`,
	} {
		if code := a.run("vm", "stats", args); code != 0 || a.err.String() != "" {
			t.Errorf("%s: status %d, %s", args, code, a.err.String())
		}
		if diff := cmp.Diff(want, blanks.ReplaceAllString(a.out.String(), " ")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", args, diff)
		}
	}
	var st api.VMStats
	if code := a.run("vm", "stats", "web", "-o", "json"); code != 0 || json.Unmarshal(a.out.Bytes(), &st) != nil || *st.Network.OpenUDP != 6 || st.Guest.CPUs != 2 {
		t.Errorf("as JSON: status %d, %s", code, a.out.String())
	}
	if code := a.run("vm", "stats", "bridged", "-o", "json"); code != 0 || strings.Contains(a.out.String(), "flows") || strings.Contains(a.out.String(), "open_") {
		t.Errorf("what is not counted is there: status %d, %s", code, a.out.String())
	}
	if code := a.run("vm", "stats", "idle"); code != 1 || a.err.String() != "banger: vm \"idle\" is stopped\nhint: start it: banger vm start idle\n" {
		t.Errorf("one that is stopped: status %d, %s", code, a.err.String())
	}
}

// TestWatchStats watches a VM until it ends.
func TestWatchStats(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	done := make(chan int, 1)
	go func() { done <- a.run("vm", "stats", "web", "-w", "-o", "json") }()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for d.asked("GET /v1/vms/web/stats") < 2 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it does not look again")
		}
	}
	d.mu.Lock()
	d.vms["web"].State = api.StateStopped
	d.mu.Unlock()
	if code := <-done; code != 1 || strings.Count(a.out.String(), `"id-web"`) < 2 || !strings.Contains(a.err.String(), "is stopped") {
		t.Errorf("status %d\n%s%s", code, a.out.String(), a.err.String())
	}
}

func TestSeconds(t *testing.T) {
	for in, want := range map[float64]time.Duration{1.5: 1500 * time.Millisecond, -1: 0, 1e300: 0, math.Inf(1): 0, 0: 0} {
		if got := seconds(in); got != want {
			t.Errorf("%v is %s", in, got)
		}
	}
	if got := seconds(math.NaN()); got != 0 {
		t.Errorf("NaN is %s", got)
	}
}

func TestHostPortFlag(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	for _, tc := range []struct {
		args string
		code int
		err  string
	}{
		{"--host-port 70000", 2, "banger: --host-port is 70000, not a port from 1 to 65535\nhint: --host-port 5432\n"},
		{"--host-port web", 2, ""},
		{"--host-port -1", 2, ""},
	} {
		if code := a.run(append([]string{"vm", "create"}, strings.Fields(tc.args)...)...); code != tc.code || tc.err != "" && a.err.String() != tc.err {
			t.Errorf("%s: status %d, %s", tc.args, code, a.err.String())
		}
	}
	f := vmFlags{hostPorts: []uint{5432, 65535, 0}} // what is wrong with 0 the daemon says
	if req, err := f.request(a.App); err != nil || !cmp.Equal(req.HostPorts, []uint16{5432, 65535, 0}) {
		t.Errorf("the request has %v, %v", req.HostPorts, err)
	}
	d.add(api.VM{Name: "web", State: api.StateRunning, HostPorts: []uint16{5432, 80}})
	if a.run("vm", "show", "web"); !strings.Contains(blanks.ReplaceAllString(a.out.String(), " "), "host ports: 5432 80\n") {
		t.Errorf("vm show: %s", a.out.String())
	}
}

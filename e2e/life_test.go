//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

func TestLife(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "create", "--image", "debian-bookworm", "--name", "testbox", "--no-start")
	if vm := h.vm("testbox"); vm.State != api.StateStopped || vm.Image != "debian-bookworm" || vm.DiskBytes != 20<<30 || vm.MemoryBytes != 512<<20 {
		t.Errorf("after create: %+v", vm)
	}
	h.ok("vm", "run", "--name", "web", "--cpus", "2", "--memory", "1GiB", "--disk", "30GiB", "-e", "KEY=VALUE", "--detach")
	if got := h.ok("vm", "exec", "web", "--", "sh", "-c", "echo $KEY; nproc; grep MemTotal /proc/meminfo"); !strings.HasPrefix(got, "VALUE\n2\n") {
		t.Errorf("in web: %q", got)
	}
	var blocks string
	if err := waitFor(time.Minute, func() bool {
		blocks = strings.TrimSpace(h.ok("vm", "exec", "web", "--", "df", "-BG", "--output=size", "/root"))
		return strings.Contains(blocks, "30G") || strings.Contains(blocks, "29G")
	}); err != nil {
		t.Errorf("a disk of 30 GiB: df says %q", blocks)
	}
	names := strings.Fields(h.ok("vm", "list", "-o", "name"))
	if strings.Join(names, " ") != "testbox web" {
		t.Errorf("vm list -o name: %v", names)
	}
	table := h.ok("vm", "list")
	for _, want := range []string{"NAME", "STATE", "testbox", "stopped", "web", "running", "debian-bookworm"} {
		if !strings.Contains(table, want) {
			t.Errorf("vm list has no %q:\n%s", want, table)
		}
	}
	h.ok("vm", "restart", "web")
	if vm := h.vm("web"); vm.State != api.StateRunning {
		t.Errorf("after restart: %s", vm.State)
	}
	h.fails(1, []string{"web", "running", "--force"}, "vm", "delete", "web")
	h.ok("vm", "rm", "--force", "web", "testbox")
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("left: %+v", vms)
	}
}

func TestLogs(t *testing.T) {
	h := box(t)
	if got := h.ok("vm", "logs", "box", "--source", "agent"); len(got) == 0 {
		t.Error("the agent's log is empty")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := h.cmd(ctx, "vm", "logs", "box", "-f")
	var out lockedBuffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	h.ok("vm", "exec", "box", "--", "sh", "-c", "echo from-the-guest-now > /dev/ttyS0")
	if err := waitFor(30*time.Second, func() bool { return strings.Contains(out.String(), "from-the-guest-now") }); err != nil {
		t.Errorf("logs -f does not follow: %q", out.String())
	}
	cancel()
	_ = c.Wait()
}

func TestDetachedRemoveOnStop(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "run", "--rm", "--detach", "--name", "brief", "--wait", "agent")
	if vms := h.vms(); len(vms) != 1 {
		t.Fatalf("%+v", vms)
	}
	h.ok("vm", "exec", "brief", "--", "sh", "-c", "sleep 1")
	h.ok("vm", "kill", "brief")
	if err := waitFor(20*time.Second, func() bool { return len(h.vms()) == 0 }); err != nil {
		t.Errorf("left: %+v", h.vms())
	}
}

// TestTenAtOnce starts ten command lines where no daemon runs: one daemon wins, and all are answered.
func TestTenAtOnce(t *testing.T) {
	h := newHost(t)
	sock := filepath.Join(h.dir, "run/banger/bangerd.sock")
	if err := os.MkdirAll(filepath.Dir(sock), 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false) // a daemon that was killed leaves its socket
	_ = stale.Close()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if r := h.run("vm", "list"); r.code != 0 {
				t.Errorf("exit status %d: %s", r.code, r.stderr)
			}
		})
	}
	wg.Wait()
	if err := waitFor(10*time.Second, func() bool { return len(h.processes()) == 1 }); err != nil {
		t.Errorf("processes: %+v", h.processes())
	}
	st := decode[api.DaemonStatus](t, h.ok("daemon", "status", "-o", "json"))
	if st.Socket != sock || st.PID == 0 || st.Version == "" || st.UptimeSeconds <= 0 {
		t.Errorf("status %+v", st)
	}
	h.ok("daemon", "stop")
	h.fails(3, nil, "daemon", "status")
}

// TestSocketVanishes empties the runtime directory, as a logout does.
func TestSocketVanishes(t *testing.T) {
	h := newHost(t)
	pid := h.daemonPIDAfter("vm", "list")
	if err := os.RemoveAll(filepath.Join(h.dir, "run/banger")); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(20*time.Second, func() bool { return h.run("daemon", "status").code == 0 }); err != nil {
		t.Fatal("the socket does not come back")
	}
	if now := h.daemonPID(); now != pid {
		t.Errorf("another daemon, %d instead of %d", now, pid)
	}
}

func (h *host) daemonPIDAfter(args ...string) int {
	h.t.Helper()
	h.ok(args...)
	return h.daemonPID()
}

// TestVersionMismatch speaks to the daemon as a client of another version.
func TestVersionMismatch(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "list")
	sock := filepath.Join(h.dir, "run/banger/bangerd.sock")
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}
	for _, tc := range []struct {
		name, header, value, host string
		status                    int
		text                      string
	}{
		{"another version", api.HeaderAPIVersion, "999", "banger", api.KindVersion.Status(), "999"},
		{"a web page", "Origin", "http://example.com", "banger", api.KindInvalid.Status(), "web pages"},
		{"a rebound name", "X-Nothing", "x", "example.com", api.KindInvalid.Status(), "web pages"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+tc.host+"/v1/vms", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set(tc.header, tc.value)
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var reply api.ErrorReply
		err = json.NewDecoder(res.Body).Decode(&reply)
		_ = res.Body.Close()
		if err != nil || reply.Error == nil || res.StatusCode != tc.status || !strings.Contains(reply.Error.Message, tc.text) {
			t.Errorf("%s: status %d, %+v, %v", tc.name, res.StatusCode, reply.Error, err)
		}
	}
}

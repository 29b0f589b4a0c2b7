package apiserver

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// sessionVMs says what was asked of it.
type sessionVMs struct {
	fakeVMs
	started api.StartSession
	logs    api.SessionLogs
	deleted string
}

func (f *sessionVMs) Session(_ context.Context, vm, name string) (api.Session, error) {
	if name != "planner" {
		return api.Session{}, api.Errorf(api.KindNotFound, "vm %q has no session %q", vm, name)
	}
	return api.Session{VM: vm, Name: name, State: api.SessionRunning}, nil
}

func (f *sessionVMs) StartSession(_ context.Context, vm string, req api.StartSession) (api.Session, error) {
	f.started = req
	return api.Session{VM: vm, Name: req.Name, State: api.SessionRunning}, nil
}

func (f *sessionVMs) DeleteSession(_ context.Context, vm, name string, force bool) error {
	if !force {
		return api.Errorf(api.KindConflict, "session %q of vm %q is running", name, vm)
	}
	f.deleted = vm + "/" + name
	return nil
}

func (f *sessionVMs) SessionLogs(_ context.Context, _, _ string, req api.SessionLogs, w io.Writer) error {
	f.logs = req
	_, err := io.WriteString(w, "printed\n")
	if req.Tail == 7 {
		return io.ErrUnexpectedEOF
	}
	return err
}

func TestSessions(t *testing.T) {
	vms := &sessionVMs{}
	srv, _ := serve(t, vms)
	res, body := request(t, srv, "POST", "/v1/vms/web/sessions", `{"name":"planner","command":["pi"],"stdin":"pty","rows":24,"cols":80}`)
	if res.StatusCode != 200 || vms.started.Stdin != "pty" || vms.started.Rows != 24 || !strings.Contains(body, `"state":"running"`) {
		t.Errorf("started %+v: status %d, %s", vms.started, res.StatusCode, body)
	}
	if res, body = request(t, srv, "GET", "/v1/vms/web/sessions/other", ""); res.StatusCode != 404 {
		t.Errorf("another: status %d, %s", res.StatusCode, body)
	}
	if res, body = request(t, srv, "POST", "/v1/vms/web/sessions/other/stop", `{}`); res.StatusCode != 404 {
		t.Errorf("stop another: status %d, %s", res.StatusCode, body)
	}
	if res, body = request(t, srv, "DELETE", "/v1/vms/web/sessions/planner", ""); res.StatusCode != 409 {
		t.Errorf("delete one that runs: status %d, %s", res.StatusCode, body)
	}
	if res, body = request(t, srv, "DELETE", "/v1/vms/web/sessions/planner?force=true", ""); res.StatusCode != 204 || vms.deleted != "web/planner" {
		t.Errorf("delete it by force: status %d, %s", res.StatusCode, body)
	}
	res, body = request(t, srv, "GET", "/v1/vms/web/sessions/planner/logs?stream=stderr&since=1m&tail=5&follow=true", "")
	if want := (api.SessionLogs{Stream: "stderr", Since: time.Minute, Tail: 5, Follow: true}); res.StatusCode != 200 || body != "printed\n" || vms.logs != want {
		t.Errorf("logs %+v: status %d, %q", vms.logs, res.StatusCode, body)
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/v1/vms/web/sessions/planner/logs?tail=7", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "banger"
	cut, err := srv.Client().Do(req)
	if err == nil {
		_, err = io.ReadAll(cut.Body)
		_ = cut.Body.Close()
	}
	if err == nil {
		t.Error("a log that broke off looks whole")
	}
	if res, body = request(t, srv, "GET", "/v1/vms/web/sessions/planner/logs?stream=both", ""); res.StatusCode != 400 {
		t.Errorf("logs of no stream: status %d, %s", res.StatusCode, body)
	}
}

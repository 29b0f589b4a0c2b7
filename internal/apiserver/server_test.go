package apiserver

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/operation"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
)

// fakeVMs has one VM, "web"; everything else is not found.
type fakeVMs struct {
	VMs
	guest  net.Conn // behind exec
	ssh    net.Conn
	hungUp []string // exec ids
}

func (f *fakeVMs) VM(_ context.Context, name string) (api.VM, error) {
	if name != "web" {
		return api.VM{}, api.Errorf(api.KindNotFound, "no vm %q", name).WithHint("banger vm list")
	}
	return api.VM{Name: "web", State: api.StateRunning}, nil
}

func (f *fakeVMs) List(context.Context) ([]api.VM, error) {
	return nil, errors.New("the database is on fire")
}

func (f *fakeVMs) CheckCreate(_ context.Context, req api.CreateVM) error {
	if req.Name == "web" {
		return api.Errorf(api.KindConflict, "vm %q already exists", req.Name)
	}
	return nil
}

func (f *fakeVMs) Create(ctx context.Context, req api.CreateVM, rep progress.Reporter) (api.VM, error) {
	rep.Step("make " + req.Name)
	rep.Note("a note")
	if req.Name == "slow" {
		<-ctx.Done()
		return api.VM{}, ctx.Err()
	}
	return api.VM{Name: req.Name}, nil
}

func (f *fakeVMs) DialExec(context.Context, string) (net.Conn, error) { return f.guest, nil }

func (f *fakeVMs) DialSSH(context.Context, string) (net.Conn, error) { return f.ssh, nil }

func (f *fakeVMs) ExecOwnerGone(_ context.Context, _, execID string) error {
	f.hungUp = append(f.hungUp, execID)
	return nil
}

func (f *fakeVMs) Logs(_ context.Context, name, _ string, _ bool, w io.Writer) error {
	if name == "unreadable" {
		return errors.New("the log is under water")
	}
	if name != "web" {
		return api.Errorf(api.KindNotFound, "no vm %q", name)
	}
	_, err := io.WriteString(w, "a line\n")
	return err
}

type fakeImages struct{ Images }

func (fakeImages) CheckPull(context.Context, api.PullImage) error { return nil }

type fakeDaemon struct{ stopped chan struct{} }

func (d fakeDaemon) Status(context.Context) (api.DaemonStatus, error) {
	return api.DaemonStatus{PID: 7}, nil
}
func (d fakeDaemon) Config() api.ConfigView { return api.ConfigView{Path: "/x"} }
func (d fakeDaemon) Stop()                  { close(d.stopped) }

func serve(t *testing.T, vms VMs) (*httptest.Server, *strings.Builder) {
	t.Helper()
	db, err := store.Open(t.Context(), t.TempDir()+"/db")
	if err != nil {
		t.Fatal(err)
	}
	logs := &strings.Builder{}
	log := slog.New(slog.NewTextHandler(logs, nil))
	ops := operation.New(operation.Config{Store: db, Log: log, Now: time.Now})
	srv := httptest.NewServer(New(Config{VMs: vms, Images: fakeImages{}, Operations: ops, Daemon: fakeDaemon{make(chan struct{})}, Log: log}))
	t.Cleanup(func() {
		srv.Close()
		if err := errors.Join(ops.Close(context.Background()), db.Close()); err != nil {
			t.Error(err)
		}
	})
	return srv, logs
}

func request(t *testing.T, srv *httptest.Server, method, path, body string, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, srv.URL+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "banger"
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	if h := req.Header.Get("Host"); h != "" {
		req.Host = h
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

func TestErrors(t *testing.T) {
	srv, logs := serve(t, &fakeVMs{})
	for _, tc := range []struct {
		name, method, path, body string
		header                   []string
		kind                     api.ErrorKind
		text                     string
	}{
		{"not found", "GET", "/v1/vms/nobody", "", nil, api.KindNotFound, "nobody"},
		{"internal", "GET", "/v1/vms", "", nil, api.KindInternal, "fire"},
		{"conflict before any work", "POST", "/v1/vms", `{"name":"web"}`, nil, api.KindConflict, "exists"},
		{"unknown field", "POST", "/v1/vms", `{"nmae":"x"}`, nil, api.KindInvalid, "nmae"},
		{"wrong type", "POST", "/v1/vms", `{"cpus":"two"}`, nil, api.KindInvalid, "cpus"},
		{"no JSON", "POST", "/v1/vms", `{`, nil, api.KindInvalid, ""},
		{"no route", "GET", "/v1/nothing", "", nil, api.KindNotFound, "/v1/nothing"},
		{"operation on nobody", "POST", "/v1/vms/nobody/start", `{}`, nil, api.KindNotFound, "nobody"},
		{"unknown operation", "GET", "/v1/operations/none/events", "", nil, api.KindNotFound, "none"},
		{"logs of nobody", "GET", "/v1/vms/nobody/logs", "", nil, api.KindNotFound, "nobody"},
		{"logs that cannot be read", "GET", "/v1/vms/unreadable/logs", "", nil, api.KindInternal, "water"},
		{"exec without an upgrade", "GET", "/v1/vms/web/exec", "", nil, api.KindInvalid, "upgrade"},
		{"ssh without an upgrade", "GET", "/v1/vms/web/ssh", "", nil, api.KindInvalid, "upgrade"},
		{"origin", "GET", "/v1/daemon", "", []string{"Origin", "http://localhost"}, api.KindInvalid, "web pages"},
		{"foreign host", "GET", "/v1/daemon", "", []string{"Host", "evil.example"}, api.KindInvalid, "web pages"},
		{"other version", "GET", "/v1/daemon", "", []string{api.HeaderAPIVersion, "99"}, api.KindVersion, "99"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			res, body := request(t, srv, tc.method, tc.path, tc.body, tc.header...)
			var reply api.ErrorReply
			if err := json.Unmarshal([]byte(body), &reply); err != nil || reply.Error == nil {
				t.Fatalf("status %d, %q: %v", res.StatusCode, body, err)
			}
			if reply.Error.Kind != tc.kind || res.StatusCode != tc.kind.Status() || !strings.Contains(reply.Error.Message, tc.text) {
				t.Errorf("status %d, %+v; want %s with %q", res.StatusCode, reply.Error, tc.kind, tc.text)
			}
			if res.Header.Get(api.HeaderAPIVersion) == "" {
				t.Error("the answer has no version")
			}
		})
	}
	for _, word := range []string{"fire", "water"} {
		if n := strings.Count(logs.String(), word); n != 1 {
			t.Errorf("an internal error was logged %d times, want once:\n%s", n, logs)
		}
	}
	if strings.Contains(logs.String(), "nobody") {
		t.Errorf("a client's mistake was logged:\n%s", logs)
	}
}

func TestOperationIsFollowed(t *testing.T) {
	srv, _ := serve(t, &fakeVMs{})
	res, body := request(t, srv, "POST", "/v1/vms", `{"name":"new"}`)
	var op api.Operation
	if err := json.Unmarshal([]byte(body), &op); err != nil || res.StatusCode != http.StatusAccepted || op.ID == "" {
		t.Fatalf("status %d, %q, %v", res.StatusCode, body, err)
	}
	res, body = request(t, srv, "GET", "/v1/operations/"+op.ID+"/events", "")
	if got := res.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type %q", got)
	}
	var last api.Operation
	for line := range strings.Lines(body) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(data), &last); err != nil {
				t.Fatal(err)
			}
		}
	}
	if last.State != api.OperationDone || !strings.Contains(string(last.Result), "new") || len(last.Notes) != 1 {
		t.Errorf("the last event is %+v", last)
	}
}

func TestOperationIsCancelled(t *testing.T) {
	srv, _ := serve(t, &fakeVMs{})
	_, body := request(t, srv, "POST", "/v1/vms", `{"name":"slow"}`)
	var op api.Operation
	if err := json.Unmarshal([]byte(body), &op); err != nil {
		t.Fatal(err)
	}
	if res, body := request(t, srv, "DELETE", "/v1/operations/"+op.ID, ""); res.StatusCode != http.StatusNoContent {
		t.Fatalf("status %d, %s", res.StatusCode, body)
	}
	_, body = request(t, srv, "GET", "/v1/operations/"+op.ID+"/events", "")
	if !strings.Contains(body, `"state":"cancelled"`) {
		t.Errorf("events: %s", body)
	}
}

// TestGuestJoins: exec and ssh are the same join with different ports of the guest.
func TestGuestJoins(t *testing.T) {
	for _, kind := range []string{"exec", "ssh"} {
		t.Run(kind, func(t *testing.T) { joins(t, kind) })
	}
}

func joins(t *testing.T, kind string) {
	guest, far := net.Pipe()
	vms := &fakeVMs{}
	if vms.guest = guest; kind == "ssh" {
		vms.guest, vms.ssh = nil, guest
	}
	srv, _ := serve(t, vms)
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	// what follows the request at once must reach the guest too
	if _, err := io.WriteString(conn, "GET /v1/vms/web/"+kind+" HTTP/1.1\r\nHost: banger\r\nConnection: Upgrade\r\nUpgrade: banger-"+kind+"\r\n\r\nfirst"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 5)
	if _, err := io.ReadFull(far, got); err != nil || string(got) != "first" {
		t.Fatalf("the guest read %q, %v", got, err)
	}
	r := bufio.NewReader(conn)
	res, err := http.ReadResponse(r, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols || res.Header.Get("Upgrade") != "banger-"+kind {
		t.Fatalf("%+v, %v", res, err)
	}
	go func() { _, _ = io.WriteString(far, "answer"); _ = far.Close() }()
	back, err := io.ReadAll(r)
	if err != nil || string(back) != "answer" {
		t.Errorf("the client read %q, %v", back, err)
	}
}

// hijacked is a connection that is taken over with some bytes read already.
type hijacked struct {
	*httptest.ResponseRecorder
	conn net.Conn
	head string
}

func (h *hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	r := bufio.NewReader(strings.NewReader(h.head))
	_, err := r.Peek(len(h.head))
	return h.conn, bufio.NewReadWriter(r, bufio.NewWriter(h.conn)), err
}

// TestExecBreaksOffEarly: a client that is gone before the streams are joined is hung up as well, and nothing stays open.
func TestExecBreaksOffEarly(t *testing.T) {
	client := exec.Command("true")
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Wait() }() // a zombie until then: its pid is its own
	before := pidfds(t)
	guest, far := net.Pipe()
	_ = far.Close()
	conn, peer := net.Pipe()
	go func() { _, _ = io.Copy(io.Discard, peer) }()
	vms := &fakeVMs{guest: guest}
	r := httptest.NewRequest("GET", "http://banger/v1/vms/web/exec?id=x1", nil)
	r.Header.Set("Upgrade", UpgradeExec)
	r = r.WithContext(context.WithValue(t.Context(), PeerKey{}, Peer{PID: client.Process.Pid}))
	New(Config{VMs: vms, Log: slog.New(slog.DiscardHandler)}).
		ServeHTTP(&hijacked{ResponseRecorder: httptest.NewRecorder(), conn: conn, head: "first"}, r)
	if len(vms.hungUp) != 1 || vms.hungUp[0] != "x1" {
		t.Errorf("hung up %q", vms.hungUp)
	}
	if after := pidfds(t); after != before {
		t.Errorf("%d pidfds, %d before", after, before)
	}
}

// pidfds counts this process's descriptors of processes.
func pidfds(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, e := range entries {
		if what, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(what, "pidfd") {
			n++
		}
	}
	return n
}

func TestOpenAPI(t *testing.T) {
	srv, _ := serve(t, &fakeVMs{})
	res, body := request(t, srv, "GET", "/v1/openapi.json", "")
	var doc struct {
		Paths map[string]any `json:"paths"`
	}
	if err := json.Unmarshal([]byte(body), &doc); err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("status %d, %v", res.StatusCode, err)
	}
	for _, path := range []string{"/v1/vms", "/v1/vms/{name}/start", "/v1/images/pull", "/v1/operations/{id}"} {
		if doc.Paths[path] == nil {
			t.Errorf("the document has no %s", path)
		}
	}
}

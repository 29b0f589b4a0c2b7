package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// serve serves h at a socket of its own and returns the socket.
func serve(t *testing.T, dir string, h http.HandlerFunc) string {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	d, err := os.Open(dir) // the path may be longer than an address holds
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/s", d.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderAPIVersion, "1")
		h(w, r)
	})}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return filepath.Join(dir, "s")
}

// TestUpgradeReadsNotAByteTooMuch: the connection is handed on to ssh, so what the server says first must still be in it.
func TestUpgradeReadsNotAByteTooMuch(t *testing.T) {
	c := New(Config{Socket: serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n%s: 1\r\n\r\nSSH-2.0-x\r\n",
			r.Header.Get("Upgrade"), api.HeaderAPIVersion)
	})})
	defer c.Close()
	conn, err := c.SSH(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, ok := conn.(*net.UnixConn); !ok {
		t.Errorf("it is a %T", conn)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "SSH-2.0-x\r\n" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestErrorsComeBack(t *testing.T) {
	sent := api.Errorf(api.KindConflict, "vm %q already exists", "web").WithHint("choose another")
	c := New(Config{Socket: serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v1/vms/html":
			w.WriteHeader(500)
			io.WriteString(w, "<html>")
		case "/v1/vms/cut":
			io.WriteString(w, `{"name":`)
		case "/v1/vms/gone":
			panic(http.ErrAbortHandler)
		default:
			w.WriteHeader(sent.Kind.Status())
			json.NewEncoder(w).Encode(api.ErrorReply{Error: sent})
		}
	})})
	_, err := c.VM(t.Context(), "web")
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != sent.Kind || e.Message != sent.Message || e.Hint != sent.Hint {
		t.Errorf("%#v", err)
	}
	if _, err := c.VM(t.Context(), "html"); api.KindOf(err) != api.KindInternal || !strings.Contains(err.Error(), "500") {
		t.Errorf("%v", err)
	}
	if _, err := c.VM(t.Context(), "cut"); err == nil {
		t.Error("half an answer is to be an error")
	}
	if _, err := c.VM(t.Context(), "gone"); !errors.Is(err, ErrNoDaemon) {
		t.Errorf("a connection that was closed: %v", err)
	}
}

func TestNamesAreEscaped(t *testing.T) {
	var got string
	c := New(Config{Socket: serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		got = r.URL.EscapedPath() + "?" + r.URL.RawQuery
		io.WriteString(w, "{}")
	})})
	if _, err := c.DeleteVM(t.Context(), "a/../b?force=true", api.DeleteVM{Discard: true}); err != nil || got != "/v1/vms/a%2F..%2Fb%3Fforce=true?discard=true&force=false" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestNoDaemon(t *testing.T) {
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	starts := 0
	for _, socket := range []string{stale, filepath.Join(dir, "none"), filepath.Join(dir, "no", "dir")} {
		c := New(Config{Socket: socket, Start: func(context.Context) error { starts++; return fmt.Errorf("start: %w", io.ErrNoProgress) }})
		if _, err := c.VMs(t.Context()); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("%s: %v", socket, err)
		}
		if _, err := c.Passive().VMs(t.Context()); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: %v", socket, err)
		}
		if _, err := c.Passive().Exec(t.Context(), "web", ""); !errors.Is(err, ErrNoDaemon) {
			t.Errorf("%s: %v", socket, err)
		}
	}
	if starts != 3 {
		t.Errorf("started %d times", starts)
	}
}

func TestSocketOfTheLock(t *testing.T) {
	ok := func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "[]") }
	deep := filepath.Join(t.TempDir(), strings.Repeat("long", 30), "x")
	if err := os.MkdirAll(deep, 0o700); err != nil {
		t.Fatal(err)
	}
	other := serve(t, deep, ok)
	lock := filepath.Join(t.TempDir(), "lock")
	c := New(Config{Socket: "/nonexistent/s", Lock: lock})
	for text, want := range map[string]bool{other + "\n": true, other: true, "": false, "relative\n": false, "/nonexistent\n": false} {
		if err := os.WriteFile(lock, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.Close()
		if _, err := c.VMs(t.Context()); (err == nil) != want {
			t.Errorf("a lock that says %.40q: %v", text, err)
		}
	}
}

func TestFollow(t *testing.T) {
	calls := 0
	c := New(Config{Socket: serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		calls++
		send := func(op api.Operation) {
			data, _ := json.Marshal(op)
			fmt.Fprintf(w, "data: %s\n\n", data)
			w.(http.Flusher).Flush()
		}
		id := strings.Split(r.URL.Path, "/")[3]
		send(api.Operation{ID: id, State: api.OperationRunning, Progress: api.Progress{Step: fmt.Sprint("call ", calls)}})
		if calls < 3 {
			return // a daemon that broke off
		}
		send(api.Operation{ID: id, State: api.OperationFailed, Error: api.Errorf(api.KindGuest, "broken")})
		<-r.Context().Done()
	})})
	var steps []string
	op, err := c.Follow(t.Context(), api.Operation{ID: "7", State: api.OperationRunning}, func(op api.Operation) {
		steps = append(steps, op.Progress.Step)
	})
	if api.KindOf(err) != api.KindGuest || op.State != api.OperationFailed {
		t.Errorf("%+v, %v", op, err)
	}
	if got := strings.Join(steps, ","); got != ",call 1,call 2,call 3," {
		t.Errorf("the steps: %s", got)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	_, err = c.Follow(ctx, api.Operation{ID: "7", State: api.OperationRunning}, func(api.Operation) { cancel(cause) })
	if !errors.Is(err, cause) {
		t.Errorf("the cause of the context: %v", err)
	}
	if _, err := c.Follow(t.Context(), api.Operation{State: api.OperationCancelled}, nil); api.KindOf(err) != api.KindCancelled {
		t.Errorf("cancelled: %v", err)
	}
}

func TestResult(t *testing.T) {
	vm, err := Result[api.VM](api.Operation{Result: []byte(`{"name":"web"}`)})
	if err != nil || vm.Name != "web" {
		t.Errorf("%+v, %v", vm, err)
	}
	for _, r := range []string{"", "[1]"} {
		if _, err := Result[api.VM](api.Operation{Result: []byte(r)}); err == nil {
			t.Errorf("the result %q is to be an error", r)
		}
	}
}

func TestExecUpgrade(t *testing.T) {
	c := New(Config{Socket: serve(t, "", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.Contains(r.URL.Path, "plain"):
			io.WriteString(w, "{}")
			return
		case strings.Contains(r.URL.Path, "off"):
			w.WriteHeader(api.KindConflict.Status())
			json.NewEncoder(w).Encode(api.ErrorReply{Error: api.Errorf(api.KindConflict, "it is stopped")})
			return
		}
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		// The first bytes of the stream come with the answer.
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: banger-exec\r\nBanger-Api-Version: 1\r\n\r\nid=%s ", r.URL.Query().Get("id"))
		io.Copy(conn, rw)
	})})
	conn, err := c.Exec(t.Context(), "web", "abc")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "echo"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if _, err := io.Copy(&got, conn); err != nil || got.String() != "id=abc echo" {
		t.Errorf("%q, %v", got.String(), err)
	}
	conn.Close()
	if _, err := c.Exec(t.Context(), "off", ""); api.KindOf(err) != api.KindConflict {
		t.Errorf("%v", err)
	}
	if _, err := c.Exec(t.Context(), "plain", ""); err == nil || !strings.Contains(err.Error(), "instead of the protocol") {
		t.Errorf("%v", err)
	}
}

func TestExecCancelled(t *testing.T) {
	asked := make(chan struct{})
	c := New(Config{Socket: serve(t, "", func(_ http.ResponseWriter, r *http.Request) {
		close(asked)
		<-r.Context().Done()
	})})
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	go func() {
		<-asked
		cancel(cause)
	}()
	if _, err := c.Exec(ctx, "web", ""); !errors.Is(err, cause) {
		t.Errorf("%v", err)
	}
}

func TestReadEvents(t *testing.T) {
	var got []string
	read := func(s string, stopAt int) error {
		got = nil
		return readEvents(strings.NewReader(s), func(p []byte) (bool, error) {
			got = append(got, string(p))
			return len(got) == stopAt, nil
		})
	}
	in := ": comment\n\ndata: one\n\nevent: x\ndata:two\ndata: lines\r\nid: 3\n\ndata\n\ndata: cut"
	if err := read(in, 0); !errors.Is(err, ErrNoDaemon) || strings.Join(got, "|") != "one|two\nlines|" {
		t.Errorf("%q, %v", got, err)
	}
	if err := read(in, 1); err != nil || len(got) != 1 {
		t.Errorf("%q, %v", got, err)
	}
	if err := read("data: "+strings.Repeat("x", maxEvent+1)+"\n\n", 0); !errors.Is(err, errBadEvents) {
		t.Errorf("a line without end: %v", err)
	}
}

// FuzzReadEvents checks that a stream of events, however it is made, ends with one of the two errors.
func FuzzReadEvents(f *testing.F) {
	f.Add([]byte("data: {}\n\n"))
	f.Add([]byte(": x\r\n\r\ndata\ndata:\n\n"))
	f.Fuzz(func(t *testing.T, p []byte) {
		total := 0
		err := readEvents(bytes.NewReader(p), func(data []byte) (bool, error) {
			total += len(data)
			return false, nil
		})
		if !errors.Is(err, ErrNoDaemon) && !errors.Is(err, errBadEvents) {
			t.Errorf("%v", err)
		}
		if total > len(p) {
			t.Errorf("%d bytes became %d", len(p), total)
		}
	})
}

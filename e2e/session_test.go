//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// session returns a session of a VM.
func (h *host) session(vm, name string) api.Session {
	h.t.Helper()
	var s api.Session
	if err := json.Unmarshal([]byte(h.ok("vm", "session", "show", vm, name, "-o", "json")), &s); err != nil {
		h.t.Fatal(err)
	}
	return s
}

func (h *host) untilSession(vm, name string, ok func(api.Session) bool) api.Session {
	h.t.Helper()
	var s api.Session
	if err := waitFor(time.Minute, func() bool { s = h.session(vm, name); return ok(s) }); err != nil {
		h.t.Fatalf("session %q: %+v", name, s)
	}
	return s
}

func (h *host) killDaemon() {
	h.t.Helper()
	if err := syscall.Kill(h.daemonPID(), syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
}

// TestSessions is the life of sessions in a real VM: on a terminal that is left and come back to, over the daemon's death, and to the VM's
// end, after which they are listed as ended and their logs are there.
func TestSessions(t *testing.T) {
	h := newHost(t)
	h.ok("vm", "run", "--name", "desk", "--detach")
	h.terminalSession(t)
	h.loudSession(t)
	h.killedDaemon(t)
	h.rpc(t)

	h.ok("vm", "session", "start", "desk", "--name", "long", "--", "sh", "-c", "echo begun; exec sleep 1000")
	h.ok("vm", "session", "start", "desk", "--name", "bash", "--stdin-mode", "pty")
	h.untilSession("desk", "long", func(s api.Session) bool { return s.StdoutBytes == 6 })
	h.ok("vm", "stop", "desk")
	for _, name := range []string{"long", "bash"} {
		if s := h.session("desk", name); s.State != api.SessionEnded || s.Reason != "the VM was stopped" || s.Socket != "" {
			t.Errorf("after the VM's stop: %+v", s)
		}
	}
	if out := h.ok("vm", "session", "logs", "desk", "long"); out != "begun\n" {
		t.Errorf("its log, off the drive: %q", out)
	}
	h.ok("vm", "start", "desk")
	if out := h.ok("vm", "session", "logs", "desk", "long"); out != "begun\n" {
		t.Errorf("its log after the next start: %q", out)
	}
	h.ok("vm", "session", "delete", "desk", "long", "bash")
	h.ok("vm", "session", "start", "desk", "--name", "killed", "--", "sleep", "1000")
	h.ok("vm", "kill", "desk")
	if s := h.session("desk", "killed"); s.State != api.SessionEnded || s.Reason != "the VM was killed" {
		t.Errorf("after the VM was killed: %+v", s)
	}
}

// terminalSession leaves a shell by the key, and by closing the terminal, and comes back.
func (h *host) terminalSession(t *testing.T) {
	s := h.terminal(t, "vm", "exec", "-it", "--session", "work", "desk", "--", "bash", "--norc")
	s.await(`bash-`)
	s.asks("stty size; HERE=kept", `\n30 100\r`)
	s.say("\x1c")
	if code := s.wait(); code != 0 {
		t.Errorf("detached with status %d", code)
	}
	s.restored("the detach key")
	s.await(`detached; come back: banger vm session attach desk work\r\n`)

	s = h.terminal(t, "vm", "session", "attach", "desk", "work")
	s.resize(41, 123)
	s.asks("for i in $(seq 100); do [ \"$(stty size)\" = '41 123' ] && break; sleep 0.1; done; stty size; echo $HERE", `\n41 123\r\nkept\r`)
	_, _ = s.tty.Close(), s.pty.Close()
	s.wait()

	s = h.terminal(t, "vm", "session", "attach", "desk", "work")
	s.asks("echo $HERE", `\nkept\r`)
	s.say("exit 9\r")
	if code := s.wait(); code != 9 {
		t.Errorf("ended with status %d", code)
	}
	s.restored("the end")
}

// loudSession prints a lot to nobody.
func (h *host) loudSession(t *testing.T) {
	h.ok("vm", "session", "start", "desk", "--name", "loud", "--", "sh", "-c", "yes 0123456789abcdef0123456789abcdef0123456789abcde | head -c 60000000")
	if r := h.run("vm", "session", "wait", "desk", "loud"); r.code != 0 {
		t.Fatalf("%d, %s", r.code, r.stderr)
	}
	s := h.session("desk", "loud")
	if s.StdoutBytes != 60_000_000 || s.DroppedBytes < 20_000_000 {
		t.Errorf("%+v", s)
	}
	if out := h.ok("vm", "session", "logs", "desk", "loud", "--tail", "2"); out != strings.Repeat("0123456789abcdef0123456789abcdef0123456789abcde\n", 2) {
		t.Errorf("the last lines: %q", out)
	}
	if out := h.ok("vm", "session", "logs", "desk", "loud"); !strings.HasPrefix(out, fmt.Sprintf("[banger: %d bytes were dropped here]\n", s.DroppedBytes)) {
		t.Errorf("the log begins %.60q", out)
	}
}

// killedDaemon kills the daemon under an attachment and under a connection to the socket.
func (h *host) killedDaemon(t *testing.T) {
	h.ok("vm", "session", "start", "desk", "--name", "echo", "--stdin-mode", "pipe", "--", "cat")
	conn, err := net.Dial("unix", h.session("desk", "echo").Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	say := func(conn net.Conn, text string) {
		t.Helper()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		got := make([]byte, len(text))
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, got); err != nil || string(got) != text {
			t.Fatalf("%q, %v", got, err)
		}
	}
	say(conn, "one\n")
	reader := h.begin("vm", "session", "attach", "--no-stdin", "desk", "echo")
	h.untilSession("desk", "echo", func(s api.Session) bool { return s.Readers == 1 })
	h.killDaemon()
	again, err := net.Dial("unix", h.untilSession("desk", "echo", func(s api.Session) bool { return s.Socket != "" }).Socket)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	say(again, "two\n")
	_ = again.(*net.UnixConn).CloseWrite()
	if rest, err := io.ReadAll(again); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
	if err := reader.cmd.Wait(); err != nil || reader.out.String() != "one\ntwo\n" {
		t.Errorf("the reader: %q, %v", reader.out.String(), err)
	}
}

// rpc is an editor that talks to an agent over vm acp: JSON-RPC by lines, messages of a megabyte, in pieces of any size.
func (h *host) rpc(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	c := h.cmd(ctx, "vm", "acp", "desk", "--", "python3", "-u", "-c", `
import json, sys
for line in sys.stdin:
    m = json.loads(line)
    if m["method"] == "exit":
        sys.exit(7)
    print(json.dumps({"jsonrpc": "2.0", "id": m["id"], "result": m["params"][::-1]}), flush=True)
`)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	rnd := rand.New(rand.NewPCG(3, 4))
	lines := bufio.NewReaderSize(out, 2<<20)
	for i := range 3 {
		if i == 1 {
			h.killDaemon()
			h.ok("vm", "list") // who waits for a daemon does not start one
		}
		msg, _ := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": i, "method": "turn", "params": strings.Repeat("a", 1<<20) + fmt.Sprint(i)})
		for msg = append(msg, '\n'); len(msg) > 0; {
			n := min(len(msg), 1+rnd.IntN(100_000))
			if _, err := in.Write(msg[:n]); err != nil {
				t.Fatal(err)
			}
			msg = msg[n:]
		}
		line, err := lines.ReadBytes('\n')
		var answer struct {
			ID     int    `json:"id"`
			Result string `json:"result"`
		}
		if err != nil || json.Unmarshal(line, &answer) != nil || answer.ID != i || answer.Result != fmt.Sprint(i)+strings.Repeat("a", 1<<20) {
			t.Fatalf("answer %d: %d bytes, %v", i, len(line), err)
		}
	}
	_, _ = io.WriteString(in, `{"jsonrpc":"2.0","id":9,"method":"exit"}`+"\n")
	rest, _ := io.ReadAll(lines)
	_ = c.Wait()
	if code := c.ProcessState.ExitCode(); code != 7 || len(rest) > 0 {
		t.Errorf("ended with %d, and %q more", code, rest)
	}
}

package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

func TestParseSession(t *testing.T) {
	for _, tt := range []struct {
		dash int
		args string
		vm   string
		cmd  []string
		err  string
	}{
		{-1, "box", "box", nil, ""},
		{1, "box cat -n", "box", []string{"cat", "-n"}, ""},
		{-1, "", "", nil, "vm acp needs the name of a VM"},
		{0, "cat", "", nil, "vm acp needs the name of a VM"},
		{-1, "box cat", "", nil, "the command to run stands behind --"},
		{1, "box", "", nil, "there is no command behind --"},
	} {
		vm, cmd, err := parseSession("banger vm acp", tt.dash, strings.Fields(tt.args))
		text := ""
		if err != nil {
			text = err.Error()
		}
		if vm != tt.vm || text != tt.err || !cmp.Equal([]string(cmd), tt.cmd) {
			t.Errorf("%d %q: %q, %q, %q", tt.dash, tt.args, vm, cmd, text)
		}
	}
}

// TestACP is an editor that speaks JSON-RPC with an agent: messages of a megabyte both ways, written in pieces of any size, arrive as they were; the
// agent's status is the command's, and stdout has nothing else.
func TestACP(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "box", State: api.StateRunning, Mark: api.MarkFull})
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	a.In, a.Out = inR, outW
	status := make(chan int, 1)
	go func() {
		status <- a.App.Run(context.Background(), []string{"vm", "acp", "box", "--", "sh", "-c", "head -n 4; exit 7"})
		_ = outW.Close()
	}()
	message := func(id int) []byte {
		b, err := json.Marshal(map[string]any{"jsonrpc": "2.0", "id": id, "params": strings.Repeat(fmt.Sprint(id), 1<<20) + "\u2028\x00\r"})
		if err != nil {
			t.Error(err)
		}
		return append(b, '\n')
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	go func() {
		for id := range 4 {
			for msg := message(id); len(msg) > 0; {
				n := min(len(msg), 1+rnd.IntN(1<<rnd.IntN(18)))
				if _, err := inW.Write(msg[:n]); err != nil {
					return
				}
				msg = msg[n:]
			}
		}
	}()
	lines := bufio.NewReader(outR)
	for id := range 4 {
		line, err := lines.ReadBytes('\n')
		if want := message(id); err != nil || string(line) != string(want) {
			t.Fatalf("message %d: %d bytes of %d, %v", id, len(line), len(want), err)
		}
	}
	if rest, err := io.ReadAll(lines); err != nil || len(rest) > 0 {
		t.Errorf("then %q, %v", rest, err)
	}
	if code := <-status; code != 7 {
		t.Errorf("status %d: %s", code, a.err.String())
	}
}

func TestSessionTable(t *testing.T) {
	seven, killed := 7, 137
	for _, tt := range []struct {
		s             api.Session
		status, words string
	}{
		{api.Session{}, "", "(a login shell)"},
		{api.Session{Status: &seven, Command: []string{"sh", "-c", "exit 7"}}, "7", "sh -c 'exit 7'"},
		{api.Session{Status: &killed, Signal: "KILL", Command: []string{"a"}}, "137 (KILL)", "a"},
	} {
		if got := sessionStatus(tt.s); got != tt.status {
			t.Errorf("status %q, want %q", got, tt.status)
		}
		if got := sessionCommand(tt.s); got != tt.words {
			t.Errorf("command %q, want %q", got, tt.words)
		}
	}
	a := newTestApp(t)
	if got := a.sessionAge(api.Session{CreatedAt: a.Now().Add(-90 * time.Second)}); got != "1m" {
		t.Errorf("age %q", got)
	}
}

// TestSignalWhileSending: signals end the sending and do not go to the session.
func TestSignalWhileSending(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP} {
		ctx, cancel := context.WithCancelCause(t.Context())
		s := remoteSession{app: newTestApp(t).App, remote: remote{session: &attachment{write: true, sendOnly: true}}, cancel: cancel}
		sigs := make(chan os.Signal, 1)
		sigs <- sig
		s.forward(ctx, sigs, nil)
		if err := context.Cause(ctx); !errors.Is(err, signalError{sig}) {
			t.Errorf("%v ended it with %v", sig, err)
		}
	}
}

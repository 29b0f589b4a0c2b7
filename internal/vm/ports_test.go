package vm

import (
	"errors"
	"net"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// answers makes guests answer a dial so.
func answers(r wire.DialReply) func() (net.Conn, error) {
	return func() (net.Conn, error) {
		near, far := net.Pipe()
		go func() {
			var d wire.Dial
			if wire.ReadLine(far, &d) == nil {
				_ = wire.WriteLine(far, r)
			}
			_, _ = far.Read(make([]byte, 1)) // until the host closes
			far.Close()
		}()
		return near, nil
	}
}

func TestDialPortErrors(t *testing.T) {
	w := newWorld(t)
	a := w.create(api.CreateVM{Name: "a", Start: true})
	w.create(api.CreateVM{Name: "off"})
	for _, tc := range []struct {
		name    string
		vm      string
		dialled func() (net.Conn, error)
		kind    api.ErrorKind
		want    string
		hint    string
		refused bool
	}{
		{name: "no VM", vm: "b", kind: api.KindNotFound, want: `"b"`},
		{name: "stopped", vm: "off", kind: api.KindConflict, want: "stopped", hint: "vm start off"},
		{name: "an old agent", vm: "a", kind: api.KindConflict, want: "does not carry ports", hint: "vm restart a"},
		{name: "nobody", vm: "a", dialled: answers(wire.DialReply{Type: wire.DialRefused}), kind: api.KindUnavailable, want: "nobody listens", hint: "vm ports a", refused: true},
		{name: "failed", vm: "a", dialled: answers(wire.DialReply{Type: wire.DialFailed, Reason: "\x1b[2Jhaha"}), kind: api.KindGuest, want: `"\x1b[2Jhaha"`, hint: "logs"},
		{name: "something odd", vm: "a", dialled: answers(wire.DialReply{Type: "odd"}), kind: api.KindGuest, want: "protocol violated", hint: "logs"},
	} {
		w.engine.dialled = tc.dialled
		conn, err := w.svc.DialPort(t.Context(), tc.vm, "tcp", 80)
		if err == nil {
			conn.Close()
		}
		if e := api.AsError(err); err == nil || e.Kind != tc.kind || !strings.Contains(e.Message, tc.want) || !strings.Contains(e.Hint, tc.hint) ||
			errors.Is(err, vmm.ErrRefused) != tc.refused {
			t.Errorf("%s: %v %+v", tc.name, err, e)
		}
		if n := w.svc.running(a.ID).tunnels.Load(); n != 0 {
			t.Errorf("%s: %d connections are counted", tc.name, n)
		}
	}
	for _, network := range []string{"sctp", ""} {
		if _, err := w.svc.DialPort(t.Context(), "a", network, 80); api.KindOf(err) != api.KindInvalid {
			t.Errorf("%q: %v", network, err)
		}
	}
}

// TestDialPortMany: connections to a guest's ports do not take the last of the streams into it, which commands and its shutdown need.
func TestDialPortMany(t *testing.T) {
	w := newWorld(t)
	w.engine.dialled = answers(wire.DialReply{Type: wire.DialOpen})
	w.create(api.CreateVM{Name: "a", Start: true})
	const streams = 1023 // as vsock of either engine has
	var conns []net.Conn
	var err error
	for len(conns) < streams {
		var conn net.Conn
		if conn, err = w.svc.DialPort(t.Context(), "a", "tcp", 80); err != nil {
			break
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	if e := api.AsError(err); err == nil || e.Kind != api.KindUnavailable || !strings.Contains(e.Message, "too many connections") || e.Hint == "" {
		t.Errorf("after %d: %v", len(conns), err)
	}
	if len(conns) < 1000 || len(conns) > streams-10 {
		t.Errorf("%d connections", len(conns))
	}
	conns[0].Close()
	conns[0].Close()
	if _, err := w.svc.beginPort(t.Context(), "a", "tcp", 80); err != nil {
		t.Errorf("after one has gone: %v", err)
	}
	if conn, err := w.svc.DialPort(t.Context(), "a", "udp", 80); err == nil {
		conn.Close()
		t.Error("one more was let in")
	}
}

package vm

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

var localhost = netip.MustParseAddr("127.0.0.1")

// greeting makes guests say which of their ports was dialled.
func greeting(_ context.Context, _, network string, port uint16) (net.Conn, error) {
	near, far := net.Pipe()
	go func() {
		fmt.Fprintf(far, "%s %d", network, port)
		far.Close()
	}()
	return near, nil
}

// says dials a port of the host and returns what is said there; an error's text where nobody listens.
func says(t *testing.T, f api.Forward) string {
	t.Helper()
	conn, err := net.Dial("tcp", netip.AddrPortFrom(f.HostAddress, f.HostPort).String())
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	b, err := io.ReadAll(conn)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (w *world) forwarding() *world {
	w.svc.dialPort = greeting
	return w
}

// taken listens at a port of the host, as any other program does.
func taken(t *testing.T) (net.Listener, uint16) {
	t.Helper()
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln, ln.Addr().(*net.TCPAddr).AddrPort().Port()
}

func TestForwardsFollowTheVM(t *testing.T) {
	w := newWorld(t).forwarding()
	told := newNotes()
	vm, err := w.svc.Create(t.Context(), api.CreateVM{Name: "web", Start: true, Forwards: []api.Forward{{GuestPort: 3000}}}, told)
	if err != nil {
		t.Fatal(err)
	}
	if len(vm.Forwards) != 1 || vm.Forwards[0].HostPort == 0 || vm.Forwards[0].Protocol != api.TCP || vm.Forwards[0].HostAddress != localhost {
		t.Fatalf("forwards %v", vm.Forwards)
	}
	f := vm.Forwards[0]
	if want := fmt.Sprintf("127.0.0.1:%d → web:3000", f.HostPort); !slices.Equal(told.lines, []string{want}) {
		t.Errorf("told %q, want %q", told.lines, want)
	}
	if got := says(t, f); got != "tcp 3000" {
		t.Errorf("the port says %q", got)
	}
	// A reboot of the guest keeps it.
	w.machine(vm).update(func(st *vmm.Status) { st.Boots++; st.Mark = api.MarkNone })
	w.until("web", func(v api.VM) bool { return v.Restarts == 1 })
	if got := says(t, f); got != "tcp 3000" {
		t.Errorf("after a reboot the port says %q", got)
	}
	// So does a restart of the daemon.
	w.svc.Close()
	if got := says(t, f); !strings.Contains(got, "refused") {
		t.Errorf("without a daemon the port says %q", got)
	}
	w.svc = w.service()
	w.forwarding()
	if err := w.svc.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := says(t, f); got != "tcp 3000" {
		t.Errorf("after a restart of the daemon the port says %q", got)
	}
	// A stop closes it, a start opens the same.
	if _, err := w.svc.Stop(t.Context(), "web", 0, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if got := says(t, f); !strings.Contains(got, "refused") {
		t.Errorf("of a stopped VM the port says %q", got)
	}
	if st, err := w.svc.Forwards(t.Context(), "web"); err != nil || len(st) != 1 || st[0].Forward != f || st[0].Listening {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := w.svc.Start(t.Context(), "web", "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	if got := says(t, f); got != "tcp 3000" {
		t.Errorf("after a start the port says %q", got)
	}
	// Restarting does not trip over the ports of the run before.
	if _, err := w.svc.Restart(t.Context(), "web", 0, "", progress.Discard); err != nil {
		t.Error(err)
	}
	if err := w.svc.Delete(t.Context(), "web", api.DeleteVM{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got := says(t, f); !strings.Contains(got, "refused") {
		t.Errorf("of a deleted VM the port says %q", got)
	}
	w.empty()
}

func TestForwardsAreChecked(t *testing.T) {
	w := newWorld(t).forwarding()
	_, port := taken(t)
	for _, tc := range []struct {
		list []api.Forward
		kind api.ErrorKind
		want string
	}{
		{[]api.Forward{{HostPort: 1}}, api.KindInvalid, "the port of the VM is 0"},
		{[]api.Forward{{GuestPort: 1, Protocol: "sctp"}}, api.KindInvalid, "tcp or udp"},
		{[]api.Forward{{HostPort: 9, GuestPort: 1}, {HostPort: 9, GuestPort: 2}}, api.KindInvalid, "has that port already"},
		{[]api.Forward{{HostPort: port, GuestPort: 1}}, api.KindConflict, fmt.Sprintf("listen on 127.0.0.1:%d/tcp: the port is used by banger itself (pid %d)", port, os.Getpid())},
		{[]api.Forward{{HostAddress: netip.MustParseAddr("192.0.2.1"), GuestPort: 1}}, api.KindUnavailable, "this host has no address 192.0.2.1"},
	} {
		req := api.CreateVM{Name: "web", Start: true, Forwards: tc.list}
		for _, err := range []error{w.svc.CheckCreate(t.Context(), req), func() error { _, err := w.svc.Create(t.Context(), req, progress.Discard); return err }()} {
			if api.KindOf(err) != tc.kind || err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v: %v, want %q", tc.list, err, tc.want)
			}
		}
	}
	w.empty()
}

// freePort stays free until somebody listens on it.
func freePort(t *testing.T) uint16 {
	t.Helper()
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestTakenPortFailsTheStart(t *testing.T) {
	w := newWorld(t).forwarding()
	vm := w.create(api.CreateVM{Name: "web", Forwards: []api.Forward{{GuestPort: 1}, {HostPort: freePort(t), GuestPort: 80}}})
	ln, err := net.Listen("tcp4", netip.AddrPortFrom(localhost, vm.Forwards[1].HostPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, err = w.svc.Start(t.Context(), "web", "", progress.Discard)
	if want := "the port is used by banger itself"; api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), want) || api.AsError(err).Hint == "" {
		t.Errorf("start: %v, want %q and a hint", err, want)
	}
	if v, err := w.svc.VM(t.Context(), "web"); err != nil || v.State != api.StateStopped || v.StartedAt != nil || w.engine.running() != 0 {
		t.Errorf("after it: %+v, %v, %s", v, err, w.engine)
	}
	if got := says(t, vm.Forwards[0]); !strings.Contains(got, "refused") {
		t.Errorf("the other port says %q", got)
	}
	ln.Close()
	if _, err := w.svc.Start(t.Context(), "web", "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	// Another VM of that port is told whose it is.
	_, err = w.svc.Create(t.Context(), api.CreateVM{Name: "other", Start: true, Forwards: vm.Forwards[1:]}, progress.Discard)
	if want := "the port is used by vm web"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("another VM: %v, want %q", err, want)
	}
	w.gone("other")
}

// An engine that does not start the VM leaves no port open.
func TestForwardsOfAFailedStart(t *testing.T) {
	w := newWorld(t).forwarding()
	vm := w.create(api.CreateVM{Name: "web", Forwards: []api.Forward{{GuestPort: 80}}})
	w.engine.startErr = errInjected
	if _, err := w.svc.Start(t.Context(), "web", "", progress.Discard); err == nil {
		t.Fatal("it started")
	}
	if got := says(t, vm.Forwards[0]); !strings.Contains(got, "refused") {
		t.Errorf("the port says %q", got)
	}
	w.engine.startErr = nil
	if _, err := w.svc.Start(t.Context(), "web", "", progress.Discard); err != nil {
		t.Error(err)
	}
}

// A port that was taken while no daemon ran is said to be, and taken back.
func TestForwardsComeBack(t *testing.T) {
	w := newWorld(t).forwarding()
	vm := w.create(api.CreateVM{Name: "web", Start: true, Forwards: []api.Forward{{HostPort: freePort(t), GuestPort: 80}}})
	f := vm.Forwards[0]
	w.svc.Close()
	ln, err := net.Listen("tcp4", netip.AddrPortFrom(localhost, f.HostPort).String())
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	w.svc = w.service()
	w.forwarding()
	if err := w.svc.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	st, err := w.svc.Forwards(t.Context(), "web")
	if err != nil || len(st) != 1 || st[0].Listening || !strings.Contains(st[0].Error, "the port is used by banger itself") {
		t.Errorf("%+v, %v", st, err)
	}
	ln.Close()
	deadline := time.After(30 * time.Second)
	for says(t, f) != "tcp 80" {
		select {
		case <-deadline:
			t.Fatal("the forward does not come back")
		case <-time.After(20 * time.Millisecond):
		}
	}
	events, err := w.db.Events(t.Context(), 0, 100)
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, ev := range events {
		if ev.Kind == "vm.forward" {
			told = append(told, ev.Text)
		}
	}
	if len(told) == 0 || !strings.Contains(told[0], "the port is used by") {
		t.Errorf("told %q", told)
	}
}

func TestAddAndRemoveForwards(t *testing.T) {
	w := newWorld(t).forwarding()
	w.create(api.CreateVM{Name: "web"})
	stopped, err := w.svc.AddForward(t.Context(), "web", api.Forward{GuestPort: 1})
	if err != nil || stopped.Listening || stopped.HostPort == 0 {
		t.Fatalf("%+v, %v", stopped, err)
	}
	_, port := taken(t)
	if _, err := w.svc.AddForward(t.Context(), "web", api.Forward{HostPort: port, GuestPort: 1}); api.KindOf(err) != api.KindConflict {
		t.Errorf("a taken port of a stopped VM: %v", err)
	}
	if _, err := w.svc.Start(t.Context(), "web", "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	running, err := w.svc.AddForward(t.Context(), "web", api.Forward{GuestPort: 2})
	if err != nil || !running.Listening || says(t, running.Forward) != "tcp 2" || says(t, stopped.Forward) != "tcp 1" {
		t.Errorf("%+v, %v", running, err)
	}
	if again, err := w.svc.AddForward(t.Context(), "web", running.Forward); err != nil || again.Forward != running.Forward {
		t.Errorf("once more: %+v, %v", again, err)
	}
	other := running.Forward
	other.GuestPort = 3
	if _, err := w.svc.AddForward(t.Context(), "web", other); api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "has a forward of that port") {
		t.Errorf("the same port to elsewhere: %v", err)
	}
	if _, err := w.svc.AddForward(t.Context(), "web", api.Forward{HostPort: port, GuestPort: 1}); api.KindOf(err) != api.KindConflict {
		t.Errorf("a taken port of a running VM: %v", err)
	}
	udp := api.Forward{Protocol: api.UDP, HostPort: running.HostPort, GuestPort: 2}
	if _, err := w.svc.AddForward(t.Context(), "web", udp); err != nil {
		t.Errorf("the same port over udp: %v", err)
	}
	if _, err := w.svc.RemoveForward(t.Context(), "web", api.RemoveForward{HostPort: running.HostPort}); api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "/udp") {
		t.Errorf("an ambiguous removal: %v", err)
	}
	if _, err := w.svc.RemoveForward(t.Context(), "web", api.RemoveForward{HostPort: port}); api.KindOf(err) != api.KindNotFound || !strings.Contains(api.AsError(err).Hint, "/udp") {
		t.Errorf("an unknown removal: %v", err)
	}
	gone, err := w.svc.RemoveForward(t.Context(), "web", api.RemoveForward{HostPort: running.HostPort, Protocol: api.TCP})
	if err != nil || gone != running.Forward || !strings.Contains(says(t, gone), "refused") {
		t.Errorf("%v, %v", gone, err)
	}
	if vm, err := w.svc.VM(t.Context(), "web"); err != nil || len(vm.Forwards) != 2 || vm.Forwards[0] != stopped.Forward || vm.Forwards[1].Protocol != api.UDP {
		t.Errorf("%v, %v", vm.Forwards, err)
	}
	for _, which := range []api.RemoveForward{{HostPort: udp.HostPort}, {HostPort: stopped.HostPort, HostAddress: localhost}} {
		if _, err := w.svc.RemoveForward(t.Context(), "web", which); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.svc.RemoveForward(t.Context(), "web", api.RemoveForward{HostPort: 80}); api.KindOf(err) != api.KindNotFound || !strings.Contains(err.Error(), "has no forwards") {
		t.Errorf("of none: %v", err)
	}
	for _, err := range []error{
		func() error { _, err := w.svc.Forwards(t.Context(), "nope"); return err }(),
		func() error { _, err := w.svc.AddForward(t.Context(), "nope", udp); return err }(),
		func() error {
			_, err := w.svc.RemoveForward(t.Context(), "nope", api.RemoveForward{HostPort: 1})
			return err
		}(),
	} {
		if api.KindOf(err) != api.KindNotFound {
			t.Errorf("of no VM: %v", err)
		}
	}
}

// Whoever listens on more than the loopback is told once.
func TestExposedForward(t *testing.T) {
	w := newWorld(t).forwarding()
	told := newNotes()
	_, err := w.svc.Create(t.Context(), api.CreateVM{Name: "web", Start: true, Forwards: []api.Forward{{HostAddress: netip.IPv4Unspecified(), GuestPort: 80}}}, told)
	if err != nil {
		t.Fatal(err)
	}
	if len(told.lines) != 2 || !strings.Contains(told.lines[1], "everybody who reaches this host at 0.0.0.0:") {
		t.Errorf("told %q", told.lines)
	}
}

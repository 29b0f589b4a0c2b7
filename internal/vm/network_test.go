package vm

import (
	"context"
	"errors"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func TestNetworkOfVMs(t *testing.T) {
	w := newWorld(t)
	a := w.create(api.CreateVM{Name: "a", Start: true})
	if a.Address != netip.MustParseAddr("172.16.0.2") {
		t.Errorf("a has address %s", a.Address)
	}
	if got := <-w.network.joined; !reflect.DeepEqual(got, NetworkVM{ID: a.ID, Name: "a", Address: a.Address}) {
		t.Errorf("%+v joined", got)
	}
	b := w.create(api.CreateVM{Name: "b"})
	if b.Address.IsValid() {
		t.Errorf("b, never started, has address %s", b.Address)
	}
	// A new daemon joins what runs.
	w.restart()
	if got := <-w.network.joined; got.Name != "a" || got.Address != a.Address {
		t.Errorf("after a restart %+v joined", got)
	}
	// An address stays the VM's until it is deleted.
	if _, err := w.svc.Stop(t.Context(), "a", 0, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if b, err := w.svc.Start(t.Context(), "b", "", progress.Discard); err != nil || b.Address != netip.MustParseAddr("172.16.0.3") {
		t.Errorf("b has %s, %v", b.Address, err)
	}
	if err := w.svc.Delete(t.Context(), "a", api.DeleteVM{}); err != nil {
		t.Fatal(err)
	}
	if c := w.create(api.CreateVM{Name: "c", Start: true}); c.Address != a.Address {
		t.Errorf("c has address %s", c.Address)
	}
}

func TestNoNetwork(t *testing.T) {
	w := newWorld(t)
	// Where the frames cannot be had the VM runs all the same, and an event says so.
	w.engine.linkErr = errors.New("no frames")
	w.create(api.CreateVM{Name: "a", Start: true})
	found := false
	for !found {
		events, err := w.db.Events(t.Context(), 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			found = found || ev.Kind == "vm.network" && strings.Contains(ev.Text, "no frames")
		}
	}
	// Where there is no address it does not start.
	w.network.err = api.Errorf(api.KindConflict, "no address is left")
	_, err := w.svc.Create(t.Context(), api.CreateVM{Name: "b", Start: true}, progress.Discard)
	if api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "no address is left") {
		t.Errorf("start without an address: %v", err)
	}
	w.gone("b")
}

// A VM whose frames could not be had at first joins as soon as they can, and both is told once.
func TestNetworkComesLater(t *testing.T) {
	w := newWorld(t)
	w.engine.linkErr, w.engine.linkFails = errors.New("no frames"), 2
	a := w.create(api.CreateVM{Name: "a", Start: true})
	if got := <-w.network.joined; got.ID != a.ID {
		t.Errorf("%+v joined", got)
	}
	var told []string
	for len(told) < 2 {
		events, err := w.db.Events(t.Context(), 0, 100)
		if err != nil {
			t.Fatal(err)
		}
		told = nil
		for _, ev := range events {
			if ev.Kind == "vm.network" {
				told = append(told, ev.Text)
			}
		}
	}
	if !slices.Equal(told, []string{"no network: no frames", "it has its network now"}) {
		t.Errorf("told %q", told)
	}
}

// A VM whose frames are lost joins again, as itself, until it ends: then the network is told before it can join anew.
func TestFramesAreLost(t *testing.T) {
	w := newWorld(t)
	a := w.create(api.CreateVM{Name: "a", Start: true, HostPorts: []uint16{5432, 80}})
	if !slices.Equal(a.HostPorts, []uint16{5432, 80}) {
		t.Errorf("its host ports are %v", a.HostPorts)
	}
	for range 3 {
		if got := <-w.network.joined; !reflect.DeepEqual(got, NetworkVM{ID: a.ID, Name: "a", Address: a.Address, HostPorts: a.HostPorts}) {
			t.Errorf("%+v joined", got)
		}
		w.network.lose(a.ID)
	}
	<-w.network.joined
	if _, err := w.svc.Kill(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(w.network.ended, []string{a.ID}) || len(w.network.lost) != 0 {
		t.Errorf("ended: %v, attached: %v", w.network.ended, w.network.lost)
	}
	if _, err := w.svc.Start(t.Context(), "a", "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	if got := <-w.network.joined; got.ID != a.ID {
		t.Errorf("%+v joined", got)
	}
	// One that ends while it waits for its next attempt is not joined again.
	w.network.lose(a.ID)
	if err := w.svc.Delete(t.Context(), "a", api.DeleteVM{Force: true}); err != nil {
		t.Fatal(err)
	}
	w.svc.Close()
	if len(w.network.joined) > 1 {
		t.Errorf("%d joined after the end", len(w.network.joined))
	}
}

// A new daemon has the guests reset what the one before carried, before they join it: not while they are paused, and not where it
// carries their connections itself.
func TestGuestsResetTheirConnections(t *testing.T) {
	w := newWorld(t)
	a := w.create(api.CreateVM{Name: "a", Start: true})
	<-w.network.joined
	m := w.engine.machines[w.paths.VM(a.ID)]
	w.engine.reset = make(chan struct{}, 10)
	w.network.lose(a.ID)
	<-w.network.joined
	if n := len(w.engine.reset); n != 0 {
		t.Errorf("%d resets though its connections go on", n)
	}
	w.network.forget()
	w.restart()
	if got := <-w.network.joined; got.ID != a.ID || len(w.engine.reset) != 1 {
		t.Errorf("%+v joined after %d resets", got, len(w.engine.reset))
	}
	_ = m.Pause(t.Context())
	w.network.forget()
	w.restart()
	if joined, reset := len(w.network.joined), len(w.engine.reset); joined != 0 || reset != 1 {
		t.Errorf("paused: %d joined, %d resets", joined, reset)
	}
	_ = m.Resume(t.Context())
	if <-w.network.joined; len(w.engine.reset) != 2 {
		t.Errorf("%d resets after it went on", len(w.engine.reset))
	}
	// One that ends paused is not waited for.
	_ = m.Pause(t.Context())
	w.network.forget()
	w.restart()
	if err := w.svc.Delete(t.Context(), "a", api.DeleteVM{Force: true}); err != nil {
		t.Fatal(err)
	}
	// A guest that cannot do it is joined all the same.
	w.engine.reset = nil
	b := w.create(api.CreateVM{Name: "b", Start: true})
	<-w.network.joined
	w.network.forget()
	w.restart()
	if got := <-w.network.joined; got.ID != b.ID {
		t.Errorf("%+v joined", got)
	}
}

func TestHostPortsOfARequest(t *testing.T) {
	w := newWorld(t)
	for want, ports := range map[string][]uint16{"host port 0": {0}, "host port 53": {80, 53}, "twice": {80, 81, 80}, "": {80, 65535}} {
		err := w.svc.CheckCreate(t.Context(), api.CreateVM{HostPorts: ports})
		if want == "" && err != nil || want != "" && (api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v: %v", ports, err)
		}
	}
}

func TestStats(t *testing.T) {
	w := newWorld(t)
	if _, err := w.svc.Stats(t.Context(), "a"); api.KindOf(err) != api.KindNotFound {
		t.Errorf("of none: %v", err)
	}
	a := w.create(api.CreateVM{Name: "a"})
	if _, err := w.svc.Stats(t.Context(), "a"); api.KindOf(err) != api.KindConflict || api.AsError(err).Hint == "" {
		t.Errorf("of one that does not run: %v", err)
	}
	if _, err := w.svc.Start(t.Context(), "a", "", progress.Discard); err != nil {
		t.Fatal(err)
	}
	<-w.network.joined
	got, err := w.svc.Stats(t.Context(), "a")
	if err != nil || got.ID != a.ID || got.Name != "a" || got.Network == nil || got.Network.SentBytes != 42 {
		t.Errorf("%+v, %v", got, err)
	}
	want := &api.GuestStats{CPUs: 3, UptimeSeconds: 7, BusySeconds: 3, DiskTotalBytes: 10, DiskFreeBytes: 4}
	if !reflect.DeepEqual(got.Guest, want) {
		t.Errorf("the guest is %+v, want %+v", got.Guest, want)
	}
	// A guest that does not answer is left out, and who asks need not wait for it.
	w.engine.deaf = true
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.svc.Stats(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if got, err = w.svc.Stats(t.Context(), "a"); err != nil || got.Guest != nil || got.Network == nil {
		t.Errorf("of a deaf guest: %+v, %v", got, err)
	}
}

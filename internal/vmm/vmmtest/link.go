package vmmtest

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
)

// RunLink runs the part of the suite that is about the network, which depends on Fixture.NetDevice.
func RunLink(t *testing.T, newFixture New) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, *vm){
		"Link":          testLink,
		"LinkTakenOver": testLinkTakenOver,
	} {
		t.Run(name, func(t *testing.T) { test(t, start(t, newFixture(t))) })
	}
}

// network is what a fixture's VM has to be given for the tests of its link.
func (f Fixture) network() *wire.Network {
	return &wire.Network{Device: f.NetDevice, MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", Gateway: "172.16.0.1", MTU: wire.NetMTU}
}

// arpEvery is how often an unanswered request is repeated: the guest's eth0 is not up from the start.
const arpEvery = 200 * time.Millisecond

// whoHas asks the guest for its hardware address until it answers.
func whoHas(t *testing.T, v *vm, link vmm.Link) {
	t.Helper()
	n := v.fix.Spec.Identity.Network
	own := netip.MustParsePrefix(n.Address).Addr()
	done := make(chan struct{})
	defer close(done)
	go func() {
		tick := time.NewTicker(arpEvery)
		defer tick.Stop()
		mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}
		request := fakeguest.ARPRequest(mac, netip.MustParseAddr(n.Gateway), own)
		for {
			// In pieces, as a stack gives it.
			if err := link.WriteFrame([][]byte{request[:14], request[14:20], request[20:]}); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-done:
				return
			case <-v.ctx.Done():
				_ = link.Close()
				return
			}
		}
	}()
	buf := make([]byte, wire.MaxEthernet)
	for {
		k, err := link.ReadFrame(buf)
		if err != nil {
			t.Fatalf("read a frame: %v", err)
		}
		if mac := fakeguest.ParseARPReply(buf[:k], own); mac != nil {
			if mac.String() != n.MAC {
				t.Fatalf("the guest is at %s, want %s", mac, n.MAC)
			}
			return
		}
	}
}

func testLink(t *testing.T, v *vm) {
	if _, err := v.OpenLink(v.ctx); api.KindOf(err) != api.KindConflict {
		t.Fatalf("open the link of a VM without a network: %v", err)
	}
	if err := v.Kill(v.ctx); err != nil {
		t.Fatal(err)
	}
	v.fix.Spec.Identity.Network = v.fix.network()
	v = start(t, v.fix)
	link, err := v.OpenLink(v.ctx)
	if err != nil {
		t.Fatal(err)
	}
	whoHas(t, v, link)
	v.awaitReady(t)
	v.order("reboot")
	v.await(t, "the second boot", func(st vmm.Status) bool { return st.Boots == 2 })
	whoHas(t, v, link)
	if err := v.Kill(v.ctx); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, wire.MaxEthernet)
	for err == nil { // what was under way, then the end
		_, err = link.ReadFrame(buf)
	}
	if err := link.WriteFrame([][]byte{make([]byte, 60)}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write to the link of a VM that has ended: %v", err)
	}
	if err := errors.Join(link.Close(), link.Close()); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := v.OpenLink(v.ctx); err == nil {
		t.Error("a VM that has ended gave a link")
	}
}

func testLinkTakenOver(t *testing.T, v *vm) {
	if err := v.Kill(v.ctx); err != nil {
		t.Fatal(err)
	}
	v.fix.Spec.Identity.Network = v.fix.network()
	v = start(t, v.fix)
	first, err := v.OpenLink(v.ctx)
	if err != nil {
		t.Fatal(err)
	}
	whoHas(t, v, first)
	again := v.fix.Again
	if again == nil {
		again = v.fix.Engine
	}
	m, err := again.Attach(v.ctx, v.fix.Dir)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	second, err := m.OpenLink(v.ctx)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, wire.MaxEthernet)
	for err == nil {
		_, err = first.ReadFrame(buf)
	}
	whoHas(t, v, second)
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	third, err := v.OpenLink(v.ctx) // after a time without a reader
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	whoHas(t, v, third)
}

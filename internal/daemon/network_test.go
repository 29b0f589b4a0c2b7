package daemon

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
	"git.thaloco.com/thaloco/banger/internal/network/user"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vm"
)

// silence is a link on which nothing ever happens.
type silence struct {
	once sync.Once
	done chan struct{}
}

func newSilence() *silence { return &silence{done: make(chan struct{})} }

func (l *silence) ReadFrame([]byte) (int, error) {
	<-l.done
	return 0, net.ErrClosed
}

func (l *silence) WriteFrame([][]byte) error { return nil }

func (l *silence) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// networkOf makes the network of a configuration over a database with VMs of these names.
func networkOf(t testing.TB, db *store.Store, cidr, gateway string) *network {
	t.Helper()
	settings := config.Default()
	settings.CIDR, settings.BridgeIP = netip.MustParsePrefix(cidr), netip.MustParseAddr(gateway)
	n, err := newNetwork(settings, db, quiet())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func vmsDB(t testing.TB, names ...string) *store.Store {
	t.Helper()
	db, err := store.Open(t.Context(), t.TempDir()+"/banger.db")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	now := time.Now()
	if err := db.PutImage(t.Context(), api.Image{Name: "i", Digest: "sha256:i", Arch: "amd64", CreatedAt: &now}); err != nil {
		t.Fatal(err)
	}
	if err := db.PutKernel(t.Context(), api.Kernel{Name: "k", Digest: "sha256:k", Arch: "amd64", CreatedAt: &now}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := db.InsertVM(t.Context(), store.VM{ID: "id-" + name, Name: name, State: api.StateStopped, Image: "i", ImageDigest: "sha256:i",
			Kernel: "k", KernelDigest: "sha256:k", CreatedAt: now}); err != nil {
			t.Fatal(err)
		}
	}
	return db
}

// ask is what a guest is told about a name: the address, or none.
func (n *network) ask(t *testing.T, name string) string {
	t.Helper()
	q, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var m dns.Msg
	if err := m.Unpack(n.dns.Answer(context.Background(), "id-x", true, q)); err != nil {
		t.Fatal(err)
	}
	for _, rr := range m.Answer {
		if a, ok := rr.(*dns.A); ok {
			return a.A.String()
		}
	}
	return dns.RcodeToString[m.Rcode]
}

// A VM that has its address from an earlier cidr has none: packets for that one would go to whoever has it outside.
func TestNamesOfAnEarlierNetwork(t *testing.T) {
	db := vmsDB(t, "web", "new")
	before := networkOf(t, db, "172.16.0.0/24", "172.16.0.1")
	if _, err := before.Lease(t.Context(), "id-web"); err != nil {
		t.Fatal(err)
	}
	if got := before.ask(t, "web.vm."); got != "172.16.0.2" {
		t.Errorf("web.vm is %s", got)
	}
	after := networkOf(t, db, "10.99.0.0/24", "10.99.0.1")
	for _, name := range []string{"web.vm.", "web.", "new.vm.", "id-web.vm."} {
		if got := after.ask(t, name); got != "NXDOMAIN" {
			t.Errorf("%s is %s in the new network", name, got)
		}
	}
	old := vm.NetworkVM{ID: "id-web", Name: "web", Address: netip.MustParseAddr("172.16.0.2")}
	if _, err := after.Attach(old, newSilence()); api.KindOf(err) != api.KindConflict {
		t.Errorf("attached by its old address: %v", err)
	}
	moved := networkOf(t, db, "172.16.0.0/24", "172.16.0.2") // the gateway has its address now
	if got := moved.ask(t, "web.vm."); got != "NXDOMAIN" {
		t.Errorf("web.vm is %s where the gateway is", got)
	}
	if _, err := moved.Attach(old, newSilence()); api.KindOf(err) != api.KindConflict {
		t.Errorf("attached by the gateway's address: %v", err)
	}
	if _, err := after.Lease(t.Context(), "id-web"); err != nil {
		t.Fatal(err)
	}
	if got := after.ask(t, "web.vm."); got != "10.99.0.2" {
		t.Errorf("web.vm is %s once it has an address there", got)
	}
}

// A VM starts with the address of one that was deleted a moment ago, and whose link has not ended yet.
func TestAddressOfADeletedVM(t *testing.T) {
	db := vmsDB(t, "a", "b")
	n := networkOf(t, db, "172.16.0.0/24", "172.16.0.1")
	attach := func(name string) *silence {
		t.Helper()
		if _, err := n.Lease(t.Context(), "id-"+name); err != nil {
			t.Fatal(err)
		}
		rec, err := db.VM(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		link := newSilence()
		if _, err := n.Attach(vm.NetworkVM{ID: rec.ID, Name: name, Address: rec.Address}, link); err != nil {
			t.Fatalf("attach %s at %s: %v", name, rec.Address, err)
		}
		return link
	}
	a := attach("a")
	if err := db.DeleteVM(t.Context(), "id-a"); err != nil {
		t.Fatal(err)
	}
	attach("b")
	<-a.done // its link is closed
	if _, ok := n.user.Stats("id-b"); !ok {
		t.Error("b is not attached")
	}
}

// A network that the host has a route into is used all the same, and one line says so, once.
func TestOverlappingNetwork(t *testing.T) {
	nettest.Run(t, func(t *testing.T, _ *nettest.Internet) {
		db := vmsDB(t)
		n := networkOf(t, db, "10.77.0.0/16", "10.77.200.1") // nettest's host is in 10.77.0.0/24
		if got := n.Warning(); !strings.Contains(got, "10.77.0.0/16") || !strings.Contains(got, "10.77.0.0/24 by "+nettest.HostInterface) {
			t.Errorf("the warning is %q", got)
		}
		if got := n.Warning(); got != "" {
			t.Errorf("and again %q", got)
		}
		if got := networkOf(t, db, "172.16.0.0/24", "172.16.0.1").Warning(); got != "" {
			t.Errorf("a network of its own gives %q", got)
		}
	})
}

// Names follow what happens to VMs at once, though the database is not asked each time.
func TestNamesFollowTheVMs(t *testing.T) {
	db := vmsDB(t, "a", "b")
	n := networkOf(t, db, "172.16.0.0/24", "172.16.0.1")
	want := func(name, want string) {
		t.Helper()
		if got := n.ask(t, name); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	want("a.vm.", "NXDOMAIN")
	for _, name := range []string{"a", "b"} {
		if _, err := n.Lease(t.Context(), "id-"+name); err != nil {
			t.Fatal(err)
		}
	}
	want("a.vm.", "172.16.0.2")
	want("b.vm.", "172.16.0.3")
	if _, err := db.UpdateVM(t.Context(), "id-a", func(v *store.VM) error { v.Name = "c"; return nil }); err != nil {
		t.Fatal(err)
	}
	want("a.vm.", "NXDOMAIN")
	want("c.vm.", "172.16.0.2")
	if name, ok := n.reverse(netip.MustParseAddr("172.16.0.2")); !ok || name != "c" {
		t.Errorf("172.16.0.2 is %q", name)
	}
	if err := db.DeleteVM(t.Context(), "id-a"); err != nil {
		t.Fatal(err)
	}
	want("c.vm.", "NXDOMAIN")
	want("b.vm.", "172.16.0.3")
	if name, ok := n.reverse(netip.MustParseAddr("172.16.0.2")); ok {
		t.Errorf("172.16.0.2 is %q, which was deleted", name)
	}
}

// The daemon's own web port, which takes who connects from this host for the user, is let through to no VM.
func TestOwnPortIsNoHostPort(t *testing.T) {
	db := vmsDB(t, "a")
	if _, err := db.UpdateVM(t.Context(), "id-a", func(v *store.VM) error { v.HostPorts = []uint16{80, 7777}; return nil }); err != nil {
		t.Fatal(err)
	}
	n := networkOf(t, db, "172.16.0.0/24", "172.16.0.1")
	n.web.Store(7777)
	for port, may := range map[uint16]bool{80: true, 7777: false, 81: false} {
		if got := n.mayReach("id-a", port); got != may {
			t.Errorf("port %d on the bridge: %v", port, got)
		}
		err := n.allow(user.Flow{VM: "id-a", Proto: "tcp", Dst: netip.AddrPortFrom(n.gateway, port)})
		if (err == nil) != (port != 7777) { // the ports it was not given are refused before
			t.Errorf("port %d: %v", port, err)
		}
	}
	if err := n.allow(user.Flow{Proto: "tcp", Dst: netip.MustParseAddrPort("203.0.113.9:7777")}); err != nil {
		t.Errorf("that port of another host: %v", err)
	}
}

// BenchmarkDNS answers for the names and addresses of VMs, which the database has.
func BenchmarkDNS(b *testing.B) {
	names := make([]string, 100)
	for i := range names {
		names[i] = "vm" + strconv.Itoa(i)
	}
	db := vmsDB(b, names...)
	n := networkOf(b, db, "172.16.0.0/24", "172.16.0.1")
	for _, name := range names {
		if _, err := n.Lease(b.Context(), "id-"+name); err != nil {
			b.Fatal(err)
		}
	}
	for what, m := range map[string]*dns.Msg{
		"name":    new(dns.Msg).SetQuestion("vm7.vm.", dns.TypeA),
		"unknown": new(dns.Msg).SetQuestion("nope.vm.", dns.TypeA),
		"address": new(dns.Msg).SetQuestion("9.0.16.172.in-addr.arpa.", dns.TypePTR),
	} {
		b.Run(what, func(b *testing.B) {
			q, err := m.Pack()
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if n.dns.Answer(b.Context(), "id-vm1", true, q) == nil {
					b.Fatal("no answer")
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "answers/s")
		})
	}
}

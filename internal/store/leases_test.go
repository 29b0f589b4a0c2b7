package store

import (
	"net/netip"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

func TestLeases(t *testing.T) {
	ctx := t.Context()
	s := withContent(t)
	for _, name := range []string{"a", "b", "c", "d"} {
		must(t, s.InsertVM(ctx, vm(name)))
	}
	cidr, gateway := netip.MustParsePrefix("10.9.8.0/29"), netip.MustParseAddr("10.9.8.3")
	lease := func(name, want string) {
		t.Helper()
		got, err := s.Lease(ctx, "id-"+name, Pool{CIDR: cidr, Gateway: gateway})
		if err != nil || got.String() != want {
			t.Fatalf("lease of %s: %s, %v; want %s", name, got, err, want)
		}
		if found, err := s.AddressOf(ctx, name); err != nil || found != got {
			t.Fatalf("vm %s has address %s, %v", name, found, err)
		}
		v, err := s.VM(ctx, name)
		if err != nil || v.Address != got {
			t.Fatalf("vm %s has address %s, %v", name, v.Address, err)
		}
	}
	lease("a", "10.9.8.1")
	lease("b", "10.9.8.2")
	lease("c", "10.9.8.4") // not the gateway
	lease("a", "10.9.8.1")
	if id, name, err := s.LeaseOf(ctx, netip.MustParseAddr("10.9.8.2")); err != nil || id != "id-b" || name != "b" {
		t.Errorf("10.9.8.2 is %s %s, %v", id, name, err)
	}
	must(t, s.DeleteVM(ctx, "id-b"))
	if _, _, err := s.LeaseOf(ctx, netip.MustParseAddr("10.9.8.2")); api.KindOf(err) != api.KindNotFound {
		t.Errorf("the lease of a deleted VM: %v", err)
	}
	for _, name := range []string{"b", "d", "id-a", "nobody"} { // deleted, never started, an id
		if a, err := s.AddressOf(ctx, name); api.KindOf(err) != api.KindNotFound {
			t.Errorf("%q has address %s, %v", name, a, err)
		}
	}
	lease("d", "10.9.8.2")
	if _, err := s.Lease(ctx, "id-nobody", Pool{CIDR: cidr, Gateway: gateway}); api.KindOf(err) != api.KindNotFound {
		t.Errorf("lease of a VM that is not there: %v", err)
	}
	must(t, s.InsertVM(ctx, vm("e")))
	must(t, s.InsertVM(ctx, vm("f")))
	must(t, s.InsertVM(ctx, vm("g")))
	lease("e", "10.9.8.5")
	lease("f", "10.9.8.6") // .7 is the broadcast address
	if _, err := s.Lease(ctx, "id-g", Pool{CIDR: cidr, Gateway: gateway}); api.KindOf(err) != api.KindConflict {
		t.Errorf("lease in a full network: %v", err)
	}
	// Another network: a new lease, which frees the old one.
	cidr, gateway = netip.MustParsePrefix("10.9.9.0/24"), netip.MustParseAddr("10.9.9.1")
	lease("a", "10.9.9.2")
	cidr, gateway = netip.MustParsePrefix("10.9.8.0/29"), netip.MustParseAddr("10.9.8.3")
	lease("g", "10.9.8.1")
	// Its address became the gateway's.
	gateway = netip.MustParseAddr("10.9.8.1")
	lease("g", "10.9.8.3")
}

// TestLeasesAtOnce: two VMs never get the same address.
func TestLeasesAtOnce(t *testing.T) {
	s := withContent(t)
	names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
	for _, name := range names {
		must(t, s.InsertVM(t.Context(), vm(name)))
	}
	got := make(chan netip.Addr, len(names))
	for _, name := range names {
		go func() {
			a, err := s.Lease(t.Context(), "id-"+name, Pool{CIDR: netip.MustParsePrefix("172.16.0.0/24"), Gateway: netip.MustParseAddr("172.16.0.1")})
			if err != nil {
				t.Error(err)
			}
			got <- a
		}()
	}
	seen := map[netip.Addr]bool{}
	for range names {
		a := <-got
		if seen[a] {
			t.Errorf("%s was leased twice", a)
		}
		seen[a] = true
	}
}

// TestLeasesUpTo: in a pool that ends early, a VM with an address beyond its end is given another one.
func TestLeasesUpTo(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	cidr, gateway := netip.MustParsePrefix("10.9.8.0/24"), netip.MustParseAddr("10.9.8.1")
	all, two := Pool{CIDR: cidr, Gateway: gateway}, Pool{CIDR: cidr, Gateway: gateway, Last: netip.MustParseAddr("10.9.8.3")}
	for _, name := range []string{"a", "b", "c"} {
		must(t, s.InsertVM(ctx, vm(name)))
		if _, err := s.Lease(ctx, "id-"+name, all); err != nil {
			t.Fatal(err)
		}
	}
	if a, err := s.Lease(ctx, "id-b", two); err != nil || a != two.Last {
		t.Errorf("b has %s, %v", a, err)
	}
	_, err := s.Lease(ctx, "id-c", two)
	if api.KindOf(err) != api.KindConflict || !strings.Contains(api.AsError(err).Hint, "tap_pool_size") {
		t.Errorf("c, whose address is beyond: %v", err)
	}
	if err := s.DeleteVM(ctx, "id-a"); err != nil {
		t.Fatal(err)
	}
	if a, err := s.Lease(ctx, "id-c", two); err != nil || a != netip.MustParseAddr("10.9.8.2") {
		t.Errorf("c has %s, %v", a, err)
	}
}

// TestLeasesVersion: whatever changes names or addresses changes the version too.
func TestLeasesVersion(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	must(t, s.InsertVM(ctx, vm("a")))
	pool := Pool{CIDR: netip.MustParsePrefix("10.9.8.0/24"), Gateway: netip.MustParseAddr("10.9.8.1")}
	for _, step := range []struct {
		what string
		do   func() error
		want string
	}{
		{"lease", func() error { _, err := s.Lease(ctx, "id-a", pool); return err }, "a 10.9.8.2"},
		{"rename", func() error {
			_, err := s.UpdateVM(ctx, "id-a", func(v *VM) error { v.Name = "b"; return nil })
			return err
		}, "b 10.9.8.2"},
		{"move", func() error {
			pool.CIDR, pool.Gateway = netip.MustParsePrefix("10.9.9.0/24"), netip.MustParseAddr("10.9.9.1")
			_, err := s.Lease(ctx, "id-a", pool)
			return err
		}, "b 10.9.9.2"},
		{"delete", func() error { return s.DeleteVM(ctx, "id-a") }, ""},
	} {
		before := s.LeasesVersion()
		must(t, step.do())
		if s.LeasesVersion() == before {
			t.Errorf("%s: the version is the same", step.what)
		}
		all, err := s.Leases(ctx)
		must(t, err)
		got := ""
		for _, l := range all {
			got += l.Name + " " + l.Address.String()
		}
		if got != step.want {
			t.Errorf("%s: the leases are %q, want %q", step.what, got, step.want)
		}
	}
	before := s.LeasesVersion()
	must(t, s.InsertVM(ctx, vm("c")))
	if _, err := s.UpdateVM(ctx, "id-c", func(v *VM) error { v.Reason = "x"; return nil }); err != nil || s.LeasesVersion() != before {
		t.Errorf("what is no change of names or addresses counts: %v", err)
	}
}

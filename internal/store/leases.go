package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"git.thaloco.com/thaloco/banger/api"
)

// Pool is where addresses of VMs come from.
type Pool struct {
	// CIDR is the network, IPv4; Gateway its address that is no VM's.
	CIDR    netip.Prefix
	Gateway netip.Addr
	// Last is the highest address that is given; the zero value for no other bound than CIDR's.
	Last netip.Addr
}

// holds tells whether a VM may have an address: it is neither the gateway's nor the network's first, which is the network, nor its last,
// which is the broadcast address.
func (p Pool) holds(a netip.Addr) bool {
	return p.CIDR.Contains(a) && a != p.CIDR.Addr() && a != p.Gateway && p.CIDR.Contains(a.Next()) && (!p.Last.IsValid() || a.Compare(p.Last) <= 0)
}

// Lease returns the address of the VM with this id. A VM that has none, or one that is not in the pool, is given the lowest that is
// free. Where there is none it is a KindConflict.
func (s *Store) Lease(ctx context.Context, id string, pool Pool) (netip.Addr, error) {
	pool.CIDR = pool.CIDR.Masked()
	var lease netip.Addr
	err := s.tx(ctx, func(tx *sql.Tx) error {
		leased, err := leases(ctx, tx)
		if err != nil {
			return err
		}
		taken := map[netip.Addr]bool{}
		for _, l := range leased {
			if l.vm == id && pool.holds(l.address) {
				lease = l.address
				return nil
			}
			taken[l.address] = taken[l.address] || l.vm != id
		}
		lease = pool.CIDR.Addr().Next()
		for ; pool.CIDR.Contains(lease) && (taken[lease] || lease == pool.Gateway); lease = lease.Next() {
		}
		if !pool.holds(lease) {
			return pool.exhausted()
		}
		_, err = tx.ExecContext(ctx, "INSERT INTO leases (vm, address) VALUES (?1, ?2) ON CONFLICT (vm) DO UPDATE SET address = ?2", id, lease.String())
		if isForeignKey(err) {
			return noVM(id, nil)
		}
		return err
	})
	if err != nil {
		return netip.Addr{}, err
	}
	s.leasesVersion.Add(1)
	return lease, nil
}

// NamedLease is the address of a VM.
type NamedLease struct {
	Name    string
	Address netip.Addr
}

// Leases returns all leases, of whatever network they are, in no order.
func (s *Store) Leases(ctx context.Context) ([]NamedLease, error) {
	all, err := collect(ctx, s.read, func(row scanner) (l NamedLease, err error) {
		var address string
		if err := row.Scan(&l.Name, &address); err != nil {
			return l, err
		}
		if l.Address, err = netip.ParseAddr(address); err != nil {
			return l, fmt.Errorf("read the lease of vm %q: %w", l.Name, err)
		}
		return l, nil
	}, "SELECT vms.name, leases.address FROM leases JOIN vms ON vms.id = leases.vm")
	return all, s.explain(err)
}

// LeasesVersion is another number after every change of a VM's name or address. Who reads it before Leases knows by it later
// whether that is still true.
func (s *Store) LeasesVersion() uint64 { return s.leasesVersion.Load() }

// exhausted is the error of a pool with no address left.
func (p Pool) exhausted() error {
	if p.Last.IsValid() {
		return api.Errorf(api.KindConflict, "no TAP is left: the addresses up to %s, which have one, are all leased to VMs", p.Last).
			WithHint("delete VMs that are not needed; or set a larger tap_pool_size in config.toml, then sudo banger net setup and banger daemon stop")
	}
	return api.Errorf(api.KindConflict, "no address is left in %s: all are leased to VMs", p.CIDR).
		WithHint("delete VMs that are not needed, or set a larger cidr in the configuration")
}

// LeaseOf returns the name and the id of the VM that has an address; KindNotFound where none has.
func (s *Store) LeaseOf(ctx context.Context, address netip.Addr) (id, name string, err error) {
	err = s.read.QueryRowContext(ctx, "SELECT vms.id, vms.name FROM leases JOIN vms ON vms.id = leases.vm WHERE leases.address = ?",
		address.String()).Scan(&id, &name)
	if errors.Is(err, sql.ErrNoRows) {
		return "", "", api.Errorf(api.KindNotFound, "no vm has address %s", address)
	}
	return id, name, s.explain(err)
}

// AddressOf returns the address leased to the VM of this name, of whatever network it is; KindNotFound where there is none. It is
// for those who ask often: see VM for people.
func (s *Store) AddressOf(ctx context.Context, name string) (netip.Addr, error) {
	var address string
	err := s.read.QueryRowContext(ctx, "SELECT leases.address FROM leases JOIN vms ON vms.id = leases.vm WHERE vms.name = ?", name).Scan(&address)
	if errors.Is(err, sql.ErrNoRows) {
		return netip.Addr{}, api.Errorf(api.KindNotFound, "no vm %q has an address", name)
	}
	if err != nil {
		return netip.Addr{}, s.explain(err)
	}
	a, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("read the lease of vm %q: %w", name, err)
	}
	return a, nil
}

type lease struct {
	vm      string
	address netip.Addr
}

func leases(ctx context.Context, q queryer) ([]lease, error) {
	return collect(ctx, q, func(row scanner) (l lease, err error) {
		var address string
		if err := row.Scan(&l.vm, &address); err != nil {
			return l, err
		}
		if l.address, err = netip.ParseAddr(address); err != nil {
			return l, fmt.Errorf("read the lease of vm %q: %w", l.vm, err)
		}
		return l, nil
	}, "SELECT vm, address FROM leases")
}

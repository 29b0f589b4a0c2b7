package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"

	"git.thaloco.com/thaloco/banger/api"
)

// Lease returns the address of the VM with this id in cidr, which is IPv4. A VM that has none, or one of another network, is
// given the lowest that is free: neither leased, nor the network's first or last, nor gateway. Where there is none it is a KindConflict.
func (s *Store) Lease(ctx context.Context, id string, cidr netip.Prefix, gateway netip.Addr) (netip.Addr, error) {
	cidr = cidr.Masked()
	var lease netip.Addr
	err := s.tx(ctx, func(tx *sql.Tx) error {
		leased, err := leases(ctx, tx)
		if err != nil {
			return err
		}
		taken := map[netip.Addr]bool{gateway: true}
		for _, l := range leased {
			if l.vm == id && cidr.Contains(l.address) && l.address != gateway && usable(cidr, l.address) {
				lease = l.address
				return nil
			}
			taken[l.address] = taken[l.address] || l.vm != id
		}
		lease = cidr.Addr().Next()
		for ; usable(cidr, lease) && taken[lease]; lease = lease.Next() {
		}
		if !usable(cidr, lease) {
			return api.Errorf(api.KindConflict, "no address is left in %s: all are leased to VMs", cidr).
				WithHint("delete VMs that are not needed, or set a larger cidr in the configuration")
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
	return lease, nil
}

// usable tells whether a host may have the address: its network's first is the network, its last the broadcast address.
func usable(cidr netip.Prefix, a netip.Addr) bool {
	return cidr.Contains(a) && a != cidr.Addr() && cidr.Contains(a.Next())
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

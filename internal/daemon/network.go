package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/doctor"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
	"git.thaloco.com/thaloco/banger/internal/network/dns"
	"git.thaloco.com/thaloco/banger/internal/network/egress"
	"git.thaloco.com/thaloco/banger/internal/network/user"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/vm"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// domain is what names of VMs end in.
const domain = "vm"

// network is vm.Network: the addresses of VMs, and the switch, the gateway and the resolver behind them.
type network struct {
	cidr    netip.Prefix
	gateway netip.Addr
	// hostPorts are the ports of the host's loopback that every VM may reach.
	hostPorts []uint16
	db        *store.Store
	names     leaseNames
	dns       *dns.Server
	// user carries the frames of VMs in user mode; in bridge mode, of those that were started before.
	user *user.Network
	// bridge is nil in user mode.
	bridge *onBridge
	// web is the daemon's own web port, 0 for none: it takes who connects from this host for the user.
	web    atomic.Uint32
	warned atomic.Bool
}

func newNetwork(settings config.Config, db *store.Store, log *slog.Logger) (*network, error) {
	n := &network{cidr: settings.CIDR, gateway: settings.BridgeIP, hostPorts: settings.HostPorts, db: db}
	policy, err := egress.New(egress.Config{CIDR: n.cidr, AllowPrivate: settings.AllowPrivateNetworks})
	if err != nil {
		return nil, err
	}
	n.dns = dns.New(dns.Config{Gateway: n.gateway, CIDR: n.cidr, Lookup: n.lookup, Reverse: n.reverse,
		Upstreams: settings.DefaultDNS, Log: log})
	n.user, err = user.New(user.Config{CIDR: n.cidr, Gateway: n.gateway, Policy: policy, DNS: n.dns, Allow: n.allow, Names: n.dns.NamesOf, Log: log})
	if err != nil {
		return nil, err
	}
	if settings.Network == config.NetworkBridge {
		n.bridge = newOnBridge(settings, n, log)
	}
	return n, nil
}

// begin starts what the network serves beside the frames of VMs.
func (n *network) begin(ctx context.Context) {
	if n.bridge != nil {
		n.bridge.begin(ctx)
	}
}

// errOwnPort is why a VM does not get to a port of the host that it was let through to.
var errOwnPort = errors.New("banger's own web port")

// allow refuses a flow of a VM in user mode before anything of the host is asked.
func (n *network) allow(f user.Flow) error {
	if f.Dst.Addr() == n.gateway && n.isOwn(f.Dst.Port()) {
		return errOwnPort
	}
	return nil
}

// isOwn tells whether a port of the host's loopback is the daemon's, and no VM's business.
func (n *network) isOwn(port uint16) bool { return port != 0 && uint32(port) == n.web.Load() }

// lookup finds the address of a VM. One it had under an earlier configuration, and has until it is started again, is a
// stranger's by now.
func (n *network) lookup(name string) (netip.Addr, bool) {
	leased, err := n.names.of(n.db)
	if err != nil {
		return netip.Addr{}, false
	}
	a, ok := leased.addr[name]
	return a, ok && n.ours(a)
}

// ours tells whether a VM may have an address.
func (n *network) ours(a netip.Addr) bool { return n.cidr.Contains(a) && a != n.gateway }

// reverse finds the VM that has an address.
func (n *network) reverse(a netip.Addr) (string, bool) {
	leased, err := n.names.of(n.db)
	if err != nil {
		return "", false
	}
	name, ok := leased.name[a]
	return name, ok
}

// leaseNames keeps the names and addresses of the VMs at hand for the resolver, which is asked thousands of times a second. The zero
// value is ready.
type leaseNames struct {
	mu     sync.Mutex
	leased atomic.Pointer[leased] // written under mu
}

// leased is which VM has which address, as of a version of the database's leases. It is not changed any more.
type leased struct {
	version uint64
	addr    map[string]netip.Addr
	name    map[netip.Addr]string
}

// of returns what the database says now.
func (l *leaseNames) of(db *store.Store) (*leased, error) {
	if have := l.leased.Load(); have != nil && have.version == db.LeasesVersion() {
		return have, nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := &leased{version: db.LeasesVersion(), addr: map[string]netip.Addr{}, name: map[netip.Addr]string{}}
	if have := l.leased.Load(); have != nil && have.version == now.version { // read while this waited
		return have, nil
	}
	all, err := db.Leases(context.Background())
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		now.addr[e.Name], now.name[e.Address] = e.Address, e.Name
	}
	l.leased.Store(now)
	return now, nil
}

// Lease implements vm.Network.
func (n *network) Lease(ctx context.Context, id string) (vm.Lease, error) {
	pool := store.Pool{CIDR: n.cidr, Gateway: n.gateway}
	if n.bridge != nil {
		if err := n.bridge.ready(ctx, false); err != nil {
			return vm.Lease{}, err
		}
		pool.Last = bridge.Last(n.bridge.cfg)
	}
	a, err := n.db.Lease(ctx, id, pool)
	if err != nil {
		return vm.Lease{}, err
	}
	lease := n.lease(a)
	if n.bridge != nil {
		if lease.TAP, err = n.bridge.tap(a); err != nil {
			return vm.Lease{}, err
		}
		lease.MTU = bridgeMTU
		n.bridge.putOn(id, lease.TAP)
	}
	return lease, nil
}

// lease is what goes with an address.
func (n *network) lease(a netip.Addr) vm.Lease {
	return vm.Lease{Network: wire.Network{MAC: macOf(a).String(), Address: netip.PrefixFrom(a, n.cidr.Bits()).String(), Gateway: n.gateway.String(),
		DNS: []string{n.gateway.String()}, Search: domain, MTU: wire.NetMTU}}
}

// Warning implements vm.Network.
func (n *network) Warning() string {
	if n.bridge != nil {
		return "" // there it is an error, when the bridge is set up
	}
	over := doctor.Overlap(n.cidr, doctor.HostRoutes())
	if len(over) == 0 || n.warned.Swap(true) {
		return ""
	}
	return fmt.Sprintf("cidr %s overlaps the host's route to %s by %s: guests cannot reach what is there (banger doctor knows a free one)",
		n.cidr, over[0].To, over[0].Interface)
}

// Attach implements vm.Network.
func (n *network) Attach(v vm.NetworkVM, link vmm.Link) (<-chan struct{}, error) {
	if !n.ours(v.Address) {
		return nil, api.Errorf(api.KindConflict, "its address %s is not one of cidr %s with gateway %s any more", v.Address, n.cidr, n.gateway)
	}
	ports := slices.Concat(n.hostPorts, v.HostPorts)
	port, err := n.user.Attach(user.VM{ID: v.ID, Name: v.Name, Addr: v.Address, MAC: macOf(v.Address), HostPorts: ports}, link)
	if err != nil {
		return nil, fmt.Errorf("join the network: %w", err)
	}
	return port.Lost(), nil
}

// Detach implements vm.Network.
func (n *network) Detach(id string) {
	n.user.Detach(id)
	n.dns.Forget(id)
	if n.bridge != nil {
		n.bridge.forget(id)
	}
}

// Stats implements vm.Network.
func (n *network) Stats(id string) (api.NetworkStats, bool) {
	if n.bridge != nil {
		if rec, err := n.db.VM(context.Background(), id); err == nil && rec.TAP != "" {
			return n.bridge.stats(id, rec.TAP)
		}
	}
	s, ok := n.user.Stats(id)
	return api.NetworkStats{Mode: config.NetworkUser, Since: s.Since,
		SentBytes: s.BytesFromGuest, SentPackets: s.FramesFromGuest, ReceivedBytes: s.BytesToGuest, ReceivedPackets: s.FramesToGuest,
		Overrun: s.Overrun, Dropped: new(s.Invalid), Flows: new(s.Flows), Refused: new(s.Refused), OpenTCP: new(s.OpenTCP), OpenUDP: new(s.OpenUDP)}, ok
}

// Close ends the network: the connections to the outside of guests in user mode are reset.
func (n *network) Close() {
	n.user.Close()
	if n.bridge != nil {
		n.bridge.close()
	}
}

// macOf is the hardware address of a VM's eth0, in either mode.
func macOf(a netip.Addr) net.HardwareAddr { return bridge.MAC(a) }

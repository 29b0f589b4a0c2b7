// Package user is banger's network without privileges: a switch for the Ethernet frames of all VMs of the daemon, and
// behind its gateway a TCP/IP stack of the daemon's own (gVisor's), whose connections go on through ordinary sockets
// of the host.
//
// A guest is hostile. What holds whatever it sends:
//
//   - A frame leaves its port only with the VM's own MAC and address as the source: no guest takes the gateway's or a
//     neighbour's place. VLAN tags, IPv6, broadcast and multicast packets are dropped.
//   - A packet for an address of banger's network other than the gateway reaches that VM or nobody; it never reaches a
//     socket of the host. What leaves goes through Config.Policy, which refuses again. Of the host's loopback a VM reaches
//     the ports it was given (VM.HostPorts), at the gateway's address.
//   - Memory, sockets and goroutines for a guest are bounded; a guest that does not read loses its own frames only.
//
// VMs speak to each other through the switch alone; Config.Allow is asked about what leaves the network. The gateway answers
// ARP, echo and DNS, and is the host to whom it may be.
//
// A port outlives its link: whoever carried the frames may break, and the guest's connections are still there when another
// takes its place. They are reset when the VM ends, or nobody comes for a while. Nothing survives the daemon: one that stops
// resets the guests' connections, and a segment of a connection that the stack does not know is answered with a reset. What a
// guest that only receives is told after a daemon that was killed is not this package's.
//
// network.go is the set of VMs, port.go one VM's end, plug.go its link, switch.go where a frame goes, queue.go the frames that wait for a
// guest, stack.go the stack, packet.go what is built by hand; tcp.go and relay.go, udp.go, icmp.go, dns.go and host.go forward.
package user

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// VM is one VM of the network.
type VM struct {
	// ID is its key, Name is for people.
	ID, Name string
	// Addr is its leased address, inside Config.CIDR.
	Addr netip.Addr
	// MAC is its eth0's.
	MAC net.HardwareAddr
	// HostPorts are the ports of the host's loopback that it reaches, by TCP and UDP, at those of the gateway.
	HostPorts []uint16
}

// is says whether two VMs are the same one, in the same place.
func (v VM) is(o VM) bool {
	return v.ID == o.ID && v.Addr == o.Addr && bytes.Equal(v.MAC, o.MAC) && slices.Equal(v.HostPorts, o.HostPorts)
}

// Stats are the counters of one port since Since, but those named open, which are of now.
type Stats struct {
	// Since is when the VM was attached; a link that takes the place of another changes nothing.
	Since                           time.Time
	FramesFromGuest, BytesFromGuest uint64
	FramesToGuest, BytesToGuest     uint64
	// Invalid counts frames dropped for what they were: malformed, spoofed, of a kind that is not carried, or for nobody.
	Invalid uint64
	// Overrun counts frames dropped because the guest did not take them fast enough.
	Overrun uint64
	// Flows counts TCP connections, UDP and echo flows that were let out; Refused those the policy or a limit forbade.
	Flows, Refused   uint64
	OpenTCP, OpenUDP int
}

// Limits of one guest where the host has sockets enough.
const (
	maxTCP      = 4096
	maxHalfOpen = 1024
	maxUDP      = 1024
	maxPing     = 64
	maxDNS      = 1088 // questions being answered, most of which may wait for their turn (dns.Server)
	maxDNSConns = 16
)

// gatewayMAC is the gateway's: locally administered, in no range that VMs are given.
var gatewayMAC = [6]byte{0x02, 0x62, 0x6e, 0x67, 0x00, 0x01}

// Network is the switch, its gateway and its VMs. Its methods may be called from several goroutines.
type Network struct {
	cfg     Config
	log     *slog.Logger
	stack   *netStack
	sockets *budget

	mu     sync.RWMutex
	closed bool                 // guarded by mu
	byAddr map[netip.Addr]*Port // guarded by mu
	byMAC  map[[6]byte]*Port    // guarded by mu
	byID   map[string]*Port     // guarded by mu
}

// ErrClosed says that the network was closed.
var ErrClosed = errors.New("network closed")

// New makes a network without VMs.
func New(cfg Config) (*Network, error) {
	if !cfg.CIDR.IsValid() || !cfg.CIDR.Addr().Is4() || !cfg.CIDR.Contains(cfg.Gateway) {
		return nil, fmt.Errorf("user network: gateway %q is not in an IPv4 network %q", cfg.Gateway, cfg.CIDR)
	}
	if cfg.Policy == nil {
		return nil, errors.New("user network: no policy")
	}
	cfg.CIDR = cfg.CIDR.Masked()
	cfg.Grace = cmp.Or(cfg.Grace, graceDefault)
	n := &Network{
		cfg: cfg, log: cmp.Or(cfg.Log, slog.New(slog.DiscardHandler)), sockets: newBudget(cfg.Sockets),
		byAddr: map[netip.Addr]*Port{}, byMAC: map[[6]byte]*Port{}, byID: map[string]*Port{},
	}
	stack, err := newStack(n)
	if err != nil {
		return nil, fmt.Errorf("user network %q: %w", cfg.CIDR, err)
	}
	n.stack = stack
	return n, nil
}

// Attach joins a VM to the network by its link, which the port owns from then on; after an error the link is the caller's
// still. A VM that is attached already, or was until its last link ended at most Config.Grace ago, keeps its port, and with it its
// connections. A VM of another id that still has this one's address was deleted, and is detached.
func (n *Network) Attach(vm VM, link Link) (*Port, error) {
	if err := n.check(vm); err != nil {
		return nil, fmt.Errorf("attach vm %q: %w", vm.Name, err)
	}
	n.mu.RLock()
	same, stale := n.byID[vm.ID], n.byAddr[vm.Addr]
	n.mu.RUnlock()
	if same != nil && same.vm.is(vm) && same.plugIn(link) {
		return same, nil
	}
	for _, old := range []*Port{same, stale} {
		if old != nil {
			old.Close()
		}
	}
	p := newPort(n, vm)
	n.mu.Lock()
	err := n.addLocked(p)
	n.mu.Unlock()
	if err == nil && !p.plugIn(link) {
		err = ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("attach vm %q: %w", vm.Name, err)
	}
	return p, nil
}

// Detach takes a VM out that has ended, at once: its connections are reset. One that is not there is fine.
func (n *Network) Detach(id string) {
	n.mu.RLock()
	p := n.byID[id]
	n.mu.RUnlock()
	if p != nil {
		p.Close()
	}
}

// check says whether a VM can be a member of the network at all.
func (n *Network) check(vm VM) error {
	if vm.ID == "" {
		return errors.New("no id")
	}
	if !n.cfg.CIDR.Contains(vm.Addr) || vm.Addr == n.cfg.Gateway || vm.Addr == n.cfg.CIDR.Addr() || vm.Addr == lastOf(n.cfg.CIDR) {
		return fmt.Errorf("address %q is not one for a vm of %q", vm.Addr, n.cfg.CIDR)
	}
	if len(vm.MAC) != 6 || vm.MAC[0]&1 != 0 || [6]byte(vm.MAC) == gatewayMAC || [6]byte(vm.MAC) == ([6]byte{}) {
		return fmt.Errorf("hardware address %q is not one for a vm", vm.MAC)
	}
	return nil
}

// addLocked enters a port; the caller holds n.mu.
func (n *Network) addLocked(p *Port) error {
	if n.closed {
		return ErrClosed
	}
	if n.byID[p.vm.ID] != nil {
		return errors.New("is being attached by somebody else")
	}
	if other := n.byAddr[p.vm.Addr]; other != nil {
		return fmt.Errorf("vm %q has the address %s", other.vm.Name, p.vm.Addr)
	}
	if other := n.byMAC[p.mac]; other != nil {
		return fmt.Errorf("vm %q has the hardware address %s", other.vm.Name, p.vm.MAC)
	}
	n.byID[p.vm.ID], n.byAddr[p.vm.Addr], n.byMAC[p.mac] = p, p, p
	return nil
}

// remove takes a port out; a packet for its address goes nowhere from then on.
func (n *Network) remove(p *Port) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.byID[p.vm.ID] == p {
		delete(n.byID, p.vm.ID)
		delete(n.byAddr, p.vm.Addr)
		delete(n.byMAC, p.mac)
	}
}

// Stats returns the counters of a VM that is attached.
func (n *Network) Stats(id string) (Stats, bool) {
	n.mu.RLock()
	p := n.byID[id]
	n.mu.RUnlock()
	if p == nil {
		return Stats{}, false
	}
	return p.Stats(), true
}

// Close detaches all VMs and ends the stack.
func (n *Network) Close() {
	n.mu.Lock()
	n.closed = true
	ports := make([]*Port, 0, len(n.byID))
	for _, p := range n.byID {
		ports = append(ports, p)
	}
	n.mu.Unlock()
	var closing sync.WaitGroup
	for _, p := range ports {
		closing.Go(p.Close)
	}
	closing.Wait()
	n.stack.close()
}

func (n *Network) portByAddr(a netip.Addr) *Port {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.byAddr[a]
}

func (n *Network) portByMAC(mac [6]byte) *Port {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.byMAC[mac]
}

// others are all ports but p.
func (n *Network) others(p *Port) []*Port {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var list []*Port
	for _, o := range n.byID {
		if o != p {
			list = append(list, o)
		}
	}
	return list
}

// lastOf is the broadcast address of a network.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// budget is how many of the host's sockets the guests may hold together.
type budget struct {
	mu   sync.Mutex
	free int // guarded by mu
	size int
}

// newBudget makes a budget of size; 0 for half of the files this process may open.
func newBudget(size int) *budget {
	if size == 0 {
		size = 512
		var lim unix.Rlimit
		if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
			size = int(min(lim.Cur, 1<<20) / 2)
		}
	}
	return &budget{free: size, size: size}
}

// take takes a socket; false where none is left.
func (b *budget) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.free == 0 {
		return false
	}
	b.free--
	return true
}

func (b *budget) give() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free++
}

// share is what one guest may hold of a kind of which it would get most at best: no more than an eighth of all.
func (b *budget) share(most int) int { return max(1, min(most, b.size/8)) }

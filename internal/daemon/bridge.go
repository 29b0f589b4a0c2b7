package daemon

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/config"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
	"git.thaloco.com/thaloco/banger/internal/network/gateway"
)

// bridgeMTU is that of VMs on the bridge, in bytes.
const bridgeMTU = 1500

// setUpWithin bounds how long the host may take to be set up.
const setUpWithin = 30 * time.Second

// onBridge is the network of VMs that are on TAPs of the host, in bridge mode. What they send goes through the kernel; the daemon
// answers at the bridge's address.
type onBridge struct {
	cfg bridge.Config
	net *network
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	gateway *gateway.Gateway
	closed  bool
	since   map[string]counted // by VM
}

// counted is what a TAP had counted when a VM was put on it.
type counted struct {
	tap  string
	from bridge.Counters
	at   time.Time
}

func newOnBridge(settings config.Config, n *network, log *slog.Logger) *onBridge {
	return &onBridge{net: n, log: log, since: map[string]counted{}, cfg: settings.Bridge(os.Geteuid())}
}

// begin makes what this process may make and serves the gateway. What is missing is told when a VM wants it.
func (b *onBridge) begin(ctx context.Context) {
	if err := b.ready(ctx, true); err != nil {
		e := api.AsError(err)
		b.log.Warn("bridge mode", "err", err, "hint", e.Hint)
	}
	recs, err := b.net.db.VMs(ctx)
	if err != nil {
		b.log.Error("bridge mode", "err", err)
	}
	for _, r := range recs {
		if r.TAP != "" {
			b.putOn(r.ID, r.TAP) // what one that runs is counted from
		}
	}
}

// ready sees to it that a VM can be put on the bridge. Where setUp is true, a daemon with the privilege sets up the host.
func (b *onBridge) ready(ctx context.Context, setUp bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return net.ErrClosed
	}
	err := bridge.Ready(b.cfg)
	if bridge.Privileged() && (err != nil || setUp) {
		err = b.setUpLocked(ctx)
	}
	if err != nil {
		return err
	}
	if b.gateway != nil {
		return nil
	}
	b.gateway, err = gateway.Listen(gateway.Config{
		Address: b.cfg.IP, DNSPort: bridge.DNSPort, ProxyPort: bridge.ProxyPort, DNS: b.net.dns, Log: b.log,
		VM: b.net.at, HostPort: b.net.mayReach,
		Destination: func(c *net.TCPConn) (netip.AddrPort, error) { return bridge.OriginalDst(c) },
	})
	return err
}

// setUpLocked sets up the host; the caller holds b.mu.
func (b *onBridge) setUpLocked(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, setUpWithin)
	defer cancel()
	done, err := bridge.Setup(ctx, b.cfg)
	for _, line := range done {
		b.log.Info("bridge mode", "did", line)
	}
	return err
}

// tap is the TAP of an address.
func (b *onBridge) tap(a netip.Addr) (string, error) {
	name, ok := bridge.TAPOf(b.cfg, a)
	if !ok {
		return "", api.Errorf(api.KindConflict, "address %s has no TAP", a)
	}
	return name, nil
}

// putOn notes that a VM is being put on a TAP: its counters begin.
func (b *onBridge) putOn(id, tap string) {
	c, err := bridge.TAPCounters(tap)
	if err != nil {
		b.log.Debug("counters", "tap", tap, "err", err)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.since[id] = counted{tap: tap, from: c, at: time.Now()}
}

// forget notes that a VM has ended.
func (b *onBridge) forget(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.since, id)
}

// stats are the counters of a VM on a TAP, since it was put there, or since this daemon found it there.
func (b *onBridge) stats(id, tap string) (api.NetworkStats, bool) {
	b.mu.Lock()
	from, ok := b.since[id]
	b.mu.Unlock()
	if !ok || from.tap != tap {
		b.putOn(id, tap)
		b.mu.Lock()
		from, ok = b.since[id]
		b.mu.Unlock()
	}
	now, err := bridge.TAPCounters(tap)
	if err != nil || !ok {
		return api.NetworkStats{}, false
	}
	return api.NetworkStats{Mode: config.NetworkBridge, Since: from.at,
		SentBytes: now.FromGuestBytes - from.from.FromGuestBytes, SentPackets: now.FromGuest - from.from.FromGuest,
		ReceivedBytes: now.ToGuestBytes - from.from.ToGuestBytes, ReceivedPackets: now.ToGuest - from.from.ToGuest,
		Overrun: now.Dropped - from.from.Dropped}, true
}

// close ends what the daemon serves on the bridge; the bridge and the VMs on it stay.
func (b *onBridge) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	if b.gateway != nil {
		b.gateway.Close()
	}
}

// at finds the VM that has an address.
func (n *network) at(a netip.Addr) (id string, ok bool) {
	id, _, err := n.db.LeaseOf(context.Background(), a)
	return id, err == nil
}

// mayReach tells whether a VM is let through to a port of the host's loopback.
func (n *network) mayReach(id string, port uint16) bool {
	if n.isOwn(port) {
		return false
	}
	if slices.Contains(n.hostPorts, port) {
		return true
	}
	rec, err := n.db.VM(context.Background(), id)
	return err == nil && slices.Contains(rec.HostPorts, port)
}

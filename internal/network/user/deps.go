package user

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// Link carries the Ethernet frames of one VM, none longer than wire.MaxEthernet. One goroutine reads while another writes.
type Link interface {
	// ReadFrame waits for a frame of the guest and copies it to p, of at least wire.MaxEthernet bytes. An error is final.
	ReadFrame(p []byte) (int, error)
	// WriteFrame sends the frame whose bytes are those of the pieces one after another, and keeps none of them. It may
	// wait for the guest; Close ends that.
	WriteFrame(pieces [][]byte) error
	Close() error
}

// Egress opens the host's sockets for guests, each only where a policy allows it (egress.Policy).
type Egress interface {
	DialTCP(ctx context.Context, dst netip.AddrPort) (*net.TCPConn, error)
	DialUDP(ctx context.Context, dst netip.AddrPort) (*net.UDPConn, error)
	// DialPing returns a connection that carries ICMP echo messages; their identifier is the kernel's.
	DialPing(ctx context.Context, dst netip.Addr) (net.Conn, error)
	// DialHostTCP and DialHostUDP connect to a port of the host's loopback, whatever the policy.
	DialHostTCP(ctx context.Context, port uint16) (*net.TCPConn, error)
	DialHostUDP(ctx context.Context, port uint16) (*net.UDPConn, error)
}

// Answerer answers DNS messages (dns.Server).
type Answerer interface {
	// Answer returns the answer to msg, cut to what UDP takes where udp is true; nil for none.
	Answer(ctx context.Context, vm string, udp bool, msg []byte) []byte
}

// Flow is what a guest wants to reach outside banger's network, or of the host: then Dst is of the gateway.
type Flow struct {
	// VM is the id, Name the name.
	VM, Name string
	// Proto is "tcp", "udp" or "icmp"; for icmp the port of Dst is 0.
	Proto string
	Dst   netip.AddrPort
	// Names are those the guest has resolved to this address.
	Names []string
}

// Config is what a Network needs.
type Config struct {
	// CIDR is the network, IPv4; Gateway the stack's address in it, where DNS is served.
	CIDR    netip.Prefix
	Gateway netip.Addr
	// Policy opens the sockets.
	Policy Egress
	// Allow is asked about each flow before it is let out; an error refuses it. nil allows all.
	Allow func(Flow) error
	// DNS answers on port 53 of the gateway; nil for nobody.
	DNS Answerer
	// Names are the names that a VM, by id, has resolved to an address; may be nil.
	Names func(vm string, a netip.Addr) []string
	// Sockets is how many sockets of the host all guests may hold together; 0 for half of the open files limit.
	Sockets int
	// Grace is how long a VM whose link has ended keeps its connections; 0 for 60 s.
	Grace time.Duration
	// Log may be nil.
	Log *slog.Logger
}

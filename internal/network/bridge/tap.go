package bridge

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Counters are what has passed a TAP, seen from its guest.
type Counters struct {
	// FromGuest and ToGuest count frames, the Bytes their lengths; Dropped are frames the guest did not take in time.
	FromGuest, FromGuestBytes uint64
	ToGuest, ToGuestBytes     uint64
	Dropped                   uint64
}

// TAPCounters returns the counters of a TAP since it was made: VMs that had it earlier count, too.
func TAPCounters(name string) (Counters, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return Counters{}, fmt.Errorf("look up tap %q: %w", name, err)
	}
	st := link.Attrs().Statistics
	if st == nil {
		return Counters{}, fmt.Errorf("look up tap %q: the kernel has no counters", name)
	}
	return Counters{FromGuest: st.RxPackets, FromGuestBytes: st.RxBytes, ToGuest: st.TxPackets, ToGuestBytes: st.TxBytes, Dropped: st.TxDropped}, nil
}

// OriginalDst is where the guest wanted to connect whose connection the rules sent to ProxyPort.
func OriginalDst(conn syscall.Conn) (netip.AddrPort, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	var (
		// struct sockaddr_in (ip(7)) is 16 bytes; the option's value as x/sys has it is longer and begins with it
		mreq   *unix.IPv6Mreq
		optErr error
	)
	err = raw.Control(func(fd uintptr) {
		mreq, optErr = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, unix.SO_ORIGINAL_DST)
	})
	if err := errors.Join(err, optErr); err != nil {
		return netip.AddrPort{}, fmt.Errorf("original destination: %w", err)
	}
	b := mreq.Multiaddr
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), uint16(b[2])<<8|uint16(b[3])), nil
}

package bridge

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"syscall"

	"git.thaloco.com/thaloco/banger/api"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// headerSize is the length of struct virtio_net_hdr_mrg_rxbuf, which virtio 1.0 devices put before every frame.
const headerSize = 12

// OpenTAP attaches to a TAP of the pool: what is read are frames of its guest's side, each behind 12 bytes of virtio-net header.
// It takes no privilege but to be its owner. The file does not block and is not inherited; to close it is to let go of the TAP.
// A TAP that is not there is a KindUnavailable, one that is attached to already a KindConflict.
func OpenTAP(name string) (*os.File, error) {
	link, err := find(name)
	if err != nil {
		return nil, err
	}
	if link == nil { // for root the request below would make one
		return nil, api.Errorf(api.KindUnavailable, "open tap %q: it is not there", name).WithHint("sudo banger net setup")
	}
	fd, err := openTun()
	if err != nil {
		return nil, err
	}
	if err = setIff(fd, name); err == nil {
		// what the last one who had it open has set would stay
		err = errors.Join(unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, headerSize), unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0))
	}
	if err == nil {
		return os.NewFile(uintptr(fd), name), nil // not before: the runtime could not wait for a file that is no TAP yet
	}
	_ = unix.Close(fd)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, api.Errorf(api.KindConflict, "open tap %q: another VM or program is attached to it", name)
	case errors.Is(err, unix.EPERM):
		return nil, api.Errorf(api.KindUnavailable, "open tap %q: it belongs to another user", name).WithHint("sudo banger net setup")
	}
	return nil, fmt.Errorf("open tap %q: %w", name, err)
}

// openTun opens the device that makes TAPs.
func openTun() (fd int, err error) {
	fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err == nil {
		return fd, nil
	}
	e := api.Errorf(api.KindUnavailable, "open /dev/net/tun: %w", err)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
		return -1, e.WithHint("this kernel has no TAPs: sudo modprobe tun")
	case errors.Is(err, fs.ErrPermission):
		return -1, e.WithHint("its mode is 0666 on usual hosts: sudo chmod 0666 /dev/net/tun")
	}
	return -1, e
}

// setIff makes fd a TAP or attaches it to the one that is there.
func setIff(fd int, name string) error {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
}

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

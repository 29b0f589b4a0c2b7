package nettest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Guest is a namespace whose only way out is a TAP: the kernel of this machine is the guest's.
type Guest struct {
	*NS
	// Link carries the frames of its eth0.
	Link *TapLink
}

// TapLink is the other end of a guest's eth0; it has the methods of vmm.Link.
type TapLink struct {
	file *os.File
	raw  syscall.RawConn
}

// NewGuest makes a guest with an address such as 172.16.0.10/24, a hardware address and a default route.
func NewGuest(t testing.TB, addr netip.Prefix, mac net.HardwareAddr, gateway netip.Addr, mtu int) *Guest {
	t.Helper()
	g := &Guest{NS: NewNS(t)}
	g.Do(t, func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("open /dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq("eth0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return fmt.Errorf("make tap: %w", err)
		}
		file := os.NewFile(uintptr(fd), "tap")
		raw, err := file.SyscallConn()
		g.Link = &TapLink{file: file, raw: raw}
		if err != nil {
			return err
		}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			os.WriteFile("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", []byte("1"), 0o644),
			netlink.LinkSetHardwareAddr(link, mac), netlink.LinkSetMTU(link, mtu), netlink.LinkSetTxQLen(link, 1000), address("eth0", addr.String()), setUp("eth0"),
			netlink.RouteAdd(&netlink.Route{Gw: net.IP(gateway.AsSlice())}),
		)
	})
	t.Cleanup(func() { _ = g.Link.Close() })
	return g
}

// ReadFrame waits for a frame of the guest.
func (l *TapLink) ReadFrame(p []byte) (int, error) { return l.file.Read(p) }

// WriteFrame sends the guest a frame.
func (l *TapLink) WriteFrame(pieces [][]byte) error {
	var failure error
	err := l.raw.Write(func(fd uintptr) bool {
		_, failure = unix.Writev(int(fd), pieces)
		return !errors.Is(failure, unix.EAGAIN)
	})
	return errors.Join(err, failure)
}

// Close takes eth0 away.
func (l *TapLink) Close() error { return l.file.Close() }

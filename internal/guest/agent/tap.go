package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
)

// tunDevice makes TAPs.
const tunDevice = "/dev/net/tun"

// tap is the guest's eth0 where the VMM gives it none: its frames go to the host over a stream. While there is no stream they stay in the
// device's queue, so that what the guest sends early, or while the stream is made anew, is late rather than lost; what
// the queue does not hold the kernel drops.
type tap struct {
	token func() string // of the call
	log   *slog.Logger

	setting sync.Mutex    // held by set
	made    chan struct{} // closed when file is there
	file    *os.File      // as long as it is open the device is there
	carrier sync.Mutex    // held by who carries frames of file: an old link may end after the new one has begun

	mu     sync.Mutex // guards hangUp
	hangUp func()     // ends the stream of the moment; nil without one
}

func newTAP(token func() string, log *slog.Logger) *tap {
	return &tap{token: token, log: log, made: make(chan struct{})}
}

// set gives the device its hardware address, and makes it where it is not there: then it is down.
func (t *tap) set(mac net.HardwareAddr) error {
	t.setting.Lock()
	defer t.setting.Unlock()
	if t.file == nil {
		f, err := openTAP(ethName)
		if err != nil {
			return err
		}
		t.file = f
		close(t.made)
	}
	link, err := netlink.LinkByName(ethName)
	if err == nil && link.Attrs().HardwareAddr.String() != mac.String() {
		err = netlink.LinkSetHardwareAddr(link, mac)
	}
	if err != nil {
		return fmt.Errorf("set the address of %q: %w", ethName, err)
	}
	return nil
}

// openTAP makes a TAP that lasts as long as the file is open, of which a read or write is a frame.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make tap %q: open %q: %w", name, tunDevice, err)
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make tap %q: %w", name, err)
	}
	return os.NewFile(uintptr(fd), tunDevice), nil // not before: what has no device cannot be waited for
}

// run carries frames over streams to the host, one after another, until the link, ctx or the device ends.
func (t *tap) run(ctx context.Context, l link) {
	ctx, cancel := whileLinked(ctx, l)
	defer cancel()
	select {
	case <-t.made:
	case <-ctx.Done():
		return
	}
	t.carrier.Lock()
	defer t.carrier.Unlock()
	for {
		err := t.once(ctx, l)
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.EBADFD):
			t.log.Error("the guest has no network any more: somebody has deleted its interface", "interface", ethName)
			return
		}
		t.log.Warn("the stream of frames ended", "error", err)
		select {
		case <-time.After(callAgain):
		case <-ctx.Done():
			return
		}
	}
}

// once carries frames over one stream. It returns why that ended.
func (t *tap) once(ctx context.Context, l link) error {
	dialCtx, cancel := context.WithTimeout(ctx, callTimeout)
	conn, err := l.Dial(dialCtx, wire.PortNet)
	cancel()
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	t.setHangUp(func() { conn.Close() })
	defer t.setHangUp(nil)
	if err := t.greet(conn); err != nil {
		return err
	}
	t.log.Info("the host takes frames", "boot_ms", bootMillis())
	if err := frames.Carry(ctx, conn, t.file); err != nil {
		return err
	}
	return errors.New("the host has closed it")
}

func (t *tap) setHangUp(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hangUp = f
}

// again has the stream of frames made anew, where there is one.
func (t *tap) again() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.hangUp != nil {
		t.hangUp()
	}
}

// greet says hello and takes the welcome, and nothing of what follows it.
func (t *tap) greet(conn net.Conn) error {
	_ = conn.SetDeadline(time.Now().Add(callTimeout))
	if err := wire.WriteLine(conn, wire.NetHello{Version: wire.Version, Token: t.token()}); err != nil {
		return err
	}
	var r wire.CallReply
	if err := wire.ReadLine(conn, &r); err != nil {
		return fmt.Errorf("await the host's welcome: %w", err)
	}
	if r.Type != wire.ReplyWelcome {
		return fmt.Errorf("the host refused the stream of frames: %q", r.Reason)
	}
	return conn.SetDeadline(time.Time{})
}

// tapUnits keep udev, where the image runs it, from giving a TAP an address of its own choice.
func tapUnits() []unitFile {
	return []unitFile{{path: "network/00-banger.link", content: fmt.Sprintf(`[Match]
OriginalName=%s
Driver=tun

[Link]
NamePolicy=keep
MACAddressPolicy=none
`, ethName)}}
}

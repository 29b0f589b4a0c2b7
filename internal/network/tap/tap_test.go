package tap

import (
	"errors"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
)

// newTAP makes a TAP of the thread's namespace.
func newTAP(name string, owner uint32) error {
	return netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP,
		Flags: netlink.TuntapFlag(Flags | unix.IFF_TUN_EXCL), Owner: owner})
}

func TestOpen(t *testing.T) {
	ns := nettest.NewNS(t)
	ns.Do(t, func() error {
		if err := newTAP("t0", 4711); err != nil {
			return err
		}
		f, err := Open("t0")
		if err != nil {
			return err
		}
		if _, err := Open("t0"); api.KindOf(err) != api.KindConflict {
			t.Errorf("opened twice: %v", err)
		}
		// Frames go both ways, once it is up.
		link, err := netlink.LinkByName("t0")
		if err := errors.Join(err, netlink.LinkSetUp(link)); err != nil {
			return err
		}
		if _, err := f.Write(make([]byte, 10+60)); err != nil {
			t.Errorf("write a frame: %v", err)
		}
		if err := f.Close(); err != nil {
			return err
		}
		f, err = Open("t0") // it stays, and can be had again
		if err != nil {
			return err
		}
		return f.Close()
	})
}

func TestOpenWhatIsNone(t *testing.T) {
	ns := nettest.NewNS(t)
	ns.Do(t, func() error {
		if _, err := Open("none0"); api.KindOf(err) != api.KindUnavailable {
			t.Errorf("one that is not there: %v", err)
		}
		if _, err := netlink.LinkByName("none0"); err == nil {
			t.Error("it was made")
		}
		if _, err := Open("lo"); api.KindOf(err) != api.KindConflict {
			t.Errorf("no TAP: %v", err)
		}
		if _, err := Open("a-name-that-is-too-long"); err == nil {
			t.Error("a name no interface can have")
		}
		return nil
	})
}

// TestOwner: a user opens what was given to it and nothing else.
func TestOwner(t *testing.T) {
	if st, err := os.Stat(Device); err == nil && st.Mode()&0o006 == 0 && os.Geteuid() != 0 {
		t.Skip("only root may open ", Device)
	}
	ns := nettest.NewNS(t)
	ns.Do(t, func() error {
		for name, owner := range map[string]uint32{"mine": 65534, "other": 4711} {
			if err := newTAP(name, owner); err != nil {
				return err
			}
		}
		asUser := func(name string) error { return asUser(t, name) }
		if err := asUser("mine"); err != nil {
			t.Errorf("its own: %v", err)
		}
		if err := asUser("other"); api.KindOf(err) != api.KindUnavailable {
			t.Errorf("another user's: %v", err)
		}
		if err := Give("other", 65534); err != nil {
			return err
		}
		if err := asUser("other"); err != nil {
			t.Errorf("after it was given: %v", err)
		}
		return nil
	})
}

// asUser opens a TAP without privileges, as user 65534: this thread's alone, which the test throws away.
func asUser(t *testing.T, name string) error {
	t.Helper()
	// The device is opened as root, which it may be reserved for; who may have a TAP is decided at TUNSETIFF.
	f, err := os.OpenFile(Device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0)); errno != 0 {
		return errno
	}
	err = attach(int(f.Fd()), name)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); errno != 0 {
		return errno
	}
	if err != nil {
		return explain(name, err)
	}
	return nil
}

func BenchmarkOpen(b *testing.B) {
	ns := nettest.NewNS(b)
	ns.Do(b, func() error {
		if err := newTAP("t0", 0); err != nil {
			return err
		}
		for b.Loop() {
			f, err := Open("t0")
			if err != nil {
				return err
			}
			f.Close()
		}
		return nil
	})
}

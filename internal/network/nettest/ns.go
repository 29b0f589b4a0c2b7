// Package nettest is an internet for tests: network namespaces of the test's own, with servers of every temper behind a
// gateway, a capture of what was really sent, and a guest whose network card is a TAP. It runs no programs and leaves nothing
// behind: a namespace lives as long as the test's file descriptor of it. It needs root, and skips the test without.
//
// ns.go is one namespace, internet.go the host's and what surrounds it, servers.go and dns.go what listens there, run.go a
// test that runs inside the host's namespace, tap.go a guest, capture.go a packet capture.
package nettest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct {
	file *os.File
}

// NewNS makes a namespace with a loopback interface that is up. It goes with the test.
func NewNS(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	var n NS
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		f, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		n.file = f
		return err
	})
	if err != nil {
		t.Skipf("this machine makes no network namespaces: %v", err)
	}
	t.Cleanup(func() { _ = n.file.Close() }) // the last reference: the kernel takes it down
	n.Do(t, func() error { return setUp("lo") })
	return &n
}

// openNS is the namespace at a path that Path returned.
func openNS(t testing.TB, path string) *NS {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &NS{f}
}

// Path names the namespace for setns(2) in any process, as long as this one keeps it.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.file.Fd()) }

// Do runs f on a thread inside the namespace. A socket that f makes stays in it; a goroutine that f starts does not.
func (n *NS) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Try(f); err != nil {
		t.Fatal(err)
	}
}

// Try is Do that returns the error.
func (n *NS) Try(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// Starter is a program that is ready to be started, as an *exec.Cmd is.
type Starter interface{ Start() error }

// Start starts a program inside the namespace, with all its threads and children.
func (n *NS) Start(cmd Starter) error { return n.Try(cmd.Start) }

// onThread runs f on a thread of its own, which ends with it: its namespace can be changed. It is not the first thread, which would not
// end, and whose namespace /proc/self and /proc/net are about.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if unix.Gettid() == unix.Getpid() {
			err := onThread(f)
			runtime.UnlockOSThread()
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// setUp brings an interface of the thread's namespace up.
func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %q: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %q up: %w", name, err)
	}
	return nil
}

// address gives an interface of the thread's namespace an address, as "192.0.2.1/24".
func address(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("interface %q: %w", name, err)
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, a); err != nil {
		return fmt.Errorf("add address %s to %q: %w", cidr, name, err)
	}
	return nil
}

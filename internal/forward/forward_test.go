package forward

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
)

// at is where a forward listens.
func at(f api.Forward) netip.AddrPort { return netip.AddrPortFrom(f.HostAddress, f.HostPort) }

// freeForward is one at a port that stays free.
func freeForward(t *testing.T) api.Forward {
	t.Helper()
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	return api.Forward{Protocol: api.TCP, HostAddress: netip.MustParseAddr("127.0.0.1"), HostPort: port, GuestPort: 1}
}

// TestMain is also another program of the host, which has a port until its stdin ends.
func TestMain(m *testing.M) {
	if os.Getenv("BANGER_TEST_LISTEN") == "" {
		os.Exit(m.Run())
	}
	ln, err := net.Listen("tcp4", os.Getenv("BANGER_TEST_LISTEN"))
	if err != nil {
		os.Exit(1)
	}
	fmt.Fprintln(os.Stdout, ln.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

func isFree(f api.Forward) bool {
	ln, err := net.Listen("tcp", at(f).String())
	if err != nil {
		return false
	}
	ln.Close()
	return true
}

func TestTakenByAnotherProcess(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BANGER_TEST_LISTEN="+at(freeForward(t)).String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	where := netip.MustParseAddrPort(strings.TrimSpace(line))
	s := newService(t)
	free := freeForward(t)
	f := api.Forward{HostPort: where.Port(), GuestPort: 80}
	want := fmt.Sprintf("listen on %s/tcp: the port is used by forward.test (pid %d)", where, cmd.Process.Pid)
	_, opened := s.Open(VM{ID: "1", Name: "web"}, []api.Forward{free, f})
	_, checked := s.Check([]api.Forward{f}, func(api.Forward) bool { return false })
	for _, err := range []error{opened, checked} {
		if err == nil || err.Error() != want || api.KindOf(err) != api.KindConflict || api.AsError(err).Hint == "" {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if !isFree(free) || s.Status("1") != nil {
		t.Errorf("the other forward is held: %v", s.Status("1"))
	}
	// A VM that runs has what can be had, and the rest once it is free.
	told := make(chan string, 10)
	s.Keep(VM{ID: "1", Name: "web", Dial: dialTo(nil)}, []api.Forward{free, {Protocol: "tcp", HostAddress: where.Addr(), HostPort: where.Port(), GuestPort: 80}},
		func(f api.Forward, err error) { told <- fmt.Sprintf("%d %v", f.GuestPort, err) })
	if got := <-told; got != "80 "+want {
		t.Errorf("told %q", got)
	}
	if st := s.Status("1"); len(st) != 2 || !st[0].Listening || st[1].Listening || st[1].Error != want {
		t.Errorf("status %+v", st)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := <-told; got != "80 <nil>" {
		t.Errorf("told %q", got)
	}
	if st := s.Status("1"); !st[1].Listening || st[1].Error != "" {
		t.Errorf("status %+v", st)
	}
}

func TestTakenByAnotherVM(t *testing.T) {
	s := newService(t)
	for _, protocol := range []string{api.TCP, api.UDP} {
		has := open(t, s, "web-"+protocol, api.Forward{Protocol: protocol, GuestPort: 80}, dialTo(nil))
		for _, host := range []string{"127.0.0.1", "0.0.0.0"} {
			_, err := s.Open(VM{ID: "2", Name: "db"}, []api.Forward{{Protocol: protocol, HostAddress: netip.MustParseAddr(host), HostPort: has.Port(), GuestPort: 80}})
			if want := "the port is used by vm web-" + protocol; err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("%s: %v, want %s", host, err, want)
			}
		}
	}
}

func TestAddAndRemove(t *testing.T) {
	s := newService(t)
	if _, err := s.Add("1", api.Forward{GuestPort: 1}); !errors.Is(err, ErrNotOpen) {
		t.Errorf("to a VM that is not open: %v", err)
	}
	if list, err := s.Open(VM{ID: "1", Name: "web", Dial: dialTo(map[uint16]string{1: listen(t, echo)})}, nil); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	if f, err := s.Add("1", api.Forward{GuestPort: 1}); err != nil || f.HostPort == 0 || isFree(f) || !s.Remove("1", f) {
		t.Fatalf("at any port: %v, %v", f, err)
	}
	want := freeForward(t)
	f, err := s.Add("1", want)
	if err != nil || f != want {
		t.Fatalf("%v, %v", f, err)
	}
	if _, err := s.Add("1", f); api.KindOf(err) != api.KindConflict || !strings.Contains(err.Error(), "vm web") {
		t.Errorf("twice: %v", err)
	}
	if _, err := s.Add("1", api.Forward{}); api.KindOf(err) != api.KindInvalid {
		t.Errorf("an invalid one: %v", err)
	}
	if _, err := s.Open(VM{ID: "1", Name: "web"}, nil); err == nil {
		t.Error("it was opened twice")
	}
	c := connect(t, at(f))
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	other := f
	other.GuestPort = 2
	if s.Remove("1", other) || s.Remove("2", f) {
		t.Error("what is not there was removed")
	}
	if !s.Remove("1", f) || s.Remove("1", f) || !isFree(f) {
		t.Error("it was not removed once")
	}
	if err := resetBy(c); err != nil {
		t.Error(err)
	}
	s.Close("1")
	s.Close("1")
	if st := s.Status("1"); st != nil {
		t.Errorf("closed: %v", st)
	}
}

// A forward that is removed, or whose VM ends, while it waits for its port does not come back.
func TestRemovedWhileItWaits(t *testing.T) {
	s := newService(t)
	list := []api.Forward{freeForward(t), freeForward(t)}
	var held []net.Listener
	for _, f := range list {
		ln, err := net.Listen("tcp4", at(f).String())
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, ln)
	}
	told := make(chan error, 10)
	s.Keep(VM{ID: "1", Name: "web"}, list, func(_ api.Forward, err error) { told <- err })
	s.Keep(VM{ID: "1", Name: "web"}, list, func(_ api.Forward, err error) { t.Error("kept twice") })
	if !s.Remove("1", list[0]) {
		t.Error("not removed")
	}
	held[0].Close()
	held[1].Close()
	for _, bad := range []bool{true, true, false} {
		if err := <-told; (err != nil) != bad {
			t.Errorf("told %v", err)
		}
	}
	if st := s.Status("1"); len(st) != 1 || st[0].Forward != list[1] || !isFree(list[0]) {
		t.Errorf("status %v", st)
	}
}

func TestCheckAvoids(t *testing.T) {
	s := newService(t)
	asked := 0
	list, err := s.Check([]api.Forward{{GuestPort: 1}, {Protocol: api.UDP, GuestPort: 1}}, func(f api.Forward) bool {
		asked++
		return asked <= 5 // not the first five
	})
	if err != nil || asked != 7 || list[0].HostPort == 0 || list[1].HostPort == 0 {
		t.Errorf("asked %d times, %v, %v", asked, list, err)
	}
	want := freeForward(t)
	if list, err = s.Check([]api.Forward{want}, func(api.Forward) bool { return true }); err != nil || list[0] != want || !isFree(want) { // it was asked for
		t.Errorf("%v, %v", list, err)
	}
	if _, err := s.Check([]api.Forward{{GuestPort: 1}}, func(api.Forward) bool { return true }); err != nil { // better than none
		t.Error(err)
	}
}

func TestExplain(t *testing.T) {
	s := New(Config{Who: func(protocol string, _ netip.AddrPort) string { return "" }})
	for _, tc := range []struct {
		f          api.Forward
		err        error
		kind       api.ErrorKind
		want, hint string
	}{
		{fwd("tcp", "127.0.0.1", 80, 80), syscall.EADDRINUSE, api.KindConflict, "listen on 127.0.0.1:80/tcp: the port is in use", "another port"},
		{fwd("tcp", "127.0.0.1", 80, 80), syscall.EACCES, api.KindInvalid, "listen on 127.0.0.1:80/tcp: ports below 1024 are not for every user", "such as 8080"},
		{fwd("udp", "::1", 80, 80), syscall.EAFNOSUPPORT, api.KindUnavailable, "listen on [::1]:80/udp: this host has no IPv6", "IPv4"},
		{fwd("tcp", "192.0.2.1", 80, 80), syscall.EADDRNOTAVAIL, api.KindUnavailable, "listen on 192.0.2.1:80/tcp: this host has no address 192.0.2.1", "127.0.0.1"},
		{fwd("tcp", "127.0.0.1", 80, 80), syscall.EMFILE, api.KindUnavailable, "listen on 127.0.0.1:80/tcp: too many open files", ""},
	} {
		err := s.explain(tc.f, &net.OpError{Op: "listen", Err: os.NewSyscallError("bind", tc.err)})
		if err.Error() != tc.want || api.KindOf(err) != tc.kind || !strings.Contains(api.AsError(err).Hint, tc.hint) {
			t.Errorf("%v (%s), want %s", err, api.AsError(err).Hint, tc.want)
		}
	}
	for _, protocol := range []string{api.TCP, api.UDP} { // an address set aside for documents
		if _, err := s.Check([]api.Forward{fwd(protocol, "192.0.2.1", 0, 1)}, nil); api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), "no address 192.0.2.1") {
			t.Errorf("%s: %v", protocol, err)
		}
	}
}

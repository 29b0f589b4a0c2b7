package agent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/network/nettest"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
)

// carryLink is a link whose streams of frames the test takes.
type carryLink struct{ pipeLink }

func newCarryLink() *carryLink { return &carryLink{*newPipeLink()} }

func (l *carryLink) Dial(_ context.Context, port uint32) (net.Conn, error) {
	if port != wire.PortNet {
		return nil, errors.New("the agent dialled another port")
	}
	a, b := net.Pipe()
	l.calls <- b
	return a, nil
}

// stream is the host's end of a stream of frames.
type stream struct{ *supervisor }

// admit takes the next stream, whose hello is to carry token, and answers it; frames follow in the same write.
func (l *carryLink) admit(t *testing.T, token string, frames ...[]byte) *stream {
	t.Helper()
	s := l.take(t)
	var hello wire.NetHello
	must(t, wire.ReadLine(s.conn, &hello))
	if hello.Version != wire.Version || hello.Token != token {
		t.Errorf("the hello is %+v, want the token %q", hello, token)
	}
	var b bytes.Buffer
	must(t, wire.WriteLine(&b, wire.CallReply{Type: wire.ReplyWelcome}))
	for _, f := range frames {
		b.Write(binary.BigEndian.AppendUint16(nil, uint16(len(f))))
		b.Write(f)
	}
	go func() { _, _ = s.conn.Write(b.Bytes()) }() // the agent reads as it pleases
	t.Cleanup(func() { _ = s.conn.Close() })
	return &stream{s}
}

// frame is the next frame of the guest.
func (s *stream) frame() []byte {
	s.t.Helper()
	var head [2]byte
	must(s.t, ignored(io.ReadFull(s.conn, head[:])))
	f := make([]byte, binary.BigEndian.Uint16(head[:]))
	must(s.t, ignored(io.ReadFull(s.conn, f)))
	return f
}

// pairTAP is a tap whose device is one end of a pair; the test has the other.
func pairTAP(t *testing.T, token func() string) (*tap, *frames.Link) {
	t.Helper()
	host, vm, err := frames.Pair()
	must(t, err)
	l, err := frames.NewLink(host, nil)
	must(t, err)
	p := newTAP(token, slog.New(slog.NewTextHandler(t.Output(), nil)))
	p.file = vm
	close(p.made)
	t.Cleanup(func() { _ = errors.Join(l.Close(), vm.Close()) })
	return p, l
}

// start runs p over l; the channel is closed when that has ended.
func (p *tap) start(ctx context.Context, l link) <-chan struct{} {
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		p.run(ctx, l)
	}()
	return ended
}

func await(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal(what + " did not happen")
	}
}

// ignored is the error of a call whose count says no more.
func ignored(_ int, err error) error { return err }

// frameOf is a frame of n bytes with a number.
func frameOf(i byte, n int) []byte { return bytes.Repeat([]byte{i}, n) }

func TestTAPStreams(t *testing.T) {
	token := "first"
	p, device := pairTAP(t, func() string { return token })
	l := newCarryLink()
	must(t, device.WriteFrame([][]byte{frameOf(1, 60)})) // before there is a stream
	ended := p.start(t.Context(), l)
	s := l.admit(t, "first", frameOf(2, 14), frameOf(3, wire.MaxEthernet))
	if f := s.frame(); !bytes.Equal(f, frameOf(1, 60)) {
		t.Errorf("the first frame has %d bytes", len(f))
	}
	buf := make([]byte, wire.MaxEthernet)
	for _, want := range [][]byte{frameOf(2, 14), frameOf(3, wire.MaxEthernet)} { // came with the welcome
		n, err := device.ReadFrame(buf)
		if must(t, err); !bytes.Equal(buf[:n], want) {
			t.Errorf("the device was given %d bytes, want %d", n, len(want))
		}
	}
	token = "second"
	_ = s.conn.Close()
	r := l.take(t)
	var hello wire.NetHello
	must(t, wire.ReadLine(r.conn, &hello))
	must(t, device.WriteFrame([][]byte{frameOf(4, 60)})) // waits for the next stream
	r.say(wire.CallReply{Type: wire.ReplyRefused, Reason: "not now"})
	_ = r.conn.Close()
	s = l.admit(t, "second")
	if f := s.frame(); !bytes.Equal(f, frameOf(4, 60)) {
		t.Errorf("after a pause came %d bytes", len(f))
	}
	must(t, ignored(s.conn.Write([]byte{0, 0}))) // no frame: the agent hangs up, and calls again
	if _, err := s.conn.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("after a violation: %v", err)
	}
	s = l.admit(t, "second")
	p.again() // as after a snapshot: nobody has told of the stream's end
	if _, err := s.conn.Read(buf); !errors.Is(err, io.EOF) {
		t.Errorf("the stream goes on: %v", err)
	}
	l.admit(t, "second")
	close(l.done)
	await(t, "the end with the link", ended)
}

// A link that ends a while after the next has begun does not get in its way.
func TestTAPLinksFollow(t *testing.T) {
	p, device := pairTAP(t, func() string { return "token" })
	first, second := newCarryLink(), newCarryLink()
	ended := p.start(t.Context(), first)
	first.admit(t, "token")
	ctx, cancel := context.WithCancel(t.Context())
	next := p.start(ctx, second)
	close(first.done)
	await(t, "the end of the first link", ended)
	s := second.admit(t, "token")
	must(t, device.WriteFrame([][]byte{frameOf(7, 77)}))
	if f := s.frame(); !bytes.Equal(f, frameOf(7, 77)) {
		t.Errorf("over the second link came %d bytes", len(f))
	}
	cancel()
	await(t, "the end with the context", next)
}

// A link that ends before there is a device is not waited for.
func TestTAPNeverMade(t *testing.T) {
	p := newTAP(func() string { return "" }, slog.New(slog.DiscardHandler))
	l := newCarryLink()
	ended := p.start(t.Context(), l)
	close(l.done)
	await(t, "the end with the link", ended)
}

// TestTAPDevice makes the device in a namespace, and talks to the kernel behind it.
func TestTAPDevice(t *testing.T) {
	ns := nettest.NewNS(t)
	conf := wire.Network{Device: wire.DeviceTAP, MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", Gateway: "172.16.0.1", MTU: wire.NetMTU}
	a := &agent{tap: newTAP(func() string { return "token" }, slog.New(slog.NewTextHandler(t.Output(), nil)))}
	l := newCarryLink()
	ended := a.tap.start(t.Context(), l)
	for range 2 { // it may be called again
		ns.Do(t, func() error { return a.setUpNetwork(conf) })
	}
	var eth0 netlink.Link
	ns.Do(t, func() (err error) {
		eth0, err = netlink.LinkByName(ethName)
		return err
	})
	if at := eth0.Attrs(); at.HardwareAddr.String() != conf.MAC || at.MTU != conf.MTU || at.Flags&net.FlagUp == 0 {
		t.Errorf("eth0 is %+v", at)
	}
	gateway, own := netip.MustParseAddr(conf.Gateway), netip.MustParsePrefix(conf.Address).Addr()
	request := fakeguest.ARPRequest(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 1}, gateway, own)
	s := l.admit(t, "token", request)
	s.awaitARP(own, conf.MAC)

	conf.MAC = "52:54:ac:10:00:03" // the guest becomes another VM
	ns.Do(t, func() error { return a.setUpNetwork(conf) })
	must(t, ignored(s.conn.Write(append([]byte{0, byte(len(request))}, request...))))
	s.awaitARP(own, conf.MAC)

	ns.Do(t, func() error { return netlink.LinkSetDown(eth0) })
	must(t, ignored(s.conn.Write(append([]byte{0, byte(len(request))}, request...)))) // lost, as on a wire
	ns.Do(t, func() error { return a.setUpNetwork(conf) })
	must(t, ignored(s.conn.Write(append([]byte{0, byte(len(request))}, request...))))
	s.awaitARP(own, conf.MAC)

	ns.Do(t, func() error { return netlink.LinkDel(eth0) })
	await(t, "the end with the device", ended)
}

// awaitARP reads frames until one says where own is.
func (s *stream) awaitARP(own netip.Addr, mac string) {
	s.t.Helper()
	for {
		if got := fakeguest.ParseARPReply(s.frame(), own); got != nil {
			if got.String() != mac {
				s.t.Errorf("the guest is at %s, want %s", got, mac)
			}
			return
		}
	}
}

func TestTAPIsThereAlready(t *testing.T) {
	ns := nettest.NewNS(t)
	ns.Do(t, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: ethName}, PeerName: "other"})
	})
	p := newTAP(func() string { return "" }, slog.New(slog.DiscardHandler))
	if err := ns.Try(func() error { return p.set(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 2}) }); err == nil {
		t.Error("an interface of that name was there, and that was no error")
	}
	if p.file != nil {
		t.Error("it has a device nevertheless")
	}
}

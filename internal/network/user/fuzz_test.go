package user

import (
	"net/netip"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
)

// FuzzFrame: no frames of a guest make the daemon panic, have it dial a neighbour or the host, or reach a neighbour under
// another's source.
func FuzzFrame(f *testing.F) {
	vm, out := testVM(1), netip.MustParseAddr("203.0.113.5")
	for _, frame := range [][]byte{
		ipFrame(gatewayMAC, mac(1), vm.Addr, out, 6, syn(1, 80)), ipFrame(gatewayMAC, mac(1), vm.Addr, out, 17, udpTo(1, 80, []byte("x"))),
		ipFrame(gatewayMAC, mac(1), vm.Addr, testGateway, 1, echoRequest()), ipFrame(gatewayMAC, mac(1), vm.Addr, testGateway, 17, udpTo(1, 53, []byte("x"))),
		ipFrame(mac(2), mac(1), vm.Addr, testVM(2).Addr, 17, udpTo(1, 80, []byte("x"))), ipFrame(gatewayMAC, mac(1), vm.Addr, netip.MustParseAddr("127.0.0.1"), 6, syn(1, 80)),
		arpFrame(broadcastMAC, mac(1), arpPacket{op: arpRequest, senderMAC: mac(1), sender: vm.Addr, target: testGateway}),
		ipFrame(gatewayMAC, mac(1), vm.Addr, testVM(3).Addr, 6, syn(1, 80)), {},
	} {
		f.Add(frame, false)
		f.Add(frame, true)
	}
	o := &outside{policy: realPolicy(f)}
	n := newNetwork(f, o, func(c *Config) {
		c.DNS = answerFunc(func(_ string, _ bool, msg []byte) []byte { return msg })
	})
	link, port := attach(f, n, 1)
	neighbour, _ := attach(f, n, 2)
	f.Fuzz(func(t *testing.T, frame []byte, repair bool) {
		frame = append([]byte(nil), frame...)
		if repair && len(frame) >= 34 { // so that more get further than the source's check
			copy(frame[6:], testVM(1).MAC)
			copy(frame[26:], vm.Addr.AsSlice())
			frame[14] = 0x45
			frame[16], frame[17] = byte((len(frame)-14)>>8), byte(len(frame)-14)
		}
		port.receive(frame, nil)
		if len(frame) > 0 {
			whole := buffer.NewViewWithData(frame)
			port.receive(whole.AsSlice(), whole)
		}
		drainFrames(link)
		for len(neighbour.toGuest) > 0 {
			got := <-neighbour.toGuest
			if [6]byte(got[6:12]) != mac(1) && [6]byte(got[6:12]) != gatewayMAC {
				t.Errorf("a neighbour was sent %x", got)
			}
		}
		for _, d := range o.all() {
			_, to, _ := strings.Cut(d, " ")
			a, err := netip.ParseAddr(to)
			if err != nil {
				a = netip.MustParseAddrPort(to).Addr()
			}
			if testCIDR.Contains(a) || a.IsPrivate() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsUnspecified() || a.As4()[0] == 0 || a.As4()[0] >= 224 {
				t.Fatalf("dialled %s", d)
			}
		}
		o.mu.Lock()
		o.dialed = nil
		o.mu.Unlock()
	})
}

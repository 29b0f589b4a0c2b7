package user

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// floods are frames that VM 1 sends without end, the i-th of each kind.
var floods = map[string]func(i int) []byte{
	"asks for the gateway":   func(int) []byte { return arpFrame(broadcastMAC, mac(1), floodARP(testGateway)) },
	"announces itself":       func(int) []byte { return arpFrame(broadcastMAC, mac(1), floodARP(testVM(1).Addr)) },
	"asks for its neighbour": func(int) []byte { return arpFrame(broadcastMAC, mac(1), floodARP(testVM(2).Addr)) },
	"pings the gateway":      func(int) []byte { return floodTo(testGateway, 1, echoRequest()) },
	"pings outside": func(i int) []byte {
		return floodTo(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 1, echoRequest())
	},
	"asks for names":            func(i int) []byte { return floodTo(testGateway, 17, udpTo(uint16(i), 53, make([]byte, 500))) },
	"datagrams for the gateway": func(i int) []byte { return floodTo(testGateway, 17, udpTo(uint16(i), uint16(i), make([]byte, 500))) },
	"datagrams for outside": func(i int) []byte {
		return floodTo(floodOutside, 17, udpTo(uint16(i), uint16(i/7), make([]byte, 60000)))
	},
	"opens connections":            func(i int) []byte { return floodTo(floodOutside, 6, syn(uint16(i), uint16(1+i%2*79))) },
	"opens closed ports":           func(i int) []byte { return floodTo(testGateway, 6, syn(uint16(i), uint16(i/3))) },
	"opens DNS":                    func(i int) []byte { return floodTo(testGateway, 6, syn(uint16(i), 53)) },
	"segments of no connection":    func(i int) []byte { return floodTo(floodOutside, 6, floodSegment(uint16(i))) },
	"halves of packets":            floodFragment,
	"datagrams for its neighbour":  func(i int) []byte { return floodNeighbour(17, udpTo(uint16(i), uint16(i), make([]byte, 60000))) },
	"small ones for its neighbour": func(i int) []byte { return floodNeighbour(17, udpTo(uint16(i), uint16(i), nil)) },
	"as its neighbour": func(int) []byte {
		return ipFrame(gatewayMAC, mac(2), testVM(2).Addr, floodOutside, 17, udpTo(1, 80, nil))
	},
	"noise": func(i int) []byte { return bytes.Repeat([]byte{byte(i), byte(i >> 8)}, 30000) },
	"empty": func(int) []byte { return nil },
}

var floodOutside = netip.MustParseAddr("203.0.113.5")

func floodARP(target netip.Addr) arpPacket {
	return arpPacket{op: arpRequest, senderMAC: mac(1), sender: testVM(1).Addr, target: target}
}

func floodTo(to netip.Addr, proto uint8, payload []byte) []byte {
	return ipFrame(gatewayMAC, mac(1), testVM(1).Addr, to, proto, payload)
}

func floodNeighbour(proto uint8, payload []byte) []byte {
	return ipFrame(mac(2), mac(1), testVM(1).Addr, testVM(2).Addr, proto, payload)
}

func floodSegment(port uint16) []byte {
	b := header.TCP(make([]byte, 1020))
	b.Encode(&header.TCPFields{SrcPort: port, DstPort: 80, SeqNum: 7, AckNum: 9, DataOffset: 20, Flags: header.TCPFlagAck, WindowSize: 65535})
	return b
}

// floodFragment is the first part of a packet whose rest never comes.
func floodFragment(i int) []byte {
	f := floodTo(testGateway, 17, make([]byte, 60000))
	ip := header.IPv4(f[14:])
	binary.BigEndian.PutUint16(ip[4:], uint16(i))
	ip[6] = 0x20 // more fragments
	ip.SetChecksum(0)
	ip.SetChecksum(^ip.CalculateChecksum())
	return f
}

// TestAnyFlood: whatever a guest sends without end, and however little it reads, it costs the daemon a bounded amount of memory, and
// another guest's connection works meanwhile.
func TestAnyFlood(t *testing.T) {
	const frames, bytes, limit = 10_000, 160 << 20, 96 << 20
	for what, frame := range floods {
		t.Run(what, func(t *testing.T) {
			o := &outside{tcp: map[uint16]string{80: serveTCP(t, echoTCP)}, udp: map[uint16]string{80: serveUDP(t)}, hang: make(chan struct{})}
			defer close(o.hang)
			n := newNetwork(t, o, func(c *Config) {
				c.Sockets = 2000
				c.DNS = answerFunc(func(string, bool, []byte) []byte { <-o.hang; return nil })
			})
			bad, port := attach(t, n, 1) // nobody reads what is sent to it
			_, _ = attach(t, n, 2)       // nor to this one
			g := newGuest(t, n, 3)
			before := heap()
			stop, stopped := make(chan struct{}), make(chan struct{})
			var sent, size atomic.Int64
			go func() {
				defer close(stopped)
				for i := 0; ; i++ {
					f := frame(i)
					select {
					case bad.fromGuest <- f:
						sent.Add(1)
						size.Add(int64(len(f)))
					case <-stop:
						return
					}
				}
			}()
			defer func() {
				close(stop)
				<-stopped
			}()
			deadline := time.Now().Add(10 * time.Second) // a slow machine sends less
			eventually(t, "it floods", func() bool { return sent.Load() >= frames || size.Load() >= bytes || time.Now().After(deadline) })
			for range 3 {
				transfer(t, g)
			}
			if more := heap() - before; more > limit {
				t.Errorf("%d frames cost %d MiB", sent.Load(), more>>20)
			}
			if s := port.Stats(); s.FramesFromGuest < 100 {
				t.Errorf("only %d frames were taken", s.FramesFromGuest)
			}
		})
	}
}

package nettest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Capture records the IPv4 packets that an interface sees.
type Capture struct {
	file *os.File
	done chan struct{}

	mu      sync.Mutex
	packets []Packet // guarded by mu
}

// Packet is what a capture keeps of a packet.
type Packet struct {
	Src, Dst netip.Addr
	// Proto is the protocol's number; DstPort is set for TCP (6) and UDP (17).
	Proto   uint8
	DstPort uint16
}

// NewCapture records what passes an interface of the namespace, in both directions, until the test ends.
func (n *NS) NewCapture(t testing.TB, name string) *Capture {
	t.Helper()
	var fd int
	n.Do(t, func() error {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		proto := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(proto)); err != nil {
			return fmt.Errorf("capture %q: %w", name, err)
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index})
	})
	c := &Capture{file: os.NewFile(uintptr(fd), name), done: make(chan struct{})}
	go c.read()
	t.Cleanup(func() {
		_ = c.file.Close()
		<-c.done
	})
	return c
}

func (c *Capture) read() {
	defer close(c.done)
	buf := make([]byte, 1<<16)
	for {
		n, err := c.file.Read(buf)
		if err != nil {
			return
		}
		if p, ok := parse(buf[:n]); ok {
			c.mu.Lock()
			c.packets = append(c.packets, p)
			c.mu.Unlock()
		}
	}
}

func parse(b []byte) (Packet, bool) {
	if len(b) < 20 || b[0]>>4 != 4 {
		return Packet{}, false
	}
	p := Packet{Src: netip.AddrFrom4([4]byte(b[12:16])), Dst: netip.AddrFrom4([4]byte(b[16:20])), Proto: b[9]}
	head := int(b[0]&15) * 4
	if (p.Proto == unix.IPPROTO_TCP || p.Proto == unix.IPPROTO_UDP) && len(b) >= head+4 {
		p.DstPort = uint16(b[head+2])<<8 | uint16(b[head+3])
	}
	return p, true
}

// Packets are those seen so far.
func (c *Capture) Packets() []Packet {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Packet(nil), c.packets...)
}

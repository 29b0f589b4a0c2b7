package vhostvsock

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"testing"
)

// TestBadGuest has a driver that breaks the rules: the device ends.
func TestBadGuest(t *testing.T) {
	const somewhere = ramBase + txBuffers
	for name, c := range map[string]struct {
		do   func(q *fakeQEMU)
		want string
	}{
		"head": {func(q *fakeQEMU) { q.give(txRing, ringSize) }, "descriptor 64 of 64"},
		"next": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext, 9999)
			q.give(txRing, 0)
		}, "descriptor 9999 of 64"},
		"loop": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext, 1)
			q.desc(txRing, 1, somewhere, 44, descNext, 0)
			q.give(txRing, 0)
		}, "does not end"},
		"indirect": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 64, descIndirect, 0)
			q.give(txRing, 0)
		}, "indirect"},
		"address": {func(q *fakeQEMU) {
			q.desc(txRing, 0, ramBase-1, 44, 0, 0)
			q.give(txRing, 0)
		}, "not in the guest's memory"},
		"end": {func(q *fakeQEMU) {
			q.desc(txRing, 0, ramBase+ramSize-43, 44, 0, 0)
			q.give(txRing, 0)
		}, "not in the guest's memory"},
		"wrap": {func(q *fakeQEMU) {
			q.desc(txRing, 0, 0xffffffffffffffff, 0xffffffff, 0, 0)
			q.give(txRing, 0)
		}, "not in the guest's memory"},
		"order": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext|descWrite, 1)
			q.desc(txRing, 1, somewhere, 44, 0, 0)
			q.give(txRing, 0)
		}, "behind one to be written"},
		"written": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 44, descNext, 1)
			q.desc(txRing, 1, somewhere, 44, descWrite, 0)
			q.give(txRing, 0)
		}, "to be written to"},
		"jump": {func(q *fakeQEMU) {
			q.queues[txRing].avail += ringSize
			q.give(txRing, 0)
		}, "65 chains wait in 64"},
		"short": {func(q *fakeQEMU) {
			q.desc(txRing, 0, somewhere, 43, 0, 0)
			q.give(txRing, 0)
		}, "a packet of 43 bytes"},
		"long": {func(q *fakeQEMU) {
			p := packet{size: maxData + 1}
			p.encode((*[packetLen]byte)(q.mem[txBuffers:]))
			q.desc(txRing, 0, somewhere, 44, 0, 0)
			q.give(txRing, 0)
		}, "with 65537 bytes of data"},
		"missing": {func(q *fakeQEMU) {
			p := packet{size: 10}
			p.encode((*[packetLen]byte)(q.mem[txBuffers:]))
			q.desc(txRing, 0, somewhere, 53, 0, 0)
			q.give(txRing, 0)
		}, "of which there are 9"},
	} {
		t.Run(name, func(t *testing.T) {
			q := boot(t)
			c.do(q)
			q.kick(txRing)
			if err := q.ends(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ended with %v in place of %q", err, c.want)
			}
		})
	}
	for name, flags := range map[string]uint16{"small": descWrite, "readable": 0} {
		t.Run(name, func(t *testing.T) {
			q := serve(t)
			q.negotiate()
			q.desc(rxRing, 0, ramBase+rxBuffers, packetLen, flags, 0)
			q.give(rxRing, 0)
			q.start([rings]uint16{})
			q.connect("CONNECT 9\n")
			if err := q.ends(); err == nil || !strings.Contains(err.Error(), "does not hold a packet") {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestBadQEMU has a QEMU that breaks the protocol: the device ends.
func TestBadQEMU(t *testing.T) {
	memory := func(change func(r *regionInfo)) func(q *fakeQEMU) {
		return func(q *fakeQEMU) {
			r := ram
			change(&r)
			q.say(reqSetMemTable, table(r), q.memfd)
		}
	}
	ring := func(change func(addr []byte)) func(q *fakeQEMU) {
		return func(q *fakeQEMU) {
			q.say(reqSetMemTable, table(ram), q.memfd)
			q.say(reqSetVringNum, vring(0, ringSize))
			addr := addrOf(0, 0)
			change(addr)
			q.say(reqSetVringAddr, addr)
			q.say(reqSetVringKick, u64(0), q.queues[0].kick.fd)
			q.say(reqSetVringEnable, vring(0, 1))
		}
	}
	for name, do := range map[string]func(q *fakeQEMU){
		"request":          func(q *fakeQEMU) { q.say(31, nil) },
		"version":          func(q *fakeQEMU) { q.sayFlags(reqSetOwner, 2, nil) },
		"reply":            func(q *fakeQEMU) { q.sayFlags(reqSetOwner, flagVersion|flagReply, nil) },
		"long":             func(q *fakeQEMU) { q.say(reqSetOwner, make([]byte, maxPayload+1)) },
		"features":         func(q *fakeQEMU) { q.say(reqSetFeatures, u64(1<<29)) },
		"features size":    func(q *fakeQEMU) { q.say(reqSetFeatures, nil) },
		"protocol":         func(q *fakeQEMU) { q.say(reqSetProtocolFeatures, u64(1)) },
		"config":           func(q *fakeQEMU) { q.say(reqGetConfig, append(vring(4, 8), make([]byte, 12)...)) },
		"config size":      func(q *fakeQEMU) { q.say(reqGetConfig, append(vring(0, 9), make([]byte, 12)...)) },
		"config head":      func(q *fakeQEMU) { q.say(reqGetConfig, vring(0, 0)) },
		"no descriptor":    func(q *fakeQEMU) { q.say(reqSetVringKick, u64(0)) },
		"two descriptors":  func(q *fakeQEMU) { q.say(reqSetVringKick, u64(0), q.memfd, q.memfd) },
		"nine descriptors": func(q *fakeQEMU) { q.say(reqSetOwner, nil, 0, 0, 0, 0, 0, 0, 0, 0, 0) },
		"polled ring":      func(q *fakeQEMU) { q.say(reqSetVringKick, u64(vringNoFD)) },
		"file for a kick":  func(q *fakeQEMU) { q.say(reqSetVringKick, u64(0), q.memfd) },
		"ring":             func(q *fakeQEMU) { q.say(reqSetVringCall, u64(2), q.memfd) },
		"ring state":       func(q *fakeQEMU) { q.say(reqSetVringNum, vring(3, 64)) },
		"ring stop":        func(q *fakeQEMU) { q.say(reqGetVringBase, vring(-1, 0)) },
		"ring of none":     func(q *fakeQEMU) { q.say(reqSetVringNum, vring(0, 0)) },
		"ring of 63":       func(q *fakeQEMU) { q.say(reqSetVringNum, vring(0, 63)) },
		"ring of 2048":     func(q *fakeQEMU) { q.say(reqSetVringNum, vring(0, 2048)) },
		"base":             func(q *fakeQEMU) { q.say(reqSetVringBase, vring(0, 1<<16)) },
		"enable":           func(q *fakeQEMU) { q.say(reqSetVringEnable, vring(0, 2)) },
		"no regions":       func(q *fakeQEMU) { q.say(reqSetMemTable, nil) },
		"region missing":   func(q *fakeQEMU) { q.say(reqSetMemTable, table(ram)) },
		"regions missing":  func(q *fakeQEMU) { q.say(reqSetMemTable, table(ram)[:8], q.memfd) },
		"region of none":   memory(func(r *regionInfo) { r.size = 0 }),
		"region too large": memory(func(r *regionInfo) { r.size++ }),
		"region of all":    memory(func(r *regionInfo) { r.size = 1 << 63 }),
		"region wraps":     memory(func(r *regionInfo) { r.guest = -r.size + 1 }),
		"region offset":    memory(func(r *regionInfo) { r.offset = 1 << 63 }),
		"ring elsewhere":   ring(func(a []byte) { a[14] = 1 }),
		"ring unaligned":   ring(func(a []byte) { a[8] = 1 }),
		"used unaligned":   ring(func(a []byte) { a[16] = 2 }),
		"avail unaligned":  ring(func(a []byte) { a[24] = 1 }),
		"ring is logged":   ring(func(a []byte) { a[4] = 1 }),
		"ring on the edge": ring(func(a []byte) { binary.NativeEndian.PutUint64(a[8:], userBase+ramSize-16) }),
		"ring too small":   func(q *fakeQEMU) { q.say(reqSetVringAddr, vring(0, 0)) },
		"half a message": func(q *fakeQEMU) {
			_, _ = q.conn.Write(make([]byte, 5))
			_ = q.conn.CloseWrite()
		},
		"half a payload": func(q *fakeQEMU) {
			_, _ = q.conn.Write([]byte{2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1})
			_ = q.conn.CloseWrite()
		},
		"no size": func(q *fakeQEMU) {
			q.say(reqSetMemTable, table(ram), q.memfd)
			q.say(reqSetVringAddr, addrOf(0, 0))
			q.say(reqSetVringKick, u64(0), q.queues[0].kick.fd)
			q.say(reqSetVringEnable, vring(0, 1))
		},
		"memory is gone": func(q *fakeQEMU) {
			q.fillRX()
			q.start([rings]uint16{})
			q.say(reqSetMemTable, table(rom), q.memfd)
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := serve(t)
			do(q)
			if err := q.ends(); err == nil || errors.Is(err, context.Canceled) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

// TestDescriptors: a device leaves none open.
func TestDescriptors(t *testing.T) {
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	run := func() {
		t.Run("", func(t *testing.T) {
			q := boot(t)
			q.client(9)
			q.caller(1024)
			q.connect("")
			q.say(reqSetVringErr, u64(0), q.memfd)
			q.sayFlags(reqSetOwner, flagVersion|flagNeedsAck, nil, q.memfd, q.memfd)
			q.answer(reqSetOwner)
			q.conn.Close()
			if err := q.ends(); err != nil {
				t.Error(err)
			}
		})
	}
	run()
	before := count()
	run()
	if after := count(); after > before {
		t.Errorf("%d descriptors are open, %d were", after, before)
	}
}

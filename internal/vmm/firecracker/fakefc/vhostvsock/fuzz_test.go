package vhostvsock

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzRing has a guest that writes what it likes into a ring and its memory.
func FuzzRing(f *testing.F) {
	const size = 8
	f.Fuzz(func(t *testing.T, content []byte) {
		b, err := unix.Mmap(-1, 0, 0x1000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			t.Fatal(err)
		}
		mem := &memory{regions: []region{{regionInfo: regionInfo{guest: 0x1000, size: 0x1000, user: 0x1000}, mapped: b, bytes: b}}}
		defer mem.close()
		copy(b, content)
		r := ring{size: size, addr: vringAddr{desc: 0x1000, avail: 0x1100, used: 0x1200}, kick: -1, call: -1}
		if err := r.start(mem); err != nil {
			t.Fatal(err)
		}
		var c chain
		var data [][]byte
		for range 2 * size {
			ok, err := r.pop(mem, &c)
			if err != nil {
				return
			}
			if !ok {
				break
			}
			if c.head >= size || len(c.read)+len(c.write) > size {
				t.Fatalf("%d pieces from %d on", len(c.read)+len(c.write), c.head)
			}
			var p packet
			if data, err = readPacket(&p, c.read, data); err != nil {
				return
			}
			if total(data) != int(p.size) {
				t.Fatalf("%d bytes with %+v", total(data), p)
			}
			r.push(c.head, p.size)
		}
		if err := r.signal(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzPacket cuts a packet to pieces and reads it.
func FuzzPacket(f *testing.F) {
	f.Fuzz(func(t *testing.T, content []byte, cut uint8) {
		var pieces [][]byte
		for rest := content; len(rest) > 0; {
			n := min(len(rest), int(cut)+1)
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		var p packet
		data, err := readPacket(&p, pieces, nil)
		if err != nil {
			return
		}
		if got := bytes.Join(data, nil); !bytes.Equal(got, content[packetLen:][:p.size]) {
			t.Fatalf("%x in place of %x", got, content[packetLen:][:p.size])
		}
		var again [packetLen]byte
		if p.encode(&again); !bytes.Equal(again[:], content[:packetLen]) {
			t.Fatalf("%x became %x", content[:packetLen], again)
		}
	})
}

// FuzzConnect has a client that says anything.
func FuzzConnect(f *testing.F) {
	f.Fuzz(func(t *testing.T, line []byte) {
		rest := line
		port, err := readConnect(func(b []byte) (int, error) {
			n := copy(b, rest)
			if rest = rest[n:]; n == 0 {
				return 0, unix.EAGAIN
			}
			return n, nil
		})
		taken := line[:len(line)-len(rest)]
		if len(taken) > maxConnect {
			t.Fatalf("%d bytes were read", len(taken))
		}
		if err != nil {
			return
		}
		if again, err := parseConnect([]byte("CONNECT " + string(bytes.Fields(taken)[1]))); err != nil || again != port {
			t.Fatalf("%q is port %d, and then %d, %v", line, port, again, err)
		}
	})
}

// FuzzStreams has a guest that sends any packets on a few streams: op, stream, flags, alloc / 64, forwarded and size of each.
func FuzzStreams(f *testing.F) {
	const each = 6
	f.Fuzz(func(t *testing.T, script []byte) {
		d, err := Bind(Config{CID: guestCID, UDSPath: filepath.Join(t.TempDir(), "v")})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for i := range uint32(3) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(pair[1])
			if _, err := unix.Write(pair[1], make([]byte, 3000)); err != nil {
				t.Fatal(err)
			}
			if err := d.mux.add(&conn{key: key{host: i, guest: 1}, fd: pair[0], todo: doRequest}); err != nil {
				t.Fatal(err)
			}
		}
		room := [][]byte{make([]byte, 50), make([]byte, 1000)}
		for ; len(script) >= each; script = script[each:] {
			size := int(script[5]) << 4
			p := packet{
				srcCID: guestCID, dstCID: hostCID, srcPort: 1, dstPort: uint32(script[1] & 3), size: uint32(size), kind: typeStream,
				op: op(script[0] & 7), flags: uint32(script[2]), alloc: uint32(script[3]) << 6, forwarded: uint32(script[4]),
			}
			d.mux.fromGuest(&p, [][]byte{make([]byte, size/3), make([]byte, size-size/3)})
			if err := d.mux.poll.wait(0); err != nil {
				t.Fatal(err)
			}
			for range 8 {
				n := d.mux.toGuest(room)
				if n == 0 {
					break
				}
				checkPacket(t, room, n)
			}
			if err := d.mux.settle(); err != nil {
				t.Fatal(err)
			}
			for _, c := range d.mux.conns {
				if len(c.buf) > bufferSize || c.gone {
					t.Fatalf("%+v", c)
				}
			}
		}
	})
}

// checkPacket checks a packet of n bytes for the guest.
func checkPacket(t *testing.T, room [][]byte, n int) {
	t.Helper()
	var header [packetLen]byte
	gather(header[:], room)
	var p packet
	p.decode(&header)
	if n != packetLen+int(p.size) || n > total(room) || p.srcCID != hostCID || p.dstCID != guestCID ||
		(p.op == opData) != (p.size > 0) || p.op < opRequest || p.op > opCreditRequest {
		t.Fatalf("%d bytes: %+v", n, p)
	}
}

// FuzzMessages has a QEMU that says anything: request, size of the payload and payload of each message.
func FuzzMessages(f *testing.F) {
	f.Fuzz(func(t *testing.T, script []byte) {
		d, err := Bind(Config{CID: guestCID, UDSPath: filepath.Join(t.TempDir(), "v")})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[0])
		stop, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(stop)
		b, err := newBackend(Config{CID: guestCID, Log: slog.New(slog.DiscardHandler)}, pair[0], stop, d.mux)
		if err != nil {
			t.Fatal(err)
		}
		defer b.close()
		var all []byte
		for n := 0; len(script) >= 2 && n < 100; n++ {
			payload := script[2:][:min(int(script[1]), len(script)-2)]
			all = binary.NativeEndian.AppendUint32(all, uint32(script[0]))
			all = binary.NativeEndian.AppendUint32(all, flagVersion)
			all = binary.NativeEndian.AppendUint32(all, uint32(len(payload)))
			all = append(all, payload...)
			script = script[2+len(payload):]
		}
		if _, err := unix.Write(pair[1], all); err != nil {
			t.Fatal(err)
		}
		unix.Close(pair[1])
		if err := b.run(); err == nil {
			t.Fatal("it goes on")
		}
	})
}

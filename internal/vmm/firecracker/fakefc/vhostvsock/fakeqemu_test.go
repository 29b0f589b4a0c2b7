package vhostvsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Where the fake guest has what, in its physical memory. Beside its memory there is a page of ROM, which is of no use.
const (
	ramBase   = 0x100000
	ramSize   = 16 << 20
	ramOffset = 0x3000 // in its file
	userBase  = 0x7f1234000000

	ringSize  = 64
	ringSpace = 0x4000   // of each ring: descriptors, avail at 0x1000, used at 0x2000
	rxBuffers = 0x10000  // rxLen each
	txBuffers = 0x100000 // txLen each
	rxLen     = 0x2000
	txLen     = 0x20000
	guestCID  = 7
)

// fakeQEMU is QEMU and the driver in its guest, for a device.
type fakeQEMU struct {
	t      *testing.T
	dir    string
	conn   *net.UnixConn
	served chan error
	cancel context.CancelCauseFunc

	memfd    int
	mem      []byte
	queues   [rings]*queue
	deadline time.Time
}

// queue is a ring as its driver sees it.
type queue struct {
	base       int // in mem
	kick, call event
	avail      uint16
	used       uint16
}

// serve starts a device and connects to it.
func serve(t *testing.T) *fakeQEMU {
	t.Helper()
	return serveConfig(t, t.TempDir(), Config{CID: guestCID})
}

func serveConfig(t *testing.T, dir string, cfg Config) *fakeQEMU {
	t.Helper()
	cfg.UDSPath = filepath.Join(dir, "v")
	cfg.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	ln := listenUnix(t, filepath.Join(dir, "vhost"))
	ctx, cancel := context.WithCancelCause(context.Background())
	q := &fakeQEMU{t: t, dir: dir, served: make(chan error, 1), cancel: cancel, deadline: time.Now().Add(30 * time.Second)}
	go func() { q.served <- Serve(ctx, ln, cfg) }()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "vhost"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	q.conn = conn
	_ = conn.SetDeadline(q.deadline)
	q.memfd, err = unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Ftruncate(q.memfd, ramOffset+ramSize); err != nil {
		t.Fatal(err)
	}
	all, err := unix.Mmap(q.memfd, 0, ramOffset+ramSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	q.mem = all[ramOffset:]
	for i := range q.queues {
		q.queues[i] = &queue{base: i * ringSpace, kick: newEvent(t), call: newEvent(t)}
	}
	t.Cleanup(func() {
		cancel(context.Canceled)
		conn.Close()
		<-q.served
		_ = unix.Munmap(all)
		_ = unix.Close(q.memfd)
	})
	return q
}

// event is an event descriptor one can wait for with a deadline.
type event struct {
	*os.File
	fd int
}

func newEvent(t *testing.T) event {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "event")
	t.Cleanup(func() { f.Close() })
	return event{File: f, fd: fd}
}

// ends waits for the device to end and returns why.
func (q *fakeQEMU) ends() error {
	q.t.Helper()
	select {
	case err := <-q.served:
		q.served <- err
		return err
	case <-time.After(time.Until(q.deadline)):
		q.t.Fatal("the device did not end")
		return nil
	}
}

// What QEMU says.

func (q *fakeQEMU) say(r request, payload []byte, fds ...int) {
	q.t.Helper()
	q.sayFlags(r, flagVersion, payload, fds...)
}

func (q *fakeQEMU) sayFlags(r request, flags uint32, payload []byte, fds ...int) {
	q.t.Helper()
	b := binary.NativeEndian.AppendUint32(nil, uint32(r))
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, payload...)
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	// A device that has ended says why by itself.
	if _, _, err := q.conn.WriteMsgUnix(b, oob, nil); err != nil && !errors.Is(err, unix.EPIPE) {
		q.t.Fatalf("request %d: %v", r, err)
	}
}

// ask says r and returns the payload of the answer.
func (q *fakeQEMU) ask(r request, payload []byte) []byte {
	q.t.Helper()
	q.say(r, payload)
	return q.answer(r)
}

func (q *fakeQEMU) answer(r request) []byte {
	q.t.Helper()
	var header [headerLen]byte
	if _, err := io.ReadFull(q.conn, header[:]); err != nil {
		q.t.Fatalf("the answer to request %d: %v", r, err)
	}
	if got := request(binary.NativeEndian.Uint32(header[:])); got != r {
		q.t.Fatalf("an answer to request %d in place of %d", got, r)
	}
	if flags := binary.NativeEndian.Uint32(header[4:]); flags != 5 {
		q.t.Fatalf("an answer with flags %#x", flags)
	}
	b := make([]byte, binary.NativeEndian.Uint32(header[8:]))
	if _, err := io.ReadFull(q.conn, b); err != nil {
		q.t.Fatal(err)
	}
	return b
}

func u64(v uint64) []byte { return binary.NativeEndian.AppendUint64(nil, v) }

func vring(index int, n uint32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(index))
	return binary.NativeEndian.AppendUint32(b, n)
}

// table is a table of the guest's memory.
func table(regions ...regionInfo) []byte {
	b := binary.NativeEndian.AppendUint64(nil, uint64(len(regions)))
	for _, r := range regions {
		for _, v := range []uint64{r.guest, r.size, r.user, r.offset} {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
	}
	return b
}

// ram is the guest's memory.
var ram = regionInfo{guest: ramBase, size: ramSize, user: userBase, offset: ramOffset}

// rom is a page of it at another place.
var rom = regionInfo{guest: 0xfffff000, size: 0x1000, user: userBase + 0x10000000, offset: 0x1000}

func addrOf(index, base int) []byte {
	b := vring(index, 0)
	for _, off := range []int{0, 0x2000, 0x1000, 0} { // descriptors, used, avail, log
		b = binary.NativeEndian.AppendUint64(b, userBase+uint64(base+off))
	}
	return b
}

// negotiate says what QEMU says before its guest runs.
func (q *fakeQEMU) negotiate() {
	q.t.Helper()
	q.ask(reqGetFeatures, nil)
	q.ask(reqGetProtocolFeatures, nil)
	q.say(reqSetProtocolFeatures, u64(protoConfig))
	q.say(reqSetOwner, nil)
	for i := range q.queues {
		q.say(reqSetVringCall, u64(uint64(i)), q.queues[i].call.fd)
	}
}

// start says what QEMU says when the guest's driver is ready, or the VM goes on: rings stand at base.
func (q *fakeQEMU) start(base [rings]uint16) {
	q.t.Helper()
	q.say(reqSetFeatures, u64(featVersion1|featProtocolFeatures))
	q.say(reqSetMemTable, table(rom, ram), q.memfd, q.memfd)
	for i, queue := range q.queues {
		q.say(reqSetVringNum, vring(i, ringSize))
		q.say(reqSetVringBase, vring(i, uint32(base[i])))
		q.say(reqSetVringAddr, addrOf(i, queue.base))
		q.say(reqSetVringKick, u64(uint64(i)), queue.kick.fd)
		q.say(reqSetVringCall, u64(uint64(i)), queue.call.fd)
	}
	for i := range q.queues {
		q.say(reqSetVringEnable, vring(i, 1))
	}
}

// stop says what QEMU says when the VM is paused, and returns where the rings stand.
func (q *fakeQEMU) stop() (base [rings]uint16) {
	q.t.Helper()
	for i := range q.queues {
		q.say(reqSetVringEnable, vring(i, 0))
	}
	for i := range q.queues {
		base[i] = uint16(binary.NativeEndian.Uint32(q.ask(reqGetVringBase, vring(i, 0))[4:]))
	}
	return base
}

// boot is a guest whose driver is ready, with all its buffers in the rx ring.
func boot(t *testing.T) *fakeQEMU {
	t.Helper()
	q := serve(t)
	q.negotiate()
	q.fillRX()
	q.start([rings]uint16{})
	return q
}

// What the driver in the guest does.

func (q *fakeQEMU) fillRX() {
	const chains = ringSize / 2
	for i := range uint16(chains) { // each in two pieces, the first with the header and some data
		addr := uint64(ramBase + rxBuffers + int(i)*rxLen)
		q.desc(rxRing, i, addr, 100, descWrite|descNext, i+chains)
		q.desc(rxRing, i+chains, addr+100, rxLen-100, descWrite, 0)
		q.give(rxRing, i)
	}
}

// desc writes a descriptor.
func (q *fakeQEMU) desc(ring int, i uint16, addr uint64, size uint32, flags, next uint16) {
	d := q.mem[q.queues[ring].base+int(i)*descLen:]
	binary.LittleEndian.PutUint64(d, addr)
	binary.LittleEndian.PutUint32(d[8:], size)
	binary.LittleEndian.PutUint16(d[12:], flags)
	binary.LittleEndian.PutUint16(d[14:], next)
}

// give makes the chain of a head available.
func (q *fakeQEMU) give(ring int, head uint16) {
	queue := q.queues[ring]
	avail := q.mem[queue.base+0x1000:]
	binary.LittleEndian.PutUint16(avail[4+2*(queue.avail%ringSize):], head)
	queue.avail++
	flags := atomic.LoadUint32(word(avail, 0)) & 0xffff
	atomic.StoreUint32(word(avail, 0), uint32(queue.avail)<<16|flags)
}

func (q *fakeQEMU) kick(ring int) {
	q.t.Helper()
	if _, err := q.queues[ring].kick.Write(one); err != nil {
		q.t.Fatal(err)
	}
}

// taken waits until the device has given back the next chain of a ring.
func (q *fakeQEMU) taken(ring int, deadline time.Time) (head uint16, n uint32, ok bool) {
	queue := q.queues[ring]
	used := q.mem[queue.base+0x2000:]
	for uint16(atomic.LoadUint32(word(used, 0))>>16) == queue.used {
		_ = queue.call.SetReadDeadline(deadline)
		if _, err := queue.call.Read(make([]byte, 8)); err != nil {
			return 0, 0, false
		}
	}
	e := used[4+usedLen*int(queue.used%ringSize):]
	queue.used++
	return uint16(binary.LittleEndian.Uint32(e)), binary.LittleEndian.Uint32(e[4:]), true
}

// put puts a packet with data into the tx ring and waits until the device has taken it.
func (q *fakeQEMU) put(p packet, data []byte) {
	q.t.Helper()
	q.offer(p, data)
	if _, _, ok := q.taken(txRing, q.deadline); !ok {
		q.t.Fatalf("the device did not take %+v", p)
	}
}

// offer puts a packet with data into the tx ring: the header and the data in pieces of their own.
func (q *fakeQEMU) offer(p packet, data []byte) {
	q.t.Helper()
	i := q.queues[txRing].avail % (ringSize / 4) * 4
	addr := txBuffers + int(i)/4*txLen
	var header [packetLen]byte
	p.encode(&header)
	copy(q.mem[addr:], header[:])
	copy(q.mem[addr+packetLen:], data)
	at, cut := uint64(ramBase+addr), len(data)/3
	if len(data) == 0 {
		q.desc(txRing, i, at, packetLen, 0, 0)
	} else {
		q.desc(txRing, i, at, packetLen-3, descNext, i+1)
		q.desc(txRing, i+1, at+packetLen-3, uint32(3+cut), descNext, i+2)
		q.desc(txRing, i+2, at+packetLen+uint64(cut), uint32(len(data)-cut), 0, 0)
	}
	q.give(txRing, i)
	q.kick(txRing)
}

// get waits for a packet of the device; false where none comes until deadline.
func (q *fakeQEMU) getUntil(deadline time.Time) (p packet, data []byte, ok bool) {
	q.t.Helper()
	head, n, ok := q.taken(rxRing, deadline)
	if !ok {
		return p, nil, false
	}
	b := q.mem[rxBuffers+int(head)*rxLen:][:n]
	p.decode((*[packetLen]byte)(b))
	data = append(data, b[packetLen:]...)
	if int(p.size) != len(data) {
		q.t.Fatalf("%d bytes of data with %+v", len(data), p)
	}
	q.give(rxRing, head)
	q.kick(rxRing)
	return p, data, true
}

func (q *fakeQEMU) get() (packet, []byte) {
	q.t.Helper()
	p, data, ok := q.getUntil(q.deadline)
	if !ok {
		q.t.Fatal("no packet for the guest")
	}
	return p, data
}

// expect waits for a packet of an op.
func (q *fakeQEMU) expect(o op) (packet, []byte) {
	q.t.Helper()
	p, data := q.get()
	if p.op != o || p.srcCID != hostCID || p.dstCID != guestCID || p.kind != typeStream {
		q.t.Fatalf("%+v in place of an op %d", p, o)
	}
	return p, data
}

// silent sees to it that the device has nothing to say now: it has taken in all that came before.
func (q *fakeQEMU) silent() {
	q.t.Helper()
	// A packet to a port there is not is answered behind everything else.
	q.put(packet{srcCID: guestCID, dstCID: hostCID, srcPort: 1, dstPort: 1, kind: typeStream, op: opCreditUpdate}, nil)
	if p, _ := q.expect(opReset); p.srcPort != 1 || p.dstPort != 1 {
		q.t.Fatalf("%+v in place of silence", p)
	}
}

// stream is a connection as the guest sees it.
type stream struct {
	q         *fakeQEMU
	guest     uint32
	host      uint32
	alloc     uint32
	forwarded uint32
}

// tell puts a packet of the stream.
func (s *stream) tell(o op, flags uint32, data []byte) {
	s.q.t.Helper()
	s.q.put(s.packet(o, flags, data), data)
}

func (s *stream) packet(o op, flags uint32, data []byte) packet {
	return packet{
		srcCID: guestCID, dstCID: hostCID, srcPort: s.guest, dstPort: s.host, size: uint32(len(data)), kind: typeStream,
		op: o, flags: flags, alloc: s.alloc, forwarded: s.forwarded,
	}
}

// client connects a client of the host to a port of the guest, which accepts.
func (q *fakeQEMU) client(port uint32) (*net.UnixConn, *stream) {
	q.t.Helper()
	conn := q.connect(fmt.Sprintf("CONNECT %d\n", port))
	p, _ := q.expect(opRequest)
	if p.dstPort != port {
		q.t.Fatalf("a request for port %d in place of %d", p.dstPort, port)
	}
	s := &stream{q: q, guest: port, host: p.srcPort, alloc: 1 << 18}
	s.tell(opResponse, 0, nil)
	want := fmt.Sprintf("OK %d\n", p.srcPort)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		q.t.Fatalf("the answer %q, %v", got, err)
	}
	return conn, s
}

// connect connects to the host's socket and writes a line.
func (q *fakeQEMU) connect(line string) *net.UnixConn {
	q.t.Helper()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(q.dir, "v"), Net: "unix"})
	if err != nil {
		q.t.Fatal(err)
	}
	q.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(q.deadline)
	if _, err := io.WriteString(conn, line); err != nil && !errors.Is(err, unix.EPIPE) { // it may have been turned away
		q.t.Fatal(err)
	}
	return conn
}

// caller connects the guest to a port of the host, where somebody listens.
func (q *fakeQEMU) caller(port uint32) (*net.UnixConn, *stream) {
	q.t.Helper()
	ln := listenUnix(q.t, fmt.Sprintf("%s_%d", filepath.Join(q.dir, "v"), port))
	s := &stream{q: q, guest: 40000, host: port, alloc: 1 << 18}
	s.tell(opRequest, 0, nil)
	q.expect(opResponse)
	_ = ln.SetDeadline(q.deadline)
	conn, err := ln.AcceptUnix()
	if err != nil {
		q.t.Fatal(err)
	}
	q.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(q.deadline)
	return conn, s
}

//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// busyGuest is a guest with much to do at a time: a thousand connections that are all open at once, five hundred questions about names, of
// which each is asked again after 5 seconds as resolvers of Linux do, and so many MiB to an echo server and back.
const busyGuest = `
import asyncio, hashlib, os, resource, socket, struct, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
size = int(sys.argv[1]) << 20
echo = ('203.0.113.7', 7)
def timed(name, value, start):
    print(name, value, flush=True)
    print(name, 'took %.1fs' % (time.time() - start), file=sys.stderr)

async def connections(n):
    opened, everybody = 0, asyncio.Event()
    async def one(i):
        nonlocal opened
        r, w = await asyncio.open_connection(*echo)
        msg = b'%08d' % i
        for _ in range(2):
            w.write(msg)
            if await r.readexactly(8) != msg:
                raise ValueError(i)
            opened += 1
            if opened == n:
                everybody.set()
            await everybody.wait()
        w.close()
        return 1
    return sum(await asyncio.wait_for(asyncio.gather(*(one(i) for i in range(n))), 120))

class Question(asyncio.DatagramProtocol):
    def __init__(self, id, done):
        self.id, self.done = id, done
    def datagram_received(self, data, addr):
        id, flags = struct.unpack('!HH', data[:4])
        if id == self.id and not self.done.done():
            self.done.set_result(flags & 15)

async def lookups(n):
    loop = asyncio.get_running_loop()
    async def one(i):
        name = b''.join(bytes([len(l)]) + l for l in (b'busy%d.example.test' % i).split(b'.'))
        msg = struct.pack('!HHHHHH', i, 0x100, 1, 0, 0, 0) + name + b'\0' + struct.pack('!HH', 1, 1)
        done = loop.create_future()
        t, _ = await loop.create_datagram_endpoint(lambda: Question(i, done), remote_addr=('172.16.0.1', 53))
        try:
            for _ in range(2):
                t.sendto(msg)
                await asyncio.wait([done], timeout=5)
                if done.done():
                    return int(done.result() == 3) # there is no such name
            return 0
        finally:
            t.close()
    return sum(await asyncio.gather(*(one(i) for i in range(n))))

async def transfer(size):
    r, w = await asyncio.open_connection(*echo, limit=1 << 20)
    sent, got, n = hashlib.sha256(), hashlib.sha256(), 0
    async def send():
        left = size
        while left:
            b = os.urandom(min(left, 1 << 18))
            left -= len(b)
            sent.update(b)
            w.write(b)
            await w.drain()
        w.write_eof()
    sending = asyncio.create_task(send())
    while b := await r.read(1 << 18):
        got.update(b)
        n += len(b)
    await sending
    return n == size and sent.digest() == got.digest()

for name, f in ('connections', lambda: connections(1000)), ('lookups', lambda: lookups(500)), ('transfer', lambda: transfer(size)):
    start = time.time()
    timed(name, asyncio.run(f()), start)
`

// busy has a VM do all that busyGuest does.
func (h *host) busy(t *testing.T, vm string, mib int) {
	t.Helper()
	start := time.Now()
	got := h.feed(strings.NewReader(busyGuest), "vm", "exec", vm, "--", "python3", "-", fmt.Sprint(mib))
	if got.code != 0 || got.stdout != "connections 1000\nlookups 500\ntransfer True\n" {
		t.Errorf("a busy guest: status %d\n%s%s", got.code, got.stdout, got.stderr)
	}
	t.Logf("a busy guest took %s\n%s", time.Since(start).Round(time.Second), got.stderr)
}

// waysIn are a forward, the preview URL and vm ports, which are the same in bridge mode as in user mode.
func (b *bridged) waysIn(t *testing.T, vm string) {
	t.Helper()
	b.netserve(t, vm, "127.0.0.1")
	dial := func(ctx context.Context, address string) (conn net.Conn, err error) {
		err = b.in.Host.Try(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
			return err
		})
		return conn, err
	}
	conn, err := dial(t.Context(), b.forward(vm, "0:7"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(waitShort))
	data := bytes.Repeat([]byte("forward"), 10_000)
	go func() {
		_, _ = conn.Write(data)
		_ = conn.(*net.TCPConn).CloseWrite()
	}()
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, data) {
		t.Errorf("through a forward %d bytes came back, %v", len(got), err)
	}
	web := netip.MustParseAddrPort(decode[api.DaemonStatus](t, b.ok("daemon", "status", "-o", "json")).WebAddress)
	page := fmt.Sprintf("http://8080.%s.localhost:%d/", vm, web.Port())
	found := false
	for _, p := range decode[[]api.GuestPort](t, b.ok("vm", "ports", vm, "-o", "json")) {
		found = found || p.Port == 8080 && p.URL == page
	}
	if !found {
		t.Errorf("vm ports does not tell %s:\n%s", page, b.ok("vm", "ports", vm))
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, web.String()) }}}
	defer client.CloseIdleConnections()
	previewSocket(t, client, page)
}

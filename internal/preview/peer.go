package preview

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxStrangers is how many connections of others are held at a time to be told why they are refused; more are closed at once.
const maxStrangers = 32

// tellEvery is how often the log is told of strangers at most: it is not theirs to fill.
const tellEvery = time.Minute

type peerKey struct{}

// peerConn is a connection whose other end was looked at.
type peerConn struct {
	*net.TCPConn
	err  error // why it is not served; nil where it is
	done func()
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	c.done()
	return c.TCPConn.Close()
}

// listener looks at the other end of each connection once, when it comes: an answer as of later might be about another socket.
type listener struct {
	net.Listener
	uid       int
	log       *slog.Logger
	strangers chan struct{}
	told      time.Time // when the log was told of one last; Accept is called by one goroutine
}

func newListener(ln net.Listener, uid int, log *slog.Logger) *listener {
	return &listener{Listener: ln, uid: uid, log: log, strangers: make(chan struct{}, maxStrangers)}
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		tcp, ok := c.(*net.TCPConn)
		if !ok {
			_ = c.Close()
			return nil, fmt.Errorf("accept: %T is no TCP connection", c)
		}
		p := &peerConn{TCPConn: tcp, done: func() {}, err: identify(tcp, l.uid)}
		if p.err == nil {
			return p, nil
		}
		select {
		case l.strangers <- struct{}{}:
			if time.Since(l.told) > tellEvery {
				l.told = time.Now()
				l.log.Warn("refused a connection to the web port", "peer", tcp.RemoteAddr().String(), "err", p.err)
			}
			p.done = sync.OnceFunc(func() { <-l.strangers })
			return p, nil
		default:
			_ = tcp.Close()
		}
	}
}

// identify reports why who connected is not served: it is not a process of this host's user uid.
func identify(c *net.TCPConn, uid int) error {
	peer, errPeer := endpoint(c.RemoteAddr())
	own, errOwn := endpoint(c.LocalAddr())
	if err := errors.Join(errPeer, errOwn); err != nil {
		return err
	}
	if !peer.Addr().IsLoopback() {
		return fmt.Errorf("the connection comes from %s: only this host's own, by its loopback addresses, are served", peer.Addr())
	}
	owner, err := ownerOf(peer, own)
	switch {
	case err != nil:
		return fmt.Errorf("whose connection %s is cannot be told: %w", peer, err)
	case owner != uid:
		return fmt.Errorf("the connection is of the user with uid %d; the daemon is of uid %d, and serves nobody else", owner, uid)
	}
	return nil
}

func endpoint(a net.Addr) (netip.AddrPort, error) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, fmt.Errorf("%s is no TCP address", a)
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap().WithZone(""), p.Port()), nil
}

var errNoSocket = errors.New("this host has no such socket")

// ownerOf returns the user of the socket that is local's end of a connection to remote. The kernel is asked by netlink, and where that
// is not to be had /proc is read. A socket that no process holds any more has no user: the kernel would call it root's.
func ownerOf(local, remote netip.AddrPort) (int, error) {
	uid, err := askDiag(local, remote)
	if err == nil || errors.Is(err, errNoSocket) {
		return uid, err
	}
	uid, errTable := askTables(local, remote)
	if errTable != nil && !errors.Is(errTable, errNoSocket) {
		errTable = errors.Join(err, errTable)
	}
	return uid, errTable
}

// askTables looks for the socket in /proc, twice: a table is read in parts, and of sockets that stay one may be left out where others come and
// go in between. A socket of IPv6 that is connected over IPv4 is in its table.
func askTables(local, remote netip.AddrPort) (int, error) {
	uid, err := askTablesOnce(local, remote)
	if errors.Is(err, errNoSocket) {
		return askTablesOnce(local, remote)
	}
	return uid, err
}

func askTablesOnce(local, remote netip.AddrPort) (int, error) {
	if local.Addr().Is4() {
		if uid, err := askTable("tcp", local, remote); !errors.Is(err, errNoSocket) {
			return uid, err
		}
		local, remote = mapped(local), mapped(remote)
	}
	return askTable("tcp6", local, remote)
}

// mapped is an address of IPv4 as IPv6 writes it.
func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

func askTable(name string, local, remote netip.AddrPort) (int, error) {
	f, err := os.Open("/proc/thread-self/net/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return 0, errNoSocket // no IPv6 here
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return searchTable(bufio.NewScanner(f), local, remote)
}

const (
	stateListen   = 10 // of include/net/tcp_states.h, as what follows
	stateTimeWait = 6
	diagTCP       = unix.IPPROTO_TCP
	diagAnswer    = unix.NLMSG_HDRLEN + 72 // struct inet_diag_msg
	noCookie      = ^uint32(0)
)

// askDiag asks for exactly one socket by sock_diag(7): struct inet_diag_req_v2, without NLM_F_DUMP, which would walk all of them.
func askDiag(local, remote netip.AddrPort) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, fmt.Errorf("open netlink: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		return 0, fmt.Errorf("set up netlink: %w", err)
	}
	if err := unix.Sendto(fd, diagRequest(local, remote), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, fmt.Errorf("ask netlink: %w", err)
	}
	buf := make([]byte, 4096)
	for {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("read netlink: %w", err)
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not the kernel's
		}
		return readDiag(buf[:n], local, remote)
	}
}

func diagRequest(local, remote netip.AddrPort) []byte {
	family := byte(unix.AF_INET)
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	ne, be := binary.NativeEndian, binary.BigEndian
	b := make([]byte, 0, 72)
	b = ne.AppendUint32(b, 72)
	b = ne.AppendUint16(b, unix.SOCK_DIAG_BY_FAMILY)
	b = ne.AppendUint16(b, unix.NLM_F_REQUEST)
	b = ne.AppendUint32(b, 1) // sequence
	b = ne.AppendUint32(b, 0) // to the kernel
	b = append(b, family, diagTCP, 0, 0)
	b = ne.AppendUint32(b, ^uint32(0)) // all states
	b = be.AppendUint16(b, local.Port())
	b = be.AppendUint16(b, remote.Port())
	b = append(b, diagAddr(local.Addr())...)
	b = append(b, diagAddr(remote.Addr())...)
	b = ne.AppendUint32(b, 0) // any interface
	b = ne.AppendUint32(b, noCookie)
	return ne.AppendUint32(b, noCookie)
}

// diagAddr is an address as struct inet_diag_sockid has it, an IPv4 one in the first of four words.
func diagAddr(a netip.Addr) []byte { return append(a.AsSlice(), make([]byte, 16)...)[:16] }

// readDiag reads the answer. The kernel answers with a listener where there is no connection, so the addresses are compared.
func readDiag(b []byte, local, remote netip.AddrPort) (int, error) {
	ne, be := binary.NativeEndian, binary.BigEndian
	if len(b) < unix.NLMSG_HDRLEN+4 {
		return 0, errors.New("read netlink: a short answer")
	}
	if kind := ne.Uint16(b[4:]); kind == unix.NLMSG_ERROR {
		if errno := syscall.Errno(-int32(ne.Uint32(b[unix.NLMSG_HDRLEN:]))); errno != syscall.ENOENT {
			return 0, fmt.Errorf("ask netlink: %w", errno)
		}
		return 0, errNoSocket
	} else if kind != unix.SOCK_DIAG_BY_FAMILY || len(b) < diagAnswer {
		return 0, errors.New("read netlink: not the answer to the question")
	}
	m := b[unix.NLMSG_HDRLEN:] // family, state, timer, retrans, then struct inet_diag_sockid
	size := 4
	if m[0] == unix.AF_INET6 { // the socket's: one connected over IPv4 can be of IPv6
		size = 16
	}
	lo, _ := netip.AddrFromSlice(m[8 : 8+size])
	re, _ := netip.AddrFromSlice(m[24 : 24+size])
	uid, inode := ne.Uint32(m[64:]), ne.Uint32(m[68:])
	if state := m[1]; state == stateListen || state == stateTimeWait || inode == 0 ||
		netip.AddrPortFrom(lo.Unmap(), be.Uint16(m[4:])) != local || netip.AddrPortFrom(re.Unmap(), be.Uint16(m[6:])) != remote {
		return 0, errNoSocket
	}
	return int(uid), nil
}

// searchTable finds the socket in /proc/net/tcp or tcp6, see proc(5).
func searchTable(sc *bufio.Scanner, local, remote netip.AddrPort) (int, error) {
	from, to := tableAddress(local), tableAddress(remote)
	for sc.Scan() {
		f := strings.Fields(sc.Text()) // sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
		if len(f) < 10 || f[1] != from || f[2] != to || f[3] == "06" || f[9] == "0" {
			continue
		}
		return strconv.Atoi(f[7])
	}
	if err := sc.Err(); err != nil {
		return 0, err
	}
	return 0, errNoSocket
}

// tableAddress writes an address as those tables have it: words of this host's order, then the port.
func tableAddress(a netip.AddrPort) string {
	b := a.Addr().AsSlice()
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	return strings.ToUpper(hex.EncodeToString(b)) + ":" + fmt.Sprintf("%04X", a.Port())
}

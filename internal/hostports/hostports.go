// Package hostports tells who has a port of the host, for the error of who wanted it too. It reads /proc: what
// processes of other users hold is known by their user alone.
package hostports

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Socket is a socket of the host and whose it is.
type Socket struct {
	Protocol string // "tcp" or "udp"
	Local    netip.AddrPort
	// Listening is false for the host's end of a TCP connection, which keeps its port from others too.
	Listening bool
	UID       int
	// PID and Name are those of the process that holds it, the oldest of several; 0 and empty where it is another user's.
	PID  int
	Name string

	inode uint64
}

// Who says for people who has the port that keeps a protocol ("tcp" or "udp") from being bound at an address, as "nginx (pid 123)" or
// "a process of user alice"; empty where nobody is seen to.
func Who(protocol string, at netip.AddrPort) string {
	s, ok := Find(protocol, at)
	if !ok {
		return ""
	}
	return s.String()
}

// Find returns the socket that has a port; wildcard addresses, on either side, stand for all. Of several it is the one that listens at
// nearest the address.
func Find(protocol string, at netip.AddrPort) (Socket, bool) { return find("/proc", protocol, at) }

// String names who holds the socket.
func (s Socket) String() string {
	who := s.owner()
	if s.Protocol == "tcp" && !s.Listening {
		return "a connection of " + who
	}
	return who
}

func (s Socket) owner() string {
	switch {
	case s.PID != 0 && s.PID == os.Getpid():
		return "banger itself (pid " + strconv.Itoa(s.PID) + ")"
	case s.PID != 0:
		return s.Name + " (pid " + strconv.Itoa(s.PID) + ")"
	}
	if u, err := user.LookupId(strconv.Itoa(s.UID)); err == nil {
		return "a process of user " + printable(u.Username)
	}
	return "a process of user " + strconv.Itoa(s.UID)
}

// find is Find with another /proc.
func find(proc, protocol string, at netip.AddrPort) (Socket, bool) {
	var held []Socket
	for _, table := range []string{protocol, protocol + "6"} {
		// That of this thread, which may be in another network namespace than the rest of the process.
		f, err := os.Open(filepath.Join(proc, "thread-self", "net", table))
		if err != nil {
			continue // a host without IPv6
		}
		all, _ := parse(f, protocol) // a table cut short says what it says
		_ = f.Close()
		held = append(held, slices.DeleteFunc(all, func(s Socket) bool { return !s.keeps(at) })...)
	}
	if len(held) == 0 {
		return Socket{}, false
	}
	best := slices.MinFunc(held, func(a, b Socket) int {
		return cmp.Or(order(b.Listening, a.Listening), order(b.Local.Addr() == at.Addr(), a.Local.Addr() == at.Addr()))
	})
	if best.inode != 0 {
		best.PID, best.Name = holder(proc, best.inode)
	}
	return best, true
}

// order compares two conditions: the one that holds is the larger.
func order(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// keeps reports whether a socket keeps others from the address. A socket of IPv6's wildcard address has the port of IPv4, too, unless it
// is told otherwise, which cannot be seen here.
func (s Socket) keeps(at netip.AddrPort) bool {
	mine, other := s.Local.Addr(), at.Addr().Unmap().WithZone("")
	switch {
	case s.Local.Port() != at.Port():
		return false
	case mine == other, mine == netip.IPv6Unspecified(), other == netip.IPv6Unspecified():
		return true
	}
	return mine.Is4() == other.Is4() && (mine.IsUnspecified() || other.IsUnspecified())
}

// Numbers of proc(5)'s tables: states of TCP sockets, as in the kernel's include/net/tcp_states.h.
const (
	tcpTimeWait = 0x06
	tcpListen   = 0x0a
)

var errForm = errors.New("not a line of a table of sockets")

// parse reads /proc/net/{tcp,tcp6,udp,udp6}: sockets that keep a port. It returns what it read before an error.
func parse(r io.Reader, protocol string) ([]Socket, error) {
	var out []Socket
	sc := bufio.NewScanner(r)
	for first := true; sc.Scan(); first = false {
		if first {
			continue // the heading
		}
		s, state, err := parseLine(sc.Text())
		if err != nil {
			return out, err
		}
		if protocol == "tcp" && state == tcpTimeWait { // nobody's, and in nobody's way
			continue
		}
		s.Protocol, s.Listening = protocol, protocol == "udp" || state == tcpListen
		out = append(out, s)
	}
	return out, sc.Err()
}

// parseLine reads one line: "sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …".
func parseLine(line string) (Socket, uint64, error) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return Socket{}, 0, errForm
	}
	local, ok := parseAddress(f[1])
	state, errState := strconv.ParseUint(f[3], 16, 8)
	uid, errUID := strconv.ParseUint(f[7], 10, 32)
	inode, errInode := strconv.ParseUint(f[9], 10, 64)
	if err := errors.Join(errState, errUID, errInode); err != nil || !ok {
		return Socket{}, 0, errForm
	}
	return Socket{Local: local, UID: int(uid), inode: inode}, state, nil
}

// parseAddress reads "0100007F:1F90": the address in 32-bit words of this (little-endian) host, then the port.
func parseAddress(s string) (netip.AddrPort, bool) {
	addr, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(addr)
	if err != nil || (len(b) != 4 && len(b) != 16) {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	a, _ := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	return netip.AddrPortFrom(a.Unmap(), uint16(n)), err == nil
}

// holder finds the process with a socket among its files: the one of the lowest pid; 0 where none is seen.
func holder(proc string, inode uint64) (int, string) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return 0, ""
	}
	want := "socket:[" + strconv.FormatUint(inode, 10) + "]"
	lowest := 0
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && (lowest == 0 || pid < lowest) && holds(filepath.Join(proc, e.Name(), "fd"), want) {
			lowest = pid
		}
	}
	if lowest == 0 {
		return 0, ""
	}
	name, _ := os.ReadFile(filepath.Join(proc, strconv.Itoa(lowest), "comm")) // it may just have ended
	return lowest, cmp.Or(printable(string(bytes.TrimSpace(name))), "a process")
}

func holds(dir, want string) bool {
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false // another user's, or gone
	}
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		to, err := os.Readlink(filepath.Join(dir, fd.Name()))
		return err == nil && to == want
	})
}

// printable is a name somebody else chose, without what a terminal would obey.
func printable(name string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, name)
}

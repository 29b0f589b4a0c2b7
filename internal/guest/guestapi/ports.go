package guestapi

import (
	"cmp"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Bounds of the search for who listens.
const (
	maxPorts     = 2048      // that are answered
	maxProcesses = 8192      // that are looked at
	maxOpen      = 128 << 10 // of their descriptors
)

// table is a list of sockets in /proc/net, and the state of those that listen: LISTEN of TCP, and of UDP no peer.
type table struct{ file, protocol, state string }

var (
	tcpTables = []table{{"tcp", "tcp", "0A"}, {"tcp6", "tcp", "0A"}}
	udpTables = []table{{"udp", "udp", "07"}, {"udp6", "udp", "07"}}
)

// UDPListeners returns where the UDP sockets of this machine are that wait for whoever comes.
func UDPListeners() ([]netip.AddrPort, error) {
	sockets, err := readSockets(udpTables)
	out := make([]netip.AddrPort, len(sockets))
	for i, s := range sockets {
		out[i] = netip.AddrPortFrom(s.Address, s.Port.Port)
	}
	return out, err
}

// readPorts lists what listens. One that listens twice in the same place counts once.
func readPorts() ([]Port, error) {
	sockets, err := readSockets(slices.Concat(tcpTables, udpTables))
	if err != nil {
		return nil, err
	}
	inodes := make(map[string]*owner, len(sockets))
	for _, s := range sockets {
		inodes[s.inode] = nil
	}
	findOwners("/proc", inodes)
	ports := make([]Port, len(sockets))
	for i, s := range sockets {
		ports[i] = s.Port
		if o := inodes[s.inode]; o != nil {
			ports[i].Process, ports[i].Agent = o.name, o.pid == os.Getpid()
		}
	}
	slices.SortFunc(ports, func(a, b Port) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port), a.Address.Compare(b.Address),
			cmp.Compare(a.UID, b.UID), cmp.Compare(a.Process, b.Process))
	})
	ports = slices.Compact(ports)
	return ports[:min(len(ports), maxPorts)], nil
}

// socket is one that listens.
type socket struct {
	Port
	inode string
}

func readSockets(tables []table) (sockets []socket, err error) {
	for _, t := range tables {
		err := eachLine("/proc/thread-self/net/"+t.file, func(f []string) {
			if s, ok := parseSocket(f, t.state); ok {
				s.Protocol = t.protocol
				sockets = append(sockets, s)
			}
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6
			return nil, err
		}
	}
	return sockets, nil
}

// parseSocket reads a line of /proc/net/tcp and its like; false where it is not in state.
func parseSocket(f []string, state string) (socket, bool) {
	if len(f) < 10 || f[3] != state {
		return socket{}, false
	}
	host, port, ok := strings.Cut(f[1], ":")
	n, err := strconv.ParseUint(port, 16, 16)
	raw, herr := hex.DecodeString(host)
	if !ok || err != nil || herr != nil || len(raw)%4 != 0 {
		return socket{}, false
	}
	// The address is words in the machine's byte order.
	for w := raw; len(w) > 0; w = w[4:] {
		binary.NativeEndian.PutUint32(w, binary.BigEndian.Uint32(w))
	}
	addr, ok := netip.AddrFromSlice(raw)
	uid, err := strconv.Atoi(f[7])
	return socket{Port{Address: addr.Unmap(), Port: uint16(n), UID: uid}, f[9]}, ok && err == nil
}

// owner is a process that has a socket.
type owner struct {
	pid  int
	name string
}

// findOwners fills in who has the sockets whose inodes are the keys of want, as far as proc lets it see that: of several processes
// the one with the lowest pid, which started the others.
func findOwners(proc string, want map[string]*owner) {
	left, looked := len(want), 0
	for _, pid := range processIDs(proc) {
		dir := proc + "/" + strconv.Itoa(pid)
		fds, _ := names(dir+"/fd", maxOpen-looked) // it may have ended
		looked += len(fds)
		for _, fd := range fds {
			target, _ := os.Readlink(dir + "/fd/" + fd)
			inode, ok := strings.CutPrefix(target, "socket:[")
			if !ok {
				continue
			}
			inode = strings.TrimSuffix(inode, "]")
			if have, wanted := want[inode]; !wanted || have != nil {
				continue
			}
			name, _ := os.ReadFile(dir + "/comm")
			want[inode] = &owner{pid, strings.TrimSpace(string(name))}
			left--
		}
		if left <= 0 || looked >= maxOpen {
			return
		}
	}
}

// processIDs are those of processes, the lowest first.
func processIDs(proc string) []int {
	all, _ := names(proc, maxProcesses)
	var pids []int
	for _, name := range all {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids
}

// names are at most n names in a directory.
func names(dir string, n int) ([]string, error) {
	if n <= 0 { // would be all of them
		return nil, nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	out, err := d.Readdirnames(n)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return out, err
}

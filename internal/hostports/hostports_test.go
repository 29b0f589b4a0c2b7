package hostports

import (
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func at(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// tcpTable is /proc/net/tcp with nginx of root on 0.0.0.0:80, alice's on 127.0.0.1:8080, a connection and a TIME_WAIT.
const tcpTable = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0000000000000000 100 0 0 10 0
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 54321        0 1002 1 0000000000000000 100 0 0 10 0
   2: 0100007F:A112 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 1003 1 0000000000000000 20 4 30 10 -1
   3: 0100007F:A113 0100007F:0050 06 00000000:00000000 03:00000F6B 00000000     0        0 0 3 0000000000000000
   4: 0100007F:0050 0100007F:A112 01 00000000:00000000 00:00000000 00000000     0        0 1004 1 0000000000000000 20 4 30 10 -1
`

const tcp6Table = `  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000000000000:0BB8 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1005 1 0000000000000000 100 0 0 10 0
   1: 00000000000000000000000001000000:0BB9 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1006 1 0000000000000000 100 0 0 10 0
   2: 0000000000000000FFFF00000100007F:0BBA 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1007 1 0000000000000000 100 0 0 10 0
`

const udpTable = `   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
  100: 3500007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   101        0 1008 2 0000000000000000 0
`

func fakeProc(t *testing.T) string {
	t.Helper()
	proc := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		full := filepath.Join(proc, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("thread-self/net/tcp", tcpTable)
	write("thread-self/net/tcp6", tcp6Table)
	write("thread-self/net/udp", udpTable)
	for pid, files := range map[int][]string{ // a worker shares its master's socket
		300: {"socket:[1001]", "pipe:[9]"}, 123: {"/dev/null", "socket:[1001]"}, 77: {"socket:[1003]"}, 78: {"socket:[1005]", "socket:[1006]", "socket:[1007]"},
	} {
		dir := strconv.Itoa(pid)
		write(dir+"/comm", map[int]string{300: "nginx", 123: "nginx", 77: "curl", 78: "we\x1bird"}[pid]+"\n")
		if err := os.Mkdir(filepath.Join(proc, dir, "fd"), 0o700); err != nil {
			t.Fatal(err)
		}
		for i, to := range files {
			if err := os.Symlink(to, filepath.Join(proc, dir, "fd", strconv.Itoa(i))); err != nil {
				t.Fatal(err)
			}
		}
	}
	return proc
}

func TestFind(t *testing.T) {
	proc := fakeProc(t)
	for _, tc := range []struct{ protocol, address, want string }{
		{"tcp", "127.0.0.1:80", "nginx (pid 123)"},
		{"tcp", "0.0.0.0:80", "nginx (pid 123)"},
		{"tcp", "10.1.2.3:80", "nginx (pid 123)"},
		{"udp", "127.0.0.1:80", ""},
		{"tcp", "[::1]:80", ""},
		{"tcp", "[::]:80", "nginx (pid 123)"},
		{"tcp", "127.0.0.1:8080", "a process of user 54321"},
		{"tcp", "0.0.0.0:8080", "a process of user 54321"},
		{"tcp", "127.0.0.2:8080", ""},
		{"tcp", "[::ffff:127.0.0.1]:8080", "a process of user 54321"},
		{"tcp", "127.0.0.1:41234", "a connection of curl (pid 77)"},
		{"tcp", "127.0.0.1:41235", ""},
		{"tcp", "127.0.0.1:3000", "we?ird (pid 78)"},
		{"tcp", "[fe80::1%eth0]:3000", "we?ird (pid 78)"},
		{"tcp", "127.0.0.1:3001", ""},
		{"tcp", "[::1]:3001", "we?ird (pid 78)"},
		{"tcp", "127.0.0.1:3002", "we?ird (pid 78)"},
		{"tcp", "127.0.0.1:81", ""},
	} {
		s, ok := find(proc, tc.protocol, at(tc.address))
		got := ""
		if ok {
			got = s.String()
		}
		if got != tc.want {
			t.Errorf("%s %s is of %q, want %q", tc.protocol, tc.address, got, tc.want)
		}
	}
	if s, ok := find(proc, "udp", at("127.0.0.53:53")); !ok || s.UID != 101 || s.PID != 0 {
		t.Errorf("udp 127.0.0.53:53: %+v, %v", s, ok)
	}
	if s, ok := find(t.TempDir(), "tcp", at("127.0.0.1:80")); ok {
		t.Errorf("without /proc: %+v", s)
	}
}

func TestOwnerByName(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.Atoi(me.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := (Socket{Protocol: "udp", UID: uid}).String(), "a process of user "+me.Username; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestRealSockets finds sockets of this process, which are banger's own.
func TestRealSockets(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	addr := ln.Addr().(*net.TCPAddr).AddrPort()
	for _, a := range []netip.AddrPort{addr, netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())} {
		if got, want := Who("tcp", a), "banger itself (pid "+strconv.Itoa(os.Getpid())+")"; got != want {
			t.Errorf("%s is of %q, want %q", a, got, want)
		}
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = pc.LocalAddr().(*net.UDPAddr).AddrPort()
	if s, ok := Find("udp", addr); !ok || s.PID != os.Getpid() || s.UID != os.Getuid() {
		t.Errorf("udp %s: %+v, %v", addr, s, ok)
	}
	pc.Close()
	if got := Who("udp", addr); got != "" {
		t.Errorf("a closed socket is of %q", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{tcpTable, tcp6Table, udpTable, "x\n1 2 3\n", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, _ := parse(strings.NewReader(s), "tcp")
		for _, sock := range got {
			if !sock.Local.IsValid() || sock.UID < 0 {
				t.Errorf("%+v", sock)
			}
		}
	})
}

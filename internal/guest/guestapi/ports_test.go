package guestapi

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestParseSocket(t *testing.T) {
	const rest = " 00000000:0000 0A 00000000:00000000 00:00000000 00000000 "
	for _, tc := range []struct {
		line string
		want Port
		ok   bool
	}{
		{"0: 0100007F:1F90" + rest + "1000 0 1", Port{Address: netip.MustParseAddr("127.0.0.1"), Port: 8080, UID: 1000}, true},
		{"0: 00000000:0016" + rest + "0 0 1", Port{Address: netip.MustParseAddr("0.0.0.0"), Port: 22}, true},
		{"0: 00000000000000000000000001000000:0050" + rest + "0 0 1", Port{Address: netip.MustParseAddr("::1"), Port: 80}, true},
		{"0: 0000000000000000FFFF00000100007F:0050" + rest + "0 0 1", Port{Address: netip.MustParseAddr("127.0.0.1"), Port: 80}, true},
		{"0: B80D0120000000000000000001000000:FFFF" + rest + "7 0 1", Port{Address: netip.MustParseAddr("2001:db8::1"), Port: 65535, UID: 7}, true},
		{strings.Replace("0: 0100007F:1F90"+rest+"1000 0 1", " 0A ", " 01 ", 1), Port{}, false},
		{"sl local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode", Port{}, false},
		{"0: xx:1F90" + rest + "0 0 1", Port{}, false},
		{"0: 0100007F:1F90F" + rest + "0 0 1", Port{}, false},
		{"0: 01007F:1F90" + rest + "0 0 1", Port{}, false},
		{"0: 0100007F:1F90", Port{}, false},
		{"0: 0100007F:1F90" + strings.TrimSuffix(rest, " ") + " 0 0", Port{}, false},
	} {
		if got, ok := parseSocket(strings.Fields(tc.line), "0A"); ok != tc.ok || ok && got != (socket{tc.want, "1"}) {
			t.Errorf("%s: %+v, %v", tc.line, got, ok)
		}
	}
}

// TestFindOwners: of processes that share a socket the one with the lowest number, which for 90 and 100 is not the first by name.
func TestFindOwners(t *testing.T) {
	proc := t.TempDir()
	for pid, links := range map[string][]string{"90": {"socket:[7]", "/dev/null", "socket:[8]"}, "100": {"socket:[7]", "socket:[9]"}, "self": {"socket:[10]"},
		"200": {"pipe:[10]", "socket:[10"}} {
		dir := filepath.Join(proc, pid)
		if err := os.MkdirAll(filepath.Join(dir, "fd"), 0o700); err != nil {
			t.Fatal(err)
		}
		for i, to := range links {
			if err := os.Symlink(to, filepath.Join(dir, "fd", strconv.Itoa(i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "comm"), []byte("program "+pid+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(proc, "300"), 0o700); err != nil { // one whose descriptors are not to be seen
		t.Fatal(err)
	}
	want := map[string]*owner{"7": nil, "9": nil, "11": nil}
	findOwners(proc, want)
	if o := want["7"]; o == nil || *o != (owner{90, "program 90"}) {
		t.Errorf("7 is %+v's", o)
	}
	if o := want["9"]; o == nil || *o != (owner{100, "program 100"}) {
		t.Errorf("9 is %+v's", o)
	}
	if len(want) != 3 || want["11"] != nil {
		t.Errorf("found %+v", want)
	}
}

func TestUDPListeners(t *testing.T) {
	listens, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer listens.Close()
	at := listens.LocalAddr().(*net.UDPAddr).AddrPort()
	asks, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer asks.Close()
	got, err := UDPListeners()
	if err != nil || !slices.Contains(got, at) {
		t.Errorf("%v is not in %v, %v", at, got, err)
	}
	if own := asks.LocalAddr().(*net.UDPAddr).AddrPort(); slices.Contains(got, own) {
		t.Errorf("%v, which has a peer, is in %v", own, got)
	}
}

package guestapi

import (
	"net/netip"
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
	} {
		if got, ok := parseSocket(strings.Fields(tc.line), "0A"); ok != tc.ok || ok && got != tc.want {
			t.Errorf("%s: %+v, %v", tc.line, got, ok)
		}
	}
}

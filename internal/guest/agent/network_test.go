package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

func TestResolvText(t *testing.T) {
	got := resolvText(wire.Network{DNS: []string{"172.16.0.1", "9.9.9.9"}, Search: "vm"})
	want := "# written by banger at every start\nnameserver 172.16.0.1\nnameserver 9.9.9.9\nsearch vm\n"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestParseNetwork(t *testing.T) {
	good := wire.Network{MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", Gateway: "172.16.0.1", MTU: 65520}
	if n, err := parseNetwork(good); err != nil || n.address.Bits() != 24 || n.gateway.String() != "172.16.0.1" {
		t.Errorf("%+v, %v", n, err)
	}
	for _, bad := range []wire.Network{
		{}, {MAC: good.MAC, Gateway: good.Gateway, Address: "172.16.0.2"}, {MAC: "x", Address: good.Address, Gateway: good.Gateway},
		{MAC: good.MAC, Address: good.Address},
	} {
		if _, err := parseNetwork(bad); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestNetworkUnits(t *testing.T) {
	dir := t.TempDir()
	must(t, writeUnits(dir, networkUnits(wire.Network{MAC: "52:54:ac:10:00:02", Address: "172.16.0.2/24", Gateway: "172.16.0.1",
		DNS: []string{"172.16.0.1"}, Search: "vm", MTU: 65520})))
	got, err := os.ReadFile(filepath.Join(dir, "network/00-banger.network"))
	must(t, err)
	want := `[Match]
MACAddress=52:54:ac:10:00:02

[Link]
MTUBytes=65520

[Network]
Address=172.16.0.2/24
Gateway=172.16.0.1
DNS=172.16.0.1
Domains=vm
LinkLocalAddressing=no
IPv6AcceptRA=no
KeepConfiguration=yes
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
	if _, err := os.Lstat(filepath.Join(dir, "network/00-banger.link")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("udev is told of a device that is the VMM's: %v", err)
	}
	must(t, writeUnits(dir, networkUnits(wire.Network{Device: wire.DeviceTAP})))
	got, err = os.ReadFile(filepath.Join(dir, "network/00-banger.link"))
	must(t, err)
	want = "[Match]\nOriginalName=eth0\nDriver=tun\n\n[Link]\nNamePolicy=keep\nMACAddressPolicy=none\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Error(diff)
	}
}

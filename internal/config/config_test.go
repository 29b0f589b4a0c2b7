package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func testHome() (string, error) { return "/home/me", nil }

var ignore = cmp.Options{cmpopts.IgnoreUnexported(Config{}, FileSync{}), cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })}

func TestEmptyIsDefault(t *testing.T) {
	for _, in := range []string{"", "# nothing\n", "\n\n"} {
		c, err := parse("c.toml", []byte(in), testHome)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(Default(), c, ignore); diff != "" {
			t.Errorf("%q: (-default +got)\n%s", in, diff)
		}
	}
}

const everything = `
default_image_name = "alpine"
ssh_key_path = "~/.ssh/id"
firecracker_bin = "/opt/firecracker"
qemu_bin = "/usr/bin/../bin/qemu-system-x86_64"
web_listen_addr = "[::1]:8080"
bridge_name = "br7"
bridge_ip = "10.7.0.9"
cidr = "10.7.0.0/16"
tap_pool_size = 0
default_dns = ["1.1.1.1", "[2606:4700::1111]:5353"]
engine = "qemu"
jail = "on"
network = "bridge"
allow_private_networks = false
host_ports = [5432, 65535]
debian_mirror = "https://mirror.example/debian/"
image_catalog = ["https://example.org/c.toml#sha256=E3B0C44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "~/catalog.toml"]
default_cpus = 8
default_memory = "512MiB"
default_disk = "2T"
session_log_size = "1GiB"
session_log_files = 16
detach_key = "ctrl-]"

[[file_sync]]
host = "~/.netrc"
guest = "~/.netrc"

[[file_sync]]
host = "/etc/pki"
guest = "/root/pki"
mode = "0644"
`

func TestEverything(t *testing.T) {
	c, err := parse("c.toml", []byte(everything), testHome)
	if err != nil {
		t.Fatal(err)
	}
	want := Config{
		DefaultImageName: "alpine", SSHKeyPath: "/home/me/.ssh/id", FirecrackerBin: "/opt/firecracker",
		QEMUBin: "/usr/bin/qemu-system-x86_64", WebListenAddr: "[::1]:8080", BridgeName: "br7",
		BridgeIP: netip.MustParseAddr("10.7.0.9"), CIDR: netip.MustParsePrefix("10.7.0.0/16"),
		DefaultDNS: []netip.AddrPort{netip.MustParseAddrPort("1.1.1.1:53"), netip.MustParseAddrPort("[2606:4700::1111]:5353")},
		FileSync: []FileSync{{Host: "/home/me/.netrc", Guest: "/root/.netrc", Mode: 0o600},
			{Host: "/etc/pki", Guest: "/root/pki", Mode: 0o644}},
		Engine: "qemu", Jail: "on", Network: "bridge", HostPorts: []uint16{5432, 65535}, DebianMirror: "https://mirror.example/debian",
		ImageCatalog: []string{"https://example.org/c.toml#sha256=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "/home/me/catalog.toml"},
		DefaultCPUs:  8, DefaultMemory: "512MiB", DefaultDisk: "2T",
		SessionLogSize: "1GiB", SessionLogFiles: 16, DetachKey: "ctrl-]",
	}
	if diff := cmp.Diff(want, c, ignore); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for _, k := range keys() {
		if !strings.Contains(everything, k.name) {
			t.Errorf("the test does not set %s", k.name)
		}
		if _, ok := c.View()[k.name]; !ok {
			t.Errorf("View lacks %s", k.name)
		}
	}
}

// View is what JSON can say, and the defaults are as documented.
func TestView(t *testing.T) {
	got, err := json.MarshalIndent(Default().View(), "", " ")
	if err != nil {
		t.Fatal(err)
	}
	want := `{
 "allow_private_networks": true,
 "bridge_ip": "172.16.0.1",
 "bridge_name": "bngr0",
 "cidr": "172.16.0.0/24",
 "debian_mirror": "",
 "default_cpus": 2,
 "default_disk": "20GiB",
 "default_dns": [],
 "default_image_name": "debian-bookworm",
 "default_memory": "2GiB",
 "detach_key": "ctrl-\\",
 "engine": "auto",
 "file_sync": [],
 "firecracker_bin": "",
 "host_ports": [],
 "image_catalog": [],
 "jail": "auto",
 "network": "user",
 "qemu_bin": "",
 "session_log_files": 2,
 "session_log_size": "16MiB",
 "ssh_key_path": "",
 "tap_pool_size": 32,
 "web_listen_addr": "127.0.0.1:7777"
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestMistakes(t *testing.T) {
	for _, tc := range []struct{ in, want string }{
		// syntax
		{"engine = \n", `c.toml:1:`},
		{"engine = \"qemu\"\nengine = \"auto\"\n", `c.toml:2:1: `},
		{"x = \"\xff\"", `c.toml:1:`},
		// keys
		{"\n  defualt_cpus = 2", `c.toml:2:3: unknown key "defualt_cpus"; did you mean default_cpus?`},
		{"[Engine]\nx=1", `c.toml:1:2: unknown key "Engine"; did you mean engine?`},
		{"zzzzzz = 1", `c.toml:1:1: unknown key "zzzzzz"; the keys are default_image_name, `},
		{"default_cpus.x = 1", `c.toml:1:1: default_cpus: expected a whole number, found a table`},
		// types
		{"engine = 1", `c.toml:1:1: engine: expected a string in quotes, found the number 1`},
		{"engine = [\"qemu\"]", `c.toml:1:1: engine: expected a string in quotes, found a list`},
		{"default_memory = 2", `default_memory: expected a string in quotes, found the number 2`},
		{"default_cpus = \"2\"", `default_cpus: expected a whole number, found the string "2"`},
		{"default_cpus = 2.5", `default_cpus: expected a whole number, found the number 2.5`},
		{"allow_private_networks = \"yes\"", `allow_private_networks: expected true or false, found the string "yes"`},
		{"engine = 2026-01-01", `found a date or time`},
		// values
		{"jail = true", `jail: expected a string in quotes, found true`},
		{"jail = \"yes\"", `jail: "yes" is not one of auto, on, off`},
		{"engine = \"quemu\"", `engine: "quemu" is not one of auto, firecracker, qemu; did you mean "qemu"?`},
		{"network = \"\"", `network: "" is not one of user, bridge`},
		{"default_cpus = 0", `default_cpus: 0 is not between 1 and 256`},
		{"tap_pool_size = -1", `tap_pool_size: -1 is not between 0 and 1024`},
		{"default_memory = \"2\"", `default_memory: size "2": the unit is missing; write it like 512MiB or 20GiB`},
		{"default_disk = \"0GiB\"", `default_disk: size "0GiB"`},
		{"default_memory = \"127MiB\"", `default_memory: "127MiB" is less than 128MiB`},
		{"default_memory = \"200000KiB\"", `default_memory: "200000KiB" is not a whole number of MiB`},
		{"default_disk = \"1023MiB\"", `default_disk: "1023MiB" is less than 1GiB`},
		{"default_disk = \"-1GiB\"", `default_disk: size "-1GiB"`},
		{"session_log_size = \"1023KiB\"", `session_log_size: "1023KiB" is less than 1MiB`},
		{"session_log_size = \"1025MiB\"", `session_log_size: "1025MiB" is more than 1GiB`},
		{"session_log_files = 1", `session_log_files: 1 is not between 2 and 16`},
		{"detach_key = \"ctrl-1\"", `detach_key: "ctrl-1" is not a key: write "ctrl-" and a letter`},
		{"detach_key = \"q\"", `detach_key: "q" is not a key`},
		{"ssh_key_path = \"id\"", `ssh_key_path: "id" is not an absolute path`},
		{"qemu_bin = \"~root/qemu\"", `only ~/ is expanded`},
		{"qemu_bin = \"/a\\u0000b\"", `control characters`},
		{"default_image_name = \"\"", `is not the name of an image`},
		{"web_listen_addr = \"7777\"", `is not host:port, such as 127.0.0.1:7777`},
		{"web_listen_addr = \"127.0.0.1:http\"", `not a number`},
		{"web_listen_addr = \"example.org:80\"", `neither an IP address nor localhost`},
		{"bridge_name = \"a/b\"", `is not a name of a network interface`},
		{"bridge_name = \"abcdefghijklmnop\"", `is not a name of a network interface`},
		{"cidr = \"172.16.0.5/24\"", `cidr: "172.16.0.5/24" has bits of a host; did you mean 172.16.0.0/24?`},
		{"cidr = \"24\"", `cidr: "24" is not an IPv4 network such as 172.16.0.0/24`},
		{"cidr = \"fd00::/64\"", `is not an IPv4 network`},
		{"cidr = \"10.0.0.0/30\"", `8 to 29 bits`},
		{"cidr = \"127.0.0.0/24\"", `not a network that machines`},
		{"cidr = \"240.0.0.0/24\"", `not a network that machines`},
		{"bridge_ip = \"10.0.0.1\"", `c.toml:1:1: bridge_ip: 10.0.0.1 is not in cidr 172.16.0.0/24`},
		{"bridge_ip = \"172.16.0.0\"", `is the address of the network`},
		{"bridge_ip = \"172.16.0.255\"", `is the broadcast address`},
		{"cidr = \"10.0.0.0/24\"\nbridge_ip = \"10.0.1.1\"", `c.toml:2:1: bridge_ip: 10.0.1.1 is not in cidr 10.0.0.0/24`},
		{"bridge_ip = \"::1\"", `is not an IPv4 address such as 172.16.0.1`},
		{"default_dns = \"dns.example\"", `default_dns: "dns.example" is not an IP address`},
		{"default_dns = [\"0.0.0.0\"]", `cannot be the address of a name server`},
		{"host_ports = 80", `host_ports: expected a list of port numbers`},
		{"host_ports = [80, \"81\"]", `host_ports: expected port numbers, found the string "81"`},
		{"host_ports = [0]", `0 is not a port from 1 to 65535`},
		{"host_ports = [65536]", `65536 is not a port`},
		{"host_ports = [53]", `port 53 is banger's own DNS`},
		{"host_ports = [80, 80]", `80 is there twice`},
		{"default_dns = [\"\"]", `one of the list is empty`},
		{"debian_mirror = \"ftp://x/debian\"", `is not an http or https URL`},
		{"debian_mirror = \"http://\"", `is not an http or https URL`},
		{"debian_mirror = \"http://x/?a=b\"", `a query or fragment makes no sense`},
		{"image_catalog = [\"relative\"]", `expected files (absolute or ~/…) and http or https URLs`},
		{"image_catalog = [1]", `expected a string in quotes, found the number 1`},
		{"image_catalog = [\"https://example.org/c.toml\"]", `"https://example.org/c.toml" is not pinned: write https://example.org/c.toml#sha256=HEX, where HEX is what sha256sum prints`},
		{"image_catalog = [\"https://example.org/c.toml#sha256=12\"]", `is not pinned: write https://example.org/c.toml#sha256=HEX`},
		{"image_catalog = [\"https://example.org/c.toml#md5=12\"]", `is not pinned`},
		{"image_catalog = [\"ftp://example.org/c.toml\"]", `is not an http or https URL`},
		{"image_catalog = [\"https://example.org/c?a=b#sha256=12\"]", `makes no sense here`},
		{"image_catalog = [\"~me/c.toml\"]", `expected files (absolute or ~/…) and http or https URLs`},
		{"image_catalog = [\"/a.toml\", \"/b/../a.toml\"]", `"/b/../a.toml" is there twice`},
		{"image_catalog = 1", `expected a string or a list of strings, found the number 1`},
		// file_sync
		{"[file_sync]\nhost = \"/a\"", `c.toml:1:2: file_sync: expected entries that begin with [[file_sync]], found a table`},
		{"file_sync = [1]", `c.toml:1:1: file_sync[0]: expected host = …`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"~/a\"\n[[file_sync]]\nguest = \"~/a\"", `c.toml:4:3: file_sync[1]: host is missing`},
		{"[[file_sync]]\nhost = \"\"\nguest = \"~/a\"", `c.toml:2:1: file_sync[0].host: it is empty`},
		{"[[file_sync]]\nhost = \"a\"\nguest = \"~/a\"", `file_sync[0].host: "a" is not an absolute path`},
		{"[[file_sync]]\nhost = \"~me/a\"\nguest = \"~/a\"", `file_sync[0].host: "~me/a": only ~/ is expanded`},
		{"[[file_sync]]\nhost = \"/a/../b\"\nguest = \"~/a\"", `file_sync[0].host: "/a/../b" has a .. in it`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"/etc/a\"", `c.toml:3:1: file_sync[0].guest: "/etc/a" is not below ~/ (which is /root)`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"/root\"", `is not below ~/`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"/rootkit/a\"", `is not below ~/`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"/root/../etc\"", `has a .. in it`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"~/a\"\nmode = \"rw\"", `c.toml:4:1: file_sync[0].mode: "rw" is not an octal mode`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"~/a\"\nmode = \"4755\"", `is not an octal mode`},
		{"[[file_sync]]\nhost = \"/a\"\nguest = \"~/a\"\nmode = 600", `file_sync[0].mode: expected a string in quotes, found the number 600`},
		{"[[file_sync]]\nhost = \"/a\"\nguset = \"~/a\"", `c.toml:3:1: file_sync[0]: unknown key "guset"; did you mean guest?`},
		{"file_sync = [{host = \"/a\", guest = \"/b\"}]", `c.toml:1:28: file_sync[0].guest: "/b" is not below`},
	} {
		_, err := parse("c.toml", []byte(tc.in), testHome)
		if err == nil || api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q:\n got  %v\n want %s", tc.in, err, tc.want)
			continue
		}
		if strings.Contains(err.Error(), "toml:") && !strings.HasPrefix(err.Error(), "c.toml:") {
			t.Errorf("%q: %v", tc.in, err)
		}
	}
}

// All mistakes are told, in the order of the file.
func TestSeveralMistakes(t *testing.T) {
	_, err := parse("c.toml", []byte("zz = 1\nnetwork = \"x\"\n\nengine = 7\n"), testHome)
	var starts []string
	for line := range strings.SplitSeq(err.Error(), "\n") {
		starts = append(starts, line[:min(len(line), len("c.toml:1:1:"))])
	}
	if diff := cmp.Diff([]string{"c.toml:1:1:", "c.toml:2:1:", "c.toml:4:1:"}, starts); diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
}

func TestBridgeIPFollowsCIDR(t *testing.T) {
	c, err := parse("c.toml", []byte(`cidr = "10.9.8.0/29"`), testHome)
	if err != nil || c.BridgeIP != netip.MustParseAddr("10.9.8.1") {
		t.Errorf("%v, %v", c.BridgeIP, err)
	}
}

func TestHomeUnknown(t *testing.T) {
	lost := func() (string, error) { return "", errors.New("HOME is not set") }
	if _, err := parse("c.toml", []byte(`qemu_bin = "~/q"`), lost); err == nil || !strings.Contains(err.Error(), "HOME is not set") {
		t.Errorf("%v", err)
	}
	if _, err := parse("c.toml", []byte(`qemu_bin = "/q"`), lost); err != nil {
		t.Errorf("home asked without need: %v", err)
	}
}

func TestCPUs(t *testing.T) {
	for _, tc := range []struct {
		set      int
		emulated bool
		want     int
	}{{0, false, 2}, {0, true, 1}, {4, true, 4}, {4, false, 4}} {
		if got := (Config{DefaultCPUs: tc.set}).CPUs(tc.emulated); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	if c, exists, err := Load(file); err != nil || exists || c.Engine != "auto" {
		t.Errorf("no file: %v, %v, %v", c, exists, err)
	}
	if err := os.WriteFile(file, []byte("engine = \"qemu\"\nqemu_bin = \"~/q\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/home/other")
	if c, exists, err := Load(file); err != nil || !exists || c.Engine != "qemu" || c.QEMUBin != "/home/other/q" {
		t.Errorf("%v, %v, %v", c, exists, err)
	}
	if err := os.WriteFile(file, []byte("engine = 1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, exists, err := Load(file); !exists || err == nil || !strings.HasPrefix(err.Error(), file+":1:1: ") {
		t.Errorf("%v, %v", exists, err)
	}
	if _, _, err := Load(dir); err == nil || api.KindOf(err) != api.KindInvalid {
		t.Errorf("a directory: %v", err)
	}
	if err := os.WriteFile(file, []byte(strings.Repeat("#\n", maxFile)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Load(file); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a huge file: %v", err)
	}
}

// Whatever a file holds, parse answers with a configuration that is valid or with places in that file.
func FuzzParse(f *testing.F) {
	f.Add([]byte(everything))
	f.Add([]byte("file_sync = [{host=\"/a\"}, 1]\n[a.\"b.c\"]\n'd e' = {x.y=[1,[2,{z=3}]]}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse("c.toml", data, testHome)
		if err != nil {
			if api.KindOf(err) != api.KindInvalid {
				t.Errorf("%v", err)
			}
			lines := strings.Count(string(data), "\n") + 1
			for m := range strings.SplitSeq(err.Error(), "\n") {
				var line, column int
				if _, err := fmt.Sscanf(m, "c.toml:%d:%d: ", &line, &column); err != nil || line < 1 || line > lines || column < 1 {
					t.Errorf("%q names no place of the %d lines", m, lines)
				}
			}
			return
		}
		if !c.CIDR.Contains(c.BridgeIP) || c.BridgeIP == c.CIDR.Addr() {
			t.Errorf("bridge_ip %v is no host of %v", c.BridgeIP, c.CIDR)
		}
		for _, s := range c.FileSync {
			if !filepath.IsAbs(s.Host) || !strings.HasPrefix(s.Guest, "/root/") || strings.Contains(s.Guest, "/../") || s.Mode&^0o777 != 0 {
				t.Errorf("file_sync %+v", s)
			}
		}
		if _, err := json.Marshal(c.View()); err != nil {
			t.Error(err)
		}
	})
}

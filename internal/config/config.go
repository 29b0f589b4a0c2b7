// Package config reads config.toml: strictly, with every mistake named by file,
// line and column, an unknown key together with the one that was probably meant.
//
// config.go has the Config and Load; keys.go the list of keys with their
// defaults and checks; values.go the checks of single values; filesync.go
// the [[file_sync]] entries; position.go finds where in the file a key is.
package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/network/bridge"
	"git.thaloco.com/thaloco/banger/internal/suggest"

	"github.com/pelletier/go-toml/v2"
)

// maxFile is the greatest size of a configuration file in bytes.
const maxFile = 1 << 20

// Networks that VMs can be on.
const (
	NetworkUser   = "user"
	NetworkBridge = "bridge"
)

// Config is the configuration in force: what the file says, defaults for the rest. Paths are absolute.
type Config struct {
	// DefaultImageName is the image of a VM that names none.
	DefaultImageName string
	// SSHKeyPath is the host's private key for ssh; empty for banger's own.
	SSHKeyPath string
	// FirecrackerBin and QEMUBin are programs; empty for the one found.
	FirecrackerBin, QEMUBin string
	// WebListenAddr is host:port of the web UI; empty for none.
	WebListenAddr string
	BridgeName    string
	// BridgeIP is the gateway: an address of CIDR, which is IPv4 and of 8 to 29 bits.
	BridgeIP    netip.Addr
	CIDR        netip.Prefix
	TapPoolSize int // 0 to 1024
	// DefaultDNS are the resolvers behind banger's own; none for the host's.
	DefaultDNS []netip.AddrPort
	FileSync   []FileSync
	// Engine is "auto", "firecracker" or "qemu".
	Engine string
	// Jail is "auto", "on" or "off": whether Firecracker runs in its jailer, which takes root.
	Jail string
	// Network is NetworkUser or NetworkBridge.
	Network              string
	AllowPrivateNetworks bool
	// HostPorts are the ports of the host's loopback that every VM may reach at its gateway.
	HostPorts []uint16
	// DebianMirror is a URL without a slash at its end; empty for the host's own mirror or the public one.
	DebianMirror string
	// ImageCatalog are the places of catalogs beside the embedded one: files (absolute), and URLs with the digest of what is
	// there, "https://…#sha256=HEX".
	ImageCatalog []string
	// DefaultCPUs is 0 where the file does not say: see CPUs.
	DefaultCPUs int
	// DefaultMemory and DefaultDisk are sizes such as "2GiB".
	DefaultMemory, DefaultDisk string
	// SessionLogSize, such as "16MiB", and SessionLogFiles bound the log of a session: so many files of that size.
	SessionLogSize  string
	SessionLogFiles int
	// DetachKey is the key that leaves a session: "ctrl-" and a letter or one of @ [ \ ] ^ _, or "none".
	DetachKey string

	path string
}

// CPUs is how many CPUs a VM gets that does not say: default_cpus where it is set, else 2, or 1 under emulation.
func (c Config) CPUs(emulated bool) int {
	if emulated {
		return cmp.Or(c.DefaultCPUs, 1)
	}
	return cmp.Or(c.DefaultCPUs, 2)
}

// Default is the configuration without a file.
func Default() Config {
	return Config{
		DefaultImageName:     "debian-bookworm",
		WebListenAddr:        "127.0.0.1:7777",
		BridgeName:           "bngr0",
		BridgeIP:             netip.AddrFrom4([4]byte{172, 16, 0, 1}),
		CIDR:                 netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, 0, 0}), 24),
		TapPoolSize:          32,
		Engine:               "auto",
		Jail:                 "auto",
		Network:              NetworkUser,
		AllowPrivateNetworks: true,
		DefaultMemory:        "2GiB",
		DefaultDisk:          "20GiB",
		SessionLogSize:       "16MiB",
		SessionLogFiles:      2,
		DetachKey:            `ctrl-\`,
	}
}

// Load reads the configuration at path. Where there is no file it is Default and exists is false. What is wrong with
// the file is one api.Error of KindInvalid with a line per mistake, "PATH:LINE:COLUMN: what".
func Load(path string) (c Config, exists bool, err error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		c = Default()
		c.path = path
		return c, false, nil
	}
	if err != nil {
		return Config{}, true, api.Errorf(api.KindInvalid, "read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Config{}, true, api.Errorf(api.KindInvalid, "read configuration: %w", err)
	}
	if len(data) > maxFile {
		return Config{}, true, api.Errorf(api.KindInvalid, "read configuration %q: it is larger than %d bytes", path, maxFile)
	}
	c, err = parse(path, data, os.UserHomeDir)
	return c, true, err
}

// parse reads a configuration; path is for messages, home is asked where a value begins with "~/".
func parse(path string, data []byte, home func() (string, error)) (Config, error) {
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		line, column := 1, 1
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column = de.Position()
		}
		text := strings.TrimPrefix(err.Error(), "toml: ")
		return Config{}, invalid(path, []mistake{{position{line, column}, text}})
	}
	r := reader{where: positions(data), home: home, config: Default()}
	r.config.path = path
	known := keys()
	for _, k := range known {
		if v, ok := doc[k.name]; ok {
			if err := k.set(&r, v); err != nil {
				r.mistake(k.name, "%s: %v", k.name, err)
			}
		}
	}
	r.unknown(doc, known)
	r.network()
	if len(r.mistakes) > 0 {
		return Config{}, invalid(path, r.mistakes)
	}
	return r.config, nil
}

// reader is one run of parse.
type reader struct {
	where    map[string]position
	home     func() (string, error)
	config   Config
	mistakes []mistake
}

// mistake is something wrong at a place of the file.
type mistake struct {
	at   position
	text string
}

// mistake notes what is wrong with the key of a path such as "file_sync[1].host".
func (r *reader) mistake(key, format string, args ...any) {
	at, ok := r.where[key]
	for !ok && key != "" { // the nearest place around it that the file has
		key = key[:max(0, strings.LastIndexAny(key, ".["))]
		at, ok = r.where[key]
	}
	if !ok {
		at = position{1, 1}
	}
	r.mistakes = append(r.mistakes, mistake{at, fmt.Sprintf(format, args...)})
}

// unknown notes keys of the document that do not exist.
func (r *reader) unknown(doc map[string]any, known []key) {
	var names []string
	for _, k := range known {
		names = append(names, k.name)
	}
	for name := range doc {
		if !slices.Contains(names, name) {
			r.mistake(name, "%s", unknownKey(name, names))
		}
	}
}

func unknownKey(name string, known []string) string {
	if near := suggest.Near(name, known); len(near) > 0 {
		return fmt.Sprintf("unknown key %q; did you mean %s?", name, near[0])
	}
	return fmt.Sprintf("unknown key %q; the keys are %s", name, strings.Join(known, ", "))
}

// invalid is the error for mistakes, in the order of the file.
func invalid(path string, mistakes []mistake) error {
	slices.SortFunc(mistakes, func(a, b mistake) int {
		return cmp.Or(cmp.Compare(a.at.line, b.at.line), cmp.Compare(a.at.column, b.at.column), cmp.Compare(a.text, b.text))
	})
	var lines []string
	for _, m := range mistakes {
		lines = append(lines, fmt.Sprintf("%s:%d:%d: %s", path, m.at.line, m.at.column, m.text))
	}
	return api.Errorf(api.KindInvalid, "%s", strings.Join(lines, "\n")).
		WithHint("correct the file, or move it away; banger config show then shows what is in force")
}

// Bridge is what bridge mode needs of the host for the VMs of a user.
func (c Config) Bridge(uid int) bridge.Config {
	return bridge.Config{Name: c.BridgeName, IP: c.BridgeIP, CIDR: c.CIDR.Masked(), Taps: c.TapPoolSize, OwnerUID: uid, AllowPrivate: c.AllowPrivateNetworks}
}

// View is every key with its value in force, as JSON has it.
func (c Config) View() map[string]any {
	out := map[string]any{}
	for _, k := range keys() {
		out[k.name] = k.get(c)
	}
	return out
}

package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// key is a top-level key of the file.
type key struct {
	name string
	set  func(r *reader, v any) error
	get  func(c Config) any
}

// keys lists every key, in the order of the documentation. A default is in Default.
func keys() []key {
	return []key{
		text("default_image_name", func(c *Config) *string { return &c.DefaultImageName }, checkImageName),
		hostFile("ssh_key_path", func(c *Config) *string { return &c.SSHKeyPath }),
		hostFile("firecracker_bin", func(c *Config) *string { return &c.FirecrackerBin }),
		hostFile("qemu_bin", func(c *Config) *string { return &c.QEMUBin }),
		text("web_listen_addr", func(c *Config) *string { return &c.WebListenAddr }, checkListenAddr),
		text("bridge_name", func(c *Config) *string { return &c.BridgeName }, checkInterfaceName),
		{name: "bridge_ip", set: setBridgeIP, get: func(c Config) any { return c.BridgeIP.String() }},
		{name: "cidr", set: setCIDR, get: func(c Config) any { return c.CIDR.String() }},
		integer("tap_pool_size", 0, 1024, func(c *Config) *int { return &c.TapPoolSize }),
		{name: "default_dns", set: setDNS, get: viewDNS},
		{name: "file_sync", set: setFileSync, get: viewFileSync},
		text("engine", func(c *Config) *string { return &c.Engine }, oneOf("auto", "firecracker", "qemu")),
		text("jail", func(c *Config) *string { return &c.Jail }, oneOf("auto", "on", "off")),
		text("network", func(c *Config) *string { return &c.Network }, oneOf(NetworkUser, NetworkBridge)),
		boolean("allow_private_networks", func(c *Config) *bool { return &c.AllowPrivateNetworks }),
		{name: "host_ports", set: setHostPorts, get: func(c Config) any { return append([]uint16{}, c.HostPorts...) }},
		{name: "debian_mirror", set: setMirror, get: func(c Config) any { return c.DebianMirror }},
		{name: "image_catalog", set: setCatalog, get: func(c Config) any { return append([]string{}, c.ImageCatalog...) }},
		{name: "default_cpus", set: integer("", 1, 256, func(c *Config) *int { return &c.DefaultCPUs }).set,
			get: func(c Config) any { return c.CPUs(false) }},
		text("default_memory", func(c *Config) *string { return &c.DefaultMemory }, sizeOf(vmm.MinMemoryMiB<<20)),
		text("default_disk", func(c *Config) *string { return &c.DefaultDisk }, sizeOf(disk.MinBytes)),
		text("session_log_size", func(c *Config) *string { return &c.SessionLogSize }, sessionLogSize),
		integer("session_log_files", journal.MinSegments, journal.MaxSegments, func(c *Config) *int { return &c.SessionLogFiles }),
		text("detach_key", func(c *Config) *string { return &c.DetachKey }, checkDetachKey),
	}
}

func text(name string, field func(*Config) *string, check func(string) error) key {
	return key{name: name,
		set: func(r *reader, v any) error {
			s, err := asString(v)
			if err != nil {
				return err
			}
			*field(&r.config) = s
			return check(s)
		},
		get: func(c Config) any { return *field(&c) }}
}

// hostFile is a file of the host: absolute or below "~/"; empty for the default.
func hostFile(name string, field func(*Config) *string) key {
	return key{name: name,
		set: func(r *reader, v any) error {
			s, err := asString(v)
			if err != nil || s == "" {
				return err
			}
			*field(&r.config), err = hostPath(s, r.home)
			return err
		},
		get: func(c Config) any { return *field(&c) }}
}

func integer(name string, least, most int64, field func(*Config) *int) key {
	return key{name: name,
		set: func(r *reader, v any) error {
			n, ok := v.(int64)
			if !ok {
				return fmt.Errorf("expected a whole number, found %s", describe(v))
			}
			if n < least || n > most {
				return fmt.Errorf("%d is not between %d and %d", n, least, most)
			}
			*field(&r.config) = int(n)
			return nil
		},
		get: func(c Config) any { return *field(&c) }}
}

func boolean(name string, field func(*Config) *bool) key {
	return key{name: name,
		set: func(r *reader, v any) error {
			b, ok := v.(bool)
			if !ok {
				return fmt.Errorf("expected true or false, found %s", describe(v))
			}
			*field(&r.config) = b
			return nil
		},
		get: func(c Config) any { return *field(&c) }}
}

func setBridgeIP(r *reader, v any) error {
	s, err := asString(v)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(s)
	if err != nil || !addr.Is4() {
		r.config.BridgeIP = netip.Addr{}
		return fmt.Errorf("%q is not an IPv4 address such as %s", s, Default().BridgeIP)
	}
	r.config.BridgeIP = addr
	return nil
}

func setCIDR(r *reader, v any) error {
	s, err := asString(v)
	if err != nil {
		return err
	}
	r.config.CIDR, err = parseCIDR(s)
	return err
}

// network checks bridge_ip against cidr, and derives it where only cidr is given.
func (r *reader) network() {
	c := &r.config
	_, hasIP := r.where["bridge_ip"]
	_, hasCIDR := r.where["cidr"]
	switch {
	case !c.CIDR.IsValid() || !c.BridgeIP.IsValid(): // said already
	case hasCIDR && !hasIP:
		c.BridgeIP = c.CIDR.Addr().Next()
	case !c.CIDR.Contains(c.BridgeIP):
		r.mistake("bridge_ip", "bridge_ip: %s is not in cidr %s", c.BridgeIP, c.CIDR)
	case c.BridgeIP == c.CIDR.Addr():
		r.mistake("bridge_ip", "bridge_ip: %s is the address of the network %s itself", c.BridgeIP, c.CIDR)
	case !c.CIDR.Contains(c.BridgeIP.Next()):
		r.mistake("bridge_ip", "bridge_ip: %s is the broadcast address of cidr %s", c.BridgeIP, c.CIDR)
	}
}

func setDNS(r *reader, v any) error {
	list, err := asStrings(v)
	if err != nil {
		return err
	}
	for _, s := range list {
		addr, err := parseResolver(s)
		if err != nil {
			return err
		}
		r.config.DefaultDNS = append(r.config.DefaultDNS, addr)
	}
	return nil
}

func viewDNS(c Config) any {
	out := []string{}
	for _, a := range c.DefaultDNS {
		if a.Port() == 53 {
			out = append(out, a.Addr().String())
		} else {
			out = append(out, a.String())
		}
	}
	return out
}

func setHostPorts(r *reader, v any) error {
	list, ok := v.([]any)
	if !ok {
		return errors.New("expected a list of port numbers, such as [5432], found " + describe(v))
	}
	for _, e := range list {
		n, ok := e.(int64)
		switch {
		case !ok:
			return errors.New("expected port numbers, found " + describe(e))
		case n < 1 || n > 65535:
			return fmt.Errorf("%d is not a port from 1 to 65535", n)
		case n == 53:
			return errors.New("port 53 is banger's own DNS")
		case slices.Contains(r.config.HostPorts, uint16(n)):
			return fmt.Errorf("%d is there twice", n)
		}
		r.config.HostPorts = append(r.config.HostPorts, uint16(n))
	}
	return nil
}

func setMirror(r *reader, v any) error {
	s, err := asString(v)
	if err != nil || s == "" {
		return err
	}
	r.config.DebianMirror, err = parseURL(s)
	return err
}

func setCatalog(r *reader, v any) error {
	list, err := asStrings(v)
	if err != nil {
		return err
	}
	for _, s := range list {
		got, err := parseCatalog(s, r.home)
		if err != nil {
			return err
		}
		if slices.Contains(r.config.ImageCatalog, got) {
			return fmt.Errorf("%q is there twice", s)
		}
		r.config.ImageCatalog = append(r.config.ImageCatalog, got)
	}
	return nil
}

package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/network/egress"
)

// tableName is that of both tables, the one of family inet and the one of family bridge.
func tableName(bridge string) string { return "banger_" + bridge }

// revision names an empty chain by which Status tells whether the rules that are there are those of the configuration.
func revision(rules string) string {
	sum := sha256.Sum256([]byte(rules))
	return "revision_" + hex.EncodeToString(sum[:6])
}

// ruleset is both tables in the language of nft(8), without their revision. subnets are networks of the host's own that guests may not reach.
//
// The table of family bridge sees every frame of a guest first: it must have the guest's addresses and be IPv4 or ARP, and
// nothing but ARP goes to more than one. The table inet is about what leaves the bridge. Its verdicts that let pass are not the
// last word where other tables refuse: see iptables.go; what it refuses is refused.
func ruleset(c Config, subnets []netip.Prefix) (inet, bridge string) {
	never := append(egress.Networks(c.AllowPrivate), c.CIDR)
	if !c.AllowPrivate {
		never = append(never, subnets...)
	}
	r := strings.NewReplacer("BRIDGE", fmt.Sprintf("%q", c.Name), "GATEWAY", c.IP.String(), "CIDR", c.CIDR.String(),
		"DNSPORT", fmt.Sprint(DNSPort), "PROXYPORT", fmt.Sprint(ProxyPort), "NEVER", prefixes(never))
	return r.Replace(inetRules), fmt.Sprintf(bridgeRules, tapSet(c), guestSet(c))
}

const inetRules = `
	set never {
		type ipv4_addr
		flags interval
		auto-merge
		elements = { NEVER }
	}

	# addresses of the host other than the gateway's, also where a port of theirs leads on to a container
	chain arriving {
		type filter hook prerouting priority mangle; policy accept;
		iifname BRIDGE ct state new ip daddr != GATEWAY fib daddr type local goto refuse
	}

	chain to_gateway {
		type nat hook prerouting priority dstnat; policy accept;
		iifname BRIDGE ip daddr GATEWAY udp dport 53 dnat ip to GATEWAY:DNSPORT
		iifname BRIDGE ip daddr GATEWAY tcp dport 53 dnat ip to GATEWAY:DNSPORT
		iifname BRIDGE ip daddr GATEWAY meta l4proto tcp dnat ip to GATEWAY:PROXYPORT
	}

	chain from_host {
		type nat hook output priority -100; policy accept;
		ip daddr GATEWAY udp dport 53 dnat ip to GATEWAY:DNSPORT
		ip daddr GATEWAY tcp dport 53 dnat ip to GATEWAY:DNSPORT
	}

	chain leaving {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr CIDR oifname != { "lo", BRIDGE } masquerade
	}

	chain input {
		type filter hook input priority filter; policy accept;
		iifname BRIDGE goto to_host
	}

	chain to_host {
		ct state { established, related } accept
		ip daddr GATEWAY udp dport DNSPORT ct status dnat accept
		ip daddr GATEWAY tcp dport { DNSPORT, PROXYPORT } ct status dnat accept
		ip daddr GATEWAY icmp type echo-request accept
		goto refuse
	}

	chain forward {
		type filter hook forward priority filter; policy accept;
		iifname BRIDGE oifname BRIDGE accept
		iifname BRIDGE goto outward
		oifname BRIDGE goto inward
	}

	chain outward {
		meta nfproto != ipv4 drop
		ip daddr @never goto refuse
		tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu
		accept
	}

	chain inward {
		ct state { established, related } accept
		drop
	}

	# as quickly as a closed port would; ping says "Packet filtered"
	chain refuse {
		meta l4proto tcp reject with tcp reset
		reject with icmpx type admin-prohibited
	}
`

const bridgeRules = `
	set taps {
		type ifname
		elements = { %s }
	}

	set guests {
		type ifname . ether_addr . ipv4_addr
		elements = { %s }
	}

	chain from_guests {
		type filter hook prerouting priority dstnat; policy accept;
		iifname @taps goto guest
	}

	chain guest {
		ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp operation { request, reply } iifname . ether saddr . arp saddr ip @guests iifname . arp saddr ether . arp saddr ip @guests accept
		ether type ip ether daddr & 01:00:00:00:00:00 == 00:00:00:00:00:00 iifname . ether saddr . ip saddr @guests accept
		drop
	}

	# what the host's own programs send to everybody
	chain to_guests {
		type filter hook output priority out; policy accept;
		oifname @taps ether type != arp ether daddr & 01:00:00:00:00:00 != 00:00:00:00:00:00 drop
	}
`

// tapSet are the elements of the set taps.
func tapSet(c Config) string {
	names := make([]string, c.Taps)
	for i := range names {
		names[i] = fmt.Sprintf("%q", tapName(c.Name, i))
	}
	return strings.Join(names, ", ")
}

// guestSet are the elements of the set guests: which TAP sends from which addresses.
func guestSet(c Config) string {
	guests := make([]string, c.Taps)
	for i := range guests {
		a := Addr(c, i)
		guests[i] = fmt.Sprintf("%q . %s . %s", tapName(c.Name, i), MAC(a), a)
	}
	return strings.Join(guests, ", ")
}

func prefixes(list []netip.Prefix) string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return strings.Join(out, ", ")
}

package api

import (
	"net/netip"
	"strconv"
	"time"
)

// Protocols of ports.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Forward is a port of the host that leads to a port of a VM. What connects to it is carried by banger's agent, which
// reaches what listens in the guest on any of its addresses, its loopback included.
type Forward struct {
	// Protocol is TCP or UDP; empty is TCP.
	Protocol string `json:"protocol,omitempty"`
	// HostAddress is where the host listens; the zero value is 127.0.0.1.
	HostAddress netip.Addr `json:"host_address,omitzero"`
	// HostPort is 0 in a request for one that is free.
	HostPort  uint16 `json:"host_port"`
	GuestPort uint16 `json:"guest_port"`
}

// String is the forward as flags have it, as 127.0.0.1:8080:80/tcp.
func (f Forward) String() string {
	return netip.AddrPortFrom(f.HostAddress, f.HostPort).String() + ":" + strconv.Itoa(int(f.GuestPort)) + "/" + f.Protocol
}

// ForwardStatus is a forward of a VM and how it is.
type ForwardStatus struct {
	Forward
	// Listening tells that the host's port is open: it is while the VM runs.
	Listening bool `json:"listening"`
	// Error says why it is not, where the VM runs.
	Error string `json:"error,omitempty"`
	// Connections are those open now; of UDP, peers heard of lately.
	Connections int `json:"connections"`
}

// RemoveForward names a forward of a VM: by HostPort, and where that leaves a choice by the rest.
type RemoveForward struct {
	Protocol    string     `json:"protocol,omitempty"`
	HostAddress netip.Addr `json:"host_address,omitzero"`
	HostPort    uint16     `json:"host_port"`
}

// GuestPort is a port that something in a guest listens on.
type GuestPort struct {
	Protocol string     `json:"protocol"`
	Address  netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	// UID is the guest's user who listens, Process the name of the program, as far as it is known. The guest says both.
	UID     int    `json:"uid"`
	Process string `json:"process,omitempty"`
	// Agent tells that it is banger's own agent, as the VM's ssh server.
	Agent bool `json:"agent,omitempty"`
	// URL reaches a TCP port from a browser on the host.
	URL string `json:"url,omitempty"`
	// Forwards are the ports of the host that lead to it.
	Forwards []Forward `json:"forwards,omitempty"`
}

// VMStats are counters of a running VM.
type VMStats struct {
	ID   string `json:"id"`
	Name string `json:"name"`
	// Guest is what the guest says of itself; nil where its agent does not answer.
	Guest   *GuestStats   `json:"guest,omitempty"`
	Host    HostStats     `json:"host"`
	Network *NetworkStats `json:"network,omitempty"`
}

// GuestStats is the guest as its agent sees it.
type GuestStats struct {
	UptimeSeconds float64 `json:"uptime_seconds"`
	// Load is the load average over 1, 5 and 15 minutes.
	Load [3]float64 `json:"load"`
	CPUs int        `json:"cpus"`
	// BusySeconds is the time all CPUs together were neither idle nor waiting since the boot.
	BusySeconds          float64 `json:"busy_seconds"`
	MemoryTotalBytes     int64   `json:"memory_total_bytes"`
	MemoryAvailableBytes int64   `json:"memory_available_bytes"`
	DiskTotalBytes       int64   `json:"disk_total_bytes"`
	DiskFreeBytes        int64   `json:"disk_free_bytes"`
}

// HostStats is what the VM costs the host.
type HostStats struct {
	// MemoryBytes is the resident memory of VMM and supervisor, CPUSeconds the time they used since their start.
	MemoryBytes   int64   `json:"memory_bytes"`
	CPUSeconds    float64 `json:"cpu_seconds"`
	DiskUsedBytes int64   `json:"disk_used_bytes"`
}

// NetworkStats counts what a VM's network device moved since Since: since its daemon or itself was started, whichever was later.
type NetworkStats struct {
	// Mode is "user" or "bridge".
	Mode  string    `json:"mode"`
	Since time.Time `json:"since,omitzero"`
	// Sent and received are the guest's.
	SentBytes       uint64 `json:"sent_bytes"`
	SentPackets     uint64 `json:"sent_packets"`
	ReceivedBytes   uint64 `json:"received_bytes"`
	ReceivedPackets uint64 `json:"received_packets"`
	// Overrun are packets for the guest that it did not take fast enough.
	Overrun uint64 `json:"overrun_packets"`
	// What follows only user mode counts; in bridge mode, where the kernel carries what guests send, it is left out.
	//
	// Dropped are packets of the guest that were malformed, spoofed or of a kind that is not carried.
	Dropped *uint64 `json:"dropped_packets,omitempty"`
	// Flows are connections, UDP and echo flows let out of the network; Refused those a rule or a limit forbade.
	Flows   *uint64 `json:"flows,omitempty"`
	Refused *uint64 `json:"refused_flows,omitempty"`
	// OpenTCP and OpenUDP are those of now.
	OpenTCP *int `json:"open_tcp,omitempty"`
	OpenUDP *int `json:"open_udp,omitempty"`
}

// Package guestapi is the agent's HTTP API: its types, the handler the agent
// serves on wire.PortAPI, and the client the host calls it with. Running commands is not in it: that is
// the exec protocol, on a port of its own.
//
// The guest is hostile: the client bounds every answer, honours its context, and believes no
// kind of error that would say something about the host.
//
// handler.go holds the routes, files.go, trees.go and sessions.go those of files, trees of files and sessions on both sides, proc.go and ports.go what they read from /proc,
// client.go the client.
package guestapi

import (
	"net/netip"

	"git.thaloco.com/thaloco/banger/api"
)

// Health is the guest as its agent sees it: GET /v1/health.
type Health struct {
	// Version is that of the guest protocol, Agent the agent's build version.
	Version int    `json:"version"`
	Agent   string `json:"agent"`
	// Init is "systemd", "other" or "none".
	Init string `json:"init"`
	// Mark is how far the boot is.
	Mark     api.Mark `json:"mark"`
	Hostname string   `json:"hostname"`
	BootID   string   `json:"boot_id"`
	// UptimeSeconds counts from the start of the kernel.
	UptimeSeconds float64 `json:"uptime_seconds"`
	// Load is the load average over 1, 5 and 15 minutes.
	Load                 [3]float64 `json:"load"`
	MemoryTotalBytes     int64      `json:"memory_total_bytes"`
	MemoryAvailableBytes int64      `json:"memory_available_bytes"`
}

// Stats are counters of the guest: GET /v1/stats.
type Stats struct {
	UptimeSeconds        float64    `json:"uptime_seconds"`
	Load                 [3]float64 `json:"load"`
	CPUs                 int        `json:"cpus"`
	CPU                  CPUTimes   `json:"cpu"`
	MemoryTotalBytes     int64      `json:"memory_total_bytes"`
	MemoryAvailableBytes int64      `json:"memory_available_bytes"`
	SwapTotalBytes       int64      `json:"swap_total_bytes"`
	SwapFreeBytes        int64      `json:"swap_free_bytes"`
	Disk                 Disk       `json:"disk"`
	Interfaces           []NetIO    `json:"interfaces,omitempty"`
	// Commands is how many commands banger runs in the guest.
	Commands int `json:"commands"`
}

// CPUTimes is where the CPUs' time went since the boot, in seconds, all CPUs together.
type CPUTimes struct {
	User   float64 `json:"user"`
	System float64 `json:"system"`
	Idle   float64 `json:"idle"`
	IOWait float64 `json:"io_wait"`
	Steal  float64 `json:"steal"`
}

// Disk is the data file system.
type Disk struct {
	TotalBytes int64 `json:"total_bytes"`
	FreeBytes  int64 `json:"free_bytes"`
}

// NetIO counts what an interface has moved.
type NetIO struct {
	Name          string `json:"name"`
	ReceivedBytes int64  `json:"received_bytes"`
	SentBytes     int64  `json:"sent_bytes"`
}

// Port is one a process of the guest listens on: GET /v1/ports.
type Port struct {
	// Protocol is "tcp" or "udp".
	Protocol string     `json:"protocol"`
	Address  netip.Addr `json:"address"`
	Port     uint16     `json:"port"`
	// UID is the user who listens.
	UID int `json:"uid"`
	// Process is the name of the program; empty where it cannot be found out.
	Process string `json:"process,omitempty"`
	// Agent tells that it is the agent itself.
	Agent bool `json:"agent,omitempty"`
}

// Reset is how many connections were reset: the answer to POST /v1/connections/reset.
type Reset struct {
	Connections int `json:"connections"`
}

// Verbs of an end.
const (
	VerbPoweroff = "poweroff"
	VerbReboot   = "reboot"
	VerbHalt     = "halt"
)

// End asks for an end: POST /v1/shutdown through the guest's init, POST /v1/end at once.
type End struct {
	Verb string `json:"verb"`
}

// Signal asks for a signal to a process group: POST /v1/processes/{id}/signal. Name is as "INT".
type Signal struct {
	Name string `json:"name"`
}

// Grow asks for a data file system of Bytes, 0 for the size of its drive: POST /v1/disk/grow. The
// answer is a Grow with the size it has.
type Grow struct {
	Bytes int64 `json:"bytes"`
}

package api

import (
	"net"
	"net/netip"
	"time"
)

// DaemonStatus is the daemon as it describes itself.
type DaemonStatus struct {
	PID        int    `json:"pid"`
	Version    string `json:"version"`
	APIVersion int    `json:"api_version"`
	Socket     string `json:"socket"`
	// StateDir is where its database and the VMs' directories are.
	StateDir  string    `json:"state_dir"`
	LogFile   string    `json:"log_file"`
	StartedAt time.Time `json:"started_at"`
	// UptimeSeconds is how long it has been up.
	UptimeSeconds float64 `json:"uptime_seconds"`
	VMs           int     `json:"vms"`
	RunningVMs    int     `json:"running_vms"`
	// Engine is the engine new VMs start on, EngineReason why.
	Engine       string `json:"engine"`
	EngineReason string `json:"engine_reason"`
	// Network is the mode new VMs start with: "user" or "bridge".
	Network string `json:"network,omitempty"`
	// WebAddress is the host:port where the daemon serves web pages and the ports of VMs; empty where it does not. WebWarning says why it
	// is not the configured one.
	WebAddress string `json:"web_address,omitempty"`
	WebWarning string `json:"web_warning,omitempty"`
}

// WebURL is where a browser on this host finds the daemon's page; empty where it serves none.
func (s DaemonStatus) WebURL() string {
	host, port, err := net.SplitHostPort(s.WebAddress)
	if err != nil {
		return ""
	}
	if a, err := netip.ParseAddr(host); err != nil || a.IsUnspecified() || a == netip.IPv6Loopback() || a.String() == "127.0.0.1" {
		host = "localhost"
	}
	return "http://" + net.JoinHostPort(host, port) + "/"
}

// ConfigView is the configuration in force.
type ConfigView struct {
	Path string `json:"path"`
	// Exists tells whether there is a file at Path.
	Exists bool           `json:"exists"`
	Values map[string]any `json:"values"`
}

package doctor

import (
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/network/dns"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// maxFile is how much of a file is read, in bytes.
const maxFile = 4 << 20

// text is what a file has, empty where it cannot be read.
func text(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return ""
	}
	return string(data)
}

// observeKernel reads what the kernel tells of the network and of memory.
func (o *Observations) observeKernel() {
	o.Routes = HostRoutes()
	o.Resolvers = dns.ParseResolvConf([]byte(text("/etc/resolv.conf")))
	o.PingGroups = parseRange(text("/proc/sys/net/ipv4/ping_group_range"))
	o.Groups = []int{os.Getegid()}
	if more, err := os.Getgroups(); err == nil {
		o.Groups = append(o.Groups, more...)
	}
	o.MemoryTotal, o.MemoryAvailable = parseMeminfo(text("/proc/meminfo"))
}

// HostRoutes are the host's IPv4 routes; none where they cannot be read.
func HostRoutes() []Route { return parseRoutes(text("/proc/thread-self/net/route")) }

// parseRoutes reads /proc/PID/net/route: IPv4 routes, addresses in hexadecimal as they are in memory of a little-endian host.
func parseRoutes(s string) []Route {
	var out []Route
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		to, err1 := hexAddr(f[1])
		mask, err2 := hexAddr(f[7])
		if err1 != nil || err2 != nil {
			continue
		}
		b := mask.As4()
		n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
		out = append(out, Route{To: netip.PrefixFrom(to, bits.LeadingZeros32(^n)).Masked(), Interface: f[0]})
	}
	return out
}

func hexAddr(s string) (netip.Addr, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 {
		return netip.Addr{}, fmt.Errorf("no address: %q", s)
	}
	slices.Reverse(b)
	return netip.AddrFrom4([4]byte(b)), nil
}

// parseRange reads two numbers; the range of nobody where it cannot.
func parseRange(s string) [2]int {
	f := strings.Fields(s)
	if len(f) == 2 {
		least, err1 := strconv.Atoi(f[0])
		most, err2 := strconv.Atoi(f[1])
		if err1 == nil && err2 == nil {
			return [2]int{least, most}
		}
	}
	return [2]int{1, 0}
}

// parseMeminfo reads /proc/meminfo; the results are in bytes.
func parseMeminfo(s string) (total, available int64) {
	for line := range strings.Lines(s) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) != 2 || f[1] != "kB" {
			continue
		}
		n, err := strconv.ParseInt(f[0], 10, 53)
		if err != nil {
			continue
		}
		switch key {
		case "MemTotal":
			total = n << 10
		case "MemAvailable":
			available = n << 10
		}
	}
	return total, available
}

// observeTuning reads what may slow KVM down.
func observeTuning() Tuning {
	t := Tuning{HugePages: strings.TrimSpace(text("/sys/module/kvm/parameters/nx_huge_pages"))}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		t.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	t.Cgroup2, t.FavorDynMods = parseMounts(text("/proc/self/mounts"))
	return t
}

// parseMounts finds the first cgroup2 hierarchy in the text of /proc/self/mounts.
func parseMounts(s string) (where string, favorDynMods bool) {
	for line := range strings.Lines(s) {
		if f := strings.Fields(line); len(f) >= 4 && f[2] == "cgroup2" {
			return f[1], slices.Contains(strings.Split(f[3], ","), "favordynmods")
		}
	}
	return "", false
}

// isLocked tells whether a daemon holds the lock at path, without taking it: one that starts at the same time would
// find it taken. A daemon that holds it has written its socket's path there.
func isLocked(path string) bool {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Size == 0 {
		return false
	}
	return parseLocks(text("/proc/locks"), st.Ino)
}

// parseLocks finds a flock of a file in the text of /proc/locks (proc_locks(5)). The device is left out: on btrfs and
// overlayfs it is not the one stat tells.
func parseLocks(s string, inode uint64) bool {
	suffix := ":" + strconv.FormatUint(inode, 10)
	for line := range strings.Lines(s) {
		f := strings.Fields(line)
		if len(f) >= 6 && f[1] == "FLOCK" && strings.HasSuffix(f[5], suffix) {
			return true
		}
	}
	return false
}

// observeSSHConfig looks whether the user's configuration of OpenSSH includes banger's.
func (o *Observations) observeSSHConfig(p paths.Paths) {
	if o.Home == "" {
		return
	}
	s := SSHConfig{User: filepath.Join(o.Home, ".ssh", "config"), Ours: p.SSHConfig()}
	_, err := os.Stat(s.Ours)
	s.Exists = err == nil
	s.Included = includes(text(s.User), s.Ours, o.Home)
	o.SSHConfig = s
}

// includes reports whether the text of an ssh_config includes a file for all hosts: ahead of the first Host or Match.
func includes(text, path, home string) bool {
	for line := range strings.Lines(text) {
		f := strings.Fields(strings.Replace(line, "=", " ", 1))
		if len(f) == 0 {
			continue
		}
		switch strings.ToLower(f[0]) {
		case "host", "match":
			return false
		case "include":
			for _, pattern := range f[1:] {
				pattern = strings.Trim(pattern, `"`)
				if rest, ok := strings.CutPrefix(pattern, "~/"); ok {
					pattern = filepath.Join(home, rest)
				} else if !filepath.IsAbs(pattern) {
					pattern = filepath.Join(home, ".ssh", pattern)
				}
				if match, err := filepath.Match(pattern, path); err == nil && match {
					return true
				}
			}
		}
	}
	return false
}

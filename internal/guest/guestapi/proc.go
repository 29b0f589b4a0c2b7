package guestapi

import (
	"bufio"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// clockTick is the unit of /proc/stat in seconds: USER_HZ is 100 on every architecture (include/asm-generic/param.h).
const clockTick = 0.01

// readHealth fills in what the kernel says.
func readHealth(h *Health) error {
	var err error
	if h.Hostname, err = os.Hostname(); err != nil {
		return err
	}
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	h.BootID = strings.TrimSpace(string(id))
	if h.UptimeSeconds, h.Load, err = uptimeAndLoad(); err != nil {
		return err
	}
	mem, err := memInfo()
	h.MemoryTotalBytes, h.MemoryAvailableBytes = mem["MemTotal"], mem["MemAvailable"]
	return err
}

// readStats fills in the kernel's counters; dataDir is on the data file system.
func readStats(s *Stats, dataDir string) error {
	var err error
	if s.UptimeSeconds, s.Load, err = uptimeAndLoad(); err != nil {
		return err
	}
	mem, err := memInfo()
	if err != nil {
		return err
	}
	s.MemoryTotalBytes, s.MemoryAvailableBytes = mem["MemTotal"], mem["MemAvailable"]
	s.SwapTotalBytes, s.SwapFreeBytes = mem["SwapTotal"], mem["SwapFree"]
	s.CPUs = runtime.NumCPU()
	if err := eachLine("/proc/stat", func(f []string) {
		if f[0] == "cpu" && len(f) > 8 {
			t := func(i int) float64 { v, _ := strconv.ParseFloat(f[i], 64); return v * clockTick }
			s.CPU = CPUTimes{User: t(1) + t(2), System: t(3) + t(6) + t(7), Idle: t(4), IOWait: t(5), Steal: t(8)}
		}
	}); err != nil {
		return err
	}
	if err := eachLine("/proc/thread-self/net/dev", func(f []string) {
		if name, ok := strings.CutSuffix(f[0], ":"); ok && len(f) > 9 && name != "lo" {
			in, _ := strconv.ParseInt(f[1], 10, 64)
			out, _ := strconv.ParseInt(f[9], 10, 64)
			s.Interfaces = append(s.Interfaces, NetIO{Name: name, ReceivedBytes: in, SentBytes: out})
		}
	}); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dataDir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: dataDir, Err: err}
	}
	s.Disk = Disk{TotalBytes: int64(st.Blocks) * st.Bsize, FreeBytes: int64(st.Bavail) * st.Bsize}
	return nil
}

func uptimeAndLoad() (up float64, load [3]float64, err error) {
	err = eachLine("/proc/uptime", func(f []string) { up, _ = strconv.ParseFloat(f[0], 64) })
	if err == nil {
		err = eachLine("/proc/loadavg", func(f []string) {
			for i := range min(len(load), len(f)) {
				load[i], _ = strconv.ParseFloat(f[i], 64)
			}
		})
	}
	return up, load, err
}

// memInfo returns /proc/meminfo in bytes.
func memInfo() (map[string]int64, error) {
	mem := map[string]int64{}
	err := eachLine("/proc/meminfo", func(f []string) {
		if kib, err := strconv.ParseInt(f[min(1, len(f)-1)], 10, 64); err == nil {
			mem[strings.TrimSuffix(f[0], ":")] = kib << 10
		}
	})
	return mem, err
}

// eachLine calls f with the fields of every line of a file that has any.
func eachLine(file string, f func(fields []string)) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) > 0 {
			f(fields)
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("read %q: %w", file, err)
	}
	return nil
}

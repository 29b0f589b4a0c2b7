package hostproc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"
)

// Usage is what a process takes of the host.
type Usage struct {
	// MemoryBytes is its resident memory, shared pages included.
	MemoryBytes int64
	// CPU is the time it used since it was started, without its children.
	CPU time.Duration
}

// clockTicks is how many ticks /proc counts a second in: USER_HZ, which is 100 on every architecture banger runs on.
const clockTicks = 100

// UsageOf counts what a process takes; nothing where it has ended.
func UsageOf(pid int) (Usage, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return Usage{}, nil
	}
	if err != nil {
		return Usage{}, fmt.Errorf("read the usage of process %d: %w", pid, err)
	}
	return parseUsage(b, os.Getpagesize())
}

// parseUsage takes fields 14, 15 and 24 out of /proc/PID/stat (proc(5)): utime, stime and rss.
func parseUsage(b []byte, page int) (Usage, error) {
	end := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[end+1:])
	if end < 0 || len(fields) < 22 {
		return Usage{}, errors.New("read /proc/PID/stat: unexpected form")
	}
	var n [3]int64
	for i, at := range []int{11, 12, 21} {
		var err error
		if n[i], err = strconv.ParseInt(string(fields[at]), 10, 64); err != nil || n[i] < 0 {
			return Usage{}, errors.New("read /proc/PID/stat: unexpected form")
		}
	}
	return Usage{MemoryBytes: n[2] * int64(page), CPU: time.Duration(n[0]+n[1]) * time.Second / clockTicks}, nil
}

// Package hostproc names processes of the host for good: pids come back, pid and start time of one boot do not.
package hostproc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Process is one process of one boot of the host. The zero value is none.
type Process struct {
	PID int `json:"pid"`
	// StartTime is field 22 of /proc/PID/stat, in clock ticks since boot.
	StartTime uint64 `json:"start_time"`
	// BootID is /proc/sys/kernel/random/boot_id.
	BootID string `json:"boot_id"`
}

// Identify describes the process pid.
func Identify(pid int) (Process, error) {
	boot, err := bootID()
	if err != nil {
		return Process{}, err
	}
	start, _, err := readStat(pid)
	if err != nil {
		return Process{}, err
	}
	return Process{PID: pid, StartTime: start, BootID: boot}, nil
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the host's boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// readStat reads start time and state letter of a process.
func readStat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, err
	}
	return parseStat(b)
}

// parseStat takes start time and state out of /proc/PID/stat (proc(5)). The name, in parentheses, may hold anything.
func parseStat(b []byte) (start uint64, state byte, err error) {
	end := bytes.LastIndexByte(b, ')')
	fields := bytes.Fields(b[end+1:])
	if end < 0 || len(fields) < 20 || len(fields[0]) != 1 {
		return 0, 0, errors.New("read /proc/PID/stat: unexpected form")
	}
	start, err = strconv.ParseUint(string(fields[19]), 10, 64)
	return start, fields[0][0], err
}

// Alive reports whether p runs. A zombie does not.
func (p Process) Alive() bool {
	if p.PID <= 0 {
		return false
	}
	boot, err := bootID()
	if err != nil || boot != p.BootID {
		return false
	}
	start, state, err := readStat(p.PID)
	return err == nil && start == p.StartTime && state != 'Z' && state != 'X'
}

// Signal sends sig to p, and to nobody who has got its pid since. To one that has ended nothing is sent, without an error.
func (p Process) Signal(sig syscall.Signal) error {
	if p.PID <= 0 {
		return nil
	}
	h, err := os.FindProcess(p.PID) // holds a pidfd: what is verified next is what gets the signal
	if err != nil {
		return err
	}
	defer h.Release()
	if !p.Alive() {
		return nil
	}
	if err := h.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal process %d: %w", p.PID, err)
	}
	return nil
}

// Gone waits until p does not run any more, looking every 2 ms.
func (p Process) Gone(ctx context.Context) error {
	t := time.NewTicker(2 * time.Millisecond)
	defer t.Stop()
	for p.Alive() {
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for process %d to end: %w", p.PID, context.Cause(ctx))
		}
	}
	return nil
}

package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// bootLog collects what PID 1 has to say until the agent has a log to put it in.
type bootLog struct {
	Lines []string
}

// step notes that something was done; the time is in milliseconds since the kernel started.
func (l *bootLog) step(format string, args ...any) {
	l.Lines = append(l.Lines, fmt.Sprintf("boot_ms=%d %s", bootMillis(), fmt.Sprintf(format, args...)))
}

// warn notes what went wrong without ending the boot, on the console as well.
func (l *bootLog) warn(err error) {
	if err == nil {
		return
	}
	l.step("warning: %v", err)
	fmt.Fprintln(os.Stderr, "banger:", err)
}

// bootMillis is the time since the kernel started, in milliseconds.
func bootMillis() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1e6
}

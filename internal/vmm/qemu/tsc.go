package qemu

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Plausible rates of a time stamp counter in kHz.
const (
	minTSC = 100_000
	maxTSC = 20_000_000
)

// MeasureTSC returns the rate of the host's time stamp counter in kHz, measured for about 20 ms against
// CLOCK_MONOTONIC_RAW, exact to some 10 ppm. QEMU's emulated CPU passes the host's counter through, so this is the
// guest's rate as well. Where the measurement is implausible it takes "cpu MHz" of /proc/cpuinfo.
func MeasureTSC(ctx context.Context) (int, error) {
	for range 3 {
		first, mid, last := sampleTSC(), uint64(0), tscSample{}
		if !pause(ctx, 10*time.Millisecond) {
			return 0, context.Cause(ctx)
		}
		middle := sampleTSC()
		mid = middle.rate(first)
		if !pause(ctx, 10*time.Millisecond) {
			return 0, context.Cause(ctx)
		}
		last = sampleTSC()
		khz := last.rate(first)
		// Both halves must agree, or something moved the clock (or us, between unsynchronised cores).
		if khz >= minTSC && khz <= maxTSC && within(mid, khz, 2000) {
			return int(khz), nil
		}
	}
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return 0, fmt.Errorf("measure the time stamp counter: %w", err)
	}
	defer f.Close()
	return cpuinfoKHz(f)
}

// tscSample is the counter and the clock at one moment.
type tscSample struct{ tsc, ns uint64 }

// sampleTSC reads both as close together as the tightest of eight tries.
func sampleTSC() tscSample {
	var best tscSample
	gap := ^uint64(0)
	for range 8 {
		before := rdtsc()
		var ts unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
			return tscSample{}
		}
		if after := rdtsc(); after-before < gap {
			gap = after - before
			best = tscSample{tsc: before + gap/2, ns: uint64(ts.Nano())}
		}
	}
	return best
}

// rate is the counter's rate since an earlier sample in kHz, 0 where there is none.
func (s tscSample) rate(since tscSample) uint64 {
	if s.ns <= since.ns || s.tsc <= since.tsc {
		return 0
	}
	return uint64(float64(s.tsc-since.tsc)/float64(s.ns-since.ns)*1e6 + 0.5)
}

// within reports whether a and b differ by at most 1/fraction.
func within(a, b, fraction uint64) bool { return max(a, b)-min(a, b) <= b/fraction }

// pause waits for d; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// cpuinfoKHz finds the first "cpu MHz" in the text of /proc/cpuinfo.
func cpuinfoKHz(r io.Reader) (int, error) {
	sc := bufio.NewScanner(io.LimitReader(r, 1<<20))
	for sc.Scan() {
		key, value, ok := strings.Cut(sc.Text(), ":")
		if !ok || strings.TrimSpace(key) != "cpu MHz" {
			continue
		}
		mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if khz := mhz * 1000; err == nil && khz >= minTSC && khz <= maxTSC {
			return int(khz + 0.5), nil
		}
	}
	return 0, errors.New("find the rate of the time stamp counter: no plausible \"cpu MHz\" in /proc/cpuinfo")
}

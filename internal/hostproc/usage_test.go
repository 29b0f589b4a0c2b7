package hostproc

import (
	"math"
	"os"
	"strconv"
	"testing"
	"time"
)

func TestParseUsage(t *testing.T) {
	const head = "7 (a) R (b) 1) S 1 1 1 0 -1 4194560 1 0 0 0 "
	for text, want := range map[string]Usage{
		head + "150 50 0 0 20 0 1 0 4711 9999 25 18446744073709551615": {MemoryBytes: 25 * 4096, CPU: 2 * time.Second},
		head + "0 1 0 0 20 0 1 0 4711 0 0":                             {CPU: 10 * time.Millisecond},
	} {
		if got, err := parseUsage([]byte(text), 4096); err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "7 (x) S 1", head + "x 1 0 0 20 0 1 0 4711 0 0", head + "1 1 0 0 20 0 1 0 4711 0 -5", head + "1 1 0 0 20 0 1 0 4711"} {
		if got, err := parseUsage([]byte(text), 4096); err == nil {
			t.Errorf("%q is %+v", text, got)
		}
	}
}

func TestUsageOf(t *testing.T) {
	if u, err := UsageOf(os.Getpid()); err != nil || u.MemoryBytes < 1<<20 || u.CPU < 0 {
		t.Errorf("this process takes %+v, %v", u, err)
	}
	if u, err := UsageOf(math.MaxInt32); err != nil || u != (Usage{}) {
		t.Errorf("process %s takes %+v, %v", strconv.Itoa(math.MaxInt32), u, err)
	}
}

package supervise

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
)

// TestHaltWatch: the kernel's last words are known however they arrive, and nothing is kept from the log.
func TestHaltWatch(t *testing.T) {
	for text, want := range map[string]bool{
		"[    1.234567] reboot: System halted\r\n":                       true,
		"reboot: Power down\n":                                           true,
		"box login: [  120.5] reboot: System halted\r\r\n":               true,
		"[    1.234567][    T1] reboot: System halted\n":                 true,
		"one\n\n[ 1.0] reboot: System halted\ntwo\n":                     true,
		"[    1.234567] reboot: System halted":                           false,
		"Jan 01 00:00:00 box kernel: reboot: System halted\n":            false,
		"reboot: System halted, said the dog\n":                          false,
		"[    1.234567] reboot: Restarting system\n":                     false,
		"[ 1.0] reboot: System halted" + strings.Repeat(" ", 600) + "\n": false,
		strings.Repeat("x", 600) + "[ 1.0] reboot: System halted\n":      false,
	} {
		for _, size := range []int{1, 7, len(text)} {
			var log bytes.Buffer
			halted := make(chan struct{}, 1)
			w := &haltWatch{to: &log, halted: halted}
			for rest := []byte(text); len(rest) > 0; {
				n, err := w.Write(rest[:min(size, len(rest))])
				if err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			if got := len(halted) == 1; got != want || log.String() != text {
				t.Errorf("%q, %d at a time: halted %v, log %q", text, size, got, &log)
			}
		}
	}
}

// TestFirecrackerHalts: a guest whose kernel halted unannounced ends its VM; one that only says so goes on.
func TestFirecrackerHalts(t *testing.T) {
	t.Run("it has", func(t *testing.T) {
		t.Parallel()
		r := startFC(t, fakefc.Knobs{}, nil, impatience("hangs")...)
		r.awaitFull(t)
		go r.order("halted")
		if end := r.awaitEnd(t); end.Cause != vmm.EndHalt {
			t.Errorf("the end is %+v", end)
		}
		_ = r.rec.Supervisor.Gone(r.ctx)
		nothingLeft(t, r.dir)
		worksAgain(t, r.dir, r.spec)
	})
	t.Run("it says so", func(t *testing.T) {
		t.Parallel()
		r := startFC(t, fakefc.Knobs{}, nil)
		r.awaitFull(t)
		r.order("says-halted")
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			if b, _ := os.ReadFile(filepath.Join(r.dir, paths.VMMLog)); bytes.Contains(b, []byte("but it answers")) {
				break
			}
			select {
			case <-tick.C:
			case <-r.ctx.Done():
				t.Fatal("nobody asked whether it has halted")
			}
		}
		r.healthy(t)
	})
}

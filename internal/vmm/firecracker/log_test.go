package firecracker

import (
	"io"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
)

// TestWhy: of all that Firecracker logs the line that says why it ended is found, and what that means.
func TestWhy(t *testing.T) {
	const head = "2026-01-12T06:25:31.546104303 [0123456789abcdef:"
	const stopped = head + "main] RunWithApiError error: MicroVM stopped with an error: GenericError"
	const exiting = head + "main] Firecracker exiting with error. exit_code=1"
	for name, tc := range map[string]struct {
		status int
		log    []string
		why    string
		ending driver.Ending
	}{
		"a triple fault": {1, []string{
			head + "main] vsock: error flushing TX buf for (lp=1024, pp=1): TxBufFlush(Os { code: 32 })",
			head + "fc_vcpu 0] Unexpected exit reason on vcpu run: Shutdown", stopped, exiting,
		}, "Unexpected exit reason on vcpu run: Shutdown", driver.GuestReset},
		"a CPU that KVM cannot run": {1, []string{head + "fc_vcpu 1] Received KVM_EXIT_FAIL_ENTRY signal: 7 on cpu 3", stopped, exiting},
			"Received KVM_EXIT_FAIL_ENTRY signal: 7 on cpu 3", driver.Failed},
		"a file that is not there": {1, []string{
			head + "main] RunWithApiError error: Failed to build MicroVM from Json: Configuration for VMM from one single json failed: …", exiting,
		}, "RunWithApiError error: Failed to build MicroVM from Json: Configuration for VMM from one single json failed: …", driver.Failed},
		"the last of several": {1, []string{head + "main] Failed to read: first", head + "main] Failed to read: second", exiting},
			"Failed to read: second", driver.Failed},
		"a panic, on two lines": {1, []string{
			head + "main] Firecracker panicked at src/firecracker/src/main.rs:1:", "Unable to open the file", head + "main] a warning", "and more of it",
		}, "Firecracker panicked at src/firecracker/src/main.rs:1: Unable to open the file", driver.Failed},
		"nothing at all": {0, []string{head + "main] a warning of no weight"}, "", driver.GuestReset},
	} {
		t.Run(name, func(t *testing.T) {
			l := &logPipe{to: io.Discard, onError: func(line string) { t.Errorf("a drive failed: %s", line) }}
			for _, line := range tc.log {
				l.note(line + "\n")
			}
			if why := l.why(); why != tc.why {
				t.Errorf("why: %q, want %q", why, tc.why)
			}
			x := exit(tc.status, 0, l.why())
			if x.Ending != tc.ending || tc.ending == driver.Failed && !strings.HasSuffix(x.Detail, tc.why) {
				t.Errorf("the end is %+v, want %v because of %q", x, tc.ending, tc.why)
			}
		})
	}
}

package supervise

import (
	"testing"

	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
)

// TestFailedEnd: a VMM's last words are told where they say something.
func TestFailedEnd(t *testing.T) {
	x := driver.Exit{Ending: driver.Failed, Detail: "it ended with exit status 1"}
	for line, want := range map[string]string{
		"":                     "it ended with exit status 1",
		"qemu: no such device": "it ended with exit status 1: qemu: no such device",
		"Error: RunWithApi(MicroVMStoppedWithError(GenericError))": "it ended with exit status 1",
	} {
		if end := classify(x, "", line).end; end.Cause != vmm.EndCrashed || end.Detail != want {
			t.Errorf("after %q: %+v, want %q", line, end, want)
		}
	}
}

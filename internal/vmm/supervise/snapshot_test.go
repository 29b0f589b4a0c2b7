package supervise

import (
	"path/filepath"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// TestSnapshotInJail: what a VMM in a jail could not write is refused before it is asked.
func TestSnapshotInJail(t *testing.T) {
	s := &supervisor{spec: vmm.Spec{Name: "dev", Engine: vmm.EngineFirecracker, Jailer: filepath.Join(t.TempDir(), "jailer")}}
	err := s.snapshot(t.Context(), t.TempDir())
	if api.KindOf(err) != api.KindUnavailable || api.AsError(err).Hint == "" {
		t.Errorf("%v, want a refusal that says what to do", err)
	}
}

package supervise

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker"
)

// startFirecracker starts Firecracker, whose vsock then leads to the guest.
func (b *boot) startFirecracker(ctx context.Context) error {
	s := b.s
	if err := b.openOutput(); err != nil {
		return err
	}
	cfg := firecracker.Config{
		Spec: s.spec, Dir: ".", Initrd: paths.VMInitrd,
		Console: b.consolePipe.w, Stderr: b.stderrPipe.w, Log: s.vmmLog, Env: vmmEnv(), RequestTimeout: s.requestTimeout,
	}
	snapshot := b.restore
	if j := b.jailed; j != nil {
		cfg.Spec, cfg.Dir, cfg.Command, cfg.NoID, cfg.Share = j.spec, j.jail.Rel(), j.jail.Command(), true, j.jail.Give
		snapshot = ""
	}
	if b.restore != "" {
		cfg.Restore = &firecracker.Restore{State: filepath.Join(snapshot, paths.SnapshotState), Memory: filepath.Join(snapshot, paths.SnapshotMemory)}
	}
	v, err := firecracker.Start(ctx, cfg)
	if err == nil {
		b.vmm = v
		return nil
	}
	b.closeOutput()
	line := b.stderr.String()
	said := strings.HasPrefix(line, "Error: RunWith") && strings.Contains(err.Error(), "RunWith") // what its log says in words
	if errors.As(err, new(*driver.StartError)) && line != "" && !said {
		return fmt.Errorf("%w: %s", err, line)
	}
	return err
}

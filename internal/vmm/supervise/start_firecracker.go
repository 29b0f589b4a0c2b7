package supervise

import (
	"context"
	"errors"
	"fmt"

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
	v, err := firecracker.Start(ctx, firecracker.Config{
		Spec: s.spec, Dir: ".", Initrd: paths.VMInitrd,
		Console: b.consolePipe.w, Stderr: b.stderrPipe.w, Log: s.vmmLog, Env: vmmEnv(),
	})
	if err == nil {
		b.vmm = v
		return nil
	}
	b.closeOutput()
	if line := b.stderr.String(); errors.As(err, new(*driver.StartError)) && line != "" {
		return fmt.Errorf("%w: %s", err, line)
	}
	return err
}

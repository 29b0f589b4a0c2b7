package supervise

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
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
	if s.replaced(err) {
		return api.Errorf(api.KindUnavailable, "%w: what it may use is as it was when the VM was started, and was replaced since", err).
			WithHint("banger vm start %s", s.spec.Name)
	}
	line := b.stderr.String()
	said := strings.HasPrefix(line, "Error: RunWith") && strings.Contains(err.Error(), "RunWith") // what its log says in words
	if errors.As(err, new(*driver.StartError)) && line != "" && !said {
		return fmt.Errorf("%w: %s", err, line)
	}
	return err
}

// replaced reports whether a later boot failed because a program or a device was replaced: Landlock's rules are about the files that
// were there when this process confined itself.
func (s *supervisor) replaced(err error) bool {
	confined := !s.spec.Unconfined && s.spec.Jailer == ""
	denied := errors.Is(err, os.ErrPermission) || strings.Contains(err.Error(), "Permission denied")
	return confined && denied && s.board.Status().Boots > 0
}

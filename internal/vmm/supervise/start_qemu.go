package supervise

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/network/tap"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
	"git.thaloco.com/thaloco/banger/internal/vmm/qemu"
)

// startQEMU starts QEMU, without its seccomp filter where it has none.
func (b *boot) startQEMU(ctx context.Context) error {
	s := b.s
	err := b.tryQEMU(ctx, !s.noSandbox)
	if !s.noSandbox && b.refusesSandbox(err) {
		s.log.Warn("this qemu has no seccomp filter", "detail", b.stderr.String())
		s.noSandbox = true
		err = b.tryQEMU(ctx, false)
	}
	return err
}

// tryQEMU starts QEMU; where it fails, the error ends with the last line of QEMU's stderr.
func (b *boot) tryQEMU(ctx context.Context, sandbox bool) error {
	s := b.s
	if err := b.openOutput(); err != nil {
		return err
	}
	cfg := qemu.Config{
		Spec: s.spec, Dir: ".", Console: b.consolePipe.w, Stderr: b.stderrPipe.w, Env: vmmEnv(),
		Options: qemu.Options{Initrd: paths.VMInitrd, Sandbox: sandbox},
	}
	if s.spec.Accel == vmm.AccelTCG {
		cfg.TSCKHz = s.tsc()
	}
	if n := s.spec.Identity.Network; n != nil && n.Device == wire.DeviceVirtio {
		if s.spec.TAP == "" {
			cfg.Net = s.cable.vm
		} else {
			f, err := tap.Open(s.spec.TAP)
			if err != nil {
				b.closeOutput()
				return err
			}
			defer f.Close()
			cfg.Net = f
		}
	}
	q, err := qemu.Start(ctx, cfg)
	if err == nil {
		b.vmm, b.port = q, q.Agent
		return nil
	}
	b.closeOutput()
	if line := b.stderr.String(); errors.As(err, new(*driver.StartError)) && line != "" {
		return fmt.Errorf("%w: %s", err, line)
	}
	return err
}

// refusesSandbox reports whether QEMU did not start because it was built without seccomp.
func (b *boot) refusesSandbox(err error) bool {
	se, ok := errors.AsType[*driver.StartError](err)
	line := b.stderr.String()
	return ok && se.Status > 0 && (strings.Contains(line, "sandbox") || strings.Contains(line, "seccomp"))
}

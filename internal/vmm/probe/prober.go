package probe

import (
	"context"
	"io/fs"
	"os"
	"sync"
)

// Config is what the user configured.
type Config struct {
	// Engine is Auto, QEMU or Firecracker; empty for Auto.
	Engine string
	// QEMUBin and FirecrackerBin are paths, empty for what is in PATH. FirecrackerBin is not looked at while the
	// engine cannot be chosen.
	QEMUBin, FirecrackerBin string
}

// Prober looks at the host again each time it is asked (KVM may be permitted, QEMU installed, while it lives), but
// asks a program for its version only once.
type Prober struct {
	Config

	mu      sync.Mutex  // guards what follows
	program Program     // whose version is known
	info    fs.FileInfo // of program.Path at that time
}

// Choose observes the host and decides; in less than a millisecond from the second time on.
func (p *Prober) Choose(ctx context.Context) (Decision, error) {
	engine := p.Engine
	if engine == "" {
		engine = Auto
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	o := observeHost()
	o.QEMU = findQEMU(p.QEMUBin)
	info, err := os.Stat(o.QEMU.Path)
	if err == nil && p.info != nil && p.program.Path == o.QEMU.Path && unchanged(p.info, info) {
		o.QEMU.Version = p.program.Version
	} else {
		o.QEMU.ask(ctx)
		if o.QEMU.Version != "" && err == nil {
			p.program, p.info = o.QEMU, info
		}
	}
	if err := ctx.Err(); err != nil {
		return Decision{}, context.Cause(ctx)
	}
	return Decide(engine, o)
}

// unchanged reports whether a and b are of the same file, not written to in between.
func unchanged(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

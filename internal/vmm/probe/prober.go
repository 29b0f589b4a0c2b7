package probe

import (
	"context"
	"io/fs"
	"os"
	"sync"
	"time"
)

// Config is what the user configured, and where banger keeps what belongs to engines.
type Config struct {
	// Engine is Auto, QEMU or Firecracker; empty for Auto.
	Engine string
	// QEMUBin and FirecrackerBin are paths, empty for what is found.
	QEMUBin, FirecrackerBin string
	// Bin is the directory with the engines that banger fetched; empty for none, and then none is fetched.
	Bin string
	// Memory is the file with what is remembered of engines that failed; empty to remember none.
	Memory string
}

// Prober looks at the host again each time it is asked (KVM may be permitted, QEMU installed, while it lives), but
// asks a program for its version only once.
type Prober struct {
	Config
	// Adjust makes another host of what was observed, for tests; nil for none.
	Adjust func(*Observations)

	mu    sync.Mutex // guards what follows
	known map[string]answer
	// kept is what could not be written to the file, since a time.
	kept   *memory
	keptAt time.Time
}

// answer is the version a program told, and the program's file at that time.
type answer struct {
	version string
	info    fs.FileInfo
}

// Choose observes the host and decides; in less than a millisecond from the second time on.
func (p *Prober) Choose(ctx context.Context) (Decision, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.observe(ctx)
	if err := ctx.Err(); err != nil {
		return Decision{}, context.Cause(ctx)
	}
	return Decide(p.engine(), o)
}

func (p *Prober) engine() string {
	if p.Engine == "" {
		return Auto
	}
	return p.Engine
}

// observe is Observe, without asking programs that told before, or that do not matter.
func (p *Prober) observe(ctx context.Context) Observations {
	o := p.look()
	if p.kept != nil && time.Since(p.keptAt) < fetchAgain {
		o.Failures = p.kept.Failures
		if !o.Fetch.Supplied {
			o.Fetch.Failed = p.kept.fetchFailed(o.Fetch.Version, time.Now())
		}
	}
	if why, _ := kvmUnusable(o); why == "" && p.engine() != QEMU {
		for i := range o.Firecracker {
			fc := &o.Firecracker[i]
			fc.Version = p.ask(fc.Path, func() (version string) {
				version, fc.Err = askFirecracker(ctx, fc.Path)
				return version
			})
		}
		if d, err := Decide(p.engine(), o); err == nil && d.Engine == Firecracker && !d.Fetch && d.Reason == "" {
			return o
		}
	}
	o.QEMU.Version = p.ask(o.QEMU.Path, func() string { return askQEMU(ctx, o.QEMU.Path) })
	return o
}

// look observes the host, without asking programs.
func (p *Prober) look() Observations {
	o := observeHost(p.Config, time.Now())
	if p.Adjust != nil {
		p.Adjust(&o)
	}
	return o
}

// ask asks the program at path by ask, unless it is the one that was asked before.
func (p *Prober) ask(path string, ask func() string) string {
	info, err := os.Stat(path)
	if a, ok := p.known[path]; ok && err == nil && unchanged(a.info, info) {
		return a.version
	}
	version := ask()
	if version != "" && err == nil {
		if p.known == nil {
			p.known = map[string]answer{}
		}
		p.known[path] = answer{version, info}
	}
	return version
}

// unchanged reports whether a and b are of the same file, not written to in between.
func unchanged(a, b fs.FileInfo) bool {
	return os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// Failed remembers that the engine of d ended at its start, because of cause, and returns what is to run VMs instead; false where
// there is nothing else: another engine is tried only where none is configured.
func (p *Prober) Failed(ctx context.Context, d Decision, cause error) (Decision, bool) {
	if p.engine() != Auto || d.Accel == TCG {
		return Decision{}, false
	}
	p.remember(func(m *memory, o Observations) {
		m.add(Failure{Engine: d.Engine, Accel: d.Accel, Binary: d.Binary, Version: d.Version, Kernel: o.Kernel, Reason: line(cause), At: time.Now()})
	})
	next, err := p.Choose(ctx)
	return next, err == nil && !next.Fetch && (next.Engine != d.Engine || next.Accel != d.Accel)
}

// FetchFailed remembers that Firecracker could not be fetched: it is not tried again for an hour, but where nothing else runs VMs. An
// archive that a user put in place is no fetch.
func (p *Prober) FetchFailed(cause error) {
	p.remember(func(m *memory, o Observations) {
		if o.Fetch.Supplied {
			return
		}
		m.Fetch = &fetchFailure{Version: o.Fetch.Version, Reason: line(cause), At: time.Now()}
	})
}

// remember changes the memory. Where it cannot be written, on a full disk, it is kept here.
func (p *Prober) remember(change func(*memory, Observations)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o := p.look()
	m := readMemory(p.Memory)
	if p.kept != nil && time.Since(p.keptAt) < fetchAgain {
		m = *p.kept
	}
	change(&m, o)
	p.kept = nil
	if p.Memory == "" || m.write(p.Memory) != nil {
		p.kept, p.keptAt = &m, time.Now()
	}
}

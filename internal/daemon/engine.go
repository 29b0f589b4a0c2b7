package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"runtime"

	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/release"
	"git.thaloco.com/thaloco/banger/internal/vmm/jail"
	"git.thaloco.com/thaloco/banger/internal/vmm/probe"
)

// engines finds what runs VMs, and fetches Firecracker where it must.
type engines struct {
	prober *probe.Prober
	fetch  release.Config
	log    *slog.Logger
	// jail is the key of that name, vms the directory of VMs, which the jails are in.
	jail, vms string
	uid       int
}

// confine decides how d's VMM is confined: by the jailer where the daemon is root and that is possible, else by what any user can do.
func (e *engines) confine(d *probe.Decision) error {
	jailer := d.Jailer
	d.Jailer, d.Unconfined = "", e.jail == "off"
	if d.Engine != probe.Firecracker || e.jail == "off" || e.jail == "auto" && e.uid != 0 {
		return nil
	}
	err := jail.Check(e.vms, jailer)
	switch {
	case err == nil:
		d.Jailer = jailer
	case e.jail == "on":
		return err
	default:
		e.log.Warn("firecracker runs without its jailer", "err", err)
	}
	return nil
}

func newEngines(d *Daemon) *engines {
	pin, _ := release.Pinned(runtime.GOARCH) // where there is none, nothing is decided on that has to be fetched
	p := d.cfg.Paths
	return &engines{
		prober: &probe.Prober{Config: probe.Config{Engine: d.settings.Engine, QEMUBin: d.settings.QEMUBin, FirecrackerBin: d.settings.FirecrackerBin,
			Bin: p.Bin(), Memory: p.EngineMemory()}},
		fetch: release.Config{Dir: p.Bin(), Pin: pin, HTTP: deb.NewHTTPClient()},
		log:   d.log, jail: d.settings.Jail, vms: p.VMs(), uid: os.Geteuid(),
	}
}

// choose looks at the host, each time: QEMU may be installed, or /dev/kvm permitted, while the daemon runs. Where Firecracker is to run
// VMs and is not there, it is fetched; where that fails, and none is configured, the user is told what runs VMs instead.
func (e *engines) choose(ctx context.Context, rep progress.Reporter) (probe.Decision, error) {
	d, err := e.prober.Choose(ctx)
	if err != nil || !d.Fetch {
		return d, err
	}
	_, err = release.Fetch(ctx, e.fetch, rep)
	switch {
	case err == nil:
		d, err = e.prober.Choose(ctx)
		if err == nil && d.Fetch {
			err = fmt.Errorf("firecracker was fetched to %s and is not there", d.Binary)
		}
		return d, err
	case ctx.Err() != nil:
		return probe.Decision{}, err
	}
	e.prober.FetchFailed(err)
	instead, again := e.prober.Choose(ctx)
	if again != nil || instead.Fetch {
		return probe.Decision{}, err
	}
	e.log.Warn("firecracker could not be fetched", "instead", instead.Title(), "err", err)
	rep.Note(instead.Title() + " runs the VM: " + instead.Reason)
	return instead, nil
}

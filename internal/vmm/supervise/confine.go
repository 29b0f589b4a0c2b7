package supervise

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"git.thaloco.com/thaloco/banger/internal/network/tap"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/confine"
	"git.thaloco.com/thaloco/banger/internal/vmm/jail"
)

// confine takes from this process, and so from the VMM it will start, what the VM does not need. The main goroutine calls it, which
// is locked to the thread that starts the VMM.
func (s *supervisor) confine() error {
	if s.spec.Engine != vmm.EngineFirecracker || s.spec.Unconfined {
		return nil
	}
	if err := confine.Limits(); err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	if s.spec.Jailer != "" { // who is confined cannot mount, and a jail is made of mounts
		return nil
	}
	rules := confine.Rules{Dir: ".", Exec: []string{s.spec.Binary}, Devices: []string{"/dev/kvm"},
		Read: append([]string{s.spec.Kernel}, s.spec.Initramfs...)}
	if s.spec.TAP != "" {
		rules.Devices = append(rules.Devices, tap.Device)
	}
	for _, d := range s.spec.Drives {
		if d.ReadOnly {
			rules.Read = append(rules.Read, d.Path)
		} else {
			rules.Write = append(rules.Write, d.Path)
		}
	}
	if s.spec.Restore != "" {
		rules.Read = append(rules.Read, s.spec.Restore)
	}
	how, err := confine.Process(rules)
	if err != nil {
		return fmt.Errorf("supervise: %w", err)
	}
	s.log.Info("confined", "by", cmp.Or(how, "nothing: this kernel has no landlock"))
	return nil
}

// jailed is a boot in a jail of Firecracker's jailer: what it starts with is there under names of its own.
type jailed struct {
	jail *jail.Jail
	spec vmm.Spec
}

// enterJail makes the jail of a boot. Like confine it is for the main goroutine: the jail's mounts are those of its thread.
func (b *boot) enterJail(ctx context.Context) (*jailed, error) {
	s := b.s
	j := &jailed{spec: s.spec}
	j.spec.Kernel, j.spec.Drives = "vmlinux", slices.Clone(s.spec.Drives)
	files := []jail.File{{Host: s.spec.Kernel, Name: "vmlinux"}}
	for i, d := range s.spec.Drives {
		name := d.ID + ".ext4"
		j.spec.Drives[i].Path = name
		files = append(files, jail.File{Host: d.Path, Name: name, Writable: !d.ReadOnly})
	}
	for _, port := range s.ports.served { // the listeners stay in the VM's directory
		files = append(files, jail.File{Host: portSocket(port), Name: portSocket(port), Writable: true})
	}
	if b.restore != "" {
		for _, name := range []string{paths.SnapshotState, paths.SnapshotMemory} {
			files = append(files, jail.File{Host: filepath.Join(b.restore, name), Name: name})
		}
	}
	uid := jail.UserOf(s.spec.VM)
	var err error
	if s.spec.TAP != "" {
		if err := tap.Give(s.spec.TAP, uid); err != nil {
			return nil, err
		}
	}
	j.jail, err = jail.Prepare(ctx, jail.Config{Jailer: s.spec.Jailer, Firecracker: s.spec.Binary, ID: s.spec.VM, Dir: ".",
		UID: uid, GID: uid, Files: files})
	if err != nil {
		return nil, err
	}
	// Whoever dials the guest finds its socket where it always is.
	err = remove(".", paths.VMVsock)
	if err == nil {
		err = os.Symlink(filepath.Join(j.jail.Rel(), paths.VMVsock), paths.VMVsock)
	}
	if err != nil {
		return nil, errors.Join(err, j.leave())
	}
	return j, nil
}

// leave takes the jail down; the VMM is gone.
func (j *jailed) leave() error { return errors.Join(remove(".", paths.VMVsock), j.jail.Remove()) }

package cli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/forward"
)

// vmFlags are the flags of vm create and vm run that describe a VM.
type vmFlags struct {
	name, image, kernel, memory, disk string
	cpus                              int
	env, envFiles                     []string
	publish                           []string
	hostPorts                         []uint
}

func (f *vmFlags) register(a *App, cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "`name` of the VM (default: a generated one)")
	fl.StringVar(&f.image, "image", "", "`image` to start from (default: the configured one)")
	kernelFlag(a, cmd, &f.kernel, "`kernel` to boot, by name (default: the image's own)")
	fl.IntVar(&f.cpus, "cpus", 0, "`number` of virtual CPUs (default: the configured one)")
	fl.StringVar(&f.memory, "memory", "", "memory, a `size` such as 2GiB (default: the configured one)")
	fl.StringVar(&f.disk, "disk", "", "disk, a `size` such as 20GiB (default: the configured one)")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment of every command in the VM, as `KEY=VALUE`; KEY alone takes the value of this environment")
	fl.StringArrayVar(&f.envFiles, "env-file", nil, "`file` of such lines; # starts a comment")
	fl.StringArrayVarP(&f.publish, "publish", "p", nil, "a port of this host that leads to one of the VM: [HOSTIP:]HOST:GUEST[/udp], HOST 0 for one that is free, as `SPEC`; may be repeated")
	fl.UintSliceVar(&f.hostPorts, "host-port", nil, "`port` of this host's 127.0.0.1 that the VM reaches as host.banger.vm, by TCP and UDP; may be repeated")
	_ = cmd.RegisterFlagCompletionFunc("image", a.completeImages(0, false)) // fails only for an unknown flag
	for _, name := range []string{"name", "cpus", "memory", "disk", "env", "publish", "host-port"} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
}

// request is what the flags ask for.
func (f *vmFlags) request(a *App) (api.CreateVM, error) {
	if f.cpus < 0 {
		return api.CreateVM{}, usagef("", "--cpus is %d, not a positive number", f.cpus)
	}
	env, err := environment(a, f.env, f.envFiles)
	if err != nil {
		return api.CreateVM{}, err
	}
	forwards, err := parseForwards(f.publish, forward.Parse)
	if err != nil {
		return api.CreateVM{}, err
	}
	ports, err := hostPorts(f.hostPorts)
	if err != nil {
		return api.CreateVM{}, err
	}
	return api.CreateVM{Name: f.name, Forwards: forwards, HostPorts: ports, Image: f.image, Kernel: f.kernel, CPUs: f.cpus, Memory: f.memory, Disk: f.disk, Env: env}, nil
}

// hostPorts are the ports of --host-port. What the daemon says of a port is left to it.
func hostPorts(flags []uint) ([]uint16, error) {
	var out []uint16
	for _, p := range flags {
		if p > 65535 {
			return nil, usagef("--host-port 5432", "--host-port is %d, not a port from 1 to 65535", p)
		}
		out = append(out, uint16(p))
	}
	return out, nil
}

// environment is the KEY=VALUE list of flags and files, files first; of several values of a key the
// last counts. A KEY alone takes the value of this environment, nothing where it has none.
func environment(a *App, flags, files []string) ([]string, error) {
	var out []string
	add := func(entry, where string) error {
		key, _, has := strings.Cut(entry, "=")
		if key == "" || strings.ContainsAny(key, " \t\x00") {
			return usagef("-e KEY=VALUE", "%s: %q is not of the form KEY=VALUE", where, entry)
		}
		if !has {
			value, ok := a.LookupEnv(key)
			if !ok {
				return nil
			}
			entry = key + "=" + value
		}
		out = append(out, entry)
		return nil
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return nil, usagef("", "--env-file: %s", err)
		}
		defer f.Close()
		sc := bufio.NewScanner(f)
		sc.Buffer(nil, 1<<20)
		for n := 1; sc.Scan(); n++ {
			line := strings.TrimLeft(strings.TrimSuffix(sc.Text(), "\r"), " \t")
			if line == "" || line[0] == '#' {
				continue
			}
			if err := add(line, fmt.Sprintf("%s:%d", path, n)); err != nil {
				return nil, err
			}
		}
		if err := sc.Err(); err != nil {
			return nil, usagef("", "--env-file: read %s: %s", path, err)
		}
	}
	for _, entry := range flags {
		if err := add(entry, "--env"); err != nil {
			return nil, err
		}
	}
	return lastOfEach(out), nil
}

// lastOfEach drops the entries whose key comes again later.
func lastOfEach(env []string) []string {
	last := make(map[string]int, len(env))
	for i, e := range env {
		key, _, _ := strings.Cut(e, "=")
		last[key] = i
	}
	var out []string
	for i, e := range env {
		if key, _, _ := strings.Cut(e, "="); last[key] == i {
			out = append(out, e)
		}
	}
	return out
}

// waitFlag registers --wait.
func waitFlag(cmd *cobra.Command) *choice {
	return choiceFlag(cmd, "wait", "", string(api.MarkReady), "how far the guest's boot is waited for: agent (it answers), ready (commands can run), full (all services are up)",
		string(api.MarkAgent), string(api.MarkReady), string(api.MarkFull))
}

// vmNames are the VMs a command is to work on: the arguments, or all there are.
func vmNames(ctx context.Context, c *client.Client, cmd string, names []string, all bool) ([]string, error) {
	switch {
	case all && len(names) > 0:
		return nil, usagef("", "give names or --all, not both")
	case !all && len(names) == 0:
		return nil, usagef("banger vm list", "%s needs the name of a VM, or --all", cmd)
	case !all:
		return unique(names), nil
	}
	vms, err := c.VMs(ctx)
	for _, vm := range vms {
		names = append(names, vm.Name)
	}
	return names, err
}

func unique(names []string) []string {
	seen := make(map[string]bool, len(names))
	var out []string
	for _, n := range names {
		if !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}

// eachVM runs one operation per VM, all at once, and prints the name of each that went well.
func (a *App) eachVM(ctx context.Context, cmd string, names []string, all bool,
	post func(context.Context, *client.Client, string) (api.Operation, error)) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if names, err = vmNames(ctx, c, cmd, names, all); err != nil {
		return err
	}
	jobs := make([]job, len(names))
	for i, name := range names {
		jobs[i] = job{name: name, post: func(ctx context.Context) (api.Operation, error) { return post(ctx, c, name) }}
	}
	return a.report(a.operateAll(ctx, c, jobs), func(o outcome) error {
		fmt.Fprintln(a.Out, o.name)
		return nil
	})
}

// accelEmulated is what api.VM.Accel is where the CPUs are emulated.
const accelEmulated = "tcg"

// sayEmulated says that VMs are slower than they could be, where this is the first one since the daemon was started.
func (a *App) sayEmulated(vm api.VM) {
	if vm.Accel == accelEmulated && a.startedDaemon.Load() {
		a.say("VMs are emulated on this host, some ten times slower than with KVM; why: banger doctor")
	}
}

// offerStart asks whether to start a VM that is stopped, and starts it, where somebody is at the terminal to be asked. Where nobody
// is, or the answer is no, it does nothing: what needs the VM says that it does not run.
func (a *App) offerStart(ctx context.Context, c *client.Client, name string) error {
	if !a.Terminal.In || !a.Terminal.Err || a.quiet {
		return nil
	}
	vm, err := c.VM(ctx, name)
	if err != nil {
		return err
	}
	if vm.State != api.StateStopped && vm.State != api.StateFailed {
		return nil
	}
	yes, err := a.confirm(ctx, fmt.Sprintf("vm %q is %s. Start it?", vm.Name, vm.State))
	if err != nil || !yes {
		return err
	}
	_, err = a.operate(ctx, c, job{post: func(ctx context.Context) (api.Operation, error) {
		return c.StartVM(ctx, vm.ID, api.StartVM{})
	}})
	return err
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// goesWithin is how long a guest that hung up its shell may take to power off or to restart.
	goesWithin = 30 * time.Second
	// lookEvery is how often a VM is looked at meanwhile.
	lookEvery = 200 * time.Millisecond
)

// finish ends a run whose command has ended, or is lost.
func (r *run) finish(ctx context.Context, err error) error {
	if errors.As(err, new(detachedError)) {
		return err
	}
	shell := r.tty && len(r.opts.command) == 0
	gone := false
	if shell && !r.opts.rm && hungUp(err) {
		gone = r.waitGone(ctx)
	} else if shell {
		gone = r.endedUnder(ctx, err)
	}
	if gone {
		err = nil // somebody typed poweroff
	}
	if r.opts.rm {
		if gone {
			r.app.say("the VM has ended")
		}
		r.release(ctx)
		return err
	}
	switch {
	case gone:
		r.app.say("vm %q has ended; start it again: banger vm start %s", r.vm.Name, r.vm.Name)
		r.app.say("remove it: banger vm delete %s", r.vm.Name)
	case shell || r.opts.vm.name == "":
		r.app.say("vm %q stays; come back: %s", r.vm.Name, r.comeBack())
		if r.opts.workspace.branch != "" {
			r.app.say("get its commits: banger vm workspace pull %s", r.vm.Name)
		}
		r.app.say("remove it: banger vm delete --force %s", r.vm.Name)
	}
	return err
}

// comeBack is the command that opens a shell where the run's own was. With a directory that is vm exec: ssh has no option for one.
func (r *run) comeBack() string {
	if _, err := r.app.lookPath("ssh"); err == nil && r.path == "" && r.dir == "" && !strings.ContainsRune(r.opts.remote.user, ':') {
		args := []string{"banger", "vm", "ssh"}
		if u := r.opts.remote.user; u != "" {
			args = append(args, "-l", u)
		}
		return quoted(append(args, r.vm.Name)...)
	}
	args := []string{"banger", "vm", "exec"}
	if r.path != "" {
		args = append(args, "-w", r.dir)
	}
	if u := r.opts.remote.user; u != "" {
		args = append(args, "-u", u)
	}
	return quoted(append(args, r.vm.Name)...)
}

// hungUp reports whether a shell was ended as a guest that goes down ends it.
func hungUp(err error) bool {
	var st statusError
	return errors.As(err, &st) && (st.status == exitSignal+int(syscall.SIGHUP) || st.status == exitSignal+int(syscall.SIGTERM))
}

// waitGone waits for what becomes of a VM whose guest hung up its shell, and reports whether it ended.
// One that restarted has not, and neither has one that is still there after goesWithin; a signal ends
// the waiting.
func (r *run) waitGone(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), goesWithin)
	defer cancel()
	sigs, release := r.app.signals.take()
	defer release()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	view := newProgressView(r.app, 1)
	defer view.close()
	view.update(0, "", api.Operation{State: api.OperationRunning,
		Progress: api.Progress{Step: fmt.Sprintf("wait for vm %q to go down", r.vm.Name)}})
	for {
		vm, err := r.client.Passive().VM(ctx, r.vm.ID)
		switch {
		case err != nil:
			return api.KindOf(err) == api.KindNotFound
		case vm.State == api.StateStopped || vm.State == api.StateFailed:
			return true
		case vm.Restarts != r.vm.Restarts:
			return false
		}
		select {
		case <-tick.C:
			view.tick()
		case <-sigs:
			return false
		case <-ctx.Done():
			return false
		}
	}
}

// endedUnder reports whether err only says that the VM ended under a shell.
func (r *run) endedUnder(ctx context.Context, err error) bool {
	if err == nil || errors.As(err, new(statusError)) || errors.As(err, new(signalError)) {
		return false
	}
	vm, verr := r.client.Passive().VM(ctx, r.vm.ID)
	return api.KindOf(verr) == api.KindNotFound || verr == nil && (vm.State == api.StateStopped || vm.State == api.StateStopping)
}

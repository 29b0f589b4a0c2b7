package cli

import (
	"context"
	"fmt"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// unpulledWithin bounds the wait for an answer about what would be lost with a VM.
const unpulledWithin = 30 * time.Second

// deleteAnyway is the question before commits are deleted.
const deleteAnyway = "Delete it all the same?"

// release ends the VM of a --rm run, or keeps it where it has work that somebody wants.
func (r *run) release(ctx context.Context) {
	if r.mayDelete(ctx) {
		r.remove(ctx, func(ctx context.Context) (api.Operation, error) {
			return r.client.Passive().ReleaseVM(ctx, r.vm.ID, api.Release{Owner: *r.req.Owner})
		})
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseWithin)
	defer cancel()
	_, err := r.app.operate(ctx, r.client.Passive(), job{keep: true, post: func(ctx context.Context) (api.Operation, error) {
		return r.client.Passive().ReleaseVM(ctx, r.vm.ID, api.Release{Owner: *r.req.Owner, Keep: true})
	}})
	if err != nil {
		fmt.Fprintf(r.app.Err, "banger: vm %q cannot be kept: %s\n", r.vm.Name, safeText(err.Error()))
		return
	}
	fmt.Fprintf(r.app.Err, "banger: vm %q stays; get its commits: banger vm workspace pull %s\n", r.vm.Name, r.vm.Name)
	fmt.Fprintf(r.app.Err, "banger: remove it: banger vm delete --force %s\n", r.vm.Name)
}

// mayDelete reports whether nothing would be lost with the VM, or the user says that it may be. Where it cannot be found out that is
// said, and asked as well.
func (r *run) mayDelete(ctx context.Context) bool {
	if !r.asks {
		return true
	}
	// A signal is an answer: it must not end the program, whose VM would go with it.
	sigs, release := r.app.signals.take()
	defer release()
	asking, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	go func() {
		select {
		case s := <-sigs:
			end(signalError{s})
		case <-asking.Done():
		}
	}()
	lost, err := r.unpulled(ctx)
	switch {
	case api.KindOf(err) == api.KindNotFound, err == nil && len(lost) == 0:
		return true
	case err != nil:
		fmt.Fprintf(r.app.Err, "banger: it is not known whether vm %q has commits that were not pulled: %s\n", r.vm.Name, safeText(err.Error()))
	default:
		r.app.warnUnpulled(r.vm.Name, lost)
	}
	yes, err := r.app.ask(asking, deleteAnyway, false)
	return yes && err == nil
}

// unpulled is what would be lost with the VM.
func (r *run) unpulled(ctx context.Context) ([]api.Unpulled, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), unpulledWithin)
	defer cancel()
	var lost []api.Unpulled
	err := r.app.showCopy("look for commits that were not pulled", func() int64 { return 0 }, func(func(int64)) (err error) {
		lost, err = r.client.Passive().Unpulled(ctx, r.vm.ID)
		return err
	})
	return lost, err
}

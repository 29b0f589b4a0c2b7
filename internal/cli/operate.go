package cli

import (
	"context"
	"os"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

// redrawEvery is how often elapsed time and rate are redrawn on a terminal.
const redrawEvery = 100 * time.Millisecond

// job is one operation to start and to follow to its end.
type job struct {
	// name is shown with its progress where there are several jobs.
	name string
	post func(context.Context) (api.Operation, error)
	// keep: a signal ends the following, not the operation.
	keep bool
}

// outcome is how a job ended. op is as far as it is known where err is not nil.
type outcome struct {
	name string
	op   api.Operation
	err  error
}

// update is news of a job.
type update struct {
	job  int
	op   api.Operation
	done bool
	err  error
}

// operate runs one job to its end, showing its progress. A signal cancels the operation, which is
// still waited for, and a second one soon after ends the waiting; the error is then a signalError. The
// operation is returned as it was last seen.
func (a *App) operate(ctx context.Context, c *client.Client, j job) (api.Operation, error) {
	out := a.operateAll(ctx, c, []job{j})[0]
	return out.op, out.err
}

// operateAll is operate for several jobs at once; the outcomes are in their order.
func (a *App) operateAll(ctx context.Context, c *client.Client, jobs []job) []outcome {
	out := make([]outcome, len(jobs))
	for i, j := range jobs {
		out[i].name = j.name
	}
	if ctx.Err() != nil {
		for i := range out {
			out[i].err = context.Cause(ctx)
		}
		return out
	}
	// From here on a signal cancels operations, not requests: one whose answer is lost could not be cancelled.
	sigs, release := a.signals.take()
	defer release()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	f := follower{
		app: a, client: c, jobs: jobs, out: out,
		updates: make(chan update), cancelling: make([]bool, len(jobs)),
		view: newProgressView(a, len(jobs)),
	}
	defer f.view.close()
	for i := range jobs {
		go f.run(ctx, i)
	}
	f.loop(ctx, sigs)
	return out
}

// follower is the state of operateAll; all of it but updates belongs to loop.
type follower struct {
	app     *App
	client  *client.Client
	jobs    []job
	out     []outcome
	updates chan update
	view    *progressView
	// interrupted is the signal that asked for the end.
	interrupted os.Signal
	cancelling  []bool
}

// run starts job i and sends what becomes of it.
func (f *follower) run(ctx context.Context, i int) {
	send := func(u update) {
		select {
		case f.updates <- u:
		case <-ctx.Done():
		}
	}
	op, err := f.jobs[i].post(ctx)
	if err == nil && op.ID != "" {
		op, err = f.client.Follow(ctx, op, func(op api.Operation) { send(update{job: i, op: op}) })
	}
	send(update{job: i, op: op, done: true, err: err})
}

func (f *follower) loop(ctx context.Context, sigs <-chan os.Signal) {
	tick := time.NewTicker(redrawEvery)
	defer tick.Stop()
	repeat := repeats{now: f.app.Now}
	for left := len(f.jobs); left > 0; {
		select {
		case u := <-f.updates:
			f.update(ctx, u)
			if u.done {
				left--
			}
		case <-tick.C:
			f.view.tick()
		case s := <-sigs:
			if f.interrupted == nil {
				f.view.line(f.notice())
			}
			f.interrupted = s
			if repeat.again() {
				f.abandon()
				return
			}
			for i := range f.jobs {
				f.cancel(ctx, i)
			}
		}
	}
}

// notice is what is said at the first signal.
func (f *follower) notice() string {
	if f.jobs[0].keep {
		return "still cleaning up; interrupt again to leave at once"
	}
	return "cancelling; interrupt again to leave at once"
}

// update takes news of a job in.
func (f *follower) update(ctx context.Context, u update) {
	o := &f.out[u.job]
	o.op = u.op
	f.view.update(u.job, f.jobs[u.job].name, u.op)
	if u.done {
		o.err = u.err
		if f.interrupted != nil && (u.err == nil || api.KindOf(u.err) == api.KindCancelled) {
			o.err = signalError{f.interrupted}
		}
		return
	}
	if f.interrupted != nil {
		f.cancel(ctx, u.job)
	}
}

// cancel asks for the end of job i's operation, once it has one.
func (f *follower) cancel(ctx context.Context, i int) {
	id := f.out[i].op.ID
	if id == "" || f.cancelling[i] || f.out[i].op.Ended() {
		return
	}
	f.cancelling[i] = true
	if f.jobs[i].keep {
		return
	}
	go func() { // what comes of it, the operation tells
		_ = f.client.CancelOperation(ctx, id)
	}()
}

// abandon gives all jobs that have not ended the signal as their error.
func (f *follower) abandon() {
	for i := range f.out {
		if !f.out[i].op.Ended() || f.out[i].op.ID == "" {
			f.out[i].err = signalError{f.interrupted}
		}
	}
}

// report prints the errors of outcomes and returns one that stands for them: the first that decides
// the exit status. done, which may be nil, is called for each that went well.
func (a *App) report(outs []outcome, done func(outcome) error) error {
	var first error
	for _, o := range outs {
		err := o.err
		if err == nil && done != nil {
			err = done(o)
		}
		if err == nil {
			continue
		}
		if len(outs) == 1 {
			return err
		}
		a.printError(err)
		if first == nil {
			first = err
		}
	}
	if first == nil {
		return nil
	}
	return statusError{exitCode(first)}
}

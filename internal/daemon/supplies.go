package daemon

import (
	"context"
	"sync"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func names[T any](all []T, name func(T) string) []string {
	out := make([]string, 0, len(all))
	for _, v := range all {
		out = append(out, name(v))
	}
	return out
}

// takenAway is the error of a pull whose files were there, and are not any more: the last name of the same content was deleted meanwhile.
func takenAway(noun, name string, err error) error {
	if api.KindOf(err) != api.KindNotFound {
		return err
	}
	return api.Errorf(api.KindConflict, "pull %s %q: the same content was deleted meanwhile", noun, name).
		WithHint("banger %s pull %s", noun, name)
}

// pulls lets one pull of a name run at a time; the others wait and then find it done.
type pulls struct {
	mu    sync.Mutex // guards names
	names map[string]chan struct{}
}

func (p *pulls) lock(ctx context.Context, name string, rep progress.Reporter) (unlock func(), err error) {
	p.mu.Lock()
	if p.names == nil {
		p.names = map[string]chan struct{}{}
	}
	l, ok := p.names[name]
	if !ok {
		l = make(chan struct{}, 1)
		p.names[name] = l
	}
	p.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	default:
	}
	rep.Step("wait for another pull of " + name)
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

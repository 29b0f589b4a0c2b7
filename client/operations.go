package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// How long a broken stream of an operation is taken up again before the daemon counts as gone.
const (
	followAgainFor   = 3 * time.Second
	followAgainPause = 50 * time.Millisecond
)

// Operations returns the operations that run and the last ones that ended.
func (c *Client) Operations(ctx context.Context) ([]api.Operation, error) {
	return call[[]api.Operation](ctx, c, http.MethodGet, "/operations", nil)
}

// Operation returns one operation.
func (c *Client) Operation(ctx context.Context, id string) (api.Operation, error) {
	return call[api.Operation](ctx, c, http.MethodGet, operationPath(id), nil)
}

// CancelOperation asks an operation to end; it is followed to know when it has. Cancelling one that
// has ended does nothing.
func (c *Client) CancelOperation(ctx context.Context, id string) error {
	_, err := call[none](ctx, c, http.MethodDelete, operationPath(id), nil)
	return err
}

// Follow calls update (which may be nil) with op as it goes on, until it has ended, and returns it
// as it ended. The error is that of the operation where it failed or was cancelled, with the
// operation still returned; ending ctx ends the following, not the operation. Update is called
// from the caller's goroutine.
func (c *Client) Follow(ctx context.Context, op api.Operation, update func(api.Operation)) (api.Operation, error) {
	if update == nil {
		update = func(api.Operation) {}
	}
	update(op)
	var lostSince time.Time
	for !op.Ended() {
		err := c.events(ctx, operationPath(op.ID)+"/events", func(data []byte) (bool, error) {
			var next api.Operation
			if err := json.Unmarshal(data, &next); err != nil {
				return false, fmt.Errorf("follow operation %q: %w", op.ID, err)
			}
			op, lostSince = next, time.Time{}
			update(op)
			return op.Ended(), nil
		})
		if op.Ended() {
			break
		}
		if ctx.Err() != nil {
			return op, context.Cause(ctx)
		}
		if err == nil {
			err = ErrNoDaemon
		}
		if !errors.Is(err, ErrNoDaemon) {
			return op, err
		}
		if lostSince.IsZero() {
			lostSince = time.Now()
		}
		if time.Since(lostSince) > followAgainFor {
			return op, fmt.Errorf("follow operation %q: %w", op.ID, err)
		}
		if err := pause(ctx, followAgainPause); err != nil {
			return op, err
		}
	}
	return op, operationError(op)
}

// operationError is why op did not do what it was to do, nil where it did.
func operationError(op api.Operation) error {
	switch {
	case op.State == api.OperationDone:
		return nil
	case op.Error != nil:
		return op.Error
	case op.State == api.OperationCancelled:
		return api.Errorf(api.KindCancelled, "%s %q: cancelled", op.Kind, op.Target)
	}
	return api.Errorf(api.KindInternal, "%s %q: it ended as %q and gave no reason", op.Kind, op.Target, op.State)
}

// Result decodes the result of an operation that is done.
func Result[T any](op api.Operation) (T, error) {
	var out T
	if len(op.Result) == 0 {
		return out, api.Errorf(api.KindInternal, "%s %q: it ended without a result", op.Kind, op.Target)
	}
	if err := json.Unmarshal(op.Result, &out); err != nil {
		return out, fmt.Errorf("read the result of %s %q: %w", op.Kind, op.Target, err)
	}
	return out, nil
}

// Events calls fn with every event from now on, until fn or the stream fails or ctx ends.
func (c *Client) Events(ctx context.Context, fn func(api.Event) error) error {
	return c.events(ctx, "/events", func(data []byte) (bool, error) {
		var ev api.Event
		if err := json.Unmarshal(data, &ev); err != nil {
			return false, fmt.Errorf("read an event: %w", err)
		}
		return false, fn(ev)
	})
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func operationPath(id string) string { return "/operations/" + url.PathEscape(id) }

package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"git.thaloco.com/thaloco/banger/api"
)

type handlerFunc[I, O any] = func(context.Context, *I) (*O, error)

// statusError is an error as huma wants it: with a status, and its own JSON.
type statusError struct{ err *api.Error }

// Error implements error.
func (e statusError) Error() string { return e.err.Error() }

// GetStatus implements huma.StatusError.
func (e statusError) GetStatus() int { return e.err.Kind.Status() }

// MarshalJSON writes the error as every answer of the API does.
func (e statusError) MarshalJSON() ([]byte, error) { return json.Marshal(api.ErrorReply{Error: e.err}) }

// translated gives the errors of a handler their status. Internal ones are logged by the guard, once.
func translated[I, O any](h handlerFunc[I, O]) handlerFunc[I, O] {
	return func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err == nil {
			return out, nil
		}
		return out, statusError{failed(ctx, err)}
	}
}

// failed is the error of a request as its client gets it, left for the guard to log.
func failed(ctx context.Context, err error) *api.Error {
	e := api.AsError(err)
	if errors.Is(err, context.Canceled) {
		e = api.Errorf(api.KindCancelled, "%w", err)
	}
	if seen, ok := ctx.Value(failureKey{}).(*failure); ok {
		seen.err = e
	}
	return e
}

// humaError turns the errors huma itself makes (a body that does not fit its type) into the API's.
func humaError(status int, msg string, errs ...error) huma.StatusError {
	kind := api.KindInternal
	switch {
	case status == http.StatusNotFound:
		kind = api.KindNotFound
	case status >= 400 && status < 500:
		kind = api.KindInvalid
	}
	texts := []string{msg}
	for _, e := range errs {
		texts = append(texts, e.Error())
	}
	return statusError{api.Errorf(kind, "%s", strings.Join(texts, ": "))}
}

// writeError answers with an error, outside of huma.
func writeError(w http.ResponseWriter, r *http.Request, err error) {
	e := failed(r.Context(), err)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Kind.Status())
	_ = json.NewEncoder(w).Encode(api.ErrorReply{Error: e}) // nothing to do for a client that left
}

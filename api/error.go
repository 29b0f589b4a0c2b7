package api

import (
	"errors"
	"fmt"
	"net/http"
)

// ErrorKind tells a client what sort of failure it has in hand.
type ErrorKind string

// The kinds. Each has one HTTP status, in kindStatus.
const (
	// KindInvalid: the request is wrong and will stay wrong.
	KindInvalid ErrorKind = "invalid"
	// KindNotFound: the named thing is not there.
	KindNotFound ErrorKind = "not_found"
	// KindConflict: the thing's state or name does not allow it now.
	KindConflict ErrorKind = "conflict"
	// KindUnavailable: something outside banger is missing or does not answer
	// (a mirror, a host program, KVM, disk space).
	KindUnavailable ErrorKind = "unavailable"
	// KindGuest: the guest or its agent failed or misbehaved.
	KindGuest ErrorKind = "guest"
	// KindCancelled: the caller cancelled it.
	KindCancelled ErrorKind = "cancelled"
	// KindVersion: client and daemon speak different API versions.
	KindVersion ErrorKind = "version"
	// KindInternal: a defect of banger, logged by the daemon.
	KindInternal ErrorKind = "internal"
)

var kindStatus = map[ErrorKind]int{
	KindInvalid:     http.StatusBadRequest,
	KindNotFound:    http.StatusNotFound,
	KindConflict:    http.StatusConflict,
	KindUnavailable: http.StatusServiceUnavailable,
	KindGuest:       http.StatusBadGateway,
	KindCancelled:   499,
	KindVersion:     http.StatusUpgradeRequired,
	KindInternal:    http.StatusInternalServerError,
}

// Kinds returns every kind.
func Kinds() []ErrorKind {
	return []ErrorKind{KindInvalid, KindNotFound, KindConflict, KindUnavailable,
		KindGuest, KindCancelled, KindVersion, KindInternal}
}

// Status returns the HTTP status of k, 500 where k is unknown.
func (k ErrorKind) Status() int {
	if s, ok := kindStatus[k]; ok {
		return s
	}
	return http.StatusInternalServerError
}

// Error is a failure as it crosses the API, and the error type banger's own
// packages return where a user is meant to read it.
type Error struct {
	Kind    ErrorKind `json:"kind"`
	Message string    `json:"message"`
	// Hint says what to do, often as a command; may be empty.
	Hint string `json:"hint,omitempty"`

	cause error
}

// Error returns the message without the hint.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause, nil on the client's side.
func (e *Error) Unwrap() error { return e.cause }

// ErrorReply is the body of every answer that is an error.
type ErrorReply struct {
	Error *Error `json:"error"`
}

// Errorf makes an Error of a kind. As with fmt.Errorf, %w keeps the cause.
func Errorf(kind ErrorKind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, Message: err.Error(), cause: errors.Unwrap(err)}
}

// WithHint returns e with a hint.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

// KindOf returns the kind of err: that of the outermost Error in its chain,
// KindInternal where there is none.
func KindOf(err error) ErrorKind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return KindInternal
}

// AsError returns err as an Error, keeping kind and hint of the Error inside it
// and the text of the whole chain.
func AsError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return &Error{Kind: e.Kind, Message: err.Error(), Hint: e.Hint, cause: err}
	}
	return &Error{Kind: KindInternal, Message: err.Error(), cause: err}
}

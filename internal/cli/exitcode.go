package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

// Exit statuses. A command run in a guest ends banger with its own status, 128+n where signal n
// ended it, so run and exec keep their own failures apart from it with exitBanger.
const (
	exitOK      = 0
	exitFailure = 1 // anything that went wrong and is not below
	exitUsage   = 2 // the command line is wrong; nothing was done
	// exitNoDaemon: the daemon is not reachable and could not be started.
	exitNoDaemon      = 3
	exitBanger        = 125 // banger's own failure in vm run and vm exec
	exitNotExecutable = 126 // the guest cannot execute the command
	exitNotFound      = 127 // the guest has no such command
	exitSignal        = 128 // plus the signal's number: banger or the command was ended by it
)

// exitCode is the status banger ends with when a command returned err.
func exitCode(err error) int {
	var (
		status statusError
		sig    signalError
		run    *runError
	)
	switch {
	case err == nil, errors.As(err, new(detachedError)):
		return exitOK
	case errors.As(err, &status):
		return status.status
	case errors.As(err, &sig):
		return exitSignal + sig.number()
	case errors.As(err, new(*usageError)):
		return exitUsage
	case errors.Is(err, client.ErrNoDaemon):
		return exitNoDaemon
	case errors.As(err, &run):
		return run.status
	case api.KindOf(err) == api.KindCancelled:
		return exitSignal + int(syscall.SIGINT)
	}
	return exitFailure
}

// statusError ends banger with the status of a command in a guest, or another that was already
// explained; there is nothing to print.
type statusError struct{ status int }

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", e.status) }
func (e statusError) silent() bool  { return true }

// signalError ends banger because of a signal.
type signalError struct{ sig os.Signal }

func (e signalError) Error() string { return "interrupted by " + e.sig.String() }
func (e signalError) silent() bool  { return true }

func (e signalError) number() int {
	if s, ok := e.sig.(syscall.Signal); ok {
		return int(s)
	}
	return int(syscall.SIGINT)
}

// runError is a failure of banger's own in vm run and vm exec.
type runError struct {
	err    error
	status int
}

func (e *runError) Error() string { return e.err.Error() }
func (e *runError) Unwrap() error { return e.err }

// inRun marks err as banger's own failure in vm run or vm exec, unless it has a status already.
func inRun(err error) error {
	if err == nil || errors.As(err, new(*runError)) {
		return err
	}
	return &runError{err: err, status: exitBanger}
}

// usageError is a command line that is wrong.
type usageError struct{ err *api.Error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef makes a usageError; hint may be empty.
func usagef(hint, format string, args ...any) error {
	return &usageError{&api.Error{Kind: api.KindInvalid, Message: fmt.Sprintf(format, args...), Hint: hint}}
}

// asUsage makes usage errors of those that cobra returns as plain text: it has no type for them.
func asUsage(err error) error {
	text := err.Error()
	if strings.HasPrefix(text, "if any flags in the group ") {
		// Its end is "; [one two] were all set".
		given := strings.Fields(strings.TrimSuffix(text[strings.LastIndexByte(text, '[')+1:], "] were all set"))
		return usagef("leave out all but one", "--%s exclude each other", strings.Join(given, " and --"))
	}
	if strings.HasPrefix(text, "required flag") {
		return usagef("", "%s", err)
	}
	return err
}

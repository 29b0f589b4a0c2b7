// Package exec is the host's side of the exec protocol of package wire: it
// runs a command in a guest, moves its streams, and resumes by id and offset when
// the connection breaks, so that neither a byte is lost nor one comes twice.
//
// The guest is hostile: whatever the agent sends, memory is bounded, and what breaks the
// protocol ends the run with wire.ErrProtocol.
//
// exec.go is the contract, run.go the life of a run over its connections, conn.go one connection.
package exec

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Size is the size of a terminal in characters.
type Size struct{ Rows, Cols uint16 }

// State is what becomes of the connection of a run.
type State string

// States of a run.
const (
	// StateConnected: attached to the command, the first time or again.
	StateConnected State = "connected"
	// StateReconnecting: the connection broke; output and input wait.
	StateReconnecting State = "reconnecting"
)

// Options describe a run.
type Options struct {
	// Dial connects to the agent's wire.PortExec; it is called again when a connection breaks.
	Dial func(ctx context.Context) (net.Conn, error)
	// Start is the command; Version is filled in, ID too where it is empty.
	Start wire.ExecStart
	// AttachID attaches to a command that was started before, instead of Start.
	AttachID string
	// Session attaches to a session instead; nil for a command. AttachID, where it is not empty, is then the id of the attachment.
	Session *Session
	// Stdin is read until its end; nil for a command without one. A Read that blocks does not
	// hold up the end of Run; its goroutine then stays until the Read returns, and what it read is lost.
	Stdin io.Reader
	// Stdout and Stderr receive the output; nil throws it away. A slow writer slows the command down.
	Stdout, Stderr io.Writer
	// Resize and Signals are passed on; both may be nil, and neither needs to be closed. Signals
	// are names such as "INT".
	Resize  <-chan Size
	Signals <-chan string
	// ReconnectFor is how long a broken connection is dialled again; 0 for 30 s, negative for never.
	ReconnectFor time.Duration
	// OnState is told of changes with the cause of a break; may be nil. It must not block.
	OnState func(State, error)
	// OnStarted is told id and pid once, when the command runs; may be nil.
	OnStarted func(wire.ExecStarted)
	// OnReadOnly is told once that an attachment to a session that asked to write only reads, from its beginning or after
	// it had lost its connection; may be nil.
	OnReadOnly func()
	// OnDropped is told of output of a session (0 stdout, 1 stderr) that is lost at this place; may be nil. It must not block.
	OnDropped func(stream int, bytes uint64)
}

// Session says how to attach to a session. Ending the context of Run, or the failure of an output, detaches: the session goes on.
type Session struct {
	Name string
	// Write asks for stdin, and then output waits for this client as that of a command does.
	Write bool
	// Tail is as wire.SessionAttach.Tail.
	Tail int64
	// KeepOpen: the end of Stdin does not end the session's.
	KeepOpen bool
	// SendOnly: Run sends Stdin and returns when the agent has it. Where it cannot, the error is a *wire.ExecError: ExecTakenOver
	// where another client writes, ExecInvalid where nothing is taken; it is ErrInputLeft where the session ended first.
	SendOnly bool
}

// ErrInputLeft says that a session ended before it had taken all that was sent.
var ErrInputLeft = errors.New("the session ended before it had taken all input")

// LostError says that the connection to a command is lost for good. The command may still run: who
// attaches to ID later misses nothing but what Run has delivered.
type LostError struct {
	ID string
	// Started tells whether the agent had confirmed the start.
	Started bool
	// Err is why the last attempt to reconnect did not succeed.
	Err error
}

// Error says what became of the command.
func (e *LostError) Error() string {
	if !e.Started {
		return fmt.Sprintf("lost the connection to the guest while starting command %s: %v", e.ID, e.Err)
	}
	return fmt.Sprintf("lost the connection to command %s, which still runs in the guest: %v", e.ID, e.Err)
}

// Unwrap returns the cause.
func (e *LostError) Unwrap() error { return e.Err }

// OutputError says that Stdout or Stderr took no more; the command was told with SIGPIPE.
type OutputError struct{ Err error }

// Error names the cause.
func (e *OutputError) Error() string { return "write output: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *OutputError) Unwrap() error { return e.Err }

// NewID returns an id for a new command: 32 random hex digits.
func NewID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// Run runs a command to its end, or attaches to one, and returns how it ended. A command started with
// Detach is left alone once it runs. Errors:
//
//   - *wire.ExecError: the agent could not start it or does not know it (Status gives 126 and 127);
//   - *LostError: the connection broke and could not be made again in time;
//   - *OutputError, together with the exit where the command ended of it;
//   - wire.ErrProtocol in the chain: the agent broke the protocol;
//   - that of Dial where it fails before anything was started, or says that there is nothing to
//     come back to (an *api.Error of kind not found, conflict, invalid or version);
//   - the cause of ctx: the command goes on, and nobody is attached.
//
// After Run has returned nothing is written to Stdout or Stderr, unless ctx ended while
// a Write was blocked.
func Run(ctx context.Context, opts Options) (wire.ExecExit, error) {
	r := newRun(opts)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer r.stop()
	return r.run(ctx)
}

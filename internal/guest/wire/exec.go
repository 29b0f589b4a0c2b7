package wire

// The exec protocol. A stream carries frames both ways:
//
//	type 1 byte | length 4 bytes big-endian, ≤ MaxFrame | payload
//
// The client's first frame is FrameStart (a new process) or FrameAttach (one
// that runs or has ended and was not collected); the agent answers FrameStarted or FrameError.
// Data frames carry the offset of their first byte in their stream (8 bytes
// big-endian), then the bytes. Offsets count from 0 over the whole life of the
// process, so that a client that lost its connection attaches again with the
// offsets it has, and neither a byte is lost nor one comes twice.
//
// Flow: the agent keeps output in a ring of RingBytes per stream until the client has acknowledged
// it (FrameAck), and stops reading the process's pipe while the ring is full.
// A process started with Drop, or whose client is known to be gone, loses
// its oldest output instead. The client keeps stdin until acknowledged
// (FrameStdinAck) and has at most StdinWindow bytes in flight.
//
// After the process has ended and its output has been sent, the agent sends FrameExit. The
// client answers FrameCollect, and the agent forgets the process. Ended
// processes nobody collects are kept, the last MaxEnded of them.

// Limits of the exec protocol, in bytes but for MaxEnded and MaxProcesses.
const (
	MaxFrame     = 64<<10 + 8
	MaxChunk     = 64 << 10
	RingBytes    = 1 << 20
	StdinWindow  = 256 << 10
	MaxStart     = 60 << 10 // of FrameStart's JSON; argv and environment must fit
	MaxModes     = 1 << 10
	MaxEnded     = 64
	MaxProcesses = 1024
)

// FrameType is the first byte of a frame.
type FrameType byte

// Frames of the client.
const (
	FrameStart    FrameType = 1 // ExecStart as JSON
	FrameAttach   FrameType = 2 // ExecAttach as JSON
	FrameStdin    FrameType = 3 // offset, data
	FrameStdinEOF FrameType = 4 // offset: how long stdin was in all
	FrameAck      FrameType = 5 // 1 byte stream (1 stdout, 2 stderr), offset: all before it has arrived
	FrameSignal   FrameType = 6 // a name such as "INT", without SIG; goes to the process group
	FrameResize   FrameType = 7 // rows, columns: 2 bytes big-endian each
	FrameCollect  FrameType = 8 // empty
)

// Frames of the agent.
const (
	FrameStarted  FrameType = 16 // ExecStarted as JSON
	FrameStdout   FrameType = 17 // offset, data
	FrameStderr   FrameType = 18 // offset, data
	FrameStdinAck FrameType = 19 // offset: all before it has been written to the process
	FrameExit     FrameType = 20 // ExecExit as JSON
	FrameError    FrameType = 21 // ExecError as JSON; the stream ends
)

// ExecStart describes a process to start.
type ExecStart struct {
	Version int `json:"version"`
	// ID is chosen by the client: 32 hex digits. Starting an id again is an error, so that a
	// start that was sent twice runs once.
	ID string `json:"id"`
	// Argv is the command; empty for a login shell of the user.
	Argv []string `json:"argv,omitempty"`
	// Dir is absolute or relative to the home directory; empty for the VM's work directory.
	Dir string   `json:"dir,omitempty"`
	Env []string `json:"env,omitempty"`
	// User is empty for the VM's user (root unless the image says otherwise).
	User string `json:"user,omitempty"`
	// PTY gives it a terminal of Rows × Cols; stdout and stderr are then one.
	// Like every process it goes on when its client is lost, until its owner is said to be gone.
	PTY  bool   `json:"pty,omitempty"`
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`
	// Modes are the terminal's, encoded as RFC 4254 section 8 has them, at most MaxModes bytes. What is
	// not among them, or not known, stays as it is.
	Modes []byte `json:"modes,omitempty"`
	// NoStdin connects stdin to /dev/null.
	NoStdin bool `json:"no_stdin,omitempty"`
	// Detach: nobody attaches; output is dropped when the ring is full.
	Detach bool `json:"detach,omitempty"`
}

// ExecAttach names a process and what of its output the client already has.
type ExecAttach struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	Stdout  uint64 `json:"stdout"`
	Stderr  uint64 `json:"stderr"`
	// Session attaches to a session; ID is then that of the attachment. Nil for a process.
	Session *SessionAttach `json:"session,omitempty"`
}

// ExecStarted answers a start or an attach.
type ExecStarted struct {
	ID  string `json:"id"`
	PID int    `json:"pid"`
	// Stdin is how much of stdin has been written to the process.
	Stdin uint64 `json:"stdin"`
	// Received is how much of it the agent has taken in all, at least Stdin: where a client
	// that did not send what came before goes on.
	Received uint64 `json:"received"`
	// StdinEOF: the command's stdin has ended or never was; nothing more is taken.
	StdinEOF bool `json:"stdin_eof,omitempty"`
	// ReadOnly: this attachment to a session has no stdin, because another one has or it did not ask.
	ReadOnly bool `json:"read_only,omitempty"`
}

// ExecExit is how a process ended.
type ExecExit struct {
	// Status is 0 to 255: its own, or 128+n where signal n ended it.
	Status int `json:"status"`
	// Signal is a name such as "TERM", empty where none ended it.
	Signal string `json:"signal,omitempty"`
	// Dropped is how many bytes of output were lost to a full ring.
	Dropped uint64 `json:"dropped,omitempty"`
}

// Codes of ExecError.
const (
	ExecNotFound      = "not_found"      // no such command: exit status 127
	ExecNotExecutable = "not_executable" // it cannot be executed: 126
	ExecBadDir        = "bad_dir"        // the directory is not there
	ExecBadUser       = "bad_user"
	ExecNoProcess     = "no_process" // attach to an unknown id
	ExecExists        = "exists"     // start of a known id
	ExecInvalid       = "invalid"    // the request breaks the protocol or a limit
	ExecTakenOver     = "taken_over" // a newer attachment has the process now
	ExecNoSession     = "no_session" // attach to an unknown session
	ExecFailed        = "failed"
)

// ExecError is why a process could not be started or attached to.
type ExecError struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// ProcessStatus is a process as GET /v1/processes of the agent lists it.
type ProcessStatus struct {
	ID       string    `json:"id"`
	PID      int       `json:"pid"`
	Argv     []string  `json:"argv"`
	Attached bool      `json:"attached"`
	Exit     *ExecExit `json:"exit,omitempty"`
}

package wire

import (
	"fmt"
	"time"
)

// Sessions. A session is a named process that the agent itself is the client of: its output goes to a journal on the
// guest's disk, and whoever attaches reads that. FrameAttach with SessionAttach attaches to one; from then on the stream is
// that of a process, with these differences:
//
//   - ExecAttach.ID is that of the attachment, chosen by the client, so that one which lost its connection comes back as who it was.
//   - Any number may read, one writes (ExecStarted.ReadOnly tells who does not). Stdin, signals and sizes of the others are ignored.
//   - Output that was dropped before the attachment was sent it is a FrameGap. Of who writes nothing is dropped
//     that it has not acknowledged: the process is not read instead.
//   - FrameDetach ends an attachment for good; the agent closes the stream. So does FrameCollect, and the session stays.

// FrameDetach and FrameGap are the frames that only sessions have.
const (
	FrameDetach FrameType = 9  // of the client: empty
	FrameGap    FrameType = 22 // of the agent: as FrameAck. What was output before the offset and not sent is lost
)

// SessionsDir is where sessions are on a data drive, a directory each; the files there are those of package journal.
const SessionsDir = "v1/sessions"

// Modes of a session's stdin.
const (
	SessionNone = "none" // /dev/null
	SessionPipe = "pipe"
	SessionPTY  = "pty" // a terminal; stdout and stderr are one
)

// Where the output of an attachment begins: SessionAttach.Tail, where it is no number of bytes.
const (
	// TailUnread is, for who writes, what nobody who wrote has acknowledged; for others what comes.
	TailUnread = -1
	// TailAll is all that is kept.
	TailAll = -2
)

// Bounds of sessions in one guest.
const (
	MaxSessions      = 64 // that run
	MaxEndedSessions = 64 // of which the log is kept; the oldest go
	MaxSessionName   = 63 // bytes
)

// SessionAttach is the part of an ExecAttach that names a session.
type SessionAttach struct {
	Name string `json:"name"`
	// Write asks for stdin. Where another attachment has it, this one reads only.
	Write bool `json:"write,omitempty"`
	// Tail is how many bytes of earlier output are sent at least, or TailUnread, TailAll.
	Tail int64 `json:"tail,omitempty"`
	// Resume goes on at the ExecAttach's offsets, in place of Tail.
	Resume bool `json:"resume,omitempty"`
	// Mute: no output is sent, and nothing waits for this attachment.
	Mute bool `json:"mute,omitempty"`
}

// SessionStart asks for a session. The fields are those of ExecStart, where nothing else is said.
type SessionStart struct {
	Version int      `json:"version"`
	ID      string   `json:"id"`
	Name    string   `json:"name"`
	Argv    []string `json:"argv,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	Env     []string `json:"env,omitempty"`
	User    string   `json:"user,omitempty"`
	// Stdin is SessionNone, SessionPipe or SessionPTY.
	Stdin string `json:"stdin"`
	Rows  uint16 `json:"rows,omitempty"`
	Cols  uint16 `json:"cols,omitempty"`
	// LogBytes and LogFiles bound the journal: so many files of so many bytes each.
	LogBytes int64 `json:"log_bytes"`
	LogFiles int   `json:"log_files"`
}

// SessionStatus is a session as its agent knows it.
type SessionStatus struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Argv      []string  `json:"argv,omitempty"`
	Dir       string    `json:"dir,omitempty"`
	User      string    `json:"user,omitempty"`
	Stdin     string    `json:"stdin"`
	PID       int       `json:"pid,omitempty"`
	StartedAt time.Time `json:"started_at"`
	// Writer tells whether somebody has stdin, Readers counts who else is attached.
	Writer  bool `json:"writer,omitempty"`
	Readers int  `json:"readers,omitempty"`
	// Stdout and Stderr count the bytes of output, Dropped those that no log has any more.
	Stdout  uint64 `json:"stdout"`
	Stderr  uint64 `json:"stderr"`
	Dropped uint64 `json:"dropped,omitempty"`
	// Ended tells that it does not run; Exit is how its process ended, nil where the guest ended first.
	Ended   bool      `json:"ended,omitempty"`
	EndedAt time.Time `json:"ended_at,omitzero"`
	Exit    *ExecExit `json:"exit,omitempty"`
}

// SessionList is every session of a guest. Seq grows with every start, end and removal, and is another one after a boot.
type SessionList struct {
	Seq      uint64          `json:"seq"`
	Sessions []SessionStatus `json:"sessions"`
}

// SessionStarted answers a SessionStart: a session, or why its command could not be started.
type SessionStarted struct {
	Session *SessionStatus `json:"session,omitempty"`
	Error   *ExecError     `json:"error,omitempty"`
}

// ValidSessionName tells whether a session may have a name: letters, digits, and . _ - within.
func ValidSessionName(name string) bool {
	if name == "" || len(name) > MaxSessionName {
		return false
	}
	for i, c := range []byte(name) {
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_' && c != '.') {
			return false
		}
	}
	return true
}

// ValidSessionStdin tells whether a mode of stdin is one.
func ValidSessionStdin(mode string) bool {
	return mode == SessionNone || mode == SessionPipe || mode == SessionPTY
}

// DroppedLine is the line that stands for n bytes of output that are lost.
func DroppedLine(n uint64) string { return fmt.Sprintf("[banger: %d bytes were dropped here]\n", n) }

package api

import (
	"net/url"
	"strconv"
	"time"
)

// SessionState is the state of a session.
type SessionState string

// The states of a session.
const (
	// SessionStarting: it is recorded, and not known to run yet.
	SessionStarting SessionState = "starting"
	SessionRunning  SessionState = "running"
	SessionEnded    SessionState = "ended"
	// SessionFailed: its command could not be started; only the answer to a StartSession says so, and nothing is recorded.
	SessionFailed SessionState = "failed"
)

// Session is a command with a name in a VM: GET /v1/vms/{name}/sessions.
type Session struct {
	// VM is the VM's name.
	VM    string       `json:"vm"`
	Name  string       `json:"name"`
	ID    string       `json:"id"`
	State SessionState `json:"state"`
	// Command is empty for a login shell.
	Command []string `json:"command,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	User    string   `json:"user,omitempty"`
	// Stdin is "none", "pipe" or "pty".
	Stdin string `json:"stdin"`
	// PID is its process in the guest while it runs.
	PID       int       `json:"pid,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// EndedAt is when the host knew of the end.
	EndedAt *time.Time `json:"ended_at,omitempty"`
	// Status is the exit status, 128+n where signal n ended it; nil while it runs, and where nobody knows. Signal is a name such as "TERM".
	Status *int   `json:"status,omitempty"`
	Signal string `json:"signal,omitempty"`
	// Reason says why it ended, where it did not end by itself, or why it failed.
	Reason string `json:"reason,omitempty"`
	// Writer tells whether somebody is attached who writes, Readers how many others are.
	Writer  bool `json:"writer,omitempty"`
	Readers int  `json:"readers,omitempty"`
	// StdoutBytes and StderrBytes count its output, DroppedBytes what of it the log does not have any more.
	StdoutBytes  uint64 `json:"stdout_bytes"`
	StderrBytes  uint64 `json:"stderr_bytes"`
	DroppedBytes uint64 `json:"dropped_bytes"`
	// Socket is a unix socket of the host that leads to it while it runs: what is written there is its stdin, what is read its stdout. The
	// first connection writes, others read.
	Socket string `json:"socket,omitempty"`
}

// StartSession asks for a session.
type StartSession struct {
	// Name has letters, digits and . _ -, 63 at most; empty for a generated one.
	Name string `json:"name,omitempty"`
	// Command is empty for a login shell.
	Command []string `json:"command,omitempty"`
	// Dir is absolute or relative to the home directory; empty for the VM's work directory.
	Dir  string   `json:"dir,omitempty"`
	User string   `json:"user,omitempty"`
	Env  []string `json:"env,omitempty"`
	// Stdin is "none" (or empty), "pipe" or "pty".
	Stdin string `json:"stdin,omitempty"`
	// Rows and Cols are the size of a pty until somebody attaches; 0 for none.
	Rows uint16 `json:"rows,omitempty"`
	Cols uint16 `json:"cols,omitempty"`
}

// StopSession asks a session to end: by a signal, and by KILL where it has not ended within a time.
type StopSession struct {
	// Signal is a name such as "TERM", which it is where empty.
	Signal string `json:"signal,omitempty"`
	// TimeoutSeconds is 0 for the default of 10.
	TimeoutSeconds int `json:"timeout_seconds,omitempty" minimum:"0" maximum:"86400"`
}

// SessionLogs says what of a session's log is wanted: GET /v1/vms/{name}/sessions/{session}/logs.
type SessionLogs struct {
	// Stream is "stdout" or "stderr"; empty for both, as they came.
	Stream string
	// Since is how far back it goes; 0 for all of it.
	Since time.Duration
	// Tail is how many lines, the last ones; negative for all.
	Tail int
	// Follow goes on until the session ends.
	Follow bool
}

// Values are l as a query.
func (l SessionLogs) Values() url.Values {
	return url.Values{"stream": {l.Stream}, "since": {l.Since.String()}, "tail": {strconv.Itoa(l.Tail)}, "follow": {strconv.FormatBool(l.Follow)}}
}

// ParseSessionLogs reads a query that Values made; what is left out has its default.
func ParseSessionLogs(q url.Values) (SessionLogs, error) {
	l := SessionLogs{Stream: q.Get("stream"), Tail: -1, Follow: q.Get("follow") == "true"}
	if l.Stream != "" && l.Stream != "stdout" && l.Stream != "stderr" {
		return l, Errorf(KindInvalid, "stream %q is neither stdout nor stderr", l.Stream)
	}
	if v := q.Get("since"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			return l, Errorf(KindInvalid, "since %q is not a time such as 10m", v)
		}
		l.Since = d
	}
	if v := q.Get("tail"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return l, Errorf(KindInvalid, "tail %q is not a number of lines", v)
		}
		l.Tail = n
	}
	return l, nil
}

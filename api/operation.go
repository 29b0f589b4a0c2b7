package api

import (
	"encoding/json"
	"time"
)

// OperationState is the state of an operation.
type OperationState string

// The states of an operation; all but running are final.
const (
	OperationRunning   OperationState = "running"
	OperationDone      OperationState = "done"
	OperationFailed    OperationState = "failed"
	OperationCancelled OperationState = "cancelled"
)

// Operation is daemon work that outlives its request.
type Operation struct {
	ID string `json:"id"`
	// Kind is such as "vm.create", "image.pull".
	Kind string `json:"kind"`
	// Target is the name of what it works on.
	Target    string          `json:"target,omitempty"`
	State     OperationState  `json:"state"`
	Progress  Progress        `json:"progress"`
	Error     *Error          `json:"error,omitempty"`
	Result    json.RawMessage `json:"result,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
	EndedAt   *time.Time      `json:"ended_at,omitempty"`
	// Notes are lines for the user that came up on the way (a fall-back, a warning), in order.
	Notes []string `json:"notes,omitempty"`
}

// Progress is where a running operation is.
type Progress struct {
	// Step says what is being done, such as "download linux-image-6.12.…-cloud-amd64"; a plain line per step is
	// shown where there is no terminal.
	Step string `json:"step,omitempty"`
	// Done of Total bytes; Total is 0 where it is not known, both where the step does not count bytes.
	Done  int64 `json:"done,omitempty"`
	Total int64 `json:"total,omitempty"`
}

// Ended reports whether o is in a final state.
func (o Operation) Ended() bool { return o.State != OperationRunning }

// Event is something that happened, as GET /v1/events tells it.
type Event struct {
	Seq  int64     `json:"seq"`
	Time time.Time `json:"time"`
	// Kind is such as "vm.state", "vm.warning", "image.pulled".
	Kind string `json:"kind"`
	VM   string `json:"vm,omitempty"`
	Text string `json:"text,omitempty"`
}

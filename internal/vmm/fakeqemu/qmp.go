package fakeqemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

const greeting = `{"QMP":{"version":{"qemu":{"micro":0,"minor":0,"major":9},"package":"fake"},"capabilities":[]}}`

// monitor is the server's side of QEMU's machine protocol.
type monitor struct {
	m    *machine
	conn net.Conn
	// deafToCont is of Knobs.
	deafToCont bool

	mu     sync.Mutex // guards what follows and writes to conn
	paused chan struct{}
	status string
}

func newMonitor(m *machine, conn net.Conn) *monitor {
	running := make(chan struct{})
	close(running)
	return &monitor{m: m, conn: conn, paused: running, status: "running"}
}

// running returns when the CPUs run.
func (q *monitor) running() {
	q.mu.Lock()
	ch := q.paused
	q.mu.Unlock()
	<-ch
}

// stop pauses the CPUs, with a status such as "paused" or "io-error".
func (q *monitor) stop(status string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.status != "running" {
		return
	}
	q.status, q.paused = status, make(chan struct{})
	q.send(event{Event: "STOP"})
}

func (q *monitor) cont() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.status == "running" {
		return
	}
	q.status = "running"
	close(q.paused)
	q.send(event{Event: "RESUME"})
}

// tell sends an event.
func (q *monitor) tell(name string, data map[string]any) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.send(event{Event: name, Data: data})
}

type event struct {
	Event     string         `json:"event"`
	Data      map[string]any `json:"data,omitempty"`
	Timestamp struct {
		Seconds int64 `json:"seconds"`
	} `json:"timestamp"`
}

// send is called with mu held.
func (q *monitor) send(v any) {
	if e, ok := v.(event); ok {
		e.Timestamp.Seconds = time.Now().Unix()
		v = e
	}
	b, err := json.Marshal(v)
	if err == nil {
		_, _ = q.conn.Write(append(b, '\r', '\n'))
	}
}

type command struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

// serve answers commands until the connection ends.
func (q *monitor) serve() {
	q.mu.Lock()
	_, _ = q.conn.Write([]byte(greeting + "\r\n"))
	q.mu.Unlock()
	sc := bufio.NewScanner(q.conn)
	negotiated := false
	for sc.Scan() {
		var c command
		err := strictJSON(sc.Text(), &c)
		if err == nil && !negotiated && c.Execute != "qmp_capabilities" {
			err = fmt.Errorf("expecting capabilities negotiation with 'qmp_capabilities'")
		}
		var result any = struct{}{}
		if err == nil && c.Execute == "cont" && q.deafToCont {
			_ = os.WriteFile(DeafFile, nil, 0o600)
			continue
		}
		if err == nil {
			negotiated = true
			result, err = q.execute(c)
		}
		answer := map[string]any{"id": c.ID}
		if err != nil {
			answer["error"] = map[string]string{"class": "GenericError", "desc": err.Error()}
		} else {
			answer["return"] = result
		}
		q.mu.Lock()
		q.send(answer)
		q.mu.Unlock()
	}
}

func (q *monitor) execute(c command) (any, error) {
	none := struct{}{}
	switch c.Execute {
	case "qmp_capabilities":
	case "stop":
		q.stop("paused")
	case "cont":
		q.cont()
	case "block_resize":
		var a struct {
			Node string `json:"node-name"`
			Size int64  `json:"size"`
		}
		if err := strictJSON(string(c.Arguments), &a); err != nil {
			return nil, err
		}
		path := q.m.drives[a.Node]
		if path == "" {
			return nil, fmt.Errorf("cannot find device %q", a.Node)
		}
		return none, os.Truncate(path, a.Size)
	default:
		return nil, fmt.Errorf("the command %s has not been found", c.Execute)
	}
	return none, nil
}

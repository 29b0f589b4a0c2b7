package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
)

const hello = `{"QMP":{"version":{}}}` + "\n"

// server is QEMU's end of a control socket: it greets, and answers every command by answer.
func server(t *testing.T, answer func(name string, id uint64) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	go func() {
		if _, err := io.WriteString(theirs, hello); err != nil {
			return
		}
		sc := bufio.NewScanner(theirs)
		for sc.Scan() {
			var c struct {
				Execute string `json:"execute"`
				ID      uint64 `json:"id"`
			}
			if json.Unmarshal(sc.Bytes(), &c) != nil {
				return
			}
			if _, err := io.WriteString(theirs, answer(c.Execute, c.ID)); err != nil {
				return
			}
		}
	}()
	return ours
}

func ok(id uint64) string { return fmt.Sprintf(`{"return":{},"id":%d}`+"\r\n", id) }

func limited(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestExecute(t *testing.T) {
	conn := server(t, func(name string, id uint64) string {
		switch name {
		case "refused":
			return fmt.Sprintf(`{"error":{"class":"GenericError","desc":"no such drive"},"id":%d}`+"\n", id)
		case "eventful":
			return `{"event":"STOP","timestamp":{}}` + "\n" + ok(id+100) + ok(id)
		case "long":
			return fmt.Sprintf(`{"return":%q,"id":%d}`+"\n", strings.Repeat("x", 100_000), id)
		case "hang-up":
			return "nonsense\n"
		}
		return ok(id)
	})
	events := make(chan string, 8)
	q, err := newQMP(limited(t), conn, func(e qmpEvent) { events <- e.Name })
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	var refused *QMPError
	if err := q.execute(limited(t), "refused", nil, nil); !errors.As(err, &refused) || refused.Desc != "no such drive" {
		t.Errorf("a refused command: %v", err)
	}
	if err := q.execute(limited(t), "eventful", nil, nil); err != nil {
		t.Errorf("a command with an event before its answer: %v", err)
	}
	if e := <-events; e != "STOP" {
		t.Errorf("the event is %q", e)
	}
	var long string
	if err := q.execute(limited(t), "long", nil, &long); err != nil || len(long) != 100_000 {
		t.Errorf("a long answer: %d bytes, %v", len(long), err)
	}
	if err := q.execute(limited(t), "hang-up", nil, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("an answer that is no JSON: %v", err)
	}
	if err := q.execute(limited(t), "late", nil, nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("a command after the end: %v", err)
	}
}

func TestExecuteIsCancelled(t *testing.T) {
	conn := server(t, func(name string, id uint64) string {
		if name == "mute" {
			return "\n{}\n"[1:]
		}
		return ok(id)
	})
	q, err := newQMP(limited(t), conn, func(qmpEvent) {})
	if err != nil {
		t.Fatal(err)
	}
	defer q.close()
	ctx, cancel := context.WithTimeout(limited(t), 20*time.Millisecond)
	defer cancel()
	if err := q.execute(ctx, "mute", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command without an answer: %v", err)
	}
	if err := q.execute(limited(t), "stop", nil, nil); err != nil {
		t.Errorf("the command after it: %v", err)
	}
}

func TestGreeting(t *testing.T) {
	for name, text := range map[string]string{
		"none":         "",
		"twice":        hello + hello,
		"not JSON":     "hello\n",
		"endless line": strings.Repeat("x", maxMessage+8192),
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			go func() {
				_, _ = io.WriteString(theirs, text)
				theirs.Close()
			}()
			if q, err := newQMP(limited(t), ours, func(qmpEvent) {}); err == nil {
				q.close()
				t.Error("it was accepted")
			}
		})
	}
}

func TestEventState(t *testing.T) {
	full := `{"node-name":"data","action":"stop","nospace":true,"reason":"No space left on device"}`
	bad := `{"node-name":"base","action":"report","nospace":false,"reason":"Input/output error"}`
	for name, c := range map[string]struct {
		events   []qmpEvent
		want     driver.State
		shutdown string
	}{
		"stop":            {[]qmpEvent{{Name: "STOP"}}, driver.State{Paused: true}, ""},
		"stop and resume": {[]qmpEvent{{Name: "STOP"}, {Name: "RESUME"}}, driver.State{}, ""},
		"disk full":       {[]qmpEvent{{"BLOCK_IO_ERROR", json.RawMessage(full)}, {Name: "STOP"}}, driver.State{Paused: true, DiskFull: true}, ""},
		"room again": {[]qmpEvent{{"BLOCK_IO_ERROR", json.RawMessage(full)}, {Name: "STOP"}, {Name: "RESUME"}},
			driver.State{}, ""},
		"bad disk": {[]qmpEvent{{"BLOCK_IO_ERROR", json.RawMessage(bad)}}, driver.State{DiskError: `drive "base": Input/output error`}, ""},
		"first reason counts": {[]qmpEvent{
			{"SHUTDOWN", json.RawMessage(`{"guest":true,"reason":"guest-reset"}`)},
			{"SHUTDOWN", json.RawMessage(`{"guest":false,"reason":"host-signal"}`)},
		}, driver.State{}, guestReset},
		"unknown and odd": {[]qmpEvent{{Name: "RTC_CHANGE"}, {"BLOCK_IO_ERROR", json.RawMessage(`7`)}}, driver.State{}, ""},
	} {
		v := &VMM{changed: make(chan struct{}, 1)}
		for _, e := range c.events {
			v.event(e)
		}
		if got := v.State(); got != c.want || v.shutdown != c.shutdown {
			t.Errorf("%s: %+v %q, want %+v %q", name, got, v.shutdown, c.want, c.shutdown)
		}
	}
}

func TestExit(t *testing.T) {
	for name, c := range map[string]struct {
		status   int
		sig      syscall.Signal
		shutdown string
		want     driver.Exit
	}{
		"reboot":         {0, 0, guestReset, driver.Exit{Ending: driver.GuestReset}},
		"power off":      {0, 0, guestShutdown, driver.Exit{Ending: driver.GuestShutdown}},
		"asked politely": {0, 0, hostSignal, driver.Exit{Ending: driver.HostSignal}},
		"asked at once":  {-1, syscall.SIGTERM, "", driver.Exit{Ending: driver.HostSignal}},
		"killed":         {-1, syscall.SIGKILL, "", driver.Exit{Ending: driver.Failed, Detail: "qemu was ended by signal killed"}},
		"failed":         {1, 0, "", driver.Exit{Ending: driver.Failed, Detail: "qemu ended with exit status 1"}},
		"gave up":        {0, 0, "", driver.Exit{Ending: driver.Failed, Detail: `qemu ended by itself, reason ""`}},
	} {
		if got := exit(c.status, c.sig, c.shutdown); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte(`{"event":"BLOCK_IO_ERROR","data":{"nospace":true,"action":"stop"}}` + "\n"))
	f.Add([]byte(`{"return":{},"id":1}` + "\n" + `{"error":{"desc":"x"},"id":2}` + "\n"))
	f.Add([]byte(hello))
	f.Add([]byte("{\"id\":-1}\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ours, theirs := net.Pipe()
		v := &VMM{changed: make(chan struct{}, 1)}
		q := &qmp{conn: ours, onEvent: v.event, done: make(chan struct{}), pending: map[uint64]chan qmpMessage{}}
		go func() {
			_, _ = theirs.Write(b)
			theirs.Close()
		}()
		q.read(make(chan struct{}))
		if q.failure() == nil {
			t.Error("a connection ended without a reason")
		}
	})
}

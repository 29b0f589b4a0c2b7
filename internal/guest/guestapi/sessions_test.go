package guestapi

import (
	"fmt"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// TestCheckSessions: what no agent says of its sessions is not taken from a guest.
func TestCheckSessions(t *testing.T) {
	good := wire.SessionStatus{ID: strings.Repeat("0", 32), Name: "planner", Stdin: wire.SessionPipe, PID: 7,
		Argv: []string{strings.Repeat("x", 2<<10), "…"}, Dir: "/" + strings.Repeat("d", 4000), User: "root"}
	if err := checkSessions(wire.SessionList{Sessions: []wire.SessionStatus{good}}); err != nil {
		t.Error(err)
	}
	bad := map[string]func(*wire.SessionStatus){
		"name":   func(s *wire.SessionStatus) { s.Name = "../../x" },
		"stdin":  func(s *wire.SessionStatus) { s.Stdin = "\x1b[2J" },
		"id":     func(s *wire.SessionStatus) { s.ID = strings.Repeat("0", 1000) },
		"status": func(s *wire.SessionStatus) { s.Exit = &wire.ExecExit{Status: 1000} },
		"argv":   func(s *wire.SessionStatus) { s.Argv = make([]string, 5000) },
		"dir":    func(s *wire.SessionStatus) { s.Dir = strings.Repeat("d", 5000) },
		"user":   func(s *wire.SessionStatus) { s.User = strings.Repeat("u", 300) },
		"pid":    func(s *wire.SessionStatus) { s.PID = 0 },
		"signal": func(s *wire.SessionStatus) { s.Exit = &wire.ExecExit{Signal: strings.Repeat("S", 100)} },
	}
	for what, change := range bad {
		s := good
		change(&s)
		if err := checkSessions(wire.SessionList{Sessions: []wire.SessionStatus{s}}); api.KindOf(err) != api.KindGuest {
			t.Errorf("%s: %v", what, err)
		}
	}
	var many []wire.SessionStatus
	for i := range 1000 {
		s := good
		s.Name = fmt.Sprint("s", i)
		many = append(many, s)
	}
	if err := checkSessions(wire.SessionList{Sessions: many}); api.KindOf(err) != api.KindGuest {
		t.Errorf("a thousand: %v", err)
	}
}

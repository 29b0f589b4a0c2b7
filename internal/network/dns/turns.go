package dns

import (
	"container/list"
	"context"
)

// turn is a question that waits until it may go outside.
type turn struct {
	vm string
	// granted is closed once it may.
	granted chan struct{}
}

// acquire waits for a place for a question that goes outside, which release gives back; false where too many wait already, or ctx
// ends before.
func (s *Server) acquire(ctx context.Context, vm string) bool {
	s.mu.Lock()
	if s.takeLocked(vm) {
		s.mu.Unlock()
		return true
	}
	if s.turns.Len() >= maxTurnsAll || s.waiting[vm] >= maxTurns {
		s.mu.Unlock()
		return false
	}
	t := &turn{vm, make(chan struct{})}
	place := s.turns.PushBack(t)
	s.waiting[vm]++
	s.mu.Unlock()
	select {
	case <-t.granted:
		return true
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-t.granted: // in the meantime
		s.releaseLocked(vm)
	default:
		s.leaveLocked(place)
	}
	return false
}

func (s *Server) release(vm string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.releaseLocked(vm)
}

// takeLocked takes a place where one is free; the caller holds s.mu.
func (s *Server) takeLocked(vm string) bool {
	if s.total >= maxInFlight || s.inFlight[vm] >= maxPerVM {
		return false
	}
	s.total++
	s.inFlight[vm]++
	return true
}

// releaseLocked gives a place back, to the oldest question that may have it; the caller holds s.mu.
func (s *Server) releaseLocked(vm string) {
	s.total--
	if s.inFlight[vm]--; s.inFlight[vm] == 0 {
		delete(s.inFlight, vm)
	}
	for e := s.turns.Front(); e != nil; e = e.Next() {
		if t := e.Value.(*turn); s.takeLocked(t.vm) {
			s.leaveLocked(e)
			close(t.granted)
			return
		}
	}
}

// leaveLocked takes a question out of those that wait; the caller holds s.mu.
func (s *Server) leaveLocked(e *list.Element) {
	vm := s.turns.Remove(e).(*turn).vm
	if s.waiting[vm]--; s.waiting[vm] == 0 {
		delete(s.waiting, vm)
	}
}

package dns

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"

	"github.com/miekg/dns"
)

// TestBusyGuestIsAnswered: what a guest asks beyond its share waits, and is answered once there is room.
func TestBusyGuestIsAnswered(t *testing.T) {
	dialled, free := make(chan struct{}), make(chan struct{})
	s, _ := testServer(t, func(c *Config) {
		c.Upstreams = []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}
		c.Dial = blockDial(dialled, free)
	})
	const more = 50
	answers := make(chan []byte)
	for i := range maxPerVM + more { // questions that differ, or they would be one
		own := question(t, fmt.Sprintf("%d.example.com.", i), "A")
		go func() { answers <- s.Answer(t.Context(), "a", true, own) }()
	}
	for range maxPerVM {
		<-dialled
	}
	if m := parse(t, s.Answer(t.Context(), "a", true, question(t, "web.vm.", "A"))); len(m.Answer) != 1 {
		t.Errorf("VMs are not answered: %s", m)
	}
	close(free)
	asked := maxPerVM
	for answered := 0; answered < maxPerVM+more; {
		select {
		case <-dialled:
			asked++
		case a := <-answers:
			answered++
			if m := parse(t, a); m.Rcode != dns.RcodeServerFailure {
				t.Errorf("%s", m)
			}
		}
	}
	if asked != maxPerVM+more {
		t.Errorf("%d questions were asked, want %d", asked, maxPerVM+more)
	}
}

// TestTurnsAreBounded: so many questions of one VM and of all are asked, and wait, at a time; the oldest that may be asked is the next.
func TestTurnsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := testServer(t, func(*Config) {})
		granted := make(chan string, maxTurnsAll+maxInFlight)
		wait := func(ctx context.Context, vm, name string, n int) {
			for range n {
				go func() {
					if s.acquire(ctx, vm) {
						granted <- name
					} else {
						granted <- "no " + name
					}
				}()
			}
			synctest.Wait()
		}
		ctx, giveUp := context.WithCancel(t.Context())
		wait(ctx, "a", "a", maxPerVM)
		if len(granted) != maxPerVM {
			t.Fatalf("one VM is given %d", len(granted))
		}
		wait(ctx, "a", "a that gives up", maxTurns)
		if s.acquire(ctx, "a") {
			t.Error("one VM may have more than its share")
		}
		for i := range maxInFlight/maxPerVM - 1 {
			wait(ctx, fmt.Sprint(i), "other", maxPerVM)
		}
		if len(granted) != maxInFlight || s.total != maxInFlight {
			t.Errorf("%d are asked, want %d", len(granted), maxInFlight)
		}
		wait(ctx, "late", "late", 1)
		wait(ctx, "0", "other", maxTurns-1)
		for i := 1; i < maxTurnsAll/maxTurns-1; i++ {
			wait(ctx, fmt.Sprint(i), "other", maxTurns)
		}
		if s.acquire(ctx, "b") {
			t.Error("there is no bound on all")
		}
		for range maxInFlight {
			<-granted
		}
		s.release("0")
		synctest.Wait()
		if got := <-granted; got != "late" { // before those of VM 0, and those of a, which has its share
			t.Errorf("the next is %q", got)
		}
		s.release("a")
		synctest.Wait()
		if got := <-granted; got != "a that gives up" {
			t.Errorf("the next is %q", got)
		}
		giveUp()
		synctest.Wait()
		if s.turns.Len() != 0 || len(s.waiting) != 0 {
			t.Errorf("%d wait after they gave up", s.turns.Len())
		}
		for vm, n := range s.inFlight {
			for range n {
				s.release(vm)
			}
		}
		if s.total != 0 || len(s.inFlight) != 0 {
			t.Errorf("%d questions of %d VMs are left", s.total, len(s.inFlight))
		}
	})
}

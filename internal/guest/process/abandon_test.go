package process

import (
	"context"
	"testing"
	"time"
)

// TestAbandon: a process nobody asks about again is hung up, and takes no place among those that wait to be collected.
func TestAbandon(t *testing.T) {
	m := newManager(t, Config{MaxEnded: 1})
	if _, err := m.Start(request(1, "true")); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(testContext(t), request(1, "").ID); err != nil {
		t.Fatal(err)
	}
	for n := 2; n < 10; n++ {
		if _, err := m.Start(request(n, "exec sleep 100")); err != nil {
			t.Fatal(err)
		}
		if err := m.Abandon(request(n, "").ID); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(m.List()) > 1 {
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("left: %+v", m.List())
		}
	}
	if _, err := m.Wait(testContext(t), request(1, "").ID); err != nil {
		t.Errorf("the one that waits: %v", err)
	}
	if err := m.Abandon(request(2, "").ID); err == nil {
		t.Error("still known")
	}
}

package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestAwaitBytes: a drive that is about to grow is waited for, one that is too small is not for ever.
func TestAwaitBytes(t *testing.T) {
	dev := filepath.Join(t.TempDir(), "vdb")
	if err := os.WriteFile(dev, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := awaitBytes(dev, 1024, 0); n != 512 || err != nil {
		t.Errorf("of a drive that stays small: %d, %v", n, err)
	}
	type result struct {
		n   int64
		err error
	}
	done := make(chan result, 1)
	go func() {
		n, err := awaitBytes(dev, 1024, time.Minute)
		done <- result{n, err}
	}()
	if err := os.Truncate(dev, 2048); err != nil {
		t.Fatal(err)
	}
	if r := <-done; r.n != 2048 || r.err != nil {
		t.Errorf("of a drive that grows: %d, %v", r.n, r.err)
	}
	if _, err := awaitBytes(dev+".not", 1, time.Minute); err == nil {
		t.Error("a drive that is not there has a size")
	}
}

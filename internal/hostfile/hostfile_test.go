package hostfile

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	ended := errors.New("ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	r := Reader(ctx, strings.NewReader("abc"))
	var b [1]byte
	if _, err := io.ReadFull(r, b[:]); err != nil || b[0] != 'a' {
		t.Errorf("%q, %v", b, err)
	}
	cancel(ended)
	if n, err := r.Read(b[:]); n != 0 || !errors.Is(err, ended) {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

func TestSyncDir(t *testing.T) {
	dir := t.TempDir()
	if err := SyncDir(dir); err != nil {
		t.Error(err)
	}
	if err := SyncDir(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

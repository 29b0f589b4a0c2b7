package content

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// File is what is recorded of a file. Size and time tell cheaply that it was not touched.
type File struct {
	Name    string `json:"name"`
	SHA256  string `json:"sha256"`      // 64 hexadecimal digits
	Size    int64  `json:"size"`        // bytes
	ModTime int64  `json:"mod_time_ns"` // nanoseconds since 1970
}

// Hash reads the file of a name in dir. Once ctx has ended, its error wraps the cause.
func Hash(ctx context.Context, dir, name string, rep progress.Reporter) (File, error) {
	path := filepath.Join(dir, name)
	f, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return File{}, err
	}
	h := sha256.New()
	in := progress.Reader(hostfile.Reader(ctx, f), rep, info.Size())
	if _, err := io.CopyBuffer(h, in, make([]byte, 1<<20)); err != nil {
		return File{}, fmt.Errorf("read %q: %w", path, err)
	}
	return File{Name: name, SHA256: hex.EncodeToString(h.Sum(nil)), Size: info.Size(), ModTime: info.ModTime().UnixNano()}, nil
}

// Look returns f as it now is in dir. A file of the recorded size and time is f itself, unread, unless full; any other is
// read, and it is for the caller to compare the hashes. Once ctx has ended while it reads, its error is the cause.
func (f File) Look(ctx context.Context, dir string, full bool) (File, error) {
	info, err := os.Stat(filepath.Join(dir, f.Name))
	if err != nil {
		return File{}, err
	}
	if !full && info.Size() == f.Size && info.ModTime().UnixNano() == f.ModTime {
		return f, nil
	}
	now, err := Hash(ctx, dir, f.Name, progress.Discard)
	if ctx.Err() != nil {
		return File{}, context.Cause(ctx)
	}
	return now, err
}

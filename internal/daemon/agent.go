package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// agentBinary is the name of the guest agent's program.
const agentBinary = "banger-vsock-agent"

// agentArchive is the name of its archive, in a directory per build.
const agentArchive = "initramfs.cpio"

// agents makes the initramfs archive of the agent that belongs to this build, once in the daemon's life.
type agents struct {
	paths paths.Paths
	exe   string // bangerd's own path

	mu      sync.Mutex // guards archive
	archive string
}

// Archive returns the path of the archive, making it at the first call.
func (a *agents) Archive(ctx context.Context) (string, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.archive != "" {
		if _, err := os.Stat(a.archive); err == nil {
			return a.archive, nil
		}
	}
	bin, err := a.find()
	if err != nil {
		return "", err
	}
	file, err := content.Hash(ctx, filepath.Dir(bin), filepath.Base(bin), progress.Discard)
	if err != nil {
		return "", fmt.Errorf("read the agent: %w", err)
	}
	path := filepath.Join(a.paths.Agents(), "sha256-"+file.SHA256, agentArchive)
	if _, err := os.Stat(path); err != nil {
		if err := makeArchive(ctx, path, bin); err != nil {
			return "", fmt.Errorf("make the agent's archive: %w", err)
		}
	}
	a.archive = path
	return path, nil
}

// find looks for the agent where make install and make build put it.
func (a *agents) find() (string, error) {
	dir := filepath.Dir(a.exe)
	tried := []string{filepath.Join(dir, "..", "lib", "banger", agentBinary), filepath.Join(dir, agentBinary)}
	for _, p := range tried {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return filepath.Clean(p), nil
		}
	}
	return "", api.Errorf(api.KindUnavailable, "the guest agent %s is not installed", agentBinary).
		WithHint("looked for %s; install banger again (make install)", strings.Join(tried, " and "))
}

func makeArchive(ctx context.Context, path, bin string) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := errors.Join(initramfs.WriteAgent(f, bin), f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// sweep removes the archives that no VM in use was started with, before the daemon starts VMs: the one of this
// build is made again when it is needed.
func (a *agents) sweep(inUse func(path string) bool) error {
	entries, err := os.ReadDir(a.paths.Agents())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := filepath.Join(a.paths.Agents(), e.Name())
		if !inUse(filepath.Join(dir, agentArchive)) {
			errs = append(errs, os.RemoveAll(dir))
		}
	}
	return errors.Join(errs...)
}

package sshkeys

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// tempPrefix is how the names of half-written files begin.
const tempPrefix = ".tmp-banger-"

// WriteFile writes a file so that whoever reads it, and whoever comes after a crash, finds the old content or the new.
func WriteFile(path string, data []byte, perm os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(data)
	if err = cmp.Or(err, f.Chmod(perm), f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	return os.Rename(f.Name(), path)
}

// LockDir makes a directory, mode 0700 where it is new, and waits until nobody else who asks has it. What somebody who
// had it left half-written when it died is removed.
func LockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(d.Fd()), unix.LOCK_EX); err != unix.EINTR { //nolint:errorlint // the system call's own
			break
		}
	}
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("lock %q: %w", dir, err)
	}
	stale, _ := filepath.Glob(filepath.Join(dir, tempPrefix+"*")) // a pattern in dir's own name finds nothing, which is harmless
	for _, path := range stale {
		_ = os.Remove(path)
	}
	return func() { _ = d.Close() }, nil // which gives the lock back
}

package hostfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// Write makes a file of content, or puts it in place of the one that is there: whole or not at all, also where the host
// crashes. What is left of an attempt that was killed is named .tmp-* beside it.
func Write(path string, content []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return fmt.Errorf("write %q: %w", path, err)
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %q: %w", path, err)
	}
	return SyncDir(filepath.Dir(path))
}

package content

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// ReadRecord reads a record: JSON whose "version" must be the given one.
func ReadRecord[R any](path string, version int) (R, error) {
	var r, none R
	data, err := os.ReadFile(path)
	if err != nil {
		return none, err
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return none, fmt.Errorf("read %q: %w", path, err)
	}
	var is struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &is); err != nil {
		return none, fmt.Errorf("read %q: %w", path, err)
	}
	if is.Version != version {
		return none, fmt.Errorf("read %q: version %d, not %d: another version of banger wrote it", path, is.Version, version)
	}
	return r, nil
}

// Absent tells whether err, which came of reading a record in dir, is because there is no dir; one without a record is damaged.
func Absent(dir string, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) {
		return false
	}
	_, err = os.Stat(dir)
	return errors.Is(err, fs.ErrNotExist)
}

// WriteRecord writes r, which has a "version", so that after a crash path is the old record or the new one.
func WriteRecord(path string, r any) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	tmp := path + ".new"
	err = WriteSynced(tmp, append(data, '\n'))
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return hostfile.SyncDir(filepath.Dir(path))
}

// WriteSynced writes a file, mode 0644 where it is new, whose content is on the disk when it returns; its name need not be: hostfile.SyncDir.
func WriteSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

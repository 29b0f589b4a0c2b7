package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// The files of an image's directory.
const (
	fileRootfs = "rootfs.ext4"
	fileJSON   = "image.json"
)

const recordVersion = 1

// record is image.json.
type record struct {
	Version int       `json:"version"`
	Image   api.Image `json:"image"`
	// RootfsSize is in bytes, RootfsModTime in nanoseconds since 1970: they tell cheaply that the file was not touched.
	RootfsSize    int64 `json:"rootfs_size"`
	RootfsModTime int64 `json:"rootfs_mod_time_ns"`
}

func readRecord(dir string) (record, error) {
	path := filepath.Join(dir, fileJSON)
	data, err := os.ReadFile(path)
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, fmt.Errorf("read %q: %w", path, err)
	}
	if r.Version != recordVersion {
		return record{}, fmt.Errorf("read %q: version %d, not %d: another version of banger wrote it", path, r.Version, recordVersion)
	}
	return r, nil
}

// write writes image.json, so that after a crash it is the old or the new one.
func (r record) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, fileJSON+".new")
	if err := writeSynced(tmp, append(data, '\n')); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, filepath.Join(dir, fileJSON)); err != nil {
		return err
	}
	return syncDir(dir)
}

func writeSynced(path string, data []byte) error {
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

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// hashFile returns the SHA-256 of a file and what it was like when it was read.
func hashFile(ctx context.Context, path string, rep progress.Reporter) (string, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", nil, err
	}
	h := sha256.New()
	in := progress.Reader(&ctxReader{ctx, f}, rep, info.Size())
	if _, err := io.CopyBuffer(h, in, make([]byte, 1<<20)); err != nil {
		return "", nil, fmt.Errorf("read %q: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), info, nil
}

// ctxReader fails once its context has ended.
type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *ctxReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

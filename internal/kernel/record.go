package kernel

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
)

// The files of a kernel's directory.
const (
	fileVmlinux = "vmlinux"
	fileBoot    = "boot.cpio"
	fileModules = "modules.ext4"
	fileJSON    = "kernel.json"
)

// contentFiles returns the files a digest covers, sorted.
func contentFiles() []string { return []string{fileBoot, fileModules, fileVmlinux} }

const recordVersion = 1

// record is kernel.json.
type record struct {
	Version int          `json:"version"`
	Kernel  api.Kernel   `json:"kernel"`
	Files   []fileRecord `json:"files"`
}

// fileRecord is what is known of a file. Size and time tell cheaply that it was not touched.
type fileRecord struct {
	Name    string `json:"name"`
	SHA256  string `json:"sha256"`
	Size    int64  `json:"size"`
	ModTime int64  `json:"mod_time_ns"` // nanoseconds since 1970
}

func readRecord(dir string) (record, error) {
	data, err := os.ReadFile(filepath.Join(dir, fileJSON))
	if err != nil {
		return record{}, err
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, fmt.Errorf("read %q: %w", filepath.Join(dir, fileJSON), err)
	}
	if r.Version != recordVersion {
		return record{}, fmt.Errorf("read %q: version %d, not %d: another version of banger wrote it",
			filepath.Join(dir, fileJSON), r.Version, recordVersion)
	}
	return r, nil
}

// write writes kernel.json, so that after a crash it is the old or the new one.
func (r record) write(dir string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, fileJSON+".new")
	if err := writeSynced(tmp, append(data, '\n')); err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, fileJSON))
}

// digest returns the kernel's digest, "sha256:HEX".
func (r record) digest() string {
	h := sha256.New()
	for _, f := range r.Files {
		fmt.Fprintf(h, "%s %s\n", f.Name, f.SHA256)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// hashFiles returns the records of the content files in dir, as they are.
func hashFiles(ctx context.Context, dir string) ([]fileRecord, error) {
	var out []fileRecord
	for _, name := range contentFiles() {
		f, err := hashFile(ctx, dir, name)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func hashFile(ctx context.Context, dir, name string) (fileRecord, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return fileRecord{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fileRecord{}, err
	}
	h := sha256.New()
	if _, err := io.Copy(h, &ctxReader{ctx, f}); err != nil {
		return fileRecord{}, fmt.Errorf("read %q: %w", f.Name(), err)
	}
	return fileRecord{Name: name, SHA256: hex.EncodeToString(h.Sum(nil)), Size: info.Size(),
		ModTime: info.ModTime().UnixNano()}, nil
}

// ctxReader ends reading when its context ends.
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

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return cmp.Or(err, f.Sync(), f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return cmp.Or(d.Sync(), d.Close())
}

package kernel

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// The files of a kernel's directory.
const (
	fileVmlinux = "vmlinux"
	fileBoot    = "boot.cpio"
	fileModules = "modules.ext4"
	fileJSON    = "kernel.json"
)

// fileBuiltin lists what a kernel has built in that could be a module, in lib/modules/RELEASE.
const fileBuiltin = "modules.builtin"

// contentFiles returns the files a digest covers, sorted.
func contentFiles() []string { return []string{fileBoot, fileModules, fileVmlinux} }

const recordVersion = 1

// record is kernel.json.
type record struct {
	Version int            `json:"version"`
	Kernel  api.Kernel     `json:"kernel"`
	Files   []content.File `json:"files"`
}

func readRecord(dir string) (record, error) {
	return content.ReadRecord[record](filepath.Join(dir, fileJSON), recordVersion)
}

func (r record) write(dir string) error {
	return content.WriteRecord(filepath.Join(dir, fileJSON), r)
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
func hashFiles(ctx context.Context, dir string) ([]content.File, error) {
	var out []content.File
	for _, name := range contentFiles() {
		f, err := content.Hash(ctx, dir, name, progress.Discard)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

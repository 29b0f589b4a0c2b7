package template

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// Make makes the file system that p describes with the host's mke2fs, in a
// sparse file in dir that it removes again.
func (p Params) Make(ctx context.Context, run hostexec.Runner, dir string) (Template, error) {
	f, err := os.Create(filepath.Join(dir, p.File+".img"))
	if err != nil {
		return Template{}, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Truncate(p.Size); err != nil {
		return Template{}, err
	}
	if err := run.Run(ctx, hostexec.Cmd{Argv: p.Mke2fs(f.Name()), Env: Mke2fsEnv()}); err != nil {
		return Template{}, fmt.Errorf("make %s: %w", p.File, err)
	}
	return Read(f, p.Size)
}

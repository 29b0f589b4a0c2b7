// Command gen writes the templates of data drives into the current directory;
// "go generate ./internal/disk" runs it. It needs mke2fs 1.46 or newer.
package main

import (
	"context"
	"fmt"
	"os"

	"git.thaloco.com/thaloco/banger/internal/disk/template"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

func main() {
	if err := run(context.Background()); err != nil {
		fmt.Fprintln(os.Stderr, "gen:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	for _, p := range template.All {
		t, err := p.Make(ctx, hostexec.Runner{}, os.TempDir())
		if err != nil {
			return err
		}
		b, err := t.Encode()
		if err != nil {
			return err
		}
		if err := os.WriteFile(p.File, b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

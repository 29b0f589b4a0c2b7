package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
)

// lookAgain is how often a log that is followed is looked at.
const lookAgain = 200 * time.Millisecond

type daemonLogsOptions struct {
	follow bool
	lines  int
}

func newDaemonLogs(a *App) *cobra.Command {
	o := &daemonLogsOptions{}
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Print the daemon's log",
		Long:  "Print the end of the daemon's log. The daemon need not run.",
		Example: `  banger daemon logs
  banger daemon logs -f -n 20`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runDaemonLogs(cmd.Context(), a, o) },
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on until interrupted")
	cmd.Flags().IntVarP(&o.lines, "lines", "n", 200, "`number` of lines from the end; 0 for all")
	return cmd
}

func runDaemonLogs(ctx context.Context, a *App, o *daemonLogsOptions) error {
	if o.lines < 0 {
		return usagef("banger daemon logs -n 20", "--lines is %d, not 0 or more", o.lines)
	}
	p, err := a.paths()
	if err != nil {
		return err
	}
	w := io.Writer(a.Out)
	if a.Terminal.Out {
		safe := newSafeWriter(w)
		defer safe.flush()
		w = safe
	}
	f, err := os.Open(p.DaemonLog())
	if errors.Is(err, fs.ErrNotExist) && !o.follow {
		return api.Errorf(api.KindNotFound, "read the daemon's log: there is none yet at %s", p.DaemonLog()).
			WithHint("banger daemon start")
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read the daemon's log: %w", err)
	}
	t := tail{path: p.DaemonLog(), f: f, w: w}
	defer t.close()
	if f != nil {
		if err := seekLines(f, o.lines); err != nil {
			return fmt.Errorf("read the daemon's log: %w", err)
		}
	}
	if err := t.copy(); err != nil || !o.follow {
		return err
	}
	return t.follow(ctx)
}

// tail follows a file by name: what is appended, and what takes its place when it is rotated.
type tail struct {
	path string
	f    *os.File // nil until the file is there
	w    io.Writer
}

func (t *tail) close() {
	if t.f != nil {
		t.f.Close()
	}
}

// copy copies what there is.
func (t *tail) copy() error {
	if t.f == nil {
		return nil
	}
	_, err := io.Copy(t.w, t.f)
	return err
}

// follow copies what comes until ctx ends.
func (t *tail) follow(ctx context.Context) error {
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
		if err := t.copy(); err != nil {
			return err
		}
		now, err := os.Open(t.path)
		if err != nil {
			continue // between two steps of a rotation
		}
		if t.f != nil && sameFile(t.f, now) {
			now.Close()
			continue
		}
		err = t.copy() // what came between the last copy and the rotation
		t.close()
		t.f = now
		if err != nil {
			return err
		}
		if err := t.copy(); err != nil {
			return err
		}
	}
}

func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// seekLines leaves f n lines before its end; 0 is its start.
func seekLines(f *os.File, n int) error {
	if n == 0 {
		return nil
	}
	pos, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	buf := make([]byte, 32<<10)
	for last := true; pos > 0; last = false {
		chunk := buf[:min(int64(len(buf)), pos)]
		pos -= int64(len(chunk))
		if _, err := f.ReadAt(chunk, pos); err != nil {
			return err
		}
		end := len(chunk)
		if last && chunk[end-1] == '\n' {
			end-- // the final line end starts no line
		}
		for {
			i := bytes.LastIndexByte(chunk[:end], '\n')
			if i < 0 {
				break
			}
			if n--; n == 0 {
				_, err := f.Seek(pos+int64(i)+1, io.SeekStart)
				return err
			}
			end = i
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

//go:build e2e

package e2e

import (
	"context"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// dialog is a command that runs while the test talks to it.
type dialog struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out lockedBuffer
}

// begin starts a banger command line whose stdout and stderr are one.
func (h *host) begin(args ...string) *dialog {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	h.t.Cleanup(cancel)
	return talk(h.t, h.cmd(ctx, args...))
}

// talk starts a command that is ended with the test.
func talk(t testing.TB, cmd *exec.Cmd) *dialog {
	t.Helper()
	d := &dialog{t: t, cmd: cmd}
	var err error
	if d.in, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = &d.out, &d.out
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return d
}

// await waits until the output contains a text.
func (d *dialog) await(text string) {
	d.t.Helper()
	if err := waitFor(time.Minute, func() bool { return strings.Contains(d.out.String(), text) }); err != nil {
		d.t.Fatalf("%s: no %q in its output:\n%s", d.cmd, text, d.out.String())
	}
}

// say writes to its stdin.
func (d *dialog) say(text string) {
	d.t.Helper()
	if _, err := io.WriteString(d.in, text); err != nil {
		d.t.Fatalf("%s: %v", d.cmd, err)
	}
}

// wait closes its stdin and returns its exit status.
func (d *dialog) wait() int {
	d.t.Helper()
	_ = d.in.Close()
	_ = d.cmd.Wait()
	return d.cmd.ProcessState.ExitCode()
}

// interrupt is Ctrl-C.
func (d *dialog) interrupt() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		d.t.Fatal(err)
	}
}

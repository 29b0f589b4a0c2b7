//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestExitStatuses(t *testing.T) {
	h := box(t)
	for _, tc := range []struct {
		name string
		argv []string
		want int
		text string
	}{
		{"zero", []string{"true"}, 0, ""},
		{"seven", []string{"sh", "-c", "exit 7"}, 7, ""},
		{"255", []string{"sh", "-c", "exit 255"}, 255, ""},
		{"signal", []string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{"killed", []string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{"not there", []string{"no-such-command"}, 127, "no-such-command"},
		{"not there by path", []string{"/no/such/command"}, 127, "/no/such/command"},
		{"not executable", []string{"/etc/passwd"}, 126, "/etc/passwd"},
		{"a directory", []string{"/etc"}, 126, "/etc"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := h.run(append([]string{"vm", "exec", "box", "--"}, tc.argv...)...)
			if r.code != tc.want || !strings.Contains(r.stderr, tc.text) {
				t.Errorf("exit status %d, want %d; stderr %q, want %q in it", r.code, tc.want, r.stderr, tc.text)
			}
		})
	}
}

func TestCommandOnTheHostOnlyGetsAHint(t *testing.T) {
	h := box(t)
	only := filepath.Join(h.dir, "only-here")
	if err := os.WriteFile(only, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := h.run("vm", "exec", "box", "--", only)
	if r.code != 127 || !strings.Contains(r.stderr, "host") {
		t.Errorf("exit status %d, stderr %q: want 127 and a hint that the host has that file", r.code, r.stderr)
	}
}

func TestStreamsApart(t *testing.T) {
	h := box(t)
	r := h.run("vm", "exec", "box", "--", "sh", "-c", "echo out; echo err >&2; echo out2")
	if r.stdout != "out\nout2\n" || r.stderr != "err\n" || r.code != 0 {
		t.Errorf("stdout %q, stderr %q, status %d", r.stdout, r.stderr, r.code)
	}
}

func TestOutputIsStreamed(t *testing.T) {
	h := box(t)
	c := h.cmd(t.Context(), "vm", "exec", "box", "--", "sh", "-c", "echo first; read line; echo got $line")
	stdin, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 6)
	if _, err := io.ReadFull(stdout, buf); err != nil || string(buf) != "first\n" {
		t.Fatalf("read %q, %v", buf, err) // it waits for stdin now: this came before the end
	}
	if _, err := io.WriteString(stdin, "this\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(stdout)
	if err != nil || string(rest) != "got this\n" {
		t.Errorf("read %q, %v", rest, err)
	}
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

func TestStdin(t *testing.T) {
	h := box(t)
	if r := h.feed(strings.NewReader("data\n"), "vm", "exec", "box", "--", "wc", "-c"); strings.TrimSpace(r.stdout) != "5" {
		t.Errorf("wc -c of 5 bytes: %q, %q", r.stdout, r.stderr)
	}
	if r := h.feed(strings.NewReader(""), "vm", "exec", "box", "--", "cat"); r.stdout != "" || r.code != 0 {
		t.Errorf("cat of nothing: %q, status %d", r.stdout, r.code)
	}
}

// TestHundredMegabytes sends 100 MB in and gets them back, each byte of them.
func TestHundredMegabytes(t *testing.T) {
	h := box(t)
	const size = 100 << 20
	sum := sha256.New()
	src := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sum)
	r := h.feed(src, "vm", "exec", "box", "--", "cat")
	if r.code != 0 || len(r.stdout) != size {
		t.Fatalf("exit status %d, %d bytes of %d came back; %s", r.code, len(r.stdout), size, r.stderr)
	}
	back := sha256.Sum256([]byte(r.stdout))
	if !slices.Equal(back[:], sum.Sum(nil)) {
		t.Errorf("sha256 %s, want %s", hex.EncodeToString(back[:]), hex.EncodeToString(sum.Sum(nil)))
	}
	t.Logf("100 MB there and back: %s", r.took)
}

func TestEnvironmentAndDirectory(t *testing.T) {
	h := box(t)
	r := h.run("vm", "exec", "box", "-w", "/etc", "-e", "A=one two", "-e", "B=", "--", "sh", "-c", `echo "$A|$B|$PWD|$HOME|$USER"`)
	if want := "one two||/etc|/root|root\n"; r.stdout != want {
		t.Errorf("%q, want %q; %s", r.stdout, want, r.stderr)
	}
	r = h.run("vm", "exec", "box", "-w", "/no/such/dir", "--", "true")
	if r.code == 0 || !strings.Contains(r.stderr, "/no/such/dir") {
		t.Errorf("a directory that is not there: status %d, %q", r.code, r.stderr)
	}
}

func TestRunRemovesTheVM(t *testing.T) {
	h := newHost(t)
	r := h.run("vm", "run", "--rm", "--name", "gone", "-e", "KEY=VALUE", "--", "sh", "-c", "echo $KEY; exit 7")
	if r.code != 7 || r.stdout != "VALUE\n" {
		t.Errorf("exit status %d, stdout %q, stderr %q; want 7 and VALUE", r.code, r.stdout, r.stderr)
	}
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("left: %+v", vms)
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir, "state/banger/vms/*")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	r = h.feed(strings.NewReader("data\n"), "vm", "run", "--rm", "--", "wc", "-c")
	if r.code != 0 || strings.TrimSpace(r.stdout) != "5" {
		t.Errorf("stdin through run: status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
}

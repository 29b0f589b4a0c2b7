//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/creack/pty"
)

// TestCp copies a tree into a guest and out again.
func TestCp(t *testing.T) {
	h := *box(t)
	h.t = t
	dir, want := h.makeTree("cptree", 30<<20)
	h.ok("vm", "cp", dir, "box:/root/cptree")
	if got := h.ok("vm", "exec", "box", "--", "bash", "-euc", tree, "/root/cptree"); got != want {
		t.Errorf("in the guest:\n%swant\n%s", got, want)
	}
	if got := h.inGuest("box", "find /root/cptree ! -user root -o ! -group root"); got != "" {
		t.Errorf("not root's: %s", got)
	}
	back := filepath.Join(h.dir, "cpback")
	h.ok("vm", "cp", "box:cptree", back)
	defer os.RemoveAll(back)
	if got := command(t, "bash", "-euc", tree, back); got != want {
		t.Errorf("back on the host:\n%swant\n%s", got, want)
	}
	out := h.feed(nil, "vm", "cp", "box:/root/cptree/sub/.", "-")
	list := exec.Command("tar", "t")
	list.Stdin = strings.NewReader(out.stdout)
	if names, err := list.Output(); err != nil || !strings.Contains(string(names), "private") || strings.Contains(string(names), "large") {
		t.Errorf("as a tar stream: %s, %v", names, err)
	}
	// What a guest calls a link stays one, and nothing is written through one that is on the host.
	h.inGuest("box", "rm -rf /root/cptree; mkdir /root/d; ln -s /etc/shadow /root/d/link; echo mine >/root/d/file; mkfifo /root/d/pipe; chmod u+s /root/d/file")
	target := filepath.Join(h.dir, "cptarget")
	victim := filepath.Join(h.dir, "victim")
	defer os.RemoveAll(target)
	if err := os.Mkdir(target, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"file": victim, "link": victim} {
		if err := os.Symlink(to, filepath.Join(target, name)); err != nil {
			t.Fatal(err)
		}
	}
	r := h.run("vm", "cp", "box:d/.", target)
	if r.code != 0 || !strings.Contains(r.stderr, "not copied: ") || !strings.Contains(r.stderr, "pipe") {
		t.Errorf("status %d, %s", r.code, r.stderr)
	}
	if to, err := os.Readlink(filepath.Join(target, "link")); to != "/etc/shadow" || err != nil {
		t.Errorf("the link leads to %q, %v", to, err)
	}
	if st, err := os.Lstat(filepath.Join(target, "file")); err != nil || !st.Mode().IsRegular() || st.Mode()&os.ModeSetuid != 0 {
		t.Errorf("the file: %v, %v", st, err)
	}
	if _, err := os.Lstat(victim); err == nil {
		t.Error("it was written through a link of the host")
	}
	h.inGuest("box", "rm -rf /root/d")
}

// TestCpFullGuest: a disk of the guest that is full is said in words, and a file is whole or not there.
func TestCpFullGuest(t *testing.T) {
	h := *box(t)
	h.t = t
	big := h.randomFile("big", 20<<20)
	h.inGuest("box", "mkdir -p /root/small; mount -t tmpfs -o size=8m none /root/small; echo old >/root/small/big")
	defer h.run("vm", "exec", "box", "--", "sh", "-c", "umount /root/small; rmdir /root/small")
	h.fails(1, []string{`copy to "/root/small/big": the guest's disk is full`}, "vm", "cp", big, "box:/root/small/")
	if got := h.inGuest("box", "ls -A /root/small; cat /root/small/big"); got != "big\nold\n" {
		t.Errorf("in the guest: %q", got)
	}
	small := h.randomFile("little", 1<<20)
	h.ok("vm", "cp", small, "box:/root/small/") // there is room again
}

// TestCpProgress: a copy that takes a while says how far it is, on a terminal.
func TestCpProgress(t *testing.T) {
	h := *box(t)
	h.t = t
	h.inGuest("box", "mkdir /root/slow")
	ctx, cancel := context.WithTimeout(t.Context(), commandTimeout)
	defer cancel()
	c := h.cmd(ctx, "vm", "cp", "-", "box:/root/slow")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	screen, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	var shown, out lockedBuffer
	c.Stdout, c.Stderr = &out, tty
	c.Env = append(slices.Clip(c.Env), "TERM=xterm")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	_ = tty.Close()
	read := make(chan struct{})
	go func() { defer close(read); _, _ = io.Copy(&shown, screen); _ = screen.Close() }()
	w := tar.NewWriter(in)
	const size = 6 << 20
	if err := w.WriteHeader(&tar.Header{Name: "slow", Mode: 0o644, Size: size}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(waitShort, func() bool {
		return strings.Contains(shown.String(), "copy to box") && strings.Contains(shown.String(), "3MiB")
	}); err != nil {
		t.Errorf("shown: %q", shown.String())
	}
	if _, err := w.Write(make([]byte, size/2)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_ = in.Close()
	if err := c.Wait(); err != nil {
		t.Errorf("%v: %q", err, shown.String())
	}
	<-read
	if got := h.inGuest("box", "stat -c %s /root/slow/slow; rm -rf /root/slow"); got != fmt.Sprintln(size) {
		t.Errorf("in the guest: %q", got)
	}
}

// TestEscapes: what a guest puts into names and logs to fool a terminal is shown, not obeyed.
func TestEscapes(t *testing.T) {
	h := *box(t)
	h.t = t
	const evil, shown = "\x1b]0;owned\x07\x1b[2J\x1b[1;1H\u202e", "owned"
	h.inGuest("box", `mkdir -p /root/evil; cd /root/evil; mkfifo $'pipe\e]0;owned\a\e[2J\e[1;1H'; echo x >$'name\e]0;owned\a'
		printf 'console \e]0;owned\a\e[2J\e[1;1H\u202e \e[31mred\e[0m end\n' >/dev/console`)
	back := filepath.Join(h.dir, "evilback")
	defer os.RemoveAll(back)
	defer h.inGuest("box", "rm -rf /root/evil")
	look := func(want string, args ...string) {
		t.Helper()
		s := h.terminal(t, args...)
		code := s.wait()
		text := s.settled()
		if code != 0 || !strings.Contains(text, want) || !strings.Contains(text, shown) {
			t.Errorf("%v: status %d, %q", args, code, text)
		}
		for _, bad := range []string{"\x1b]", "\x1b[2J", "\x1b[1;1H", "\a", "\u202e"} {
			if strings.Contains(text, bad) {
				t.Errorf("%v: %q in %q", args, bad, text)
			}
		}
	}
	look("not copied: ", "vm", "cp", "box:evil", back)
	if _, err := os.Stat(filepath.Join(back, "name\x1b]0;owned\a")); err != nil {
		t.Error(err) // a name is a name
	}
	if err := waitFor(waitShort, func() bool { return bytes.Contains([]byte(h.ok("vm", "logs", "box")), []byte(evil)) }); err != nil {
		t.Error("the log in a pipe is not what the guest wrote")
	}
	look("red", "vm", "logs", "box")
	h.run("vm", "exec", "box", "--", "rm", "-rf", "/root/evil")
	s := h.terminal(t, "vm", "exec", "box", "--", "/root/evil/\x1b]0;owned\a")
	if code := s.wait(); code != 127 || strings.Contains(s.settled(), "\x1b]") {
		t.Errorf("a command of that name: status %d, %q", code, s.settled())
	}
}

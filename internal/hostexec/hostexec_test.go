package hostexec

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out, errOut bytes.Buffer
	err := Runner{}.Run(t.Context(), Cmd{Argv: []string{"sh", "-c", "cat; echo oops >&2; exit 3"}, Stdin: strings.NewReader("in"), Stdout: &out, Stderr: &errOut})
	var ee *ExitError
	if !errors.As(err, &ee) || ee.Status != 3 || ee.Stderr != "oops" {
		t.Errorf("err = %v", err)
	}
	if out.String() != "in" || errOut.String() != "oops\n" {
		t.Errorf("stdout %q, stderr %q", out.String(), errOut.String())
	}
	if got, err := (Runner{}).Output(t.Context(), Cmd{Argv: []string{"echo", "a b"}}); err != nil || string(got) != "a b\n" {
		t.Errorf("Output = %q, %v", got, err)
	}
}

func TestRunSaysWhichSignal(t *testing.T) {
	err := Runner{}.Run(t.Context(), Cmd{Argv: []string{"sh", "-c", "kill -SEGV $$"}})
	var ee *ExitError
	if !errors.As(err, &ee) || ee.Status != -1 || ee.Signal != syscall.SIGSEGV {
		t.Errorf("err = %v", err)
	}
}

func TestUmask(t *testing.T) {
	got, err := Runner{}.Output(t.Context(), Cmd{Argv: []string{"sh", "-c", "umask; echo \"$@\"", "sh", "a b"}, Umask: "027"})
	if err != nil || string(got) != "0027\na b\n" {
		t.Errorf("Output = %q, %v", got, err)
	}
}

// TestUserNS: the program is root inside and one of nobody's users outside.
func TestUserNS(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives others a user namespace")
	}
	ns := &UserNS{FirstUID: 0x70000000, FirstGID: 0x70010000, Count: 10}
	dir := t.TempDir()
	for d := dir; d != "/"; d = filepath.Dir(d) {
		if st, err := os.Stat(d); err != nil || st.Mode()&0o005 != 0o005 {
			if err := os.Chmod(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if d == os.TempDir() {
			break
		}
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	got, err := Runner{}.Output(t.Context(), Cmd{Dir: dir, UserNS: ns, Umask: "022", Argv: []string{"sh", "-c",
		"id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; : >mine; chown 9:9 mine && ! chown 10:10 mine 2>/dev/null"}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Fields(string(got)), []string{"0", "0", "0", "1879048192", "10", "0", "1879113728", "10"}; !slices.Equal(got, want) {
		t.Errorf("it says %q, want %q", got, want)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(filepath.Join(dir, "mine"), &st); err != nil || st.Uid != 0x70000009 || st.Gid != 0x70010009 {
		t.Errorf("its file belongs to %d:%d, %v", st.Uid, st.Gid, err)
	}
}

func TestNotInstalled(t *testing.T) {
	err := Runner{}.Run(t.Context(), Cmd{Argv: []string{"no-such-program"}})
	if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("err = %v", err)
	}
}

// TestCancelEndsTheGroup: what the program started ends with it.
func TestCancelEndsTheGroup(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		done <- Runner{}.Run(ctx, Cmd{Argv: []string{"sh", "-c", "sleep 1000 >" + fifo + " & wait"}})
	}()
	f, err := os.Open(fifo) // opens once the grandchild has
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v", err)
	}
	if err := f.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the grandchild lives on: %d, %v", n, err) // end of file says that no writer is left
	}
}

// TestDaemonInheritsNothing: a descriptor without close-on-exec, as a script leaves them, does not reach a daemon.
func TestDaemonInheritsNothing(t *testing.T) {
	dir := t.TempDir()
	fd, err := syscall.Open(filepath.Join(dir, "lock"), syscall.O_CREAT|syscall.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Close(fd) }()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	p, err := Runner{}.StartDaemon(Daemon{Argv: []string{"ls", "-l", "/proc/self/fd/"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(got), dir+"/lock") || !strings.Contains(string(got), dir+"/log") {
		t.Errorf("the daemon's descriptors:\n%s", got)
	}
}

func TestChildIsKilled(t *testing.T) {
	c, err := Runner{}.StartChild([]string{"sleep", "1000"}, "", nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	c.Kill()
	if status, sig, err := c.Wait(); status != -1 || sig != syscall.SIGKILL || err != nil {
		t.Errorf("Wait = %d, %v, %v", status, sig, err)
	}
}

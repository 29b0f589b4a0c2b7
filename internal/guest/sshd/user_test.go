package sshd

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/process"
)

// TestOtherUser logs in as somebody other than the agent: what is done for him is done with his rights.
func TestOtherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	const uid, gid, extra = 54321, 54322, 54323
	base := shortDir(t)
	etc, home := filepath.Join(base, "etc"), filepath.Join(base, "home")
	for dir, mode := range map[string]os.FileMode{base: 0o755, etc: 0o755, home: 0o700} {
		if err := os.MkdirAll(dir, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, uid, gid); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"passwd": "dev:x:54321:54322::" + home + ":/bin/bash\nlost:x:54321:54322::/no/such/home:/no/such/shell\n",
		"group":  "dev:x:54322:\nextra:x:54323:dev\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The agent's program is where only root gets to it, and the agent is closed to others.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) })
	g := newGuest(t, func(c *Config) {
		c.Processes = process.NewManager(process.Config{EtcDir: etc})
		t.Cleanup(func() { _ = c.Processes.Close() })
	})
	g.user = "dev"
	c := g.dial()

	out, err := newSession(t, c).Output("id -u; id -g; id -G; pwd; echo $HOME $USER $SHELL; echo $0")
	if want := "54321\n54322\n54322 54323\n" + home + "\n" + home + " dev /bin/bash\n/bin/bash\n"; string(out) != want || err != nil {
		t.Errorf("%q %v, want %q", out, err, want)
	}
	files, err := sftp.NewClient(c)
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	f, err := files.Create("made by sftp")
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	wantOwner(t, filepath.Join(home, "made by sftp"), uid)
	if _, err := files.Create("/etc/made-by-sftp"); !os.IsPermission(err) {
		t.Errorf("a file in /etc: %v", err)
	}

	// Sockets: made by the user, not where he may not, and reached only where he may.
	sock := filepath.Join(home, "sock")
	if ok, _, err := c.SendRequest("streamlocal-forward@openssh.com", true, ssh.Marshal(struct{ P string }{sock})); !ok || err != nil {
		t.Fatal(ok, err)
	}
	wantOwner(t, sock, uid)
	if ok, _, _ := c.SendRequest("streamlocal-forward@openssh.com", true, ssh.Marshal(struct{ P string }{base + "/sock"})); ok {
		t.Error("a socket where the user may not write")
	}
	for _, tc := range []struct {
		name string
		gid  int
		mode os.FileMode
		ok   bool
	}{{"closed", 0, 0o600, false}, {"of-a-group", extra, 0o660, true}} {
		l := listen(t, "unix", filepath.Join(base, tc.name))
		go echoUpper(l)
		if err := os.Chown(l.Addr().String(), 0, tc.gid); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(l.Addr().String(), tc.mode); err != nil {
			t.Fatal(err)
		}
		conn, err := c.Dial("unix", l.Addr().String())
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.name, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	s := newSession(t, c)
	if ok, err := s.SendRequest("auth-agent-req@openssh.com", true, nil); !ok || err != nil {
		t.Fatal(ok, err)
	}
	out, err = s.Output("stat -c %u:%a ${SSH_AUTH_SOCK%/*} && stat -c %u $SSH_AUTH_SOCK")
	if string(out) != "54321:700\n54321\n" || err != nil {
		t.Errorf("%q %v", out, err)
	}
	if l, err := net.Listen("unix", filepath.Join(base, "as root")); err != nil {
		t.Errorf("the agent is no longer root: %v", err)
	} else {
		_ = l.Close()
	}

	g.user = "lost" // has no home and no shell
	out, err = newSession(t, g.dial()).Output("pwd; echo $0")
	if string(out) != "/\n/bin/sh\n" || err != nil {
		t.Errorf("%q %v", out, err)
	}
}

func wantOwner(t *testing.T, path string, uid uint32) {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Sys().(*syscall.Stat_t).Uid; got != uid {
		t.Errorf("%s belongs to %d", strings.TrimPrefix(path, os.TempDir()), got)
	}
}

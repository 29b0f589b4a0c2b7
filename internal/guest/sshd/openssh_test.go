package sshd

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/agent"

	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
)

// openSSH is the host's OpenSSH client, connected to a guest through a ProxyCommand.
type openSSH struct {
	t    *testing.T
	g    *guest
	dir  string
	conf string
}

func newOpenSSH(t *testing.T) *openSSH {
	t.Helper()
	for _, prog := range []string{"ssh", "scp", "sftp"} {
		if _, err := exec.LookPath(prog); err != nil {
			t.Skipf("OpenSSH's client is not installed: %v", err)
		}
	}
	g := newGuest(t, nil)
	o := &openSSH{t: t, g: g, dir: shortDir(t)}
	o.conf = filepath.Join(o.dir, "config")
	o.write("key", g.key.private)
	o.write("other", newKey(t).private)
	o.write("known", "guest "+g.host.line)
	o.write("config", fmt.Sprintf(`Host *
	User %s
	HostKeyAlias guest
	IdentityFile %[2]s/key
	IdentitiesOnly yes
	IdentityAgent none
	UserKnownHostsFile %[2]s/known
	GlobalKnownHostsFile /dev/null
	StrictHostKeyChecking yes
	BatchMode yes
	LogLevel ERROR
	ControlPath %[2]s/mux
Host guest
	ProxyCommand %[3]s proxy %[4]s
`, g.user, o.dir, os.Args[0], g.listen()))
	return o
}

func (o *openSSH) write(name, content string) string {
	o.t.Helper()
	path := filepath.Join(o.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		o.t.Fatal(err)
	}
	return path
}

// command is a program of OpenSSH with the test's configuration.
func (o *openSSH) command(prog string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	o.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, prog, append([]string{"-F", o.conf}, args...)...)
	cmd.Env = append(os.Environ(), "LC_BANGER=from the host", "SSH_AUTH_SOCK="+filepath.Join(o.dir, "agent"))
	return cmd
}

// run runs it to its end and returns what it wrote.
func (o *openSSH) run(prog string, args ...string) (stdout, stderr string, status int) {
	o.t.Helper()
	cmd := o.command(prog, args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		o.t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// start runs it until the end of the test.
func (o *openSSH) start(prog string, args ...string) {
	o.t.Helper()
	cmd := o.command(prog, args...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		o.t.Fatal(err)
	}
	o.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func TestOpenSSHExec(t *testing.T) {
	o := newOpenSSH(t)
	for _, tc := range []struct {
		args   []string
		out    string
		err    string
		status int
	}{
		{[]string{"guest", "echo out; echo err >&2; exit 42"}, "out\n", "err\n", 42},
		{[]string{"guest", "kill -KILL $$"}, "", "", 255},
		{[]string{"-tt", "guest", "tty >/dev/null && echo a terminal; exit 3"}, "a terminal\r\n", "", 3},
		{[]string{"-o", "SendEnv=LC_BANGER", "-o", "SetEnv=MINE=yes", "guest", "echo $LC_BANGER $MINE"}, "from the host yes\n", "", 0},
		{[]string{"-i", o.dir + "/other", "-o", "IdentityFile=" + o.dir + "/other", "-l", "no-such-user", "guest", "true"}, "", "Permission denied (publickey)", 255},
		{[]string{"-o", "PubkeyAuthentication=no", "guest", "true"}, "", "Permission denied (publickey)", 255},
		{[]string{"-s", "guest", "no-such-subsystem"}, "", "subsystem request failed", 255},
		{[]string{"-c", "chacha20-poly1305@openssh.com", "guest", "echo ok"}, "ok\n", "", 0},
		{[]string{"-c", "aes256-gcm@openssh.com", "guest", "echo ok"}, "ok\n", "", 0},
		{[]string{"-c", "aes128-ctr", "-C", "guest", "echo ok"}, "ok\n", "", 0},
	} {
		out, errOut, status := o.run("ssh", tc.args...)
		if out != tc.out || !strings.Contains(errOut, tc.err) || (tc.err == "" && errOut != "") || status != tc.status {
			t.Errorf("%q: out %q err %q status %d", tc.args, out, errOut, status)
		}
	}
}

// TestOpenSSHBulk moves 100 MB each way, and rekeys on the way.
func TestOpenSSHBulk(t *testing.T) {
	o := newOpenSSH(t)
	const size = 40 << 20
	data := make([]byte, size)
	_, _ = rand.Read(data)
	want := fmt.Sprintf("%x", sha256.Sum256(data))
	cmd := o.command("ssh", "-o", "RekeyLimit=12M", "guest", "sha256sum")
	cmd.Stdin = bytes.NewReader(data)
	if out, err := cmd.Output(); err != nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("to the guest: %q %v", out, err)
	}
	file := o.write("bulk", string(data))
	cmd = o.command("ssh", "-o", "RekeyLimit=12M", "guest", "cat "+file)
	out, err := cmd.Output()
	if got := fmt.Sprintf("%x", sha256.Sum256(out)); err != nil || got != want {
		t.Errorf("from the guest: %d bytes, %v", len(out), err)
	}
}

// TestOpenSSHBrokenPipe: a reader that has enough ends the command.
func TestOpenSSHBrokenPipe(t *testing.T) {
	o := newOpenSSH(t)
	cmd := o.command("ssh", "guest", "yes")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, 1<<16)); err != nil {
		t.Fatal(err)
	}
	_ = out.Close()
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 255 { // the signal that ended it
		t.Errorf("ssh ended with %v", err)
	}
	eventually(t, "the command ends", func() bool { return len(running(o.g)) == 0 })
}

func running(g *guest) (out []string) {
	for _, p := range g.procs.List() {
		if p.Exit == nil {
			out = append(out, strings.Join(p.Argv, " "))
		}
	}
	return out
}

// tree makes files to copy, and returns a listing that describes them.
func tree(t *testing.T, dir string) {
	t.Helper()
	when := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := os.MkdirAll(filepath.Join(dir, "sub", "deep"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"a": 0o644, "sub/exec": 0o755, "sub/deep/private": 0o600, "sub/read only": 0o444, "empty": 0o640} {
		path := filepath.Join(dir, name)
		data := make([]byte, 300_000*len(name)%900_001)
		if name == "empty" {
			data = nil
		}
		_, _ = rand.Read(data)
		if err := os.WriteFile(path, data, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, when, when); err != nil {
			t.Fatal(err)
		}
	}
}

// describe lists the files under dir: name, mode, time and hash.
func describe(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		fmt.Fprintf(&b, "%s %v %d %x\n", rel, info.Mode(), info.ModTime().Unix(), sha256.Sum256(data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestOpenSSHCopy(t *testing.T) {
	o := newOpenSSH(t)
	from := filepath.Join(o.dir, "from")
	tree(t, from)
	want := describe(t, from)
	there, back := filepath.Join(o.dir, "there"), filepath.Join(o.dir, "back")
	for _, args := range [][]string{{"-pr", from, "guest:" + there}, {"-pr", "guest:" + there, back}} {
		if _, errOut, status := o.run("scp", args...); status != 0 {
			t.Fatalf("scp %q: %s", args, errOut)
		}
	}
	if got := describe(t, back); got != want {
		t.Errorf("came back as\n%s, was\n%s", got, want)
	}
	if _, errOut, status := o.run("scp", "guest:/no/such/file", o.dir); status == 0 || !strings.Contains(errOut, "No such file") {
		t.Errorf("status %d, %q", status, errOut)
	}
	for _, running := range o.g.procs.List() {
		if running.Exit == nil {
			eventually(t, "the sftp server ends", func() bool { return len(o.g.procs.List()) == 0 })
		}
	}
}

func TestOpenSSHSFTP(t *testing.T) {
	o := newOpenSSH(t)
	local := o.write("local", strings.Repeat("some text\n", 100_000))
	self, err := user.Current() // of /etc/passwd, not of the test's own HOME
	if err != nil {
		t.Fatal(err)
	}
	work := filepath.Join(o.dir, "work")
	batch := o.write("batch", fmt.Sprintf(`pwd
mkdir %[1]s
cd %[1]s
put %[2]s file
put -p %[2]s second
rename second moved
ln -s file link
chmod 600 moved
ls -ln
get file %[1]s/got
rm moved
df -h %[1]s
`, work, local))
	out, errOut, status := o.run("sftp", "-b", batch, "guest")
	if status != 0 {
		t.Fatalf("status %d\n%s\n%s", status, out, errOut)
	}
	if !strings.Contains(out, "Remote working directory: "+self.HomeDir) {
		t.Errorf("not at home:\n%s", out)
	}
	if !strings.Contains(out, "-rw-------") {
		t.Errorf("listing:\n%s", out)
	}
	got, err := os.ReadFile(filepath.Join(work, "got"))
	if err != nil || string(got) != strings.Repeat("some text\n", 100_000) {
		t.Errorf("got %d bytes, %v", len(got), err)
	}
	if target, err := os.Readlink(filepath.Join(work, "link")); target != "file" || err != nil {
		t.Errorf("link %q %v", target, err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	return int(port)
}

// reach dials until somebody listens.
func reach(t *testing.T, addr string) net.Conn {
	t.Helper()
	var conn net.Conn
	eventually(t, addr+" listens", func() (ok bool) {
		c, err := net.Dial("tcp", addr)
		conn = c
		return err == nil
	})
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

func TestOpenSSHForwards(t *testing.T) {
	o := newOpenSSH(t)
	target := listen(t, "tcp", "127.0.0.1:0")
	go echoUpper(target)
	local, remote, dynamic := freePort(t), freePort(t), freePort(t)
	o.start("ssh", "-N", "-o", "ExitOnForwardFailure=yes",
		"-L", fmt.Sprintf("%d:%s", local, target.Addr()), "-R", fmt.Sprintf("%d:%s", remote, target.Addr()),
		"-D", fmt.Sprintf("127.0.0.1:%d", dynamic), "-R", o.dir+"/sock:"+target.Addr().String(), "guest")
	for _, port := range []int{local, remote} {
		if got, err := exchange(reach(t, fmt.Sprintf("127.0.0.1:%d", port)), "forwarded"); got != "FORWARDED" || err != nil {
			t.Errorf("%q %v", got, err)
		}
	}
	conn, err := net.Dial("unix", o.dir+"/sock")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := exchange(conn, "socket"); got != "SOCKET" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	// SOCKS5 without a password: CONNECT 127.0.0.1.
	conn = reach(t, fmt.Sprintf("127.0.0.1:%d", dynamic))
	port := target.Addr().(*net.TCPAddr).Port
	if _, err := conn.Write([]byte{5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, byte(port >> 8), byte(port)}); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 12)
	if _, err := io.ReadFull(conn, answer); err != nil || answer[3] != 0 {
		t.Fatalf("SOCKS answer %x %v", answer, err)
	}
	if got, err := exchange(conn, "dynamic"); got != "DYNAMIC" || err != nil {
		t.Errorf("%q %v", got, err)
	}
}

// TestOpenSSHJump goes through the guest to a port of the guest at which the same server answers.
func TestOpenSSHJump(t *testing.T) {
	o := newOpenSSH(t)
	l := listen(t, "tcp", "127.0.0.1:0")
	go func() { _ = o.g.srv.ServeListener(o.g.ctx, l) }()
	out, errOut, status := o.run("ssh", "-J", "guest", "-p", fmt.Sprint(l.Addr().(*net.TCPAddr).Port), "127.0.0.1", "echo $SSH_CONNECTION")
	if f := strings.Fields(out); status != 0 || len(f) != 4 || f[0] != "127.0.0.1" {
		t.Errorf("%q %q %d", out, errOut, status)
	}
}

// TestOpenSSHMaster runs 20 commands at once in one connection.
func TestOpenSSHMaster(t *testing.T) {
	o := newOpenSSH(t)
	o.start("ssh", "-MN", "guest")
	eventually(t, "the master is there", func() bool {
		_, _, status := o.run("ssh", "-O", "check", "guest")
		return status == 0
	})
	type result struct {
		n   int
		out string
	}
	results := make(chan result)
	for i := range 20 {
		cmd := o.command("ssh", "guest", fmt.Sprintf("head -c 1000000 /dev/zero | wc -c; cat; exit %d", i))
		cmd.Stdin = strings.NewReader(fmt.Sprint("stdin ", i))
		go func() {
			out, _ := cmd.Output()
			results <- result{i, fmt.Sprint(string(out), cmd.ProcessState.ExitCode())}
		}()
	}
	for range 20 {
		if r := <-results; r.out != fmt.Sprintf("1000000\nstdin %d%d", r.n, r.n) {
			t.Errorf("%d: %q", r.n, r.out)
		}
	}
}

func TestOpenSSHAgent(t *testing.T) {
	o := newOpenSSH(t)
	if _, err := exec.LookPath("ssh-add"); err != nil {
		t.Skip("ssh-add is not installed")
	}
	ring := agent.NewKeyring()
	if err := ring.Add(agent.AddedKey{PrivateKey: o.g.key.raw, Comment: "the forwarded key"}); err != nil {
		t.Fatal(err)
	}
	l := listen(t, "unix", filepath.Join(o.dir, "agent"))
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(ring, conn) }()
		}
	}()
	for _, tc := range []struct {
		flag, want string
		status     int
	}{{"-A", "the forwarded key", 0}, {"-a", "", 2}} {
		out, errOut, status := o.run("ssh", "-o", "IdentityAgent="+o.dir+"/agent", tc.flag, "guest", "env SSH_AUTH_SOCK=${SSH_AUTH_SOCK-/none} ssh-add -l")
		if !strings.Contains(out, tc.want) || status != tc.status {
			t.Errorf("%s: %q %q %d", tc.flag, out, errOut, status)
		}
	}
}

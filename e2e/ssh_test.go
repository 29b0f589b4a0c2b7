//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
)

// sshUser is a user with the programs of OpenSSH and a home where banger ssh-config was installed.
type sshUser struct {
	*host
	home, passwd string
}

// newSSHUser gives the user of the shared host a home. OpenSSH takes it from /etc/passwd and not from HOME: the user's
// programs run in a mount namespace with a passwd that says so.
func newSSHUser(t *testing.T) *sshUser {
	t.Helper()
	h := *box(t)
	h.t = t
	u := &sshUser{host: &h, home: filepath.Join(h.dir, "home"), passwd: filepath.Join(h.dir, "passwd")}
	line := fmt.Sprintf("root:x:0:0::%s:/bin/sh\n", u.home)
	if err := os.WriteFile(u.passwd, []byte(line), 0o644); err != nil {
		t.Fatal(err)
	}
	h.ok("ssh-config", "--install")
	return u
}

// start prepares a program of the host as this user runs it.
func (u *sshUser) start(ctx context.Context, argv ...string) *exec.Cmd {
	args := []string{"--mount", "--propagation", "private"}
	if os.Getuid() != 0 {
		args = append(args, "--map-root-user")
	}
	args = append(args, "--", "sh", "-c", `mount --bind "$0" /etc/passwd && exec "$@"`, u.passwd)
	c := exec.CommandContext(ctx, "unshare", append(args, argv...)...)
	c.Env, c.Dir = u.env, u.dir
	return c
}

// talk starts a program that goes on beside the test and is ended with it.
func (u *sshUser) talk(argv ...string) *dialog {
	u.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	u.t.Cleanup(cancel)
	return talk(u.t, u.start(ctx, argv...))
}

// does runs a program to its end.
func (u *sshUser) does(stdin io.Reader, argv ...string) result {
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	c := u.start(ctx, argv...)
	var out, errOut bytes.Buffer
	c.Stdin, c.Stdout, c.Stderr = stdin, &out, &errOut
	start := time.Now()
	err := c.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		u.t.Errorf("%v: %v", argv, err)
	}
	return result{out.String(), errOut.String(), c.ProcessState.ExitCode(), time.Since(start)}
}

// gets runs a program that must succeed and returns its stdout.
func (u *sshUser) gets(argv ...string) string {
	u.t.Helper()
	r := u.does(nil, argv...)
	if r.code != 0 {
		u.t.Fatalf("%v: exit status %d\nstdout: %s\nstderr: %s", argv, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// randomFile makes a file in the host's directory and returns its path.
func (h *host) randomFile(name string, size int64) string {
	h.t.Helper()
	path := filepath.Join(h.dir, name)
	f, err := os.Create(path)
	if err != nil {
		h.t.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.Reader, size); err != nil {
		h.t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { _ = os.Remove(path) })
	return path
}

// sum is the SHA-256 of a file as sha256sum prints it.
func sum(t testing.TB, path string) string {
	t.Helper()
	hash, _, _ := strings.Cut(command(t, "sha256sum", path), " ")
	return hash
}

// freePort is a TCP port of the host that nobody listens on.
func freePort(t testing.TB) string {
	t.Helper()
	port, err := hostportstest.Free()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(int(port))
}

// await waits until the output matches, and returns what the group in the pattern matched.
func (u *sshUser) await(d *dialog, pattern string) string {
	u.t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	if err := waitFor(time.Minute, func() bool { found = re.FindStringSubmatch(d.out.String()); return found != nil }); err != nil {
		u.t.Fatalf("%s: nothing matches %q in its output:\n%s", d.cmd, pattern, d.out.String())
	}
	return found[len(found)-1]
}

// addJoe makes an ordinary user in the guest.
func (u *sshUser) addJoe() {
	u.t.Helper()
	u.inGuest("box", "id joe >/dev/null 2>&1 || useradd -m -s /bin/bash joe")
}

// TestSSH is OpenSSH's client through banger vm ssh and through the user's configuration: nothing is asked, and the status and
// the streams are the command's.
func TestSSH(t *testing.T) {
	u := newSSHUser(t)
	script := "echo out; echo err >&2; exit 7"
	for _, argv := range [][]string{
		{"banger", "vm", "ssh", "box", "--", script}, {"banger", "vm", "ssh", "root@box.vm", script}, {"ssh", "box.vm", script}, {"ssh", "-l", "root", "BOX.vm", script},
	} {
		if r := u.does(nil, argv...); r.code != 7 || r.stdout != "out\n" || r.stderr != "err\n" {
			t.Errorf("%v: status %d, stdout %q, stderr %q", argv, r.code, r.stdout, r.stderr)
		}
	}
	if r := u.does(nil, "ssh", "box.vm", "kill -9 $$"); r.code != 255 {
		t.Errorf("a command that SIGKILL ended: status %d", r.code)
	}
	if r := u.does(nil, "banger", "vm", "ssh", "-v", "box", "--", "true"); r.code != 0 || !strings.Contains(r.stderr, "Authenticated to box.vm") {
		t.Errorf("-v: status %d, %s", r.code, r.stderr)
	}
	if r := u.does(nil, "banger", "vm", "ssh", "-tt", "box", "--", "tty; exit 4"); r.code != 4 || !strings.HasPrefix(r.stdout, "/dev/pts/") {
		t.Errorf("-tt: status %d, stdout %q, stderr %q", r.code, r.stdout, r.stderr)
	}
	if r := u.does(nil, "ssh", "box.vm", "test -t 0 || echo $LANG $SSH_CONNECTION"); r.stdout != "C.UTF-8 UNKNOWN 65535 UNKNOWN 65535\n" {
		t.Errorf("environment: %q", r.stdout)
	}
	u.addJoe()
	if got := u.gets("ssh", "joe@box.vm", "id -un; pwd"); got != "joe\n/home/joe\n" {
		t.Errorf("another user: %q", got)
	}
	if r := u.does(nil, "ssh", "nosuchuser@box.vm", "true"); r.code != 255 || !strings.Contains(r.stderr, "Permission denied (publickey)") {
		t.Errorf("a user that is not there: status %d, %q", r.code, r.stderr)
	}
	if r := u.does(nil, "ssh", "nosuch.vm", "true"); r.code != 255 || !strings.Contains(r.stderr, `no vm "nosuch"`) {
		t.Errorf("a VM that is not there: status %d, %q", r.code, r.stderr)
	}
}

// tree is the manifest of a directory: types, modes, links, hashes.
const tree = `cd "$0" && find . -mindepth 1 -printf '%P %y %m %l\n' | LC_ALL=C sort; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`

// makeTree makes a directory with what a copy can get wrong, and returns its path and its manifest.
func (h *host) makeTree(name string, size int64) (dir, manifest string) {
	h.t.Helper()
	dir = filepath.Join(h.dir, name)
	commandIn(h.t, h.dir, "bash", "-euc", `
		mkdir -p "$0/empty" "$0/sub/ünïcode dir"; cd "$0"
		echo '#!/bin/sh' >run; chmod 751 run
		echo secret >sub/private; chmod 600 sub/private
		: >sub/zero
		echo text >'sub/ünïcode dir/a name with  blanks'
		ln -s sub/private link; ln -s /nowhere dangling; ln -s ../empty sub/updir
		head -c "$1" /dev/urandom >large; chmod 711 sub`, dir, fmt.Sprint(size))
	h.t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir, command(h.t, "bash", "-euc", tree, dir)
}

// TestSSHFiles copies with scp, sftp and rsync, in and out again.
func TestSSHFiles(t *testing.T) {
	u := newSSHUser(t)
	const size = 4 << 20
	dir, want := u.makeTree("files", size)
	check := func(how, back string) {
		t.Helper()
		if got := command(t, "bash", "-euc", tree, back); got != want {
			t.Errorf("%s brought back\n%swant\n%s", how, got, want)
		}
		_ = os.RemoveAll(back)
		u.inGuest("box", "rm -rf /root/copy")
	}
	back := filepath.Join(u.dir, "back")

	one := filepath.Join(dir, "large") // scp follows links
	u.gets("scp", "-q", "-p", one, "box.vm:/root/copy")
	u.gets("scp", "-q", "-p", "box.vm:copy", back)
	if got := u.inGuest("box", "sha256sum </root/copy; rm /root/copy"); !strings.HasPrefix(got, sum(t, one)) || sum(t, back) != sum(t, one) {
		t.Errorf("scp: %q", got)
	}
	_ = os.Remove(back)
	u.gets("scp", "-q", "-O", one, "box.vm:/root/copy") // the protocol before sftp: the guest's own scp
	if got := u.inGuest("box", "sha256sum </root/copy; rm /root/copy"); !strings.HasPrefix(got, sum(t, one)) {
		t.Errorf("scp -O: %q", got)
	}

	u.gets("rsync", "-a", dir+"/", "box.vm:copy/")
	u.inGuest("box", "touch /root/copy/more")
	if got := u.gets("rsync", "-ai", "--delete", "-e", "ssh", dir+"/", "box.vm:copy/"); !strings.Contains(got, "*deleting") || strings.Contains(got, "large") {
		t.Errorf("rsync again: %q", got)
	}
	u.gets("rsync", "-a", "-e", "ssh", "box.vm:copy/", back)
	check("rsync", back)

	batch := fmt.Sprintf("mkdir copy\nput -Rp %q copy\nchmod 700 copy/files/sub/zero\nrename copy/files/sub/zero copy/files/one\nsymlink one copy/files/two\nls -l copy/files\ndf -h .\nget -p copy/files/large %q\nget copy/files/nosuch\n", dir, back)
	r := u.does(strings.NewReader(batch), "sftp", "-q", "-b", "-", "box.vm")
	if r.code != 1 || !strings.Contains(r.stderr, "not found") || !strings.Contains(r.stdout, "-rwxr-x--x") {
		t.Errorf("sftp: status %d, stdout %s, stderr %s", r.code, r.stdout, r.stderr)
	}
	if sum(t, back) != sum(t, one) {
		t.Error("sftp brought back something else")
	}
	if got := u.inGuest("box", "cd /root/copy/files; stat -c '%a %N' one two sub/private; sha256sum <large; rm -rf /root/copy"); !strings.HasPrefix(got, "700 'one'\n777 'two' -> 'one'\n600 'sub/private'\n"+sum(t, one)) {
		t.Errorf("after sftp: %q", got)
	}
	_ = os.Remove(back)
}

// TestSSHForwards reaches a server of the guest by -L and -D, one of the host by -R, and the guest through itself by -J.
func TestSSHForwards(t *testing.T) {
	u := newSSHUser(t)
	u.addJoe()
	const size = 2 << 20
	page := u.randomFile("page", size)
	u.inGuest("box", "mkdir -p /root/www")
	u.gets("scp", "-q", page, "box.vm:www/page")
	server := u.begin("vm", "exec", "box", "-w", "/root/www", "--", "python3", "-u", "-m", "http.server", "--bind", "127.0.0.1", "0")
	t.Cleanup(func() { u.run("vm", "exec", "box", "--", "pkill", "-f", "http.server"); server.wait() })
	guestPort := u.await(server, `port (\d+)`)

	hostServer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hostServer.Close()
	go func() {
		for {
			c, err := hostServer.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(c, c)
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.Close()
		}
	}()
	local, dynamic := freePort(t), freePort(t)
	forward := u.talk("ssh", "-N", "-o", "ExitOnForwardFailure=yes", "-L", local+":127.0.0.1:"+guestPort, "-D", dynamic,
		"-R", "0:"+hostServer.Addr().String(), "-L", filepath.Join(u.dir, "l.sock")+":127.0.0.1:"+guestPort, "box.vm")
	remote := u.await(forward, `Allocated port (\d+)`)

	want := sum(t, page)
	url := "http://127.0.0.1:" + guestPort + "/page"
	for how, argv := range map[string][]string{
		"-L":                {"http://127.0.0.1:" + local + "/page"},
		"-L with a socket":  {"--unix-socket", filepath.Join(u.dir, "l.sock"), "http://x/page"},
		"-D":                {"--socks5", "127.0.0.1:" + dynamic, url},
		"-D, name in guest": {"--socks5-hostname", "127.0.0.1:" + dynamic, strings.Replace(url, "127.0.0.1", "localhost", 1)},
		"-D, version 4":     {"--socks4", "127.0.0.1:" + dynamic, url},
	} {
		got := filepath.Join(u.dir, "got")
		command(t, append([]string{"curl", "-sS", "-m", "60", "--noproxy", "", "-o", got}, argv...)...)
		if sum(t, got) != want {
			t.Errorf("%s: %d bytes that are others", how, fileSize(got))
		}
		_ = os.Remove(got)
	}
	echo := fmt.Sprintf(`import socket, hashlib, threading
s = socket.create_connection(("127.0.0.1", %s), 60)
d = open("/root/www/page", "rb").read()
threading.Thread(target=lambda: (s.sendall(d), s.shutdown(socket.SHUT_WR))).start()
h = hashlib.sha256()
while b := s.recv(65536): h.update(b)
print(h.hexdigest())`, remote)
	if got := strings.TrimSpace(u.ok("vm", "exec", "box", "--", "python3", "-c", echo)); got != want {
		t.Errorf("-R: %q", got)
	}
	_ = forward.in.Close()
	_ = forward.cmd.Process.Kill()
	forward.wait()
	if err := waitFor(waitShort, func() bool {
		return u.run("vm", "exec", "box", "--", "python3", "-c", echo).code != 0
	}); err != nil {
		t.Error("-R is still there after its connection")
	}

	if got := u.gets("ssh", "-J", "joe@box.vm", "box.vm", "echo $SSH_CONNECTION"); !strings.HasSuffix(got, u.vm("box").Address.String()+" 22\n") {
		t.Errorf("-J joe@box.vm: %q", got)
	}
	if got := u.gets("banger", "vm", "ssh", "-W", "127.0.0.1:22", "box"); !strings.HasPrefix(got, "SSH-2.0-") {
		t.Errorf("-W: %q", got)
	}
	u.inGuest("box", "rm -rf /root/www")
}

// TestSSHShared has many sessions in one connection: first one after another, then 20 at once.
func TestSSHShared(t *testing.T) {
	u := newSSHUser(t)
	socket := filepath.Join(u.dir, "cm")
	ssh := func(more ...string) []string {
		return append([]string{"ssh", "-o", "ControlMaster=auto", "-o", "ControlPath=" + socket, "-o", "ControlPersist=60"}, more...)
	}
	first := u.does(nil, ssh("box.vm", "exit 5")...)
	if first.code != 5 {
		t.Fatalf("the first: status %d, %s", first.code, first.stderr)
	}
	t.Cleanup(func() { u.does(nil, ssh("-O", "exit", "box.vm")...) })
	u.gets(ssh("-O", "check", "box.vm")...)
	next := u.does(nil, ssh("box.vm", "exit 6")...)
	if next.code != 6 {
		t.Errorf("the next: status %d, %s", next.code, next.stderr)
	}
	data := make([]byte, 200_000)
	_, _ = rand.Read(data)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range 20 {
		wg.Go(func() {
			r := u.does(bytes.NewReader(data), ssh("box.vm", fmt.Sprintf("cat; echo %d >&2; exit %d", i, i))...)
			if r.code != i || r.stderr != fmt.Sprintf("%d\n", i) || r.stdout != string(data) {
				t.Errorf("session %d: status %d, %d bytes, stderr %q", i, r.code, len(r.stdout), r.stderr)
			}
		})
	}
	wg.Wait()
	t.Logf("first %s, next %s, 20 at once %s", first.took.Round(time.Millisecond), next.took.Round(time.Millisecond), time.Since(start).Round(time.Millisecond))
	port := freePort(t)
	u.gets(ssh("-O", "forward", "-L", port+":127.0.0.1:22", "box.vm")...)
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(waitShort))
	hello := make([]byte, 8)
	if _, err := io.ReadFull(c, hello); err != nil || string(hello) != "SSH-2.0-" {
		t.Errorf("through the forward: %q, %v", hello, err)
	}
}

// TestSSHAgent: the user's agent answers in the guest when -A says so, and only then.
func TestSSHAgent(t *testing.T) {
	u := newSSHUser(t)
	socket := filepath.Join(u.dir, "agent")
	agent := u.talk("ssh-agent", "-D", "-a", socket)
	t.Cleanup(func() { _ = agent.cmd.Process.Kill(); agent.wait() })
	u.env = append(slices.Clip(u.env), "SSH_AUTH_SOCK="+socket)
	if err := waitFor(waitShort, func() bool { _, err := os.Stat(socket); return err == nil }); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(u.dir, "key")
	u.gets("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "the user's key", "-f", key)
	u.gets("ssh-add", "-q", key)
	for _, argv := range [][]string{{"ssh", "-A", "box.vm"}, {"banger", "vm", "ssh", "-A", "box", "--"}} {
		if got := u.gets(append(argv, "ssh-add -l")...); !strings.Contains(got, "the user's key") {
			t.Errorf("%v: %q", argv, got)
		}
	}
	u.addJoe()
	path := strings.TrimSpace(u.gets("ssh", "-A", "joe@box.vm", "ssh-add -l >/dev/null && echo $SSH_AUTH_SOCK"))
	if path == "" || u.inGuest("box", "test ! -e '"+path+"' && echo gone") != "gone\n" {
		t.Errorf("the socket %q is left", path)
	}
	if r := u.does(nil, "ssh", "box.vm", "ssh-add -l"); r.code != 2 {
		t.Errorf("without -A: status %d, %q", r.code, r.stdout)
	}
}

// TestSSHFromInside: on the VM's own port 22 the host's key is the only way in.
func TestSSHFromInside(t *testing.T) {
	u := newSSHUser(t)
	for _, to := range []string{"127.0.0.1", "box.vm"} {
		r := u.run("vm", "exec", "box", "--", "ssh", "-v", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
			"-o", "NumberOfPasswordPrompts=1", "-o", "PreferredAuthentications=publickey,password,keyboard-interactive,gssapi-with-mic,hostbased", "root@"+to, "true")
		if r.code != 255 || !strings.Contains(r.stderr, "Permission denied (publickey).") || strings.Contains(r.stderr, "password:") {
			t.Errorf("%s: status %d\n%s", to, r.code, r.stderr)
		}
	}
}

// TestSSHGit clones a repository of the guest, commits, and pushes back.
func TestSSHGit(t *testing.T) {
	u := newSSHUser(t)
	u.inGuest("box", `rm -rf /root/project; git init -q -b main /root/project; cd /root/project; echo one >file
		git add file; git -c user.name=g -c user.email=g@x commit -qm 'in the guest'`)
	clone := filepath.Join(u.dir, "clone")
	u.gets("git", "clone", "-q", "box.vm:project", clone)
	u.gets("sh", "-ec", `cd "$0"; git checkout -q -b work; echo two >>file
		git -c user.name=h -c user.email=h@x commit -qam 'on the host'; git push -q origin work`, clone)
	if got := u.inGuest("box", "cd /root/project; git log --format=%s work; git show work:file; git fsck 2>&1; rm -rf /root/project"); got != "on the host\nin the guest\none\ntwo\n" {
		t.Errorf("in the guest: %q", got)
	}
}

// TestSSHKnownHosts: whatever becomes of the file of known hosts, the next connection is right, and asks nothing.
func TestSSHKnownHosts(t *testing.T) {
	u := newSSHUser(t)
	path := filepath.Join(u.dir, "state/banger/known_hosts")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const wrong = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGXl2MPVHVQ4l4OaJfTCxNHBEYfpZkkNk9U7rQfT0P0C"
	for _, tc := range []struct{ name, text string }{
		{"another key for the name", "box.vm " + wrong + "\n"},
		{"another key for the id", u.vm("box").ID + "," + "box.vm " + wrong + "\n"},
		{"revoked", "@revoked " + strings.ReplaceAll(string(good), "\n", "\n@revoked ")},
		{"garbage", "\x00\xff not a line of known hosts"},
		{"empty", ""},
		{"removed", "-"},
	} {
		for _, argv := range [][]string{{"ssh", "box.vm", "echo", "hello"}, {"banger", "vm", "ssh", "box", "--", "echo", "hello"}} {
			err := os.WriteFile(path, []byte(tc.text), 0o600)
			if tc.text == "-" {
				err = os.Remove(path)
			}
			if err != nil {
				t.Fatal(err)
			}
			r := u.does(nil, argv...)
			if now, err := os.ReadFile(path); r.code != 0 || r.stdout != "hello\n" || r.stderr != "" || err != nil || !bytes.Equal(now, good) {
				t.Errorf("%s, %s: status %d, %q, %q; now %q, %v", tc.name, argv[0], r.code, r.stdout, r.stderr, now, err)
			}
		}
	}
	lines, err := os.ReadFile(filepath.Join(u.home, ".ssh/known_hosts"))
	if err == nil {
		t.Errorf("the user's own known hosts: %q", lines)
	}
}

// editorScript is what an editor that works over ssh sends to a shell: it looks around, unpacks its server, and starts it.
const editorScript = `
echo "platform==$(uname -s)-$(uname -m)== user==$(id -un)== home==$HOME== shell==$SHELL=="
dir=$HOME/.editor-server; mkdir -p "$dir" && cd "$dir" || exit 9
command -v tar base64 >/dev/null || exit 8
base64 -d <<'PACK' | tar xz
%s
PACK
nohup python3 -u server.py >log 2>&1 </dev/null &
echo $! >pid
for i in $(seq 600); do [ -s log ] && break; sleep 0.1; done
echo "listeningOn==$(head -n1 log)=="
exec cat
`

// editorServer answers every request with its own process id, and is in no hurry to end.
const editorServer = `
import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        b = str(os.getpid()).encode()
        self.send_response(200); self.send_header('Content-Length', str(len(b))); self.end_headers(); self.wfile.write(b)
s = http.server.ThreadingHTTPServer(('127.0.0.1', 0), H)
print(s.server_port)
s.serve_forever()
`

// TestSSHEditor connects as VS Code does: a shell that is fed a script, a server that the script leaves behind, and a dynamic forward to
// it. The server is still there for the next connection.
func TestSSHEditor(t *testing.T) {
	u := newSSHUser(t)
	if err := os.WriteFile(filepath.Join(u.dir, "server.py"), []byte(editorServer), 0o600); err != nil {
		t.Fatal(err)
	}
	pack := command(t, "sh", "-c", `tar cz -C "$0" server.py | base64`, u.dir)
	connect := func(script, pattern string) (d *dialog, port, found string) {
		t.Helper()
		port = freePort(t)
		d = u.talk("ssh", "-T", "-D", port, "-o", "ConnectTimeout=15", "box.vm", "bash")
		d.say(script)
		return d, port, u.await(d, pattern)
	}
	get := func(port, server string) string {
		return command(t, "curl", "-sS", "-m", "60", "--noproxy", "", "--socks5-hostname", "127.0.0.1:"+port, "http://127.0.0.1:"+server+"/version")
	}
	d, port, server := connect(fmt.Sprintf(editorScript, pack), `listeningOn==(\d+)==`)
	if !strings.Contains(d.out.String(), "platform==Linux-x86_64== user==root== home==/root== shell==/bin/bash==") {
		t.Errorf("the editor found %q", d.out.String())
	}
	pid := get(port, server)
	d.say("still there\n")
	d.await("still there\n")
	_ = d.cmd.Process.Kill() // the laptop's lid
	d.wait()
	d, port, found := connect("echo pid==$(cat .editor-server/pid)==; exec cat\n", `pid==(\d+)==`)
	if again := get(port, server); again != pid || found != pid {
		t.Errorf("after the connection broke: %q and %q, before %q", again, found, pid)
	}
	if code := d.wait(); code != 0 {
		t.Errorf("the second connection: status %d", code)
	}
	u.inGuest("box", "kill "+pid+"; rm -rf /root/.editor-server")
}

package cli

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func socketPair(t *testing.T) (near, far *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	near, far = os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// receiveConn takes a descriptor as OpenSSH's mm_receive_fd does: with one byte.
func receiveConn(t *testing.T, from *os.File) *net.UnixConn {
	t.Helper()
	data, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(int(from.Fd()), data, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil || n != 1 {
		t.Fatal(n, err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(msgs) != 1 {
		t.Fatal(msgs, err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	f := os.NewFile(uintptr(fds[0]), "passed")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn.(*net.UnixConn)
}

// userConfigs are files that people have.
var userConfigs = map[string]string{
	"empty":              "",
	"plain":              "Host web\n  User me\n",
	"no end of line":     "Host *\n  ForwardAgent yes",
	"dos":                "Host a\r\n\tUser b\r\n\r\n",
	"comment first":      "# my hosts\n\nHost x\n",
	"other includes":     "Include ~/.orbstack/ssh/config\nInclude config.d/*\nHost y\n",
	"almost ours":        "# Include \"/x/banger/ssh/config\"\nHost z\n  Include \"/elsewhere/banger/ssh/other\"\n",
	"not text":           "Host \xff\xfe\x00\n\x01",
	"blank lines at end": "Host q\n\n\n",
	"long line":          "# " + strings.Repeat("x", 200_000) + "\n",
}

func TestInclude(t *testing.T) {
	for name, text := range userConfigs {
		for _, mode := range []os.FileMode{0o600, 0o644} {
			dir := t.TempDir()
			in := inclusion{user: filepath.Join(dir, ".ssh", "config"), own: filepath.Join(dir, "a b", "banger", "ssh", "config")}
			if err := os.Mkdir(filepath.Dir(in.user), 0o755); err != nil {
				t.Fatal(err)
			}
			writeMode(t, in.user, text, mode)
			for range 2 {
				if err := in.add("own\n"); err != nil {
					t.Fatal(name, err)
				}
				want := includeNote + "\nInclude \"" + in.own + "\"\n" + text
				check(t, name, in.user, want, mode)
				check(t, name, in.own, "own\n", 0o600)
			}
			if changed, err := in.remove(); !changed || err != nil {
				t.Errorf("%s: remove: %v, %v", name, changed, err)
			}
			check(t, name, in.user, text, mode)
			if changed, err := in.remove(); changed || err != nil {
				t.Errorf("%s: remove again: %v, %v", name, changed, err)
			}
			if left, _ := filepath.Glob(filepath.Join(dir, "*", "*", "*", "*")); len(left) != 0 {
				t.Errorf("%s: left %q", name, left)
			}
		}
	}
}

// TestIncludeIsFound: ssh reads what is included, whatever the directory is called.
func TestIncludeIsFound(t *testing.T) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("OpenSSH is not installed")
	}
	for _, name := range []string{"plain", "with blank", "it's", "100%", "%h", "a[b]c", "a*b", "{a,b}", "größe"} {
		dir := t.TempDir()
		in := inclusion{user: filepath.Join(dir, "config"), own: filepath.Join(dir, name, "banger", "ssh", "config")}
		if err := in.add("Host *.vm\n  User included\n"); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(ssh, "-G", "-F", in.user, "x.vm").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "user included\n") {
			t.Errorf("%s is not included: %v\n%.200s", name, err, out)
		}
		if changed, err := in.remove(); !changed || err != nil {
			t.Errorf("%s: remove: %v, %v", name, changed, err)
		}
		if _, err := os.Lstat(in.user); err == nil {
			t.Errorf("%s: %s is left", name, in.user)
		}
	}
}

func writeMode(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func check(t *testing.T, what, path, want string, mode os.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: %s is %.300q, want %.300q, %v", what, path, got, want, err)
	}
	if info, err := os.Stat(path); err == nil && info.Mode().Perm() != mode {
		t.Errorf("%s: %s has mode %v", what, path, info.Mode())
	}
}

// TestIncludeMovesToTheTop: wherever the Include has got to, it is first again, and once.
func TestIncludeMovesToTheTop(t *testing.T) {
	dir := t.TempDir()
	in := inclusion{user: filepath.Join(dir, "config"), own: filepath.Join(dir, "banger", "ssh", "config")}
	ours := "Include \"" + in.own + "\"\n"
	for _, before := range []string{
		"Host *\n  User x\n" + includeNote + "\n" + ours + "Host y\n",
		"Host *\n  User x\n" + ours + "Host y\n",
		"Host *\n" + includeNote + "\n  User x\nHost y\n",
		includeNote + "\nInclude \"/old/home/.config/banger/ssh/config\"\nHost *\n  User x\nHost y\n",
		"Host *\n  User x\n  " + ours + includeNote + "\n" + ours + "Host y\n",
	} {
		writeMode(t, in.user, before, 0o600)
		if err := in.add("own"); err != nil {
			t.Fatal(err)
		}
		check(t, before, in.user, includeNote+"\n"+ours+"Host *\n  User x\nHost y\n", 0o600)
	}
}

// TestIncludeMakesTheFile: what was not there before goes again, unless somebody has put something into it.
func TestIncludeMakesTheFile(t *testing.T) {
	dir := t.TempDir()
	in := inclusion{user: filepath.Join(dir, ".ssh", "config"), own: filepath.Join(dir, "banger", "ssh", "config")}
	for range 2 {
		if err := in.add("own"); err != nil {
			t.Fatal(err)
		}
	}
	check(t, "made", in.user, includeNoteMade+"\nInclude \""+in.own+"\"\n", 0o600)
	if info, err := os.Stat(filepath.Dir(in.user)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("~/.ssh: %v, %v", info.Mode(), err)
	}
	if changed, err := in.remove(); err != nil || !changed {
		t.Error(changed, err)
	}
	if _, err := os.Lstat(in.user); !os.IsNotExist(err) {
		t.Errorf("the file is still there: %v", err)
	}
	if err := in.add("own"); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(in.user)
	if err != nil {
		t.Fatal(err)
	}
	writeMode(t, in.user, string(text)+"Host mine\n", 0o600)
	if _, err := in.remove(); err != nil {
		t.Fatal(err)
	}
	check(t, "with something of the user's", in.user, "Host mine\n", 0o600)
}

func TestIncludeFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	dotfiles := filepath.Join(dir, "dotfiles")
	in := inclusion{user: filepath.Join(dir, ".ssh", "config"), own: filepath.Join(dir, "banger", "ssh", "config")}
	for _, d := range []string{dotfiles, filepath.Dir(in.user)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../dotfiles/link", in.user); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(dotfiles, "ssh_config"), filepath.Join(dotfiles, "link")); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(dotfiles, "ssh_config")
	if err := in.add("own"); err != nil { // it dangles
		t.Fatal(err)
	}
	check(t, "dangling", target, includeNoteMade+"\nInclude \""+in.own+"\"\n", 0o600)
	writeMode(t, target, "Host x\n", 0o640)
	if err := in.add("own"); err != nil {
		t.Fatal(err)
	}
	check(t, "link", target, includeNote+"\nInclude \""+in.own+"\"\nHost x\n", 0o640)
	if to, err := os.Readlink(in.user); err != nil || to != "../dotfiles/link" {
		t.Errorf("the link is %q, %v", to, err)
	}
	if err := os.Remove(filepath.Join(dotfiles, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../.ssh/config", filepath.Join(dotfiles, "link")); err != nil {
		t.Fatal(err)
	}
	if err := in.add("own"); err == nil {
		t.Error("a loop of links was followed")
	}
}

func TestIncludeTwoAtOnce(t *testing.T) {
	dir := t.TempDir()
	in := inclusion{user: filepath.Join(dir, ".ssh", "config"), own: filepath.Join(dir, "banger", "ssh", "config")}
	if err := os.Mkdir(filepath.Dir(in.user), 0o700); err != nil {
		t.Fatal(err)
	}
	writeMode(t, in.user, "Host x\n", 0o600)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := in.add("own"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	check(t, "eight at once", in.user, includeNote+"\nInclude \""+in.own+"\"\nHost x\n", 0o600)
}

// FuzzInclude: whatever is in the file, taking the Include out gives back what there was before, and it is first and once.
func FuzzInclude(f *testing.F) {
	for _, text := range userConfigs {
		f.Add(text[:min(len(text), 1000)])
	}
	f.Add(includeNote + "\n")
	const include = `"/home/me/.config/banger/ssh/config"`
	f.Fuzz(func(t *testing.T, text string) {
		rest, _ := withoutInclude([]byte(text), include)
		once := append([]byte(includeNote+"\nInclude "+include+"\n"), rest...)
		again, made := withoutInclude(once, include)
		if !bytes.Equal(again, rest) || made {
			t.Errorf("%q became %q", rest, again)
		}
		if !strings.Contains(text, "banger") && string(rest) != text {
			t.Errorf("%q became %q", text, rest)
		}
	})
}

func TestSSHConfig(t *testing.T) {
	a := newTestApp(t)
	home := a.env["HOME"]
	delete(a.env, "XDG_RUNTIME_DIR")
	a.env["XDG_STATE_HOME"], a.env["XDG_CACHE_HOME"] = home+"/100% state/", "relative"
	if code := a.run("ssh-config", "--install"); code != 0 || !strings.Contains(a.err.String(), "NAME.vm") {
		t.Fatalf("status %d, %q", code, a.err.String())
	}
	text, err := os.ReadFile(home + "/.config/banger/ssh/config")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"\nHost *.vm \"!*'*\"\n",
		"\n    ProxyCommand env 'XDG_STATE_HOME=" + home + "/100%% state' " + home + "/bin/banger ssh-proxy '%h'\n",
		"\n    UserKnownHostsFile \"" + home + "/100%% state/banger/known_hosts\"\n",
		"\n    IdentityFile \"" + home + "/.config/banger/ssh/id_ed25519\"\n",
		"\n    StrictHostKeyChecking yes\n", "\n    User root\n",
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if code := a.run("ssh-config"); code != 0 || a.out.String() != string(text) {
		t.Errorf("printed %q", a.out.String())
	}
	if ssh, err := exec.LookPath("ssh"); err == nil {
		out, err := exec.Command(ssh, "-F", home+"/.ssh/config", "-G", "web.vm").CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\nuserknownhostsfile "+home+"/100% state/banger/known_hosts\n") &&
			!strings.Contains(string(out), "\nuserknownhostsfile "+home+"/100%% state/banger/known_hosts\n") {
			t.Errorf("ssh understands, %v:\n%s", err, out)
		}
		out, err = exec.Command(ssh, "-F", home+"/.ssh/config", "-G", "web.example").CombinedOutput()
		if err != nil || strings.Contains(string(out), "banger") {
			t.Errorf("another host, %v:\n%s", err, out)
		}
	}
	if code := a.run("ssh-config", "--uninstall"); code != 0 || a.err.Len() != 0 {
		t.Errorf("uninstall: status %d, %q", code, a.err.String())
	}
	if code := a.run("ssh-config", "--uninstall"); code != 0 || !strings.Contains(a.err.String(), "nothing of banger") {
		t.Errorf("uninstall again: status %d, %q", code, a.err.String())
	}
	if code := a.run("ssh-config", "--install", "--uninstall"); code != 2 {
		t.Errorf("both: status %d", code)
	}
	a.env["XDG_STATE_HOME"] = home + `/a"b`
	if code := a.run("ssh-config", "--install"); code != 1 || !strings.Contains(a.err.String(), "cannot hold") {
		t.Errorf("a path with quotes: status %d, %q", code, a.err.String())
	}
}

// TestSSHConfigOfAnotherHome: containers set HOME, and ssh does not look at it.
func TestSSHConfigOfAnotherHome(t *testing.T) {
	a := newTestApp(t)
	user := a.env["HOME"] + "/.ssh/config"
	if code := a.run("ssh-config", "--install"); code != 0 || !strings.Contains(a.err.String(), "ssh NAME.vm reaches") {
		t.Errorf("status %d, %q", code, a.err.String())
	}
	a.AccountHome = func() (string, error) { return "/home/account", nil }
	if code := a.run("ssh-config", "--install"); code != 0 || strings.Contains(a.err.String(), "ssh NAME.vm reaches") ||
		!strings.Contains(a.err.String(), "reads /home/account/.ssh/config: tell it ssh -F "+user) {
		t.Errorf("status %d, %q", code, a.err.String())
	}
	a.AccountHome = func() (string, error) { return "", os.ErrNotExist } // an account without an entry, as in some containers
	if code := a.run("ssh-config", "--install"); code != 0 || !strings.Contains(a.err.String(), "ssh NAME.vm reaches") {
		t.Errorf("status %d, %q", code, a.err.String())
	}
}

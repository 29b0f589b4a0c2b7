package cli

import (
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"git.thaloco.com/thaloco/banger/api"
)

func TestParseSSH(t *testing.T) {
	for _, c := range []struct {
		args string
		want sshOptions
	}{
		{"web", sshOptions{name: "web"}},
		{"web.vm", sshOptions{name: "web"}},
		{"me@web", sshOptions{user: "me", name: "web"}},
		{"me@corp@web.vm -v", sshOptions{user: "me@corp", name: "web", options: []string{"-v"}}},
		{"-A -L 80:x:80 web", sshOptions{name: "web", options: []string{"-A", "-L", "80:x:80"}}},
		{"-L80:x:80 web -o A=b", sshOptions{name: "web", options: []string{"-L80:x:80", "-o", "A=b"}}},
		{"-vNL 80:x:80 web", sshOptions{name: "web", options: []string{"-vNL", "80:x:80"}}},
		{"-vo -x web", sshOptions{name: "web", options: []string{"-vo", "-x"}}},
		{"-i --help web", sshOptions{name: "web", options: []string{"-i", "--help"}}},
		{"--quiet web", sshOptions{name: "web", options: []string{"-q"}}},
		{"web -- -v --help", sshOptions{name: "web", command: []string{"-v", "--help"}}},
		{"web -t -- top", sshOptions{name: "web", options: []string{"-t"}, command: []string{"top"}}},
		{"web uname -a", sshOptions{name: "web", command: []string{"uname", "-a"}}},
		{"--help", sshOptions{help: true}},
		{"web -h", sshOptions{name: "web", help: true}},
	} {
		got, err := parseSSH(strings.Fields(c.args))
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(sshOptions{}), cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("%s: %v %s", c.args, err, diff)
		}
	}
	for _, args := range []string{"", "-v", "web --", "-- ls", "-L", "web -o", "@web", "me@", ".vm", "web --nope"} {
		got, err := parseSSH(strings.Fields(args))
		if exitCode(err) != exitUsage {
			t.Errorf("%s: %v, %+v", args, err, got)
		}
	}
}

// sshApp is a testApp on a host with ssh, and what banger became.
func sshApp(t *testing.T) (a *testApp, became *[]string) {
	a = newTestApp(t)
	became = new([]string)
	a.LookPath = func(name string) (string, error) { return "/usr/bin/" + name, nil }
	a.Replace = func(argv []string) error { *became = argv; return nil }
	a.Executable = func() (string, error) { return "/opt/it's 100%/banger", nil }
	return a, became
}

func TestVMSSH(t *testing.T) {
	a, became := sshApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	d.add(api.VM{Name: "off", State: api.StateStopped})
	if code := a.run("vm", "ssh", "-A", "me@web", "-L", "80:x:80", "--", "echo", "a b"); code != 0 {
		t.Fatalf("status %d, %q", code, a.err.String())
	}
	want := strings.Split(`ssh
ProxyCommand='/opt/it'\''s 100%%/banger' ssh-proxy --fdpass web
UserKnownHostsFile="/state/known_hosts"
GlobalKnownHostsFile=/dev/null
StrictHostKeyChecking=yes
VerifyHostKeyDNS=no
UpdateHostKeys=no
CanonicalizeHostname=no
ProxyUseFdpass=yes
HostKeyAlias=id-web
HostName=web.vm
-A
-L
80:x:80
-l
me
User=root
Port=22
IdentityFile="/config/100%% mine/id"
IdentitiesOnly=yes
PubkeyAuthentication=yes
PreferredAuthentications=publickey
HostKeyAlgorithms=ssh-ed25519
RemoteCommand=none
ForwardAgent=no
ForwardX11=no
web.vm
--
echo
a b`, "\n")
	got := strings.Split(strings.ReplaceAll(strings.Join(*became, "\n"), "-o\n", ""), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"nope", 1, `banger: vm "nope": there is none`},
		{"off", 1, "banger: vm \"off\" is stopped\nhint: start it: banger vm start off\n"},
		{"", 2, "vm ssh needs the name of a VM"},
	} {
		*became = nil
		if code := a.run(append([]string{"vm", "ssh"}, strings.Fields(c.args)...)...); code != c.code || !strings.Contains(a.err.String(), c.says) || *became != nil {
			t.Errorf("%s: status %d, %q, became %q", c.args, code, a.err.String(), *became)
		}
	}
	a.LookPath = newTestApp(t).LookPath
	if code := a.run("vm", "ssh", "web"); code != 1 || !strings.Contains(a.err.String(), "openssh-client") ||
		!strings.Contains(a.err.String(), "banger vm exec -it web") {
		t.Errorf("without ssh: status %d, %q", code, a.err.String())
	}
	a.Terminal.In, a.Terminal.Err = true, true
	if code := a.run("vm", "ssh", "off"); code != 1 || !strings.Contains(a.err.String(), "openssh-client") || strings.Contains(a.err.String(), "[Y/n]") {
		t.Errorf("without ssh, a VM that is stopped: status %d, %q", code, a.err.String())
	}
	if code := a.run("vm", "ssh", "nope"); code != 1 || strings.Contains(a.err.String(), "openssh-client") {
		t.Errorf("without ssh, no VM: status %d, %q", code, a.err.String())
	}
	a.Terminal.In, a.Terminal.Err = false, false
	if code := a.run("vm", "ssh", "--help"); code != 0 || !strings.Contains(a.out.String(), "banger vm ssh -A") {
		t.Errorf("--help: status %d, %q", code, a.out.String())
	}
}

// TestSSHTakesTheCommandLine: the real ssh understands it, whatever its user's configuration says of all hosts.
func TestSSHTakesTheCommandLine(t *testing.T) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("OpenSSH is not installed")
	}
	a, became := sshApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	user := t.TempDir() + "/config"
	const hostile = "Host *\n  User joe\n  Port 2222\n  ProxyJump bastion\n  HostName %h.example.com\n  RemoteCommand tmux\n" +
		"  IdentityFile ~/.ssh/other\n  HostKeyAlgorithms ssh-rsa\n  PreferredAuthentications password\n  CanonicalizeHostname always\n" +
		"  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  HostKeyAlias x\n  ForwardAgent yes\n  ForwardX11 yes\n"
	if err := os.WriteFile(user, []byte(hostile), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := a.run("vm", "ssh", "-F", user, "-o", "StrictHostKeyChecking=no", "-G", "web"); code != 0 {
		t.Fatalf("status %d, %q", code, a.err.String())
	}
	out, err := exec.Command(ssh, (*became)[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"user root", "port 22", "hostname web.vm", "hostkeyalias id-web", "stricthostkeychecking true",
		"userknownhostsfile /state/known_hosts", "hostkeyalgorithms ssh-ed25519", "preferredauthentications publickey",
		"forwardagent no", "forwardx11 no",
		"proxyusefdpass yes", "proxycommand '/opt/it'\\''s 100%%/banger' ssh-proxy --fdpass web"} {
		if !strings.Contains(strings.ToLower(string(out)), "\n"+want+"\n") {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for _, not := range []string{"proxyjump", "remotecommand", "joe"} {
		if strings.Contains(string(out), "\n"+not) {
			t.Errorf("%s in\n%s", not, out)
		}
	}
}

// TestSSHForwardsAnAgentOnRequest: -A and the option are heard, whatever the user's configuration says of all hosts.
func TestSSHForwardsAnAgentOnRequest(t *testing.T) {
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("OpenSSH is not installed")
	}
	for _, option := range []string{"-A", "-oForwardAgent=yes"} {
		a, became := sshApp(t)
		d := startFake(t, a.env)
		d.add(api.VM{Name: "web", State: api.StateRunning})
		if code := a.run("vm", "ssh", "-F", "/dev/null", option, "-G", "web"); code != 0 {
			t.Fatalf("status %d, %q", code, a.err.String())
		}
		out, err := exec.Command(ssh, (*became)[1:]...).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "\nforwardagent yes\n") {
			t.Errorf("%s: %v\n%s", option, err, out)
		}
	}
}

// TestOfferStart: a VM that is stopped is started where somebody is there and says so.
func TestOfferStart(t *testing.T) {
	for _, c := range []struct {
		typed  string
		starts bool
	}{{"\n", true}, {"y\n", true}, {"what?\nYES\n", true}, {"n\n", false}, {"", false}} {
		for _, command := range []string{"ssh", "exec", "cp"} {
			a, became := sshApp(t)
			d := startFake(t, a.env)
			d.add(api.VM{Name: "web", State: api.StateStopped})
			a.Terminal.In, a.Terminal.Err = true, true
			a.In = strings.NewReader(c.typed + "cat\n")
			if c.typed == "" {
				a.In = strings.NewReader("")
			}
			args := []string{"vm", command, "web"}
			switch command {
			case "exec":
				args = append(args, "-t=false", "--", "cat")
			case "cp":
				args = []string{"vm", "cp", "vm_ssh_test.go", "web:"}
			}
			code := a.run(args...)
			if !strings.Contains(a.err.String(), `vm "web" is stopped. Start it? [Y/n] `) {
				t.Errorf("%s %q: %q", command, c.typed, a.err.String())
			}
			if running := d.String() == "web running"; running != c.starts {
				t.Errorf("%s %q: left %s", command, c.typed, d)
			}
			switch {
			case c.starts && (code != 0 || command == "ssh" && *became == nil || command == "exec" && a.out.String() != "cat\n"):
				t.Errorf("%s %q: status %d, out %q, err %q", command, c.typed, code, a.out.String(), a.err.String())
			case !c.starts && (code == 0 || *became != nil || !strings.Contains(a.err.String(), "hint: start it: banger vm start web")):
				t.Errorf("%s %q: status %d, err %q", command, c.typed, code, a.err.String())
			}
		}
	}
	a, _ := sshApp(t)
	startFake(t, a.env).add(api.VM{Name: "web", State: api.StateStopped})
	if code := a.run("vm", "ssh", "web"); code != 1 || strings.Contains(a.err.String(), "Start it?") {
		t.Errorf("nobody there: status %d, %q", code, a.err.String())
	}
	a, _ = sshApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateStopped})
	a.Terminal.In, a.Terminal.Err = true, true
	r, w := io.Pipe()
	defer w.Close()
	a.In = &signallingReader{r, a.interrupt}
	if code := a.run("vm", "ssh", "web"); code != 130 || d.String() != "web stopped" {
		t.Errorf("interrupted: status %d, %q, left %s", code, a.err.String(), d)
	}
}

// signallingReader sends a signal once somebody reads.
type signallingReader struct {
	io.Reader
	signal func()
}

func (s *signallingReader) Read(p []byte) (int, error) {
	s.signal()
	return s.Reader.Read(p)
}

// TestComeBackBySSH: where ssh is installed it is the way back, unless only vm exec can say where to.
func TestComeBackBySSH(t *testing.T) {
	for args, want := range map[string]string{
		"":               "banger vm ssh quiet-otter",
		"-u nobody":      "banger vm ssh -l nobody quiet-otter",
		"-u 65534:65534": "banger vm exec -u 65534:65534 quiet-otter",
	} {
		a, _ := sshApp(t)
		startFake(t, a.env)
		if code := a.run(append(append([]string{"vm", "run"}, strings.Fields(args)...), "--", "true")...); !strings.Contains(a.err.String(), "come back: "+want+"\n") {
			t.Errorf("vm run %s: status %d, said %q, want %q", args, code, a.err.String(), want)
		}
	}
	a, _ := sshApp(t)
	startFake(t, a.env)
	dir := t.TempDir()
	if code := a.run("vm", "run", dir, "--", "true"); code != 0 || !strings.Contains(a.err.String(), "come back: banger vm exec -w "+dir+" quiet-otter\n") {
		t.Errorf("vm run PATH: status %d, %q", code, a.err.String())
	}
}

func TestCompleteSSH(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	d.add(api.VM{Name: "wiki", State: api.StateRunning})
	d.add(api.VM{Name: "db", State: api.StateRunning})
	d.images = []api.Image{{Name: "debian-bookworm", Local: true}, {Name: "alpine"}}
	for _, c := range []struct{ args, want string }{
		{"vm ssh w", "web wiki"},
		{"vm ssh me@w", "me@web me@wiki"},
		{"vm ssh -v -L 1:x:1 d", "db"},
		{"vm ssh web w", ""},
		{"vm ssh web -- w", ""},
		{"vm exec w", "web wiki"},
		{"vm create --image d", "debian-bookworm"},
		{"vm run --wait f", "agent ready full"},
		{"vm list -o j", "table json name"},
		{"image delete ", "debian-bookworm"},
		{"completion z", "zsh"},
		{"ssh-config --un", "--uninstall"},
		{"ssh-config ", ""},
	} {
		args := strings.Split(c.args, " ")
		if code := a.run(append([]string{"__complete"}, args...)...); code != 0 {
			t.Errorf("%s: status %d", c.args, code)
		}
		var got []string
		for line := range strings.Lines(a.out.String()) {
			if word, _, _ := strings.Cut(strings.TrimSpace(line), "\t"); !strings.HasPrefix(word, ":") {
				got = append(got, word)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, want %q", c.args, got, c.want)
		}
	}
	if a.run("__complete", "vm", "ssh", "-i", ""); !strings.Contains(a.out.String(), ":0\n") {
		t.Errorf("a file is not completed behind -i: %q", a.out.String())
	}
}

// TestCompletionScripts: what the shells are given is understood by them, where they are installed.
func TestCompletionScripts(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		a := newTestApp(t)
		if code := a.run("completion", shell); code != 0 || !strings.Contains(a.out.String(), "__complete") {
			t.Errorf("%s: status %d, %d bytes", shell, code, a.out.Len())
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			continue
		}
		c := exec.Command(path, "-n")
		c.Stdin = &a.out
		if out, err := c.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", shell, err, out)
		}
	}
}

func TestSSHProxy(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	d.add(api.VM{Name: "off", State: api.StateStopped})
	for _, name := range []string{"web", "web.vm", "id-web"} {
		a.In = strings.NewReader("hello\n")
		if code := a.run("ssh-proxy", name); code != 0 || a.out.String() != "SSH-2.0-fake\r\nhello\nend" {
			t.Errorf("%s: status %d, %q, %q", name, code, a.out.String(), a.err.String())
		}
	}
	for name, want := range map[string]string{
		"off.vm": "banger: vm \"off\" is stopped (start it: banger vm start off)\n",
		"nope":   "banger: vm \"nope\": there is none of that name (banger vm list)\n",
	} {
		if code := a.run("ssh-proxy", name); code != 1 || a.err.String() != want || a.out.Len() != 0 {
			t.Errorf("%s: status %d, %q, %q", name, code, a.out.String(), a.err.String())
		}
	}
	if code := a.run("ssh-proxy", "--fdpass", "web"); code != 2 || !strings.Contains(a.err.String(), "needs a socket") {
		t.Errorf("--fdpass without a socket: status %d, %q", code, a.err.String())
	}
	file, err := os.Create(t.TempDir() + "/out")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	a.Out = file
	if code := a.run("ssh-proxy", "--fdpass", "web"); code != 2 || !strings.Contains(a.err.String(), "needs a socket") {
		t.Errorf("--fdpass to a file: status %d, %q", code, a.err.String())
	}
	a.In, a.Out = &signallingReader{blocked{}, a.interrupt}, io.Discard
	if code := a.run("ssh-proxy", "web"); code != 130 {
		t.Errorf("interrupted: status %d", code)
	}
}

// blocked is a stdin nobody types on.
type blocked struct{}

func (blocked) Read([]byte) (int, error) { select {} }

// TestPassConn hands a connection on as ssh takes it, and all the server said first is still in it.
func TestPassConn(t *testing.T) {
	a := newTestApp(t)
	startFake(t, a.env).add(api.VM{Name: "web", State: api.StateRunning})
	near, far := socketPair(t)
	a.Out = far
	if code := a.run("ssh-proxy", "--fdpass", "web"); code != 0 {
		t.Fatalf("status %d, %q", code, a.err.String())
	}
	conn := receiveConn(t, near)
	if _, err := conn.Write([]byte("ping\n")); err != nil {
		t.Fatal(err)
	}
	if err := conn.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(conn); err != nil || string(got) != "SSH-2.0-fake\r\nping\nend" {
		t.Errorf("%q, %v", got, err)
	}
}

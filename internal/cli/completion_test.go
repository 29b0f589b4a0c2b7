package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// TestBashAlone runs the script in a bash that has no bash-completion package: what banger is asked, and what the shell is offered.
func TestBashAlone(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("bash is not installed")
	}
	a := newTestApp(t)
	if code := a.run("completion", "bash"); code != 0 {
		t.Fatalf("status %d", code)
	}
	dir := t.TempDir()
	script := filepath.Join(dir, "banger.bash")
	if err := os.WriteFile(script, a.out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "cwd", "sub dir"), 0o700); err != nil {
		t.Fatal(err)
	}
	// $1 is the script, $2 the line up to the cursor, $3 what banger answers, the rest are bash's own words of the line
	const harness = `
compopt() { :; }
source "$1"
answer=$3 COMP_LINE=$2 COMP_POINT=${#2} COMP_TYPE=9 COLUMNS=80
banger() { printf '<%s>' "$@" >&3; printf "$answer"; }
shift 3
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
cd cwd
__start_banger 3>../asked
printf '<%s>' "${COMPREPLY[@]-}"`
	for name, tt := range map[string]struct {
		line, answer string
		words        []string
		asked, offer string
	}{
		"a command":        {"banger vm s", `ssh\tOpen\nstart\tStart\n:4\n`, []string{"banger", "vm", "s"}, "<__complete><vm><s>", "<ssh    (Open)><start  (Start)>"},
		"a new word":       {"banger vm  ", `run\n:4\n`, []string{"banger", "vm", ""}, "<__complete><vm><>", "<run>"},
		"NAME:":            {"banger vm cp web:", `web:/etc/\nweb:/opt/\n:6\n`, []string{"banger", "vm", "cp", "web", ":"}, "<__complete><vm><cp><web:>", "</etc/></opt/>"},
		"NAME:PATH":        {"banger vm cp web:/e", `web:/etc/\n:6\n`, []string{"banger", "vm", "cp", "web", ":", "/e"}, "<__complete><vm><cp><web:/e>", "</etc/>"},
		"behind NAME:PATH": {"banger vm cp web:/e x", `xyz\n:0\n`, []string{"banger", "vm", "cp", "web", ":", "/e", "x"}, "<__complete><vm><cp><web:/e><x>", "<xyz>"},
		"USER@NAME":        {"banger vm ssh root@w", `root@web\n:4\n`, []string{"banger", "vm", "ssh", "root", "@", "w"}, "<__complete><vm><ssh><root@w>", "<web>"},
		"--flag=value":     {"banger vm list --output=n", `name\n:4\n`, []string{"banger", "vm", "list", "--output", "=", "n"}, "<__complete><vm><list><--output=n>", "<name>"},
		"a directory":      {"banger vm run s", `:16\n`, []string{"banger", "vm", "run", "s"}, "<__complete><vm><run><s>", "<sub dir>"},
		"the cursor in it": {"banger vm s", `stop\n:4\n`, []string{"banger", "vm", "sxx"}, "<__complete><vm><s>", "<stop>"},
	} {
		t.Run(name, func(t *testing.T) {
			c := exec.Command(bash, append([]string{"--norc", "-c", harness, "bash", script, tt.line, tt.answer}, tt.words...)...)
			c.Dir = dir
			var errs strings.Builder
			c.Stderr = &errs
			offer, err := c.Output()
			if err != nil || errs.Len() > 0 {
				t.Fatalf("%v: %s", err, errs.String())
			}
			asked, err := os.ReadFile(filepath.Join(dir, "asked"))
			if err != nil || string(asked) != tt.asked {
				t.Errorf("banger was asked %s, want %s (%v)", asked, tt.asked, err)
			}
			if string(offer) != tt.offer {
				t.Errorf("offered %s, want %s", offer, tt.offer)
			}
		})
	}
}

func TestCompletionOfWhat(t *testing.T) {
	a := newTestApp(t)
	for _, shell := range []string{"tcsh", "powershell"} {
		if code := a.run("completion", shell); code != 2 || a.out.Len() > 0 || !strings.Contains(a.err.String(), "unknown command") {
			t.Errorf("%s: status %d, %q, %q", shell, code, a.out.String(), a.err.String())
		}
	}
	if code := a.run("completion"); code != 0 || !strings.Contains(a.out.String(), "source <(banger completion bash)") {
		t.Errorf("status %d, %q", code, a.out.String())
	}
}

// TestCompleteGuestPaths: the fake's guest is this host.
func TestCompleteGuestPaths(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.add(api.VM{Name: "web", State: api.StateRunning})
	d.add(api.VM{Name: "worker", State: api.StateStopped})
	dir := t.TempDir()
	for _, name := range []string{"etc/", "log", "log.1", ".hidden", "a b", "$(touch x)", "new\nline", "esc\x1b[1m"} {
		if sub, ok := strings.CutSuffix(name, "/"); ok {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for arg, want := range map[string]string{
		"w":                       "web: worker: :2",
		"web:" + dir + "/":        "web:" + dir + "/etc/ web:" + dir + "/log web:" + dir + "/log.1 web:" + dir + "/new web:" + dir + "/line :6", // ls has no way to tell a line end in a name
		"web:" + dir + "/lo":      "web:" + dir + "/log web:" + dir + "/log.1 :6",
		"web:" + dir + "/.h":      "web:" + dir + "/.hidden :6",
		"web:" + dir + "/nosuch/": ":6",
		"worker:/":                ":6",
		"nosuch:/":                ":6",
		"./w":                     ":0",
		"./w:x":                   ":0",
		"nothing":                 ":0",
	} {
		if code := a.run("__complete", "vm", "cp", arg); code != 0 {
			t.Errorf("%s: status %d, %s", arg, code, a.err.String())
		}
		if got := strings.Join(strings.Fields(a.out.String()), " "); got != want {
			t.Errorf("%s: %q, want %q", arg, got, want)
		}
	}
}

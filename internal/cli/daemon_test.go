package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// setVersion makes the fake speak another version of the API.
func (d *fakeDaemon) setVersion(v string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.version = v
}

func (d *fakeDaemon) wasStopped() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stopped
}

func TestDaemonStatus(t *testing.T) {
	a := newTestApp(t)
	if code := a.run("daemon", "status"); code != 3 || a.err.String() != "banger: the daemon does not run\nhint: banger daemon start\n" {
		t.Errorf("without a daemon: status %d, %q", code, a.err.String())
	}
	d := startFake(t, a.env)
	if code := a.run("daemon", "status", "-o", "json"); code != 0 {
		t.Fatalf("status %d: %s", code, a.err.String())
	}
	var st api.DaemonStatus
	if err := json.Unmarshal(a.out.Bytes(), &st); err != nil || st.PID != 4711 || st.Socket != d.socket {
		t.Errorf("%v: %+v", err, st)
	}
	if a.run("daemon", "status"); !strings.Contains(a.out.String(), "uptime:         1m1s\n") {
		t.Errorf("printed %s", a.out.String())
	}
	if code := a.run("daemon", "start"); code != 0 || a.err.String() != "banger: the daemon runs, pid 4711\n" {
		t.Errorf("start: status %d, %q", code, a.err.String())
	}
	if code := a.run("daemon", "stop"); code != 0 || a.err.String() != "banger: the daemon has stopped\n" || !d.wasStopped() {
		t.Errorf("stop: status %d, %q", code, a.err.String())
	}
	if code := a.run("daemon", "stop"); code != 0 || a.err.String() != "banger: the daemon does not run\n" {
		t.Errorf("stop again: status %d, %q", code, a.err.String())
	}
}

func TestVersions(t *testing.T) {
	a := newTestApp(t)
	if code := a.run("version"); code != 0 || !strings.HasSuffix(a.out.String(), "bangerd:  not running\n") {
		t.Errorf("status %d, %q", code, a.out.String())
	}
	d := startFake(t, a.env)
	d.setVersion("7")
	if code := a.run("vm", "list"); code != 1 || !strings.Contains(a.err.String(), "it speaks API version 7 (bangerd fake), this banger dev speaks 1") ||
		!strings.Contains(a.err.String(), "banger daemon stop") {
		t.Errorf("a daemon of another version: status %d, %q", code, a.err.String())
	}
	if code := a.run("vm", "exec", "web", "--", "true"); code != 125 || !strings.Contains(a.err.String(), "banger daemon stop") {
		t.Errorf("exec: status %d, %q", code, a.err.String())
	}
	if a.run("version", "-o", "json"); !strings.Contains(a.out.String(), `"api_version": 7`) {
		t.Errorf("version: %s", a.out.String())
	}
	if code := a.run("daemon", "stop"); code != 0 || !d.wasStopped() {
		t.Errorf("what the hint says does not work: status %d, %q", code, a.err.String())
	}
}

func TestDaemonIsStarted(t *testing.T) {
	a := newTestApp(t)
	started := 0
	a.StartDaemon = func(context.Context) error {
		started++
		startFake(t, a.env)
		return nil
	}
	for range 2 {
		if code := a.run("vm", "list", "-o", "name"); code != 0 || started != 1 {
			t.Errorf("status %d, started %d times: %s", code, started, a.err.String())
		}
	}
}

// installDaemon puts a shell script in the place of bangerd.
func installDaemon(t *testing.T, a *testApp, script string) {
	t.Helper()
	bin := filepath.Join(a.env["HOME"], "bin")
	if err := os.MkdirAll(bin, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(bin, daemonProgram), []byte("#!/bin/sh\n"+script), 0o700); err != nil {
		t.Fatal(err)
	}
	a.StartDaemon = nil
}

func TestDaemonThatFails(t *testing.T) {
	a := newTestApp(t)
	installDaemon(t, a, "echo 'bangerd: config.toml:3:1: \x1b[1munknown key' >&2\nexit 1\n")
	log := filepath.Join(a.env["HOME"], ".local/state/banger/bangerd.log")
	if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, []byte("of an earlier daemon\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code := a.run("vm", "list")
	want := "banger: the daemon is not reachable: bangerd ended with exit status 1; its last words:\n" +
		"bangerd: config.toml:3:1: \\x1b[1munknown key\nhint: the whole log is in " + log + "\n"
	if diff := cmp.Diff(want, a.err.String()); code != 3 || diff != "" {
		t.Errorf("status %d: %s", code, diff)
	}
	if code := a.run("daemon", "logs", "-n", "1"); code != 0 || a.out.String() != "bangerd: config.toml:3:1: \x1b[1munknown key\n" {
		t.Errorf("logs: status %d, %q", code, a.out.String())
	}
}

func TestDaemonThatIsMissing(t *testing.T) {
	a := newTestApp(t)
	a.StartDaemon = nil
	t.Setenv("PATH", t.TempDir())
	if code := a.run("vm", "run", "--", "true"); code != 3 || !strings.Contains(a.err.String(), "neither beside banger nor in PATH") {
		t.Errorf("status %d, %q", code, a.err.String())
	}
	a.StartDaemon = func(context.Context) error { return nil }
	if code := a.run("vm", "list"); code != 3 || !strings.Contains(a.err.String(), "hint: banger daemon start") {
		t.Errorf("a daemon that is gone again: status %d, %q", code, a.err.String())
	}
}

// TestDaemonOfAnother: the daemon started here was not the first, and exits quietly.
func TestDaemonOfAnother(t *testing.T) {
	a := newTestApp(t)
	mark := filepath.Join(a.env["HOME"], "mark")
	installDaemon(t, a, "echo > "+mark+"\nexit 0\n")
	started := make(chan struct{})
	go func() {
		defer close(started)
		for {
			if _, err := os.Stat(mark); err == nil {
				startFake(t, a.env)
				return
			}
			runtime.Gosched()
		}
	}()
	if code := a.run("vm", "list", "-o", "name"); code != 0 {
		t.Errorf("status %d, %q", code, a.err.String())
	}
	<-started
}

func TestDaemonStartInterrupted(t *testing.T) {
	a := newTestApp(t)
	pid := filepath.Join(a.env["HOME"], "pid")
	installDaemon(t, a, "echo $$ > "+pid+".new; mv "+pid+".new "+pid+"; exec sleep 60\n")
	defer func() {
		var n int
		b, _ := os.ReadFile(pid)
		json.Unmarshal(bytes.TrimSpace(b), &n)
		if n > 1 {
			syscall.Kill(n, syscall.SIGKILL)
		}
	}()
	go func() {
		waitFor(t, func() bool { _, err := os.Stat(pid); return err == nil })
		a.interrupt()
	}()
	if code := a.run("vm", "list"); code != 130 {
		t.Errorf("status %d, %q", code, a.err.String())
	}
}

func TestDaemonLogs(t *testing.T) {
	a := newTestApp(t)
	if code := a.run("daemon", "logs"); code != 1 || !strings.Contains(a.err.String(), "there is none yet") {
		t.Errorf("without a log: status %d, %q", code, a.err.String())
	}
	log := filepath.Join(a.env["HOME"], ".local/state/banger/bangerd.log")
	if err := os.MkdirAll(filepath.Dir(log), 0o700); err != nil {
		t.Fatal(err)
	}
	out := &gateWriter{on: make(chan struct{}, 1)}
	a.Out = out
	done := make(chan int)
	go func() { done <- a.run("daemon", "logs", "-f") }()
	if err := os.WriteFile(log, []byte("one\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return out.String() == "one\n" })
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(log, []byte("two\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return out.String() == "one\ntwo\n" })
	a.interrupt()
	if code := <-done; code != 130 {
		t.Errorf("status %d", code)
	}
}

func TestSeekLines(t *testing.T) {
	long := strings.Repeat("x", 40<<10)
	for _, c := range []struct {
		text string
		n    int
		want string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 99, "a\nb\nc\n"},
		{"a\nb\n", 0, "a\nb\n"},
		{"", 5, ""},
		{"\n\n\n", 1, "\n"},
		{long + "\n" + long + "\nend\n", 2, long + "\nend\n"},
	} {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := seekLines(f, c.n); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		got.ReadFrom(f)
		f.Close()
		if got.String() != c.want {
			t.Errorf("the last %d lines of %.20q: %.20q (%d bytes)", c.n, c.text, got.String(), got.Len())
		}
	}
}

func TestConfig(t *testing.T) {
	a := newTestApp(t)
	path := filepath.Join(a.env["HOME"], ".config/banger/config.toml")
	if code := a.run("config", "path"); code != 0 || a.out.String() != path+"\n" {
		t.Errorf("status %d, %q", code, a.out.String())
	}
	var view api.ConfigView
	if code := a.run("config", "show", "-o", "json"); code != 0 || json.Unmarshal(a.out.Bytes(), &view) != nil || view.Exists || view.Path != path {
		t.Errorf("status %d, %s", code, a.out.String())
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("default_memory = \"3GiB\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := a.run("config", "show"); code != 0 || !strings.Contains(a.out.String(), "3GiB\n") || !strings.Contains(a.out.String(), "default_cpus:            2 (1 under emulation)\n") {
		t.Errorf("status %d, %s", code, a.out.String())
	}
	if err := os.WriteFile(path, []byte("defualt_memory = \"3GiB\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code := a.run("config", "show"); code != 1 || !strings.Contains(a.err.String(), "defualt_memory") {
		t.Errorf("a wrong key: status %d, %q", code, a.err.String())
	}
}

func TestEnvFile(t *testing.T) {
	a := newTestApp(t)
	a.env["HOSTS"] = "v"
	path := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(path, []byte("# comment\n\nA=1\r\n  B=x # y\nHOSTS\nNOT_SET\nA=2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := environment(a.App, []string{"B=flag"}, []string{path})
	if diff := cmp.Diff([]string{"HOSTS=v", "A=2", "B=flag"}, got); err != nil || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	if err := os.WriteFile(path, []byte("A=1\nb c=2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := environment(a.App, nil, []string{path}); err == nil || !strings.Contains(err.Error(), path+":2") {
		t.Errorf("%v", err)
	}
}

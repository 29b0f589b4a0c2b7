package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestUI(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	web := func(address, warning string) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.web = [2]string{address, warning}
	}
	web("127.0.0.1:7777", "")
	if code := a.run("ui"); code != 0 || a.out.String() != "http://localhost:7777/\n" || a.err.String() != "" {
		t.Errorf("status %d, %q %q", code, a.out.String(), a.err.String())
	}
	if a.run("daemon", "status"); !strings.Contains(a.out.String(), "web:            http://localhost:7777/\n") {
		t.Errorf("status says %s", a.out.String())
	}
	web("127.0.0.1:7778", "7777 is used by nginx (pid 12)")
	if code := a.run("ui"); code != 0 || a.out.String() != "http://localhost:7778/\n" || a.err.String() != "banger: 7777 is used by nginx (pid 12)\n" {
		t.Errorf("another port: status %d, %q %q", code, a.out.String(), a.err.String())
	}
	if a.run("daemon", "status"); a.err.String() != "banger: 7777 is used by nginx (pid 12)\n" {
		t.Errorf("status says %q", a.err.String())
	}
	web("", "")
	if code := a.run("ui"); code != 1 || a.out.String() != "" || !strings.Contains(a.err.String(), "serves no web pages\nhint: set web_listen_addr = \"127.0.0.1:7777\" in ") {
		t.Errorf("none: status %d, %q", code, a.err.String())
	}
	if a.run("daemon", "status"); !strings.Contains(a.out.String(), "web:            -\n") {
		t.Errorf("status says %s", a.out.String())
	}
	web("", "there are no web pages: no such address")
	if code := a.run("ui"); code != 1 || !strings.HasPrefix(a.err.String(), "banger: there are no web pages: no such address\nhint: ") {
		t.Errorf("failed: status %d, %q", code, a.err.String())
	}
}

func TestUIOpen(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.web[0] = "127.0.0.1:7777"
	dir := t.TempDir()
	prog, asked := filepath.Join(dir, opener), filepath.Join(dir, "asked")
	if err := os.WriteFile(prog, []byte("#!/bin/sh\necho \"$1\" >"+asked+".new && mv "+asked+".new "+asked+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	a.LookPath = func(name string) (string, error) {
		if name != opener {
			t.Errorf("looked for %q", name)
		}
		return prog, nil
	}
	if code := a.run("ui", "--open"); code != 0 || a.out.String() != "http://localhost:7777/\n" {
		t.Errorf("status %d, %q %q", code, a.out.String(), a.err.String())
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(30 * time.Second); ; {
		if b, err := os.ReadFile(asked); err == nil {
			if string(b) != "http://localhost:7777/\n" {
				t.Errorf("the browser was asked for %q", b)
			}
			break
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the browser was not asked")
		}
	}
	a.LookPath = func(string) (string, error) { return "", errors.New("not installed") }
	if code := a.run("ui", "--open"); code != 1 || a.out.String() != "http://localhost:7777/\n" || !strings.Contains(a.err.String(), "install xdg-utils") {
		t.Errorf("without xdg-open: status %d, %q %q", code, a.out.String(), a.err.String())
	}
}

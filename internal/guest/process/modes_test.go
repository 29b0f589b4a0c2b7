package process

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

func TestApplyModes(t *testing.T) {
	start := unix.Termios{Iflag: unix.IXON | unix.IUTF8, Lflag: unix.ECHO | unix.ISIG, Oflag: unix.OPOST, Cflag: unix.CS8 | unix.CREAD}
	start.Cc[unix.VINTR], start.Cc[unix.VEOF] = 3, 4
	for _, tc := range []struct {
		name  string
		modes string
		want  func(*unix.Termios)
	}{
		{"none", "", func(*unix.Termios) {}},
		{"off", "\x35\x00\x00\x00\x00\x26\x00\x00\x00\x00\x00", func(t *unix.Termios) { t.Lflag = unix.ISIG; t.Iflag = unix.IUTF8 }},
		{"on", "\x48\x00\x00\x00\x01", func(t *unix.Termios) { t.Oflag |= unix.ONLCR }},
		{"a character", "\x01\x00\x00\x00\x07", func(t *unix.Termios) { t.Cc[unix.VINTR] = 7 }},
		{"no character", "\x05\x00\x00\x00\xff", func(t *unix.Termios) { t.Cc[unix.VEOF] = 0 }},
		{"seven bits", "\x5a\x00\x00\x00\x01", func(t *unix.Termios) { t.Cflag = unix.CREAD | unix.CS7 }},
		{"not seven bits", "\x5a\x00\x00\x00\x00", func(*unix.Termios) {}},
		{"speed and unknown ones", "\x80\x00\x00\x25\x80\x1d\x00\x00\x00\x01", func(*unix.Termios) {}},
		{"after the end", "\x00\x01\x00\x00\x00\x07", func(*unix.Termios) {}},
		{"after one of unknown length", "\xa0\x00\x00\x00\x07\x01\x00\x00\x00\x07", func(*unix.Termios) {}},
		{"cut short", "\x01\x00\x00\x00\x07\x05\x00", func(t *unix.Termios) { t.Cc[unix.VINTR] = 7 }},
	} {
		got, want := start, start
		applyModes(&got, []byte(tc.modes))
		tc.want(&want)
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", tc.name, d)
		}
	}
}

func TestTooManyModes(t *testing.T) {
	m := newManager(t, Config{})
	req := request(1, "true")
	req.PTY, req.Modes = true, make([]byte, wire.MaxModes+1)
	if _, err := m.Start(req); err == nil {
		t.Error("started")
	}
}

func TestAccount(t *testing.T) {
	etc := t.TempDir()
	for name, text := range map[string]string{
		"passwd": "dev:x:1000:1000::/home/dev:/bin/sh\n1001:x:7:7::/:/bin/sh\nbare:x:5:5:::\n",
		"group":  "dev:x:1000:\nwheel:x:10:dev\n",
	} {
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := newManager(t, Config{EtcDir: etc})
	for name, want := range map[string]*Account{
		"dev":                      {Name: "dev", UID: 1000, GID: 1000, Groups: []uint32{10}, Home: "/home/dev", Shell: "/bin/sh"},
		"bare":                     {Name: "bare", UID: 5, GID: 5, Home: "/", Shell: "/bin/sh"},
		"1001":                     {Name: "1001", UID: 7, GID: 7, Home: "/", Shell: "/bin/sh"},
		"root":                     {Name: "root", Home: "/root", Shell: "/bin/sh"},
		"1000":                     nil, // a number stands for nobody
		"54321":                    nil,
		"":                         nil,
		"dev:wheel":                nil,
		"nobody":                   nil,
		strings.Repeat("x", 1<<17): nil,
	} {
		got, err := m.Account(name)
		switch {
		case want == nil && err == nil:
			t.Errorf("%.20q is %+v", name, got)
		case want != nil && err != nil:
			t.Errorf("%q: %v", name, err)
		case want != nil:
			if d := cmp.Diff(*want, got, cmpopts.EquateEmpty()); d != "" {
				t.Errorf("%q: %s", name, d)
			}
		}
	}
}

// FuzzModes: no list of modes breaks a terminal's description, and what follows its end changes nothing.
func FuzzModes(f *testing.F) {
	f.Add([]byte("\x35\x00\x00\x00\x00\x01\x00\x00\x00\x07\x00"))
	f.Add([]byte("\x5a\x00\x00\x00\x01\xa0"))
	f.Fuzz(func(t *testing.T, modes []byte) {
		var a, b unix.Termios
		applyModes(&a, modes)
		applyModes(&b, append(modes[:len(modes)-len(modes)%5:len(modes)-len(modes)%5], 0, 1, 0, 0, 0, 99))
		if a != b {
			t.Errorf("%x: %+v, with an end %+v", modes, a, b)
		}
	})
}

package sshd

import (
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// FuzzPayloads: whatever a request or a channel carries is refused, or within what was promised.
func FuzzPayloads(f *testing.F) {
	f.Add([]byte(ssh.Marshal(struct {
		Term       string
		C, R, W, H uint32
		Modes      string
	}{"vt100", 80, 24, 0, 0, "\x03\x00\x00\x00\x7f\x00"})))
	f.Add(direct("localhost", 22))
	f.Add(directPath("/run/s"))
	f.Add(bind("*", 65535))
	f.Add(ssh.Marshal(struct{ K, V string }{"LANG", "C.UTF-8"}))
	f.Add(ssh.Marshal(struct{ S string }{"TERM"}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		if p, err := parsePTY(payload); err == nil && (len(p.term) > maxTerm || strings.ContainsAny(p.term, "\x00 \n") || len(p.modes) > 1024) {
			t.Errorf("terminal %+v", p)
		}
		if s, err := parseSize(payload); err == nil && (s.Rows > maxSize || s.Cols > maxSize) {
			t.Errorf("size %+v", s)
		}
		if kv, err := parseEnv(payload); err == nil && (strings.IndexByte(kv, '=') < 1 || strings.ContainsRune(kv, 0)) {
			t.Errorf("variable %q", kv)
		}
		if c, err := parseCommand(payload); err == nil && strings.ContainsRune(c, 0) {
			t.Errorf("command %q", c)
		}
		if s, err := parseSignal(payload); err == nil && (s == "" || len(s) > 16) {
			t.Errorf("signal %q", s)
		}
		if host, port, err := parseDirect(payload); err == nil && (port == 0 || strings.ContainsAny(host, "\x00 \n")) {
			t.Errorf("target %q %d", host, port)
		}
		if addr, _, err := parseForward(payload); err == nil && strings.ContainsAny(addr, "\x00 \n") {
			t.Errorf("address %q", addr)
		}
		for _, parse := range []func([]byte) (string, error){parseSocketPath, parseDirectPath} {
			if p, err := parse(payload); err == nil && (p[0] != '/' || len(p) > 107 || strings.ContainsRune(p, 0)) {
				t.Errorf("path %q", p)
			}
		}
	})
}

// FuzzGreeting: the protocol holds whatever the build was called.
func FuzzGreeting(f *testing.F) {
	f.Add("1.2.3-4+g5 (dirty)")
	f.Fuzz(func(t *testing.T, version string) {
		g := strings.TrimPrefix(greeting(version), "SSH-2.0-")
		if len(g) > 200 || strings.IndexFunc(g, func(r rune) bool { return r <= ' ' || r > '~' || r == '-' }) >= 0 {
			t.Errorf("greeting %q", g)
		}
	})
}

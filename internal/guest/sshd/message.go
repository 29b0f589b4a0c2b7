package sshd

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Limits of what a client may ask for.
const (
	maxEnv      = 128      // variables of a session
	maxEnvBytes = 32 << 10 // of all of them
	maxTerm     = 128      // bytes of TERM
	maxSize     = 1 << 15  // rows or columns of a terminal
	maxCommand  = 1 << 17  // bytes of a command: what the kernel takes as one argument
)

// errPayload refuses a request whose payload says nothing sensible.
var errPayload = errors.New("payload out of range")

// terminal is what a pty-req asks for.
type terminal struct {
	term  string
	size  exec.Size
	modes []byte
}

// parsePTY reads a pty-req, RFC 4254 section 6.2.
func parsePTY(payload []byte) (terminal, error) {
	var m struct {
		Term          string
		Cols, Rows    uint32
		Width, Height uint32
		Modes         string
	}
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return terminal{}, err
	}
	if len(m.Term) > maxTerm || !printable(m.Term) || len(m.Modes) > wire.MaxModes {
		return terminal{}, errPayload
	}
	return terminal{term: m.Term, size: size(m.Rows, m.Cols), modes: []byte(m.Modes)}, nil
}

// parseSize reads a window-change, RFC 4254 section 6.7.
func parseSize(payload []byte) (exec.Size, error) {
	var m struct{ Cols, Rows, Width, Height uint32 }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return exec.Size{}, err
	}
	return size(m.Rows, m.Cols), nil
}

// size cuts what a terminal cannot have; 0 stands for what the client does not know.
func size(rows, cols uint32) exec.Size {
	return exec.Size{Rows: uint16(min(rows, maxSize)), Cols: uint16(min(cols, maxSize))}
}

// parseEnv reads an env, RFC 4254 section 6.4, as KEY=VALUE.
func parseEnv(payload []byte) (string, error) {
	var m struct{ Name, Value string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", err
	}
	if m.Name == "" || strings.ContainsAny(m.Name, "=\x00") || strings.ContainsRune(m.Value, 0) {
		return "", errPayload
	}
	return m.Name + "=" + m.Value, nil
}

// addEnv adds a variable to those a session has, unless they would be too many.
func addEnv(env []string, kv string) ([]string, error) {
	total := len(kv)
	for _, have := range env {
		total += len(have)
	}
	if len(env) >= maxEnv || total > maxEnvBytes {
		return env, errPayload
	}
	return append(env, kv), nil
}

// parseCommand reads the command of an exec or the name of a subsystem.
func parseCommand(payload []byte) (string, error) {
	var m struct{ Command string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", err
	}
	if len(m.Command) > maxCommand || strings.ContainsRune(m.Command, 0) {
		return "", errPayload
	}
	return m.Command, nil
}

// parseSignal reads a signal, RFC 4254 section 6.9: a name that this kernel knows, without SIG.
func parseSignal(payload []byte) (string, error) {
	var m struct{ Name string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", err
	}
	if len(m.Name) > 16 || unix.SignalNum("SIG"+m.Name) == 0 {
		return "", errPayload
	}
	return m.Name, nil
}

// parseDirect reads the target of a direct-tcpip channel, RFC 4254 section 7.2.
func parseDirect(payload []byte) (host string, port uint16, err error) {
	var m struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", 0, err
	}
	if m.Port == 0 || m.Port > 65535 || len(m.Host) > 255 || !printable(m.Host) {
		return "", 0, errPayload
	}
	return m.Host, uint16(m.Port), nil
}

// parseForward reads what a tcpip-forward or its cancellation names, RFC 4254 section 7.1.
func parseForward(payload []byte) (addr string, port uint16, err error) {
	var m struct {
		Addr string
		Port uint32
	}
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", 0, err
	}
	if m.Port > 65535 || len(m.Addr) > 255 || !printable(m.Addr) {
		return "", 0, errPayload
	}
	return m.Addr, uint16(m.Port), nil
}

// parseSocketPath reads the path of a streamlocal-forward@openssh.com or its cancellation.
func parseSocketPath(payload []byte) (string, error) {
	var m struct{ Path string }
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", err
	}
	return socketPath(m.Path)
}

// parseDirectPath reads the path of a direct-streamlocal@openssh.com channel.
func parseDirectPath(payload []byte) (string, error) {
	var m struct {
		Path      string
		Reserved  string
		Reserved2 uint32
	}
	if err := ssh.Unmarshal(payload, &m); err != nil {
		return "", err
	}
	return socketPath(m.Path)
}

// socketPath checks that path can name a socket. One that begins with an @ would be none of the file system.
func socketPath(path string) (string, error) {
	if !strings.HasPrefix(path, "/") || strings.ContainsRune(path, 0) || len(path) >= len(unix.RawSockaddrUnix{}.Path) {
		return "", fmt.Errorf("%.128q is no path of a socket", path)
	}
	return path, nil
}

// printable tells whether s is visible ASCII.
func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// rfcSignals are the names RFC 4254 section 6.10 has; others need a domain.
var rfcSignals = []string{"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"}

// exitRequest is the request that says how a process ended.
func exitRequest(exit wire.ExecExit) (name string, payload []byte) {
	if exit.Signal == "" {
		return "exit-status", ssh.Marshal(struct{ Status uint32 }{uint32(exit.Status)})
	}
	signal := exit.Signal
	if !slices.Contains(rfcSignals, signal) {
		signal += "@openssh.com"
	}
	return "exit-signal", ssh.Marshal(struct {
		Signal        string
		Core          bool
		Message, Lang string
	}{Signal: signal})
}

// forwardKey names a forward of a connection.
func forwardKey(addr string, port uint16) string { return addr + ":" + strconv.Itoa(int(port)) }

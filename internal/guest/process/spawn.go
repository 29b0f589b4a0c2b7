package process

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// stdio are the descriptors of a new process: the child's raw, ours registered with the poller.
type stdio struct {
	pty                   bool
	child                 [3]int
	stdin, stdout, stderr *os.File // stdin may be nil; with a terminal stdout is stdin, and stderr nil
}

// openStdio opens pipes or a terminal as req asks.
func openStdio(req *wire.ExecStart, user account) (*stdio, error) {
	s := &stdio{child: [3]int{-1, -1, -1}}
	var err error
	switch {
	case req.PTY:
		err = s.openPTY(req, user)
	case req.NoStdin || req.Detach:
		s.child[0], err = unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	default:
		s.child[0], s.stdin, err = openPipe(1)
	}
	if err == nil && !req.PTY {
		s.child[1], s.stdout, err = openPipe(0)
	}
	if err == nil && !req.PTY {
		s.child[2], s.stderr, err = openPipe(0)
	}
	if err != nil {
		s.closeChild()
		s.closeParent()
		return nil, err
	}
	return s, nil
}

// openPipe makes a pipe of which we keep end number ours.
func openPipe(ours int) (child int, parent *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return -1, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		_ = unix.Close(fds[0])
		_ = unix.Close(fds[1])
		return -1, nil, os.NewSyscallError("fcntl", err)
	}
	return fds[1-ours], os.NewFile(uintptr(fds[ours]), "pipe"), nil
}

// openPTY opens a terminal. It does not use a path for the child's end, so that it works in any mount namespace.
func (s *stdio) openPTY(req *wire.ExecStart, user account) error {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	s.pty = true
	s.stdout = os.NewFile(uintptr(master), "/dev/ptmx")
	s.stdin = s.stdout
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return os.NewSyscallError("unlock terminal", err)
	}
	slave, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return os.NewSyscallError("open terminal", errno)
	}
	return s.setUpPTY(master, int(slave), req, user)
}

// setUpPTY gives the child's end of a terminal its size, mode and owner.
func (s *stdio) setUpPTY(master, slave int, req *wire.ExecStart, user account) error {
	s.child = [3]int{slave, slave, slave}
	if req.Rows > 0 && req.Cols > 0 {
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: req.Rows, Col: req.Cols}); err != nil {
			return os.NewSyscallError("set terminal size", err)
		}
	}
	if t, err := unix.IoctlGetTermios(slave, unix.TCGETS); err == nil {
		t.Iflag |= unix.IUTF8
		applyModes(t, req.Modes)
		_ = unix.IoctlSetTermios(slave, unix.TCSETS, t)
	}
	if int(user.uid) != os.Geteuid() {
		if err := unix.Fchown(slave, int(user.uid), -1); err != nil {
			return os.NewSyscallError("give terminal away", err)
		}
	}
	return nil
}

// resize sets the size of a terminal.
func (s *stdio) resize(rows, cols uint16) {
	if !s.pty || rows == 0 || cols == 0 {
		return
	}
	control(s.stdout, func(fd int) {
		_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
	})
}

// eofBytes are what ends the input of a terminal that waits for a line; none in raw mode.
func (s *stdio) eofBytes() (eof []byte) {
	control(s.stdout, func(fd int) {
		if t, err := unix.IoctlGetTermios(fd, unix.TCGETS); err == nil && t.Lflag&unix.ICANON != 0 {
			eof = []byte{t.Cc[unix.VEOF]}
		}
	})
	return eof
}

// control calls f with the descriptor of file, unless it is closed; Fd would make it blocking.
func control(file *os.File, f func(fd int)) {
	if rc, err := file.SyscallConn(); err == nil {
		_ = rc.Control(func(fd uintptr) { f(int(fd)) })
	}
}

func (s *stdio) closeChild() {
	for i, fd := range s.child {
		if fd >= 0 && !slices.Contains(s.child[:i], fd) {
			_ = unix.Close(fd)
		}
	}
	s.child = [3]int{-1, -1, -1}
}

func (s *stdio) closeParent() { closeAll(s.stdin, s.stdout, s.stderr) }

// spawn starts the first candidate that can be executed.
func (c *command) spawn(io *stdio) (pid int, xerr *wire.ExecError) {
	attr := &syscall.ProcAttr{Dir: c.dir, Env: c.env, Sys: &syscall.SysProcAttr{Setsid: true, Setctty: io.pty}}
	for _, fd := range io.child {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	if euid := os.Geteuid(); int(c.user.uid) != euid || (euid == 0 && (c.user.gid != 0 || len(c.user.groups) > 0)) {
		attr.Sys.Credential = &syscall.Credential{Uid: c.user.uid, Gid: c.user.gid, Groups: c.user.groups}
	}
	var last error
	for _, file := range c.files {
		pid, err := forkExec(file, c.argv, attr)
		if errors.Is(err, syscall.ENOEXEC) {
			// As execvp does: a script without an interpreter line is the shell's.
			if isScript(file) {
				pid, err = forkExec("/bin/sh", slices.Concat([]string{"sh", file}, c.argv[1:]), attr)
			}
		}
		if err == nil {
			return pid, nil
		}
		last = err
		if !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENOENT) {
			break
		}
	}
	return 0, c.explain(last)
}

// forkExec retries while another thread of ours holds a descriptor that was just written, as
// golang.org/issue/22315 describes.
func forkExec(file string, argv []string, attr *syscall.ProcAttr) (pid int, err error) {
	for range 3 {
		pid, err = syscall.ForkExec(file, argv, attr)
		if !errors.Is(err, syscall.ETXTBSY) && !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	return pid, err
}

// explain says why the last candidate did not run, in a shell's words and classes.
func (c *command) explain(err error) *wire.ExecError {
	name, file := c.argv[0], c.files[len(c.files)-1]
	switch {
	case errors.Is(err, syscall.ENOENT):
		if _, statErr := os.Stat(file); statErr != nil {
			return wire.ExecErrorf(wire.ExecNotFound, "%s: no such file or directory", name)
		}
		if in := interpreter(file); in != "" {
			return wire.ExecErrorf(wire.ExecNotExecutable, "%s: its interpreter %q is not there", name, in)
		}
		return wire.ExecErrorf(wire.ExecNotExecutable, "%s: its program interpreter is not there", name)
	case errors.Is(err, syscall.ENOTDIR):
		return wire.ExecErrorf(wire.ExecNotFound, "%s: %v", name, err)
	case errors.Is(err, syscall.EACCES):
		if st, statErr := os.Stat(file); statErr == nil && st.IsDir() {
			return wire.ExecErrorf(wire.ExecNotExecutable, "%s: is a directory", name)
		}
		return wire.ExecErrorf(wire.ExecNotExecutable, "%s: permission denied", name)
	case errors.Is(err, syscall.EPERM) && int(c.user.uid) != os.Geteuid():
		return wire.ExecErrorf(wire.ExecBadUser, "become user %q: %v", c.user.name, err)
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return wire.ExecErrorf(wire.ExecFailed, "start %s: %v", name, err)
	}
	return wire.ExecErrorf(wire.ExecNotExecutable, "%s: %v", name, err)
}

// interpreter is what the first line of a script names, empty for anything else.
func interpreter(file string) string {
	line, ok := strings.CutPrefix(head(file), "#!")
	if !ok {
		return ""
	}
	line, _, _ = strings.Cut(line, "\n")
	if f := strings.Fields(line); len(f) > 0 {
		return f[0]
	}
	return ""
}

// isScript tells whether a file could be a shell script: text in its first line.
func isScript(file string) bool {
	line, _, _ := strings.Cut(head(file), "\n")
	return !strings.ContainsRune(line, 0)
}

// head is the first 256 bytes of a file, as many as the kernel looks at.
func head(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, 256)
	n, _ := f.Read(buf)
	return string(buf[:n])
}

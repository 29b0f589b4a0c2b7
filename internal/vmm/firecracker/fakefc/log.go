package fakefc

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// logger is Firecracker's log: on stdout, unless --log-path says otherwise. Like the real one it never waits: what has no room is lost.
type logger struct {
	mu        sync.Mutex // guards what follows
	fd        int
	id        string
	level     int
	showLevel bool
}

// openLog opens path as Firecracker does: for reading as well, so that a named pipe needs no reader.
func openLog(path string) (int, error) {
	return unix.Open(path, unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o644)
}

func (l *logger) write(level int, name, thread, format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if level > l.level {
		return
	}
	where := l.id + ":" + thread
	if l.showLevel {
		where += ":" + name
	}
	line := fmt.Sprintf("%s [%s] %s\n", time.Now().Format("2006-01-02T15:04:05.000000000"), where, fmt.Sprintf(format, args...))
	_, _ = unix.Write(l.fd, []byte(line))
}

func (l *logger) errorf(format string, args ...any) { l.write(1, "ERROR", "main", format, args...) }
func (l *logger) infof(format string, args ...any)  { l.write(3, "INFO", "main", format, args...) }
func (l *logger) apif(format string, args ...any)   { l.write(3, "INFO", "fc_api", format, args...) }

// tripleFault says what Firecracker says of a CPU that gave up, and of its own end, which that is.
func (l *logger) tripleFault() {
	l.write(1, "ERROR", "fc_vcpu 0", "Unexpected exit reason on vcpu run: Shutdown")
	l.errorf("RunWithApiError error: MicroVM stopped with an error: GenericError")
}

// console is the guest's serial port: standard output, which Firecracker makes non-blocking.
type console struct{ fd int }

// patience is for a reader that is behind, in milliseconds: the guest's CPU is not faster than this.
const patience = 10

// Write implements io.Writer. What the reader has no room for is lost.
func (c console) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		n, err := unix.Write(c.fd, rest)
		switch {
		case err == nil:
			rest = rest[n:]
		case errors.Is(err, unix.EAGAIN):
			ready, perr := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLOUT}}, patience)
			if ready == 0 || perr != nil && !errors.Is(perr, unix.EINTR) {
				return len(p), nil
			}
		case !errors.Is(err, unix.EINTR):
			return 0, err
		}
	}
	return len(p), nil
}

// osErrors are the texts of errors as the C library says them that Firecracker is built with (musl).
var osErrors = map[unix.Errno]string{
	unix.EPERM: "Operation not permitted", unix.ENOENT: "No such file or directory", unix.EIO: "I/O error",
	unix.ENXIO: "No such device or address", unix.EACCES: "Permission denied", unix.EBUSY: "Resource busy", unix.EEXIST: "File exists",
	unix.ENODEV: "No such device", unix.ENOTDIR: "Not a directory", unix.EISDIR: "Is a directory", unix.EINVAL: "Invalid argument",
	unix.ENOSPC: "No space left on device", unix.EROFS: "Read-only file system", unix.EADDRINUSE: "Address in use",
	unix.ENAMETOOLONG: "Filename too long", unix.ELOOP: "Symbolic link loop", unix.ENOMEM: "Out of memory",
}

// osError is err in the words of Rust's standard library.
func osError(err error) string {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return err.Error()
	}
	text := osErrors[errno]
	if text == "" {
		text = errno.Error()
	}
	return fmt.Sprintf("%s (os error %d)", text, int(errno))
}

// violation notes that banger did what a real Firecracker would not have taken, or would have passed over in silence.
func violation(format string, args ...any) {
	f, err := os.OpenFile(ViolationFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakefc:", err)
		return
	}
	defer f.Close()
	fmt.Fprintf(f, format+"\n", args...)
	fmt.Fprintf(os.Stderr, "fakefc: violation: "+format+"\n", args...)
}

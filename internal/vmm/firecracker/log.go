package firecracker

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/paths"
)

const (
	// maxLine bounds a line of the log, in bytes.
	maxLine = 8 << 10
	// drainTime is how long after its end the log of a Firecracker may take to be read.
	drainTime = time.Second
)

// logPipe is the named pipe that is Firecracker's log: a file would grow without bounds, and on stdout it would be mixed
// with the guest's console.
type logPipe struct {
	to      io.Writer
	onError func(line string) // called with what looks like an error of a drive

	r, w *os.File
	done chan struct{}

	mu    sync.Mutex // guards what follows
	last  string     // the last line that says what went wrong
	more  bool       // it is the last line of all, so that one without a stamp belongs to it
	final bool       // nothing that comes later says more
}

// openLog makes the pipe in dir and copies what comes to to.
func openLog(dir string, to io.Writer, onError func(string)) (*logPipe, error) {
	name := filepath.Join(dir, paths.VMFirecrackerLog)
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("start firecracker: %w", err)
	}
	if err := unix.Mkfifo(name, 0o600); err != nil {
		return nil, fmt.Errorf("start firecracker: %w", &os.PathError{Op: "mkfifo", Path: name, Err: err})
	}
	l := &logPipe{to: to, onError: onError, done: make(chan struct{})}
	var err error
	if l.r, err = os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		return nil, fmt.Errorf("start firecracker: %w", err)
	}
	// Without a writer the pipe would be at its end before Firecracker has opened it.
	if l.w, err = os.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
		l.r.Close()
		return nil, fmt.Errorf("start firecracker: %w", err)
	}
	go l.read()
	return l, nil
}

func (l *logPipe) read() {
	defer close(l.done)
	r := bufio.NewReaderSize(l.r, maxLine)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 {
			_, _ = l.to.Write(line)
			l.note(string(line))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

// diskFault is how Firecracker logs a request of the guest to a drive that failed (src/vmm/src/devices/virtio/block).
var diskFault = regexp.MustCompile(`Failed to execute (\w+) virtio block request: .*code: (\d+)`)

// diskNote tells the user of a request of the guest that failed: In reads, Out writes.
func diskNote(request string, errno unix.Errno) string {
	what := map[string]string{"In": "read", "Out": "write"}[request]
	if what == "" {
		what = strings.ToLower(request)
	}
	note := fmt.Sprintf("a drive: %s (the guest's %s failed)", errno.Error(), what)
	if errno == unix.ENOSPC || errno == unix.EDQUOT {
		note += "; make room on the host's disk, then restart the VM"
	}
	return note
}

// saysWhy are lines that tell what went wrong, in contrast to those that tell that something did.
var saysWhy = regexp.MustCompile(`(?i)error|failed|panicked|bad syscall|intercepting signal`)

// cpuEnded is how Firecracker logs why it takes no more of a CPU of the guest (src/vmm/src/vstate/vcpu.rs): that is its end, of which
// the lines that follow only tell.
var cpuEnded = regexp.MustCompile(`Unexpected (exit reason on vcpu run|kvm exit received)|Received (KVM_|ENOSYS )|Failure during vcpu run`)

func (l *logPipe) note(line string) {
	line = strings.TrimSpace(line)
	if m := diskFault.FindStringSubmatch(line); m != nil {
		var code int
		_, _ = fmt.Sscan(m[2], &code)
		l.onError(diskNote(m[1], unix.Errno(code)))
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more && !stamp.MatchString(line) { // a panic says on its second line what it is about
		l.last = strings.TrimSpace(printable(l.last + " " + line))
		return
	}
	final := cpuEnded.MatchString(line)
	l.more = !l.final && (final || saysWhy.MatchString(line) && !strings.Contains(line, "Firecracker exiting with error"))
	if l.more {
		l.last, l.final = printable(withoutStamp(line)), final
	}
}

// stamp is the head of a line: 2025-12-12T06:25:31.546104303 [id:main]
var stamp = regexp.MustCompile(`^\d{4}-\d\d-\d\dT[\d:.]+ \[[^\]]*\] `)

func withoutStamp(line string) string { return stamp.ReplaceAllString(line, "") }

// why is the line that says what went wrong, the last one where there are several; empty where none does.
func (l *logPipe) why() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// started is called when Firecracker has opened the pipe: it ends with Firecracker from here on.
func (l *logPipe) started() { _ = l.w.Close() }

// close returns when all that Firecracker wrote has been read. Firecracker is gone.
func (l *logPipe) close() {
	_ = l.w.Close()
	_ = l.r.SetReadDeadline(time.Now().Add(drainTime))
	<-l.done
	_ = l.r.Close()
}

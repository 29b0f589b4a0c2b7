package agent

import (
	"context"
	"fmt"
	"net"
	"os"

	"git.thaloco.com/thaloco/banger/internal/guest/session"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// sessionsDir is where sessions are kept on the data drive: beside the overlay's upper, where no image sees it. The host reads
// it there when the VM does not run.
const sessionsDir = wire.SessionsDir

// openSessions finds the sessions of earlier boots and gets ready for those of this one. A guest in which that fails has none.
func (a *agent) openSessions() {
	dir, err := openDataDir(a.data, sessionsDir)
	if err == nil {
		a.sessions, err = session.New(session.Config{Dir: dir, Processes: a.procs, Log: a.log})
	}
	if err != nil {
		a.log.Error("there are no sessions in this guest", "error", err)
	}
}

// openDataDir opens a directory of the data drive, making it where it is not there.
func openDataDir(data *os.File, name string) (*os.Root, error) {
	// The link leads to the drive's own mount, whatever the root of this process is by now.
	root, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", data.Fd()))
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := root.MkdirAll(name, 0o700); err != nil {
		return nil, err
	}
	return root.OpenRoot(name)
}

// serveSession serves an attachment to a session.
func (a *agent) serveSession(ctx context.Context, req wire.ExecAttach, conn net.Conn, fr *wire.FrameReader) error {
	if a.sessions == nil {
		return wire.ExecErrorf(wire.ExecFailed, "there are no sessions in this guest")
	}
	return a.sessions.Serve(ctx, req, conn, fr)
}

package agent

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// controlSocket is where the agent hears from PID 1. It has no place in a file system: at the end, when it
// matters, systemd has taken those away.
const controlSocket = "@banger-agent-control"

// controlTimeout is how long an end may take before PID 1 ends the machine itself.
const controlTimeout = announceTimeout + quietTimeout + 2*time.Second

// listenControl opens the control socket; it must be there before the image's init starts.
func listenControl(name string) (*net.UnixListener, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: name, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the control socket: %w", err)
	}
	return l, nil
}

// serveControl does what root tells it to: a line with the verb of an end. end does not return if all goes well.
func serveControl(l *net.UnixListener, end func(verb string) error) error {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if !fromRoot(conn) {
				return
			}
			_ = conn.SetReadDeadline(time.Now().Add(time.Second))
			line, err := bufio.NewReaderSize(conn, 64).ReadSlice('\n')
			verb := strings.TrimSpace(string(line))
			if err != nil || !validVerb(verb) {
				return
			}
			if err := end(verb); err != nil {
				fmt.Fprintln(conn, err)
			}
		}()
	}
}

// fromRoot tells whether the peer is a process of root.
func fromRoot(conn *net.UnixConn) bool {
	raw, err := conn.SyscallConn()
	if err != nil {
		return false
	}
	root := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		root = err == nil && cred.Uid == 0
	})
	return err == nil && root
}

// tellAgent has the agent end the machine. It returns only where that did not work.
func tellAgent(ctx context.Context, name, verb string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", name)
	if err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, verb); err != nil {
		return fmt.Errorf("tell the agent: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetReadDeadline(deadline)
	}
	why, err := bufio.NewReader(conn).ReadString('\n')
	if why = strings.TrimSpace(why); why != "" {
		return fmt.Errorf("the agent could not end the machine: %s", why)
	}
	return fmt.Errorf("the agent did not end the machine: %w", err)
}

package supervise

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"golang.org/x/sys/unix"
)

// ProtocolVersion is the version of the protocol on control.sock: one line of JSON from the client, a request; then
// one line from the supervisor, a reply, and the end of the connection. Only the answer to opWatch is a reply at every change of the
// status until the VM has ended; that to opLink is followed by a newline with a descriptor, and the connection
// stays open for as long as the client may use it. opVersion and opKill are understood in every version.
const ProtocolVersion = 1

// Limits of lines, newline included, in bytes.
const (
	maxRequest = 4 << 10
	maxReply   = 64 << 10
)

// Operations of a request.
const (
	opVersion = "version"
	opWatch   = "watch"
	opPause   = "pause"
	opResume  = "resume"
	opResize  = "resize"
	opKill    = "kill"
	opLink    = "link"

	opSnapshot = "snapshot"
	opBalloon  = "balloon"
)

type request struct {
	Version int    `json:"version"`
	Op      string `json:"op"`
	// Drive is opResize's.
	Drive string `json:"drive,omitempty"`
	// Dir is opSnapshot's, MiB opBalloon's.
	Dir string `json:"dir,omitempty"`
	MiB int    `json:"mib,omitempty"`
}

type reply struct {
	Version int         `json:"version"`
	Error   *api.Error  `json:"error,omitempty"`
	Status  *vmm.Status `json:"status,omitempty"`
}

var errLineTooLong = errors.New("line too long")

// readLine reads a line of at most limit bytes, without its newline.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > limit:
			return nil, errLineTooLong
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, io.EOF) && len(line) > 0:
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// readMessage reads one line of JSON.
func readMessage(r *bufio.Reader, limit int, v any) error {
	line, err := readLine(r, limit)
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// writeMessage writes v as one line of JSON.
func writeMessage(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// checkPeer refuses who is neither this user nor root.
func checkPeer(conn *net.UnixConn) error { return checkPeerOr(conn, os.Geteuid()) }

// checkPeerOr refuses who is neither the user also, nor this one, nor root.
func checkPeerOr(conn *net.UnixConn, also int) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, credErr); err != nil {
		return err
	}
	if uid := int(cred.Uid); uid != 0 && uid != os.Geteuid() && uid != also {
		return fmt.Errorf("refused user %d", uid)
	}
	return nil
}

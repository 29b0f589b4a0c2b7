package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// maxReply bounds the JSON of one answer, in bytes.
const maxReply = 64 << 20

// maxSocketPath is the longest path that fits sockaddr_un with its final NUL.
const maxSocketPath = 107

// none is the result of a call that answers without a body.
type none struct{}

// call sends one request and decodes its answer. A nil body sends none; an answer without a body
// leaves the zero T.
func call[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	var out T
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	return decode[T](resp)
}

// callAny is call for the few routes that every version of the API has: where the daemon speaks
// another version, the request is repeated in that one.
func callAny[T any](ctx context.Context, c *Client, method, path string, body any) (T, error) {
	out, err := call[T](ctx, c, method, path, body)
	var ve *versionError
	if !errors.As(err, &ve) || ve.daemon == 0 {
		return out, err
	}
	req, err := c.request(ctx, method, path, body, ve.daemon)
	if err != nil {
		return out, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return out, c.transportError(req.Context(), err)
	}
	if resp.StatusCode >= 300 {
		return out, replyError(resp)
	}
	return decode[T](resp)
}

func decode[T any](resp *http.Response) (T, error) {
	var out T
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusNoContent {
		return out, nil
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return out, fmt.Errorf("read the daemon's answer: %w", err)
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(data, &out); err != nil {
		return out, fmt.Errorf("read the daemon's answer to %s %s: %w", resp.Request.Method, resp.Request.URL.Path, err)
	}
	return out, nil
}

// send sends a request and returns its answer where the versions agree and the status is a success;
// the caller closes its body.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	ask := func() (*http.Response, error) { return c.roundTrip(ctx, method, path, body, api.Version) }
	if method == http.MethodGet {
		once := ask
		ask = func() (*http.Response, error) { return insist(ctx, once) }
	}
	resp, err := ask()
	if err != nil {
		return nil, err
	}
	if err := c.check(resp); err != nil {
		return nil, err
	}
	return resp, nil
}

// A daemon that dies takes connections until the very end and closes them: what only asks is asked again, this often and
// after this pause, until it is answered or nobody listens.
const (
	closedTries = 20
	closedPause = 50 * time.Millisecond
)

// insist asks again for as long as the connection is closed without an answer.
func insist[T any](ctx context.Context, ask func() (T, error)) (T, error) {
	out, err := ask()
	for try := 1; try < closedTries && errors.Is(err, errClosed); try++ {
		select {
		case <-ctx.Done():
			return out, context.Cause(ctx)
		case <-time.After(closedPause):
		}
		out, err = ask()
	}
	return out, err
}

// errClosed says that a connection ended before an answer came.
var errClosed = fmt.Errorf("%w: it closed the connection", ErrNoDaemon)

func (c *Client) roundTrip(ctx context.Context, method, path string, body any, version int) (*http.Response, error) {
	req, err := c.request(ctx, method, path, body, version)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, err)
	}
	return resp, nil
}

func (c *Client) request(ctx context.Context, method, path string, body any, version int) (*http.Request, error) {
	var r io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("encode the request %s %s: %w", method, path, err)
		}
		r = bytes.NewReader(data)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://banger/v1"+path, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set(api.HeaderAPIVersion, strconv.Itoa(version))
	req.Header.Set(api.HeaderBuildVersion, c.build)
	return req, nil
}

// check returns the error of an answer: another API version, or a status that is no success. It
// closes the body where it returns one.
func (c *Client) check(resp *http.Response) error {
	if err := c.checkVersion(resp.Header); err != nil {
		resp.Body.Close()
		return err
	}
	if resp.StatusCode >= 300 {
		return replyError(resp)
	}
	return nil
}

// versionError is a daemon of another API version; daemon is 0 where it named none.
type versionError struct {
	err    *api.Error
	daemon int
}

func (e *versionError) Error() string { return e.err.Error() }
func (e *versionError) Unwrap() error { return e.err }

func (c *Client) checkVersion(h http.Header) error {
	v, err := strconv.Atoi(h.Get(api.HeaderAPIVersion))
	if err == nil && v == api.Version {
		return nil
	}
	theirs := "an unknown API version"
	if err == nil {
		theirs = fmt.Sprintf("API version %d", v)
	}
	if b := h.Get(api.HeaderBuildVersion); b != "" {
		theirs += " (bangerd " + b + ")"
	}
	e := api.Errorf(api.KindVersion, "talk to the daemon: it speaks %s, this banger %s speaks %d", theirs, c.build, api.Version).
		WithHint("stop the daemon, the next command starts the right one and VMs go on: banger daemon stop")
	return &versionError{err: e, daemon: max(v, 0)}
}

// replyError reads the error out of an answer and closes its body.
func replyError(resp *http.Response) error {
	defer resp.Body.Close()
	// A connection that breaks behind the error, as one may whose request was still being sent, does not take it away.
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	var reply api.ErrorReply
	if json.Unmarshal(data, &reply) == nil && reply.Error != nil && reply.Error.Message != "" {
		return reply.Error
	}
	return api.Errorf(api.KindInternal, "the daemon answered %s %s with %s", resp.Request.Method, resp.Request.URL.Path, resp.Status)
}

// transportError turns what http.Client returns into ErrNoDaemon or the context's cause where it is
// one of them, without the URL nobody typed.
func (c *Client) transportError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var op interface{ Unwrap() error }
	if errors.As(err, &op) && op.Unwrap() != nil {
		err = op.Unwrap()
	}
	var ae *api.Error
	if errors.Is(err, ErrNoDaemon) || errors.As(err, &ae) {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
		return errClosed
	}
	return fmt.Errorf("talk to the daemon: %w", err)
}

// dial connects to the daemon, starting it where it is not there and Config says how.
func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	conn, err := c.connect(ctx)
	if err == nil || c.cfg.Start == nil || !absent(err) {
		return conn, err
	}
	c.startMu.Lock()
	defer c.startMu.Unlock()
	if conn, err := c.connect(ctx); err == nil {
		return conn, nil
	}
	if err := c.cfg.Start(ctx); err != nil {
		return nil, err
	}
	return c.connect(ctx)
}

// absent reports whether err says that no daemon listens, as against one that cannot be reached.
func absent(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOTDIR)
}

// connect connects to the socket, or to the one that the lock's holder names. Its errors are ErrNoDaemon.
func (c *Client) connect(ctx context.Context) (net.Conn, error) {
	conn, err := dialUnix(ctx, c.cfg.Socket)
	if err == nil {
		return conn, nil
	}
	if other := c.lockedSocket(); other != "" && other != c.cfg.Socket {
		if conn, err := dialUnix(ctx, other); err == nil {
			return conn, nil
		}
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, fmt.Errorf("%w at %s: %w", ErrNoDaemon, c.cfg.Socket, err)
}

// lockedSocket is the path in the lock file, empty where there is none.
func (c *Client) lockedSocket() string {
	if c.cfg.Lock == "" {
		return ""
	}
	data, err := os.ReadFile(c.cfg.Lock)
	if err != nil {
		return ""
	}
	line, _, _ := strings.Cut(string(data), "\n")
	if line = strings.TrimSpace(line); !filepath.IsAbs(line) {
		return ""
	}
	return line
}

// dialUnix dials a unix socket whose path may be longer than an address holds: by way of its
// directory's descriptor.
func dialUnix(ctx context.Context, path string) (net.Conn, error) {
	if len(path) > maxSocketPath {
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		path = fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path))
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if op, ok := errors.AsType[*net.OpError](err); ok { // its text repeats the path
		return nil, op.Err
	}
	return conn, err
}

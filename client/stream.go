package client

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// maxEvent is the longest line of a stream of events, in bytes.
const maxEvent = 8 << 20

// errBadEvents says that a stream of server-sent events breaks its format or its bounds.
var errBadEvents = errors.New("malformed stream of events")

// stream returns the body of an answer; the caller closes it.
func (c *Client) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// events reads server-sent events until fn says done, the stream ends (ErrNoDaemon) or ctx does.
func (c *Client) events(ctx context.Context, path string, fn func(data []byte) (done bool, err error)) error {
	body, err := c.stream(ctx, path)
	if err != nil {
		return err
	}
	defer body.Close()
	err = readEvents(body, fn)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// readEvents calls fn with the data of each event, as the HTML standard defines them: data lines of
// one event are joined, comments and other fields ignored. A stream that ends early is ErrNoDaemon.
func readEvents(r io.Reader, fn func(data []byte) (done bool, err error)) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxEvent)
	var data []byte
	var any bool
	for sc.Scan() {
		line := bytes.TrimSuffix(sc.Bytes(), []byte("\r"))
		if len(line) > 0 {
			field, value, _ := bytes.Cut(line, []byte(":"))
			if string(field) != "data" {
				continue
			}
			if any {
				data = append(data, '\n')
			}
			data, any = append(data, bytes.TrimPrefix(value, []byte(" "))...), true
			if len(data) > maxEvent {
				return errBadEvents
			}
			continue
		}
		if !any {
			continue
		}
		if done, err := fn(data); done || err != nil {
			return err
		}
		data, any = data[:0], false
	}
	if errors.Is(sc.Err(), bufio.ErrTooLong) {
		return errBadEvents
	}
	return fmt.Errorf("%w: the stream ended", ErrNoDaemon)
}

// upgrade opens a connection and makes it a stream of the given protocol. It costs one round trip
// and does without http.Transport, which every vm exec would pay for.
func (c *Client) upgrade(ctx context.Context, path, protocol string) (net.Conn, error) {
	return insist(ctx, func() (net.Conn, error) { return c.upgradeOnce(ctx, path, protocol) })
}

func (c *Client) upgradeOnce(ctx context.Context, path, protocol string) (net.Conn, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	out, err := c.handshake(ctx, conn, path, protocol)
	if !stop() && err == nil { // the deadline is in the past, or about to be
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	return out, nil
}

func (c *Client) handshake(ctx context.Context, conn net.Conn, path, protocol string) (net.Conn, error) {
	req, err := c.request(ctx, http.MethodGet, path, nil, api.Version)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return nil, c.transportError(ctx, err)
	}
	// Not a byte beyond the answer: the connection's descriptor may be handed on to ssh.
	resp, err := http.ReadResponse(bufio.NewReader(byteReader{conn}), req)
	if err != nil {
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return nil, c.transportError(ctx, err)
	}
	if err := c.check(resp); err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(resp.Header.Get("Upgrade"), protocol) {
		return nil, api.Errorf(api.KindInternal, "the daemon answered %s with %s instead of the protocol %s", path, resp.Status, protocol)
	}
	return conn, nil
}

// byteReader reads one byte at a time, so that a bufio.Reader on it takes no more than it is asked for.
type byteReader struct{ r io.Reader }

func (b byteReader) Read(p []byte) (int, error) { return b.r.Read(p[:min(1, len(p))]) }

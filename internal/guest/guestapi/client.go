package guestapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Bounds of what the client takes from a guest.
const (
	maxAnswer  = 1 << 20     // bytes of JSON
	maxHeader  = 64 << 10    // bytes of an answer's header
	maxMessage = 4 << 10     // bytes of an error's text
	callTime   = time.Minute // for a call whose context has no deadline, but for streams
)

// Client calls the agent of one guest. The zero value but for Dial is ready; its methods may be
// called from several goroutines. Every call uses a connection of its own, so there is nothing to close.
// Errors are *api.Error: KindNotFound, KindInvalid, KindConflict and KindUnavailable are the agent's own answer,
// KindGuest says that the guest misbehaved or could not be reached.
type Client struct {
	// Dial connects to a port of the guest.
	Dial func(ctx context.Context, port uint32) (net.Conn, error)

	once sync.Once
	http *http.Client
}

// Health returns how the guest is.
func (c *Client) Health(ctx context.Context) (Health, error) {
	return call[Health](ctx, c, "GET", "/v1/health", nil)
}

// Stats returns the guest's counters.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	return call[Stats](ctx, c, "GET", "/v1/stats", nil)
}

// Ports returns what listens in the guest.
func (c *Client) Ports(ctx context.Context) ([]Port, error) {
	return call[[]Port](ctx, c, "GET", "/v1/ports", nil)
}

// Processes returns the commands banger runs in the guest.
func (c *Client) Processes(ctx context.Context) ([]wire.ProcessStatus, error) {
	return call[[]wire.ProcessStatus](ctx, c, "GET", "/v1/processes", nil)
}

// OwnerGone says that the client of a command will not come back.
func (c *Client) OwnerGone(ctx context.Context, id string) error {
	return c.do(ctx, "POST", "/v1/processes/"+url.PathEscape(id)+"/owner-gone", nil)
}

// Signal sends a signal, named as "INT", to a command's process group.
func (c *Client) Signal(ctx context.Context, id, name string) error {
	return c.do(ctx, "POST", "/v1/processes/"+url.PathEscape(id)+"/signal", Signal{Name: name})
}

// Shutdown asks the guest's init for an end.
func (c *Client) Shutdown(ctx context.Context, verb string) error {
	return c.do(ctx, "POST", "/v1/shutdown", End{Verb: verb})
}

// End makes the guest's data durable and powers it off at once, without its init.
func (c *Client) End(ctx context.Context) error {
	return c.do(ctx, "POST", "/v1/end", End{Verb: VerbPoweroff})
}

// Sync writes everything to the guest's disk.
func (c *Client) Sync(ctx context.Context) error { return c.do(ctx, "POST", "/v1/sync", nil) }

// GrowDisk grows the data file system to bytes, 0 for the size of its drive, and returns its size.
func (c *Client) GrowDisk(ctx context.Context, bytes int64) (int64, error) {
	g, err := call[Grow](ctx, c, "POST", "/v1/disk/grow", Grow{Bytes: bytes})
	return g.Bytes, err
}

// ResetOutside resets the guest's TCP connections that the host carries, and returns how many it says there were.
func (c *Client) ResetOutside(ctx context.Context) (int, error) {
	r, err := call[Reset](ctx, c, "POST", "/v1/connections/reset", nil)
	return r.Connections, err
}

// SetIdentity gives the guest an identity.
func (c *Client) SetIdentity(ctx context.Context, id wire.Identity) error {
	return c.do(ctx, "PUT", "/v1/identity", id)
}

// Logs returns the agent's log, with follow until ctx ends or it is closed.
func (c *Client) Logs(ctx context.Context, follow bool) (io.ReadCloser, error) {
	return c.stream(ctx, fmt.Sprintf("/v1/logs?follow=%v", follow))
}

// source remembers why reading a request's body failed, which the transport's error may hide.
type source struct {
	r   io.Reader
	mu  sync.Mutex
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.mu.Lock()
		s.err = err
		s.mu.Unlock()
	}
	return n, err
}

// WriteTo is how the transport copies it, in large pieces.
func (s *source) WriteTo(w io.Writer) (int64, error) {
	return io.CopyBuffer(w, readerOf(s.Read), make([]byte, copyBuffer))
}

// readerOf is a Read method alone, which io.Copy uses as it is.
type readerOf func([]byte) (int, error)

func (f readerOf) Read(p []byte) (int, error) { return f(p) }

func (s *source) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// stream makes a call whose answer is a stream.
func (c *Client) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	resp, err := c.request(ctx, "GET", path, nil)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}

// do makes a call without a result.
func (c *Client) do(ctx context.Context, method, path string, in any) error {
	_, err := call[struct{}](ctx, c, method, path, in)
	return err
}

// call makes a call whose request and answer are JSON.
func call[T any](ctx context.Context, c *Client, method, path string, in any) (out T, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTime)
		defer cancel()
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return out, fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	resp, err := c.request(ctx, method, path, body)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return out, nil // 202 and 204 have nothing to say
	}
	return out, decodeAnswer(resp.Body, &out)
}

// request sends a request and returns an answer that is no error.
func (c *Client) request(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://guest"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.client().Do(req)
	if err != nil {
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, api.Errorf(api.KindGuest, "ask the guest's agent: %w", err)
	}
	if resp.StatusCode < 300 && resp.StatusCode >= 200 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, answerError(resp)
}

// client makes the HTTP client on first use.
func (c *Client) client() *http.Client {
	c.once.Do(func() {
		c.http = &http.Client{
			Transport: &http.Transport{
				DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, wire.PortAPI) },
				DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
			},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	})
	return c.http
}

// decodeAnswer reads bounded JSON.
func decodeAnswer(r io.Reader, out any) error {
	b, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err != nil {
		return api.Errorf(api.KindGuest, "read the answer of the guest's agent: %w", err)
	}
	if len(b) > maxAnswer {
		return api.Errorf(api.KindGuest, "the guest's agent answered more than %d bytes", maxAnswer)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return api.Errorf(api.KindGuest, "the guest's agent answered garbage: %w", err)
	}
	return nil
}

// answerError is the error an answer carries, as far as a guest is believed.
func answerError(resp *http.Response) error {
	var in api.ErrorReply
	if err := decodeAnswer(resp.Body, &in); err != nil {
		return api.Errorf(api.KindGuest, "the guest's agent answered %d: %w", resp.StatusCode, err)
	}
	if in.Error == nil || in.Error.Message == "" {
		return api.Errorf(api.KindGuest, "the guest's agent answered %d without a reason", resp.StatusCode)
	}
	return believed(in.Error)
}

// believed is an error of the guest's making: of a kind that says nothing about the host, in one line.
func believed(in *api.Error) *api.Error {
	e := &api.Error{Kind: api.KindGuest, Message: cut(in.Message), Hint: cut(in.Hint)}
	switch in.Kind {
	case api.KindInvalid, api.KindNotFound, api.KindConflict, api.KindUnavailable:
		e.Kind = in.Kind
	}
	return e
}

func cut(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, s[:min(len(s), maxMessage)])
}

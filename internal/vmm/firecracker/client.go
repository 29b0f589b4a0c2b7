package firecracker

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
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// requestTimeout bounds a request, snapshotTimeout one that writes or reads the guest's memory: Firecracker syncs it to disk.
	requestTimeout  = 10 * time.Second
	snapshotTimeout = 10 * time.Minute
	// maxAnswer is how much of an answer is read, in bytes.
	maxAnswer = 1 << 20
)

// client speaks Firecracker's API. Firecracker serves one request at a time.
type client struct {
	http   http.Client
	socket string // as it is dialled
}

func newClient(socket string) *client {
	c := &client{socket: socket}
	c.http.Transport = &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		MaxIdleConns:       1,
		IdleConnTimeout:    5 * time.Second, // an idle supervisor holds none
	}
	return c
}

func (c *client) close() { c.http.CloseIdleConnections() }

// Fault is a request Firecracker refused.
type Fault struct {
	// Request is the method and the path, Message the fault_message.
	Request, Message string
	Status           int
}

// Error implements error.
func (f *Fault) Error() string { return fmt.Sprintf("firecracker: %s: %s", f.Request, f.Message) }

// put and patch send body; any answer but success is a *Fault.
func (c *client) put(ctx context.Context, path string, body any) error {
	return c.do(ctx, http.MethodPut, path, body, nil)
}

func (c *client) patch(ctx context.Context, path string, body any) error {
	return c.do(ctx, http.MethodPatch, path, body, nil)
}

// get reads the answer into out.
func (c *client) get(ctx context.Context, path string, out any) error {
	return c.do(ctx, http.MethodGet, path, nil, out)
}

func (c *client) do(ctx context.Context, method, path string, body, out any) error {
	var r io.Reader
	if body != nil {
		b, err := encode(body)
		if err != nil {
			return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
		}
		r = bytes.NewReader(b) // with a length: Firecracker knows no chunks
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, r)
	if err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("firecracker: %s %s: %w", method, path, context.Cause(ctx))
		}
		return fmt.Errorf("firecracker: %s %s: %w", method, path, unwrapURL(err))
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch {
	case err != nil:
		return fmt.Errorf("firecracker: %s %s: read the answer: %w", method, path, err)
	case resp.StatusCode < 200 || resp.StatusCode > 299:
		return &Fault{Request: method + " " + path, Message: faultMessage(resp.StatusCode, text), Status: resp.StatusCode}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("firecracker: %s %s: %w", method, path, err)
	}
	return nil
}

// faultMessage is what an answer says is wrong. What its HTTP layer refuses is no proper JSON.
func faultMessage(status int, text []byte) string {
	var m struct {
		Fault string `json:"fault_message"`
	}
	if json.Unmarshal(text, &m) == nil && m.Fault != "" {
		return printable(m.Fault)
	}
	if len(text) == 0 {
		return http.StatusText(status)
	}
	return printable(string(text))
}

// maxMessage bounds what is shown of Firecracker's words, in bytes.
const maxMessage = 1000

// printable is text in one line.
func printable(text string) string {
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }), " ")
	return strings.ToValidUTF8(text[:min(len(text), maxMessage)], "")
}

// unwrapURL takes away the "Get http://localhost/…" of package http.
func unwrapURL(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return u.Err
	}
	return err
}

// notThere reports whether nothing listens on the API's socket yet.
func notThere(err error) bool {
	return errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED)
}

// lessMemory is what to do where the host has too little.
const lessMemory = "less --memory, or end other VMs"

// advise gives the words of Firecracker, wherever they came from, the hint of what to do where that is known.
func advise(err error, words string) error {
	for _, a := range []struct{ says, hint string }{
		{"Permission denied (os error 13) Make sure the user launching", "sudo usermod -aG kvm $USER   # then log in again; banger doctor says more"},
		{"Error creating KVM object", "banger doctor says what KVM lacks; engine = \"qemu\" in config.toml does without Firecracker"},
		{"Missing KVM capabilities", "this host's KVM is too old or too small for Firecracker: engine = \"qemu\" in config.toml"},
		{"No space left on device", "make room on the host's disk, then start it again"},
		{"Cannot allocate memory", lessMemory},
		{"Out of memory (os error 12)", lessMemory}, // the same from the C library that releases are built with
		{"Invalid data version", "the snapshot was made by another version of Firecracker: start the VM without it"},
	} {
		if strings.Contains(words, a.says) {
			return api.Errorf(api.KindUnavailable, "%w", err).WithHint("%s", a.hint)
		}
	}
	return err
}

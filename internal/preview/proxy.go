package preview

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// dialWithin is how long a connection may take: the VM may still be booting.
	dialWithin = 30 * time.Second
	// answerWithin is how long a guest may keep a request without an answer's header. Long polls last minutes; a client that leaves ends its
	// request before.
	answerWithin = 10 * time.Minute
	// idleWithin is how long a connection to a guest is kept for the next request.
	idleWithin = 90 * time.Second
	// maxHeader is the largest header of an answer in bytes.
	maxHeader = 256 << 10
	// maxConns are the connections to one port of a VM at a time, WebSockets included; what is more waits. maxIdle of them are kept.
	maxConns, maxIdle = 1024, 64
	// knownFor is how long the id of a name is remembered.
	knownFor = 2 * time.Second
)

// proxy carries requests to guests.
type proxy struct {
	s         *Server
	transport *http.Transport
	reverse   *httputil.ReverseProxy

	mu    sync.Mutex // guards known
	known map[string]known
}

// known is the id that a name had lately.
type known struct {
	id    string
	until time.Time
}

// route is where a request goes.
type route struct {
	to target
	id string
}

type routeKey struct{}

func newProxy(s *Server) *proxy {
	p := &proxy{s: s, known: map[string]known{}}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true)
	p.transport = &http.Transport{
		DialContext:            p.dial,
		Protocols:              protocols,
		DisableCompression:     true,
		MaxConnsPerHost:        maxConns,
		MaxIdleConns:           4 * maxIdle,
		MaxIdleConnsPerHost:    maxIdle,
		IdleConnTimeout:        idleWithin,
		ResponseHeaderTimeout:  answerWithin,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: maxHeader,
		WriteBufferSize:        32 << 10,
		ReadBufferSize:         32 << 10,
	}
	p.reverse = &httputil.ReverseProxy{
		Rewrite:        p.rewrite,
		Transport:      p.transport,
		FlushInterval:  -1, // at once: what a guest sends piecemeal is meant to arrive so
		ModifyResponse: inspect,
		ErrorHandler:   p.failed,
		BufferPool:     buffers{},
		ErrorLog:       log.New(io.Discard, "", 0), // what breaks off half-way is the guest's or the client's doing, and they know
	}
	return p
}

// pool are what bodies are copied through; buffers is it as httputil wants it.
var pool = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

type buffers struct{}

func (buffers) Get() []byte  { return *pool.Get().(*[]byte) }
func (buffers) Put(b []byte) { pool.Put(&b) }

// close ends the connections that are kept. Those in use end with their requests.
func (p *proxy) close() { p.transport.CloseIdleConnections() }

// serve carries a request to a port of a VM.
func (p *proxy) serve(w http.ResponseWriter, r *http.Request, to target) {
	if r.Method == http.MethodConnect {
		p.s.tell(w, r, trouble{status: http.StatusMethodNotAllowed, title: "No tunnels", text: "This is no proxy for CONNECT."})
		return
	}
	id, err := p.find(r.Context(), to.vm)
	if err != nil {
		p.s.tell(w, r, p.s.noVM(r.Context(), to, err))
		return
	}
	// A guest may answer before it has read the request, or while it reads. Without this the answer would wait for the request's end.
	_ = http.NewResponseController(w).EnableFullDuplex() // a writer that cannot is no connection of Serve
	if peer, ok := r.Context().Value(peerKey{}).(*peerConn); ok && !r.ProtoAtLeast(1, 1) {
		// The end of the connection is that of the answer: one that breaks off must not have it.
		defer func() {
			if v := recover(); v != nil {
				_ = peer.SetLinger(0)
				panic(v)
			}
		}()
	}
	ctx := context.WithValue(r.Context(), routeKey{}, route{to, id})
	p.reverse.ServeHTTP(answer{w}, r.WithContext(ctx))
}

// answer is what a guest's answer is written to.
type answer struct{ http.ResponseWriter }

// Unwrap lets http.ResponseController through.
func (a answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (a answer) WriteHeader(status int) {
	h := a.Header()
	if status < 200 {
		h.Del("Set-Cookie") // inspect sees final answers alone, and no other has a use for it
	} else if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // or one would be guessed
	}
	a.ResponseWriter.WriteHeader(status)
}

// find returns the id of the VM that has a name. Connections are kept by it: another VM may come by the name.
func (p *proxy) find(ctx context.Context, name string) (string, error) {
	now := time.Now()
	p.mu.Lock()
	k, ok := p.known[name]
	p.mu.Unlock()
	if ok && now.Before(k.until) {
		return k.id, nil
	}
	vm, err := p.s.cfg.VMs.VM(ctx, name)
	if err == nil && vm.Name != name { // found by its id, which is no name to go by
		err = api.Errorf(api.KindNotFound, "vm %q does not exist", name)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil {
		delete(p.known, name)
		return "", err
	}
	p.known[name] = known{vm.ID, now.Add(knownFor)}
	return vm.ID, nil
}

func (p *proxy) forget(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.known, name)
}

// dial connects to a guest; addr is "ID:PORT".
func (p *proxy) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	id, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialWithin, errSlow)
	defer cancel()
	c, err := p.s.cfg.Dial(ctx, id, "tcp", uint16(port))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(cause, err)
		}
		return nil, dialError{err}
	}
	return p.s.graceful(c), nil
}

var errSlow = fmt.Errorf("no connection within %s", dialWithin)

// dialError is an error from before there was a connection.
type dialError struct{ err error }

func (e dialError) Error() string { return e.err.Error() }
func (e dialError) Unwrap() error { return e.err }

// rewrite makes the guest's request of the client's: the same but for where it goes and who is said to have sent it.
func (p *proxy) rewrite(pr *httputil.ProxyRequest) {
	rt := pr.In.Context().Value(routeKey{}).(route)
	in := pr.In.URL
	pr.Out.URL = &url.URL{Scheme: "http", Host: net.JoinHostPort(rt.id, strconv.Itoa(int(rt.to.port))),
		Path: in.Path, RawPath: in.RawPath, RawQuery: in.RawQuery, ForceQuery: in.ForceQuery}
	pr.Out.Host = pr.In.Host
	pr.SetXForwarded()
}

// inspect refuses an answer that could not be passed on, and takes out of the others what a guest has no say in.
func inspect(res *http.Response) error {
	switch {
	case res.StatusCode == http.StatusSwitchingProtocols:
		if asked := res.Request.Header.Get("Upgrade"); asked == "" || !strings.EqualFold(asked, res.Header.Get("Upgrade")) {
			return fmt.Errorf("%w: a protocol nobody asked for", errNoHTTP)
		}
	case res.StatusCode < 200 || res.StatusCode > 999:
		return fmt.Errorf("%w: status %d", errNoHTTP, res.StatusCode)
	}
	if cookies := res.Header["Set-Cookie"]; len(cookies) > 0 {
		kept := cookies[:0]
		for _, c := range cookies {
			if !forAll(c) {
				kept = append(kept, c)
			}
		}
		res.Header["Set-Cookie"] = kept
	}
	return nil
}

// forAll reports whether a cookie is meant for every name that ends in localhost, other VMs' included. Browsers refuse it, as localhost
// counts as a public suffix (RFC 6265, 5.3, step 5, with the Public Suffix List's default rule); other clients may not. Those for NAME.localhost
// they take: the ports of a VM share cookies.
func forAll(cookie string) bool {
	for attribute := range strings.SplitSeq(cookie, ";") {
		name, value, _ := strings.Cut(attribute, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "domain") {
			continue
		}
		value = strings.Trim(strings.TrimSpace(value), ".\"")
		if strings.EqualFold(value, domain) {
			return true
		}
	}
	return false
}

var errNoHTTP = errors.New("what it answers is not HTTP")

// failed tells the client why there is no answer.
func (p *proxy) failed(w http.ResponseWriter, r *http.Request, err error) {
	rt := r.Context().Value(routeKey{}).(route)
	if r.Context().Err() != nil && !errors.Is(err, errSlow) { // nobody waits any more
		panic(http.ErrAbortHandler)
	}
	if _, ok := errors.AsType[dialError](err); ok {
		if api.KindOf(err) == api.KindNotFound {
			p.forget(rt.to.vm)
		}
		p.s.tell(w, r, p.s.noConnection(r.Context(), rt.to, err))
		return
	}
	p.s.tell(w, r, noAnswer(rt.to, err))
}

// noAnswer says what a guest did that is no answer.
func noAnswer(to target, err error) trouble {
	tr := trouble{status: http.StatusBadGateway, title: "No answer", hint: "look there: banger vm exec " + to.vm}
	where := fmt.Sprintf("port %d of %s", to.port, to.vm)
	var slow interface{ Timeout() bool }
	text := err.Error()
	switch {
	case errors.As(err, &slow) && slow.Timeout():
		tr.status = http.StatusGatewayTimeout
		tr.text = fmt.Sprintf("What listens on %s took the request and said nothing for %s.", where, answerWithin)
	case strings.Contains(text, "server response headers exceeded"), strings.Contains(text, "header list is larger"):
		tr.text = fmt.Sprintf("The header of what %s answers is larger than %d KiB.", where, maxHeader>>10)
	case strings.Contains(text, `"\x15\x03`):
		tr.title, tr.text = "Not plain HTTP", fmt.Sprintf("What listens on %s speaks TLS (https).", where)
		tr.hint = fmt.Sprintf("take it to a port of this host, for https://localhost: banger vm forward %s add 0:%d", to.vm, to.port)
	case errors.Is(err, errNoHTTP), strings.Contains(text, "malformed"), strings.Contains(text, "unsupported"), strings.Contains(text, "protocol"),
		strings.Contains(text, "invalid"), strings.Contains(text, "too many"):
		tr.title, tr.text = "Not HTTP", fmt.Sprintf("What %s answers is not HTTP.", where)
		tr.hint = fmt.Sprintf("take it to a port of this host: banger vm forward %s add 0:%d", to.vm, to.port)
	default:
		tr.text = fmt.Sprintf("What listens on %s closed the connection before it had answered.", where)
	}
	return tr
}

// sentence makes an error's text one.
func sentence(s string) string {
	if s == "" {
		return s
	}
	b := []byte(s)
	b = append(bytes.ToUpper(b[:1]), b[1:]...)
	if !bytes.HasSuffix(b, []byte(".")) {
		b = append(b, '.')
	}
	return string(b)
}

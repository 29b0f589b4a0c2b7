package preview

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
)

// TestCarried: what a client sends is what the guest gets, and what the guest answers is what the client gets.
func TestCarried(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	type seen struct{ Method, URI, Host, Body, For, FHost, Proto, Agent, Accept, Custom string }
	got := make(chan seen, 1)
	h.serve(t, "web", 3000, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		got <- seen{r.Method, r.RequestURI, r.Host, string(b), r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Host"),
			r.Header.Get("X-Forwarded-Proto"), r.Header.Get("User-Agent"), r.Header.Get("Accept-Encoding"), r.Header.Get("X-Custom")}
		w.Header().Add("Set-Cookie", "a=1; Domain=web.localhost")
		w.Header().Add("Set-Cookie", "b=2; domain=.LocalHost ; Path=/")
		w.Header().Add("Set-Cookie", "c=3")
		w.Header().Set("X-Answer", "yes")
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprint(w, "short and stout")
	})
	name := "3000.web.localhost:" + s.port
	for _, c := range []struct{ method, path string }{
		{"GET", "/"}, {"PURGE", "/a%2Fb/%7Ec?x=1;y=%zz&&z"}, {"DELETE", "//double//slash?"}, {"OPTIONS", "/x"}, {"POST", "/?a=b"},
	} {
		r := s.request(c.method, "http://"+name+c.path, strings.NewReader("a body"), "X-Custom", "v", "X-Forwarded-For", "6.6.6.6",
			"X-Forwarded-Host", "evil", "User-Agent", "", "Accept-Encoding", "br")
		res, body := s.do(r)
		want := seen{c.method, c.path, name, "a body", "127.0.0.1", name, "http", "", "br", "v"}
		if diff := cmp.Diff(want, <-got); diff != "" {
			t.Errorf("%s %s: the guest got (-want +got):\n%s", c.method, c.path, diff)
		}
		if res.StatusCode != http.StatusTeapot || body != "short and stout" || res.Header.Get("X-Answer") != "yes" {
			t.Errorf("%s %s: %d %q %v", c.method, c.path, res.StatusCode, body, res.Header)
		}
		if diff := cmp.Diff([]string{"a=1; Domain=web.localhost", "c=3"}, res.Header["Set-Cookie"]); diff != "" {
			t.Errorf("cookies (-want +got):\n%s", diff)
		}
		if csp := res.Header.Get("Content-Security-Policy"); csp != "" {
			t.Errorf("a guest's page has banger's policy %q", csp)
		}
	}
	if n := h.dialled(); n != 1 {
		t.Errorf("%d connections to the guest for requests one after another", n)
	}
}

// TestDifferentVMsShareNoConnection: neither do two ports of one, nor a VM that has the name of one that was deleted.
func TestDifferentVMsShareNoConnection(t *testing.T) {
	h := newHost("web", "db")
	s := start(t, h)
	say := func(what string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, what) }
	}
	h.serve(t, "web", 3000, say("web 3000"))
	h.serve(t, "web", 3001, say("web 3001"))
	h.serve(t, "db", 3000, say("db 3000"))
	for range 2 {
		for _, c := range []string{"3000.web", "3001.web", "3000.db"} {
			port, vm, _ := strings.Cut(c, ".")
			if _, body := s.get(s.url(c + ".localhost")); body != vm+" "+port {
				t.Errorf("%s answers %q", c, body)
			}
		}
	}
	h.set("web", func(v *api.VM) { v.ID = "another" })
	h.serve(t, "web", 3000, say("the new one"))
	s.server.proxy.forget("web") // as time would
	if _, body := s.get(s.url("3000.web.localhost")); body != "the new one" {
		t.Errorf("the VM that has the name now answers %q", body)
	}
}

// TestGuestRestarts: connections that were kept and died are made anew.
func TestGuestRestarts(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	hello := func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, "hello")
	}
	for i := range 5 {
		srv := h.serve(t, "web", 80, hello)
		for range 3 {
			if status, body := s.get(s.url("80.web.localhost")); status != 200 || body != "hello" {
				t.Fatalf("round %d: %d %q", i, status, body)
			}
		}
		srv.CloseClientConnections()
		srv.Close()
	}
}

func TestServerSentEvents(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	next, gone := make(chan string), make(chan struct{})
	h.serve(t, "web", 3000, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.URL.Query().Get("type"))
		w.(http.Flusher).Flush()
		for {
			select {
			case text := <-next:
				fmt.Fprintf(w, "data: %s\n\n", text)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				gone <- struct{}{}
				return
			}
		}
	})
	for _, kind := range []string{"text/event-stream", "application/x-ndjson"} {
		res, err := s.client.Do(s.request("GET", s.url("3000.web.localhost")+"?type="+kind, nil))
		if err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(res.Body)
		for i := range 3 { // each is there before the next is sent
			next <- fmt.Sprint(i)
			if line, err := lines.ReadString('\n'); line != fmt.Sprintf("data: %d\n", i) || err != nil {
				t.Fatalf("%q, %v", line, err)
			}
			_, _ = lines.ReadString('\n')
		}
		res.Body.Close()
		<-gone // the guest is told that nobody listens any more
	}
}

func TestWebSocket(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	closed := make(chan websocket.StatusCode, 1)
	h.serve(t, "web", 5173, func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}}) // it compares Origin with Host
		if err != nil {
			return
		}
		c.SetReadLimit(-1)
		for {
			kind, data, err := c.Read(r.Context())
			if err != nil {
				closed <- websocket.CloseStatus(err)
				return
			}
			if err := c.Write(r.Context(), kind, data); err != nil {
				return
			}
		}
	})
	url := "ws" + strings.TrimPrefix(s.url("5173.web.localhost"), "http")
	origin := http.Header{"Origin": {strings.TrimSuffix(s.url("5173.web.localhost"), "/")}, "Sec-Fetch-Site": {"same-origin"}, "Sec-Fetch-Mode": {"websocket"}}
	c, res, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{HTTPClient: s.client, HTTPHeader: origin, Subprotocols: []string{"echo"}})
	if err != nil {
		t.Fatal(err, res)
	}
	c.SetReadLimit(-1)
	if c.Subprotocol() != "echo" {
		t.Errorf("subprotocol %q", c.Subprotocol())
	}
	for _, n := range []int{0, 1, 125, 126, 65536, 1 << 20} {
		data := bytes.Repeat([]byte{byte(n)}, n)
		if err := c.Write(t.Context(), websocket.MessageBinary, data); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(t.Context()); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("%d bytes: %d came back, %v", n, len(got), err)
		}
	}
	if err := c.Close(websocket.StatusNormalClosure, "done"); err != nil {
		t.Error(err)
	}
	if code := <-closed; code != websocket.StatusNormalClosure {
		t.Errorf("the guest saw the end %d", code)
	}
	for name, foreign := range map[string]http.Header{
		"another site":                       {"Origin": {"https://evil.example"}},
		"another VM":                         {"Origin": {s.url("3000.db.localhost")}},
		"no origin at all, says the browser": {"Origin": {"null"}},
		"another program":                    {"Origin": {"http://5173.web.localhost:1"}},
	} {
		if _, res, err := websocket.Dial(t.Context(), url, &websocket.DialOptions{HTTPClient: s.client, HTTPHeader: foreign}); err == nil || res.StatusCode != 403 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCloseEndsWebSockets: the server's end is that of connections that were handed over, too.
func TestCloseEndsWebSockets(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	h.raw(t, "web", 1, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			fmt.Fprint(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nhello")
			_, _ = io.Copy(io.Discard, c)
		}
	})
	c := s.dial()
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: 1.web.localhost:%s\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", s.port)
	br := bufio.NewReader(c)
	res, err := http.ReadResponse(br, nil)
	if err != nil || res.StatusCode != 101 {
		t.Fatal(err, res)
	}
	if b := make([]byte, 5); true {
		if _, err := io.ReadFull(br, b); err != nil || string(b) != "hello" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	s.server.Close()
	if _, err := br.ReadByte(); err == nil {
		t.Error("the connection goes on")
	}
}

// noise is n bytes nobody can compress, and their hash once they were read.
func noise(n int64) (io.Reader, hash.Hash) {
	sum := sha256.New()
	return io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), n), sum), sum
}

func TestLargeBodies(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	const size = 96 << 20
	h.serve(t, "web", 3000, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "PUT" {
			sum := sha256.New()
			n, err := io.Copy(sum, r.Body)
			fmt.Fprintf(w, "%d %x %v", n, sum.Sum(nil), err)
			return
		}
		body, sum := noise(size)
		w.Header().Set("Trailer", "X-Sum")
		if r.URL.Path == "/known" {
			w.Header().Set("Content-Length", fmt.Sprint(size))
		}
		_, _ = io.Copy(w, body)
		w.Header().Set("X-Sum", hex.EncodeToString(sum.Sum(nil)))
	})
	for _, known := range []bool{true, false} {
		body, sum := noise(size)
		r := s.request("PUT", s.url("3000.web.localhost"), body)
		if known {
			r.ContentLength = size
		}
		_, answer := s.do(r)
		if want := fmt.Sprintf("%d %x <nil>", int64(size), sum.Sum(nil)); answer != want {
			t.Errorf("up, length known %v: %s, want %s", known, answer, want)
		}
	}
	_, want := noise(0)
	in, _ := noise(size)
	_, _ = io.Copy(want, in)
	for _, path := range []string{"known", "chunked"} {
		res, err := s.client.Do(s.request("GET", s.url("3000.web.localhost")+path, nil))
		if err != nil {
			t.Fatal(err)
		}
		got := sha256.New()
		n, err := io.Copy(got, res.Body)
		res.Body.Close()
		if err != nil || n != size || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
			t.Errorf("down, %s: %d bytes, %v", path, n, err)
		}
		if path == "chunked" && res.Trailer.Get("X-Sum") != hex.EncodeToString(want.Sum(nil)) {
			t.Errorf("trailer %v", res.Trailer)
		}
	}
}

// TestEarlyAnswer: a guest that answers without reading the request is heard while the client still has the rest to send.
func TestEarlyAnswer(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	h.raw(t, "web", 3000, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		fmt.Fprint(c, "HTTP/1.1 413 Too Large\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nbig\r\n0\r\n\r\n")
	})
	c := s.dial()
	fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: 3000.web.localhost:%s\r\nContent-Length: 1000000\r\n\r\nthe first of it", s.port)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(res.Body); res.StatusCode != 413 || string(b) != "big" || err != nil {
		t.Errorf("%d %q %v", res.StatusCode, b, err)
	}
	res.Body.Close()
}

// TestBothWaysAtOnce: a guest that answers piece by piece to a request that comes piece by piece.
func TestBothWaysAtOnce(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	h.serve(t, "web", 3000, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintln(w, strings.ToUpper(lines.Text()))
			w.(http.Flusher).Flush()
		}
	})
	in, out := io.Pipe()
	res := make(chan *http.Response, 1)
	go func() {
		r, err := s.client.Do(s.request("POST", s.url("3000.web.localhost"), in))
		if err != nil {
			t.Error(err)
		}
		res <- r
	}()
	fmt.Fprintln(out, "one")
	r := <-res
	defer r.Body.Close()
	got := bufio.NewScanner(r.Body)
	for _, word := range []string{"ONE", "TWO", "THREE"} {
		if !got.Scan() || got.Text() != word {
			t.Fatalf("%q, %v, want %s", got.Text(), got.Err(), word)
		}
		switch word {
		case "ONE":
			fmt.Fprintln(out, "two")
		case "TWO":
			fmt.Fprintln(out, "three")
		}
	}
	out.Close()
	if got.Scan() {
		t.Errorf("more: %q", got.Text())
	}
}

// TestHostileGuests: nothing a guest answers harms the daemon or reaches the client as something else than it is.
func TestHostileGuests(t *testing.T) {
	long := strings.Repeat("x", maxHeader+1)
	for name, c := range map[string]struct {
		answer string
		status int
		says   string
	}{
		"nothing":                  {"", 502, "closed the connection before it had answered"},
		"half a status line":       {"HTTP/1.1 2", 502, "3000 of web"},
		"ssh":                      {"SSH-2.0-OpenSSH_9.2p1\r\n", 502, "is not HTTP"},
		"TLS":                      {"\x15\x03\x01\x00\x02\x02\x46\r\n", 502, "speaks TLS"},
		"garbage":                  {strings.Repeat("\x00\xff\r\n", 1000), 502, "is not HTTP"},
		"a huge header":            {"HTTP/1.1 200 OK\r\nX: " + long + "\r\n\r\n", 502, "is larger than 256 KiB"},
		"a huge status line":       {"HTTP/1.1 200 " + long, 502, "is larger than 256 KiB"},
		"many headers":             {"HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 100_000), 502, "is larger than 256 KiB"},
		"interim answers forever":  {strings.Repeat("HTTP/1.1 103 Early Hints\r\nX: "+long[:1000]+"\r\n\r\n", 10_000), 502, "3000 of web"},
		"status 0":                 {"HTTP/1.1 000 No\r\n\r\n", 502, "is not HTTP"},
		"status 99":                {"HTTP/1.1 099 No\r\n\r\n", 502, "is not HTTP"},
		"a protocol not asked for": {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", 502, "is not HTTP"},
		"a split header":           {"HTTP/1.1 200 OK\r\nX: a\rSet-Cookie: x=y\r\nContent-Length: 2\r\n\r\nok", 0, ""},
		"a name with a blank":      {"HTTP/1.1 200 OK\r\nX Y: a\r\nContent-Length: 2\r\n\r\nok", 200, "ok"},
		"two lengths":              {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 5\r\n\r\nok", 502, "3000 of web"},
		"length and chunks":        {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", 200, "ok"},
		"an unknown coding":        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity, chunked\r\n\r\nok", 502, "3000 of web"},
		"a second answer":          {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", 200, "ok"},
		"a negative length":        {"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 502, "3000 of web"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost("web")
			s := start(t, h)
			h.raw(t, "web", 3000, func(conn net.Conn) {
				_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
				if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
					_, _ = io.WriteString(conn, c.answer)
				}
			})
			res, body := s.do(s.request("GET", s.url("3000.web.localhost"), nil))
			if c.status != 0 && (res.StatusCode != c.status || !strings.Contains(body, c.says)) {
				t.Errorf("%d %q, want %d and %q", res.StatusCode, body, c.status, c.says)
			}
			if res.Header.Get("Set-Cookie") != "" || strings.Contains(body, "evil") || len(body) > 4096 {
				t.Errorf("the client got %v %.200q", res.Header, body)
			}
			if _, body := s.get(s.url("localhost")); !strings.Contains(body, "web") {
				t.Errorf("the page of all: %q", body)
			}
		})
	}
}

// TestTruncated: an answer that ends too early is no whole one for the client either.
func TestTruncated(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	var answer string
	h.raw(t, "web", 3000, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, answer)
		}
	})
	for _, answer = range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nonly this\r\n",
	} {
		res, err := s.client.Do(s.request("GET", s.url("3000.web.localhost"), nil))
		if err == nil {
			_, err = io.ReadAll(res.Body)
			res.Body.Close()
		}
		if err == nil {
			t.Errorf("%q came as a whole answer", answer)
		}
	}
}

// TestNeverAnswers: many requests to a server that never answers hold up no other port, and end with their clients.
func TestNeverAnswers(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	arrived, gone := make(chan struct{}, 100), make(chan struct{}, 100)
	h.raw(t, "web", 1, func(c net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(c))
		arrived <- struct{}{}
		_, _ = io.Copy(io.Discard, c)
		gone <- struct{}{}
	})
	h.serve(t, "web", 2, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	var stuck []net.Conn
	for range 100 {
		c := s.dial()
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: 1.web.localhost:%s\r\n\r\n", s.port)
		stuck = append(stuck, c)
	}
	for range stuck {
		<-arrived
	}
	if _, body := s.get(s.url("2.web.localhost")); body != "ok" {
		t.Errorf("another port: %q", body)
	}
	for _, c := range stuck {
		c.Close()
	}
	for range stuck {
		<-gone
	}
}

// TestTimeout: a guest is given up after a time, and said so.
func TestTimeout(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	s.server.proxy.transport.ResponseHeaderTimeout = 50 * time.Millisecond
	h.raw(t, "web", 1, func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
	if status, body := s.get(s.url("1.web.localhost")); status != http.StatusGatewayTimeout || !strings.Contains(body, "said nothing for") {
		t.Errorf("%d %q", status, body)
	}
}

// TestGoodbye: a connection that is not needed any more is ended, not reset; one whose request was broken off goes soon.
func TestGoodbye(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	ends := make(chan error, 1)
	h.raw(t, "web", 1, func(c net.Conn) {
		br := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				ends <- err
				return
			}
			_, _ = io.Copy(io.Discard, r.Body)
			fmt.Fprint(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	if _, body := s.get(s.url("1.web.localhost")); body != "ok" {
		t.Fatalf("%q", body)
	}
	s.server.proxy.transport.CloseIdleConnections()
	if err := <-ends; !errors.Is(err, io.EOF) {
		t.Errorf("the guest's connection ended with %v", err)
	}
}

func TestManyAtOnce(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("requests", func(t *testing.T) {
		h := newHost("web")
		s := start(t, h)
		all := make(chan struct{})
		var waiting sync.WaitGroup
		waiting.Add(1000)
		h.serve(t, "web", 3000, func(w http.ResponseWriter, r *http.Request) {
			waiting.Done()
			<-all // every one is there before the first is answered
			b, _ := io.ReadAll(r.Body)
			_, _ = w.Write(b)
		})
		go func() { waiting.Wait(); close(all) }()
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() {
				text := strings.Repeat(fmt.Sprint(i), 100)
				res, err := s.client.Do(s.request("POST", s.url("3000.web.localhost"), strings.NewReader(text)))
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				if b, err := io.ReadAll(res.Body); string(b) != text || err != nil {
					t.Errorf("request %d: %d %.40q %v", i, res.StatusCode, b, err)
				}
			})
		}
		wg.Wait()
	})
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > before+2; <-tick.C {
		if time.Now().After(deadline) {
			b := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, b[:runtime.Stack(b, true)])
		}
	}
}

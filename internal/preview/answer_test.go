package preview

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"syscall"
	"testing"
)

// TestTruncatedForOld: a client of HTTP/1.0 knows an answer's end by that of the connection.
func TestTruncatedForOld(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	arrived := make(chan struct{})
	h.raw(t, "web", 3000, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nonly this")
			<-arrived
			_ = c.(*net.TCPConn).SetLinger(0)
		}
	})
	c := s.dial()
	fmt.Fprintf(c, "GET / HTTP/1.0\r\nHost: 3000.web.localhost:%s\r\n\r\n", s.port)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(res.Body, make([]byte, len("only this"))); err != nil {
		t.Fatal(err)
	}
	close(arrived)
	if n, err := res.Body.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("then %d bytes, %v; want a reset", n, err)
	}
}

// TestInterimAnswers: they are passed on without cookies; the answer has the type that the guest gave it, or none.
func TestInterimAnswers(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	h.raw(t, "web", 3000, func(c net.Conn) {
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nLink: </x>\r\nSet-Cookie: a=b; Domain=localhost\r\n\r\n"+
				"HTTP/1.1 200 OK\r\n\r\n<html>")
		}
	})
	for _, early := range []bool{true, false} {
		var seen []string
		ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			seen = append(seen, fmt.Sprint(code, h["Link"], h["Set-Cookie"]))
			return nil
		}})
		if !early {
			h.raw(t, "web", 3000, func(c net.Conn) {
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Type: x/y\r\n\r\n<html>")
				}
			})
		}
		res, body := s.do(s.request("GET", s.url("3000.web.localhost"), nil).WithContext(ctx))
		if early && (!slices.Equal(seen, []string{"103 [</x>] []"}) || res.Header["Content-Type"] != nil) || !early && res.Header.Get("Content-Type") != "x/y" {
			t.Errorf("%q, then %v", seen, res.Header)
		}
		if body != "<html>" {
			t.Errorf("%q", body)
		}
	}
}

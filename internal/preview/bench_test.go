package preview

import (
	"fmt"
	"io"
	"net/http"
	"testing"
)

// BenchmarkRequest compares a request through the proxy with one straight to the server behind it.
func BenchmarkRequest(b *testing.B) {
	h := newHost("web")
	s := start(b, h)
	direct := h.serve(b, "web", 3000, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	once := func(b *testing.B, c *http.Client, url string) {
		for b.Loop() {
			res, err := c.Get(url)
			if err != nil {
				b.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
	}
	b.Run("direct", func(b *testing.B) { once(b, direct.Client(), direct.URL) })
	b.Run("proxy", func(b *testing.B) { once(b, s.client, s.url("3000.web.localhost")) })
	b.Run("proxy_new_connection", func(b *testing.B) {
		c := &http.Client{Transport: s.client.Transport.(*http.Transport).Clone()}
		c.Transport.(*http.Transport).DisableKeepAlives = true
		once(b, c, s.url("3000.web.localhost"))
	})
}

// BenchmarkDownload moves a large body.
func BenchmarkDownload(b *testing.B) {
	h := newHost("web")
	s := start(b, h)
	const size = 16 << 20
	block := make([]byte, 64<<10)
	h.serve(b, "web", 3000, func(w http.ResponseWriter, _ *http.Request) {
		for range size / len(block) {
			_, _ = w.Write(block)
		}
	})
	b.SetBytes(size)
	for b.Loop() {
		res, err := s.client.Get(s.url("3000.web.localhost"))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
			b.Fatal(n, err)
		}
		res.Body.Close()
	}
}

package vm

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// guestProxy hands requests on to the guest in which commands run.
func (m *fakeMachine) guestProxy() http.Handler {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "guest" },
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
			return m.engine.dialGuest(wire.PortAPI)
		}},
		ErrorLog: log.New(io.Discard, "", 0),
	}
}

// steps collects the steps of a piece of work, and tells heard of each. It belongs to one goroutine.
type steps struct {
	progress.Reporter
	names []string
	heard func(string)
}

func (s *steps) Step(name string) {
	s.names = append(s.names, name)
	s.heard(name)
}

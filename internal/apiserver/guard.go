package apiserver

import (
	"context"
	"net/http"
	"slices"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/buildinfo"
)

// hosts are the names a client may use for the other end of a unix socket. Browsers, and
// pages that rebind a name, come with others.
var hosts = []string{"banger", "bangerd", "localhost"}

type failureKey struct{}

// failure is where a handler leaves its error for the guard to log.
type failure struct{ err *api.Error }

// guard refuses who may not speak to the API, checks versions, and logs what failed inside.
func (s *Server) guard(next http.Handler) http.Handler {
	huma.NewError = humaError // huma offers no other place
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(api.HeaderAPIVersion, strconv.Itoa(api.Version))
		w.Header().Set(api.HeaderBuildVersion, buildinfo.Version)
		if err := admit(r); err != nil {
			writeError(w, r, err)
			return
		}
		seen := &failure{}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), failureKey{}, seen)))
		if seen.err != nil && seen.err.Kind == api.KindInternal {
			s.cfg.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "err", seen.err)
		}
	})
}

func admit(r *http.Request) error {
	if r.Header.Get("Origin") != "" || !slices.Contains(hosts, r.Host) {
		return api.Errorf(api.KindInvalid, "this API is not for web pages")
	}
	want := strconv.Itoa(api.Version)
	if v := r.Header.Get(api.HeaderAPIVersion); v != "" && v != want {
		return api.Errorf(api.KindVersion, "client %s speaks API version %s, daemon %s speaks %s",
			r.Header.Get(api.HeaderBuildVersion), v, buildinfo.Version, want).
			WithHint("stop the old daemon, the next command starts the new one: banger daemon stop (VMs go on)")
	}
	return nil
}

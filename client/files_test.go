package client_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/filestream"
)

// filesDaemon serves the files of a VM with two handlers.
func filesDaemon(t *testing.T, put, get http.HandlerFunc) *client.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	for pattern, h := range map[string]http.HandlerFunc{"PUT /v1/vms/box/files": put, "GET /v1/vms/box/files": get} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set(api.HeaderAPIVersion, strconv.Itoa(api.Version))
			h(w, r)
		})
	}
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	c := client.New(client.Config{Socket: socket})
	t.Cleanup(func() { c.Close(); _ = srv.Close() })
	return c
}

func TestPutFiles(t *testing.T) {
	want := api.PutFiles{Path: "/a b/&", Contents: true, Into: true, Archive: true}
	readErr := make(chan error, 1)
	c := filesDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		if got := api.ParsePutFiles(r.URL.Query()); got != want {
			t.Errorf("asked for %+v", got)
		}
		n, err := io.Copy(io.Discard, r.Body)
		readErr <- err
		_ = json.NewEncoder(w).Encode(api.FilesResult{Bytes: n})
	}, nil)
	res, err := c.PutFiles(t.Context(), "box", want, func(w io.Writer) error {
		for range 3 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil || res.Bytes != 3<<20 || <-readErr != nil {
		t.Errorf("%+v, %v", res, err)
	}
	// A source that fails ends in its own error, and the other side does not take the stream for whole.
	broken := errors.New("disk on fire")
	_, err = c.PutFiles(t.Context(), "box", want, func(w io.Writer) error {
		_, _ = w.Write(make([]byte, 1000))
		return fmt.Errorf("read: %w", broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
	if err := <-readErr; err == nil {
		t.Error("the daemon took a stream that was cut for whole")
	}
}

// TestPutFilesRefused: the daemon's reason arrives while the source goes on without end.
func TestPutFilesRefused(t *testing.T) {
	c := filesDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		filestream.Refuse(w, r, func(w http.ResponseWriter) {
			w.WriteHeader(api.KindUnavailable.Status())
			_ = json.NewEncoder(w).Encode(api.ErrorReply{Error: api.Errorf(api.KindUnavailable, "the guest's disk is full")})
		})
	}, nil)
	_, err := c.PutFiles(t.Context(), "box", api.PutFiles{}, func(w io.Writer) error {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
	})
	if api.KindOf(err) != api.KindUnavailable || err.Error() != "the guest's disk is full" {
		t.Errorf("error %v", err)
	}
}

func TestFiles(t *testing.T) {
	want := api.GetFiles{Path: "~/x/", Follow: true}
	fail := api.Errorf(api.KindGuest, "half-way")
	var end *api.Error
	c := filesDaemon(t, nil, func(w http.ResponseWriter, r *http.Request) {
		if got := api.ParseGetFiles(r.URL.Query()); got != want {
			t.Errorf("asked for %+v", got)
		}
		_, _ = filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
			_, err := io.WriteString(out, "tar")
			if end != nil {
				return api.FilesResult{}, end
			}
			return api.FilesResult{Entries: 1}, err
		})
	})
	for _, end = range []*api.Error{nil, fail} {
		s, err := c.Files(t.Context(), "box", want)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(s)
		if string(b) != "tar" || (end == nil) != (err == nil) || end != nil && api.KindOf(err) != api.KindGuest {
			t.Errorf("%q, %v", b, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

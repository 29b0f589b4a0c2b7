package filestream_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filestream"
)

// get asks a handler and reads what it answers to its end.
func get(t *testing.T, h http.HandlerFunc) (status int, body string, res api.FilesResult, err error) {
	t.Helper()
	srv := httptest.NewServer(h)
	defer srv.Close()
	resp, err := srv.Client().Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := filestream.New(resp, func(e *api.Error) error { return fmt.Errorf("believed: %w", e) })
	defer s.Close()
	b, err := io.ReadAll(s)
	if _, again := s.Read(make([]byte, 1)); again == nil || err != nil && !errors.Is(again, err) {
		t.Errorf("read after the end: %v", again)
	}
	return resp.StatusCode, string(b), s.Result(), err
}

func TestWhole(t *testing.T) {
	lines := make([]string, 20)
	for i := range lines {
		lines[i] = strings.Repeat("é\n", 200)
	}
	status, body, res, err := get(t, func(w http.ResponseWriter, _ *http.Request) {
		begun, err := filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
			_, err := io.WriteString(out, "tar")
			return api.FilesResult{Entries: 3, Bytes: 7, Skipped: lines}, err
		})
		if !begun || err != nil {
			t.Errorf("%v, %v", begun, err)
		}
	})
	if err != nil || status != 200 || body != "tar" || res.Entries != 3 || res.Bytes != 7 {
		t.Errorf("%d %q %+v, %v", status, body, res, err)
	}
	if n := len(res.Skipped); n == 0 || n >= 20 || res.Skipped[0] != lines[0] {
		t.Errorf("%d lines", n) // as many as a trailer holds
	}
}

// TestNotWhole: a stream that failed, was cut, or lies about its end is never taken for a whole one.
func TestNotWhole(t *testing.T) {
	for name, tc := range map[string]struct {
		h   http.HandlerFunc
		bad string
	}{
		"fails": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
				_, _ = io.WriteString(out, "ta")
				return api.FilesResult{}, api.Errorf(api.KindUnavailable, "the disk is on fire").WithHint("run")
			})
		}, "believed: the disk is on fire"},
		"fails at length": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
				_, _ = io.WriteString(out, "ta")
				return api.FilesResult{Skipped: []string{strings.Repeat("s", 4000)}}, errors.New(strings.Repeat("\n", 9000))
			})
		}, "believed: "},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, strings.Repeat("t", 100_000))
			panic(http.ErrAbortHandler)
		}, "unexpected EOF"},
		"no trailer": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "tar") }, "cut"},
		"garbage": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", api.TrailerFiles)
			_, _ = io.WriteString(w, "tar")
			w.Header().Set(api.TrailerFiles, "{]")
		}, "cut"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, _, _, err := get(t, tc.h); err == nil || !strings.Contains(err.Error(), tc.bad) {
				t.Errorf("error %v, want %q", err, tc.bad)
			}
		})
	}
}

// TestEarly: what fails before the first byte can be answered as an error.
func TestEarly(t *testing.T) {
	want := errors.New("no such thing")
	status, _, _, err := get(t, func(w http.ResponseWriter, _ *http.Request) {
		begun, err := filestream.Answer(w, func(io.Writer) (api.FilesResult, error) { return api.FilesResult{}, want })
		if begun || !errors.Is(err, want) {
			t.Errorf("%v, %v", begun, err)
		}
		w.WriteHeader(http.StatusNotFound)
	})
	if status != http.StatusNotFound || err == nil {
		t.Errorf("%d, %v", status, err)
	}
}

// endless never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestRefuse: a client that sends without end gets the answer.
func TestRefuse(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		filestream.Refuse(w, r, func(w http.ResponseWriter) { http.Error(w, "no", http.StatusConflict) })
	}))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL, endless{})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := srv.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusConflict || string(b) != "no\n" {
		t.Errorf("%d %q, %v", resp.StatusCode, b, err)
	}
}

package image

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestDownloadIsBounded: a server that sends without end fills no disk, and its password is not shown.
func TestDownloadIsBounded(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/missing" {
			http.NotFound(w, r)
			return
		}
		piece := make([]byte, 4096)
		for r.Context().Err() == nil {
			if _, err := w.Write(piece); err != nil {
				return
			}
		}
	}))
	defer srv.Close()
	address := strings.Replace(srv.URL, "http://", "http://me:s3cret@", 1)
	for path, want := range map[string]string{"/endless": "longer than 10000 bytes", "/missing": "404"} {
		var got bytes.Buffer
		err := download(t.Context(), srv.Client(), address+path, &got, 10_000)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
		if got.Len() > 10_001 {
			t.Errorf("%s: %d bytes were kept", path, got.Len())
		}
	}
	srv.Close()
	if err := download(t.Context(), srv.Client(), address, &bytes.Buffer{}, 1); err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("nobody there: %v", err)
	}
}

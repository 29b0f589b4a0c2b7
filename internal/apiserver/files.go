package apiserver

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/filestream"
)

// putFiles hands a tar stream on to a guest.
func (s *Server) putFiles(w http.ResponseWriter, r *http.Request) {
	res, err := s.cfg.VMs.PutFiles(r.Context(), r.PathValue("name"), api.ParsePutFiles(r.URL.Query()), clientBody{r.Body})
	if err != nil {
		filestream.Refuse(w, r, func(w http.ResponseWriter) { writeError(w, r, err) })
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(res) // nothing to do for a client that left
}

// getFiles hands a tar stream of a guest on to a client.
func (s *Server) getFiles(w http.ResponseWriter, r *http.Request) {
	begun, err := filestream.Answer(w, func(out io.Writer) (api.FilesResult, error) {
		return s.cfg.VMs.Files(r.Context(), r.PathValue("name"), api.ParseGetFiles(r.URL.Query()), out)
	})
	if err != nil && !begun {
		writeError(w, r, err)
		return
	}
	s.streamEnded(r, err)
}

// clientBody is what a client sends; where that breaks off, the client has left.
type clientBody struct{ r io.Reader }

func (b clientBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = api.Errorf(api.KindCancelled, "the client stopped sending: %w", err)
	}
	return n, err
}

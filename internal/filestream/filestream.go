// Package filestream is how a stream of files travels over HTTP: an answer whose trailer says whether it is whole, and a refusal that
// reaches a client who is still sending. The agent, the daemon and their clients share it.
package filestream

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

const (
	// maxEnd bounds the JSON of a stream's end in bytes: the other side's HTTP reads a trailer of 4 KiB at most.
	maxEnd = 3 << 10
	// hearFor is how long an answer waits for a client that is still sending.
	hearFor = time.Second
	// maxLines bounds FilesResult.Skipped.
	maxLines = 20
)

// Answer answers a request with the tar stream that fill writes, and says at its end whether it is whole. begun is false
// where fill failed before its first byte: the error is then the caller's to answer with.
func Answer(w http.ResponseWriter, fill func(io.Writer) (api.FilesResult, error)) (begun bool, err error) {
	out := &answer{w: w}
	res, err := fill(out)
	if err != nil && !out.begun {
		return false, err
	}
	out.begin()
	end := api.FilesEnd{FilesResult: res}
	if err != nil {
		end.Error = api.AsError(err)
		if len(end.Error.Message) > maxEnd/2 {
			end.Error.Message = end.Error.Message[:maxEnd/2]
		}
	}
	w.Header().Set(api.TrailerFiles, encodeEnd(end))
	return true, err
}

// encodeEnd drops lines until it fits.
func encodeEnd(end api.FilesEnd) string {
	for {
		b, err := json.Marshal(end)
		if err == nil && (len(b) <= maxEnd || len(end.Skipped) == 0) {
			return string(b)
		}
		end.Skipped = end.Skipped[:max(len(end.Skipped)-1, 0)]
	}
}

// answer begins with the first byte.
type answer struct {
	w     http.ResponseWriter
	begun bool
}

func (a *answer) begin() {
	if !a.begun {
		a.begun = true
		a.w.Header().Set("Content-Type", "application/x-tar")
		a.w.Header().Set("Trailer", api.TrailerFiles)
		a.w.WriteHeader(http.StatusOK)
	}
}

func (a *answer) Write(p []byte) (int, error) {
	a.begin()
	return a.w.Write(p)
}

// Refuse calls answer, which answers a request whose client is still sending: it must have read the answer, whose length it is told, before
// its connection is cut.
func Refuse(w http.ResponseWriter, r *http.Request, answer func(http.ResponseWriter)) {
	a := &refusal{header: w.Header(), status: http.StatusOK}
	answer(a)
	rc := http.NewResponseController(w)
	_ = rc.EnableFullDuplex() // what is not possible here costs the client the reason, nothing else
	w.Header().Set("Connection", "close")
	w.Header().Set("Content-Length", strconv.Itoa(a.Len()))
	w.WriteHeader(a.status)
	_, _ = w.Write(a.Bytes())
	_ = rc.Flush()
	_ = rc.SetReadDeadline(time.Now().Add(hearFor))
	_, _ = io.Copy(io.Discard, r.Body)
}

// refusal is an answer that is kept until it is whole.
type refusal struct {
	bytes.Buffer
	header http.Header
	status int
}

// Header implements http.ResponseWriter.
func (a *refusal) Header() http.Header { return a.header }

// WriteHeader implements http.ResponseWriter.
func (a *refusal) WriteHeader(status int) { a.status = status }

// errCut is a stream that ended without saying so.
var errCut = errors.New("the stream of files was cut")

// Stream is an answer of Answer. Its Read returns io.EOF only where the stream is whole, else why it is not.
type Stream struct {
	resp *http.Response
	// believe turns the error at the end of a stream into the one to return.
	believe func(*api.Error) error
	result  api.FilesResult
	err     error
}

// New returns the stream of files in an answer; the caller closes it. What its end says went wrong is passed through believe.
func New(resp *http.Response, believe func(*api.Error) error) *Stream {
	return &Stream{resp: resp, believe: believe}
}

// Read implements io.Reader.
func (s *Stream) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.resp.Body.Read(p)
	if errors.Is(err, io.EOF) {
		err = s.end()
	}
	s.err = err
	return n, err
}

// end is how the stream ended: io.EOF where it is whole.
func (s *Stream) end() error {
	var end api.FilesEnd
	if err := json.Unmarshal([]byte(s.resp.Trailer.Get(api.TrailerFiles)), &end); err != nil {
		return errCut
	}
	if end.Error != nil {
		return s.believe(end.Error)
	}
	s.result = end.FilesResult
	s.result.Skipped = s.result.Skipped[:min(len(s.result.Skipped), maxLines)]
	return io.EOF
}

// Result is what the other side packed, once Read has returned io.EOF.
func (s *Stream) Result() api.FilesResult { return s.result }

// Close ends the stream, also before its end.
func (s *Stream) Close() error { return s.resp.Body.Close() }

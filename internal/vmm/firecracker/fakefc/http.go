package fakefc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
)

const (
	// maxConnections are served at once (micro_http, server.rs).
	maxConnections = 10
	// maxHeader is the longest line of a request's head, in bytes.
	maxHeader = 1024
)

// errInvalidRequest is what is said of a request that is none.
const errInvalidRequest = fault("Invalid request.")

// request is one of the API.
type request struct {
	method, path string
	body         []byte
	hasBody      bool
}

// server is Firecracker's HTTP server (micro_http): one request at a time, and of HTTP only what it must know.
type server struct {
	handle     func(request) (status int, body []byte)
	maxPayload int
	// answered is called when an answer has been written.
	answered func()

	one sync.Mutex // held while a request is answered

	mu   sync.Mutex // guards open
	open int
}

// serve accepts connections for ever.
func (s *server) serve(ln *net.UnixListener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		full := s.open >= maxConnections
		if !full {
			s.open++
		}
		s.mu.Unlock()
		if full {
			_ = answer(conn, 503, []byte(`{ "error": "Too many open connections" }`))
			conn.Close()
			continue
		}
		go func() {
			s.connection(conn)
			conn.Close()
			s.mu.Lock()
			s.open--
			s.mu.Unlock()
		}()
	}
}

func (s *server) connection(conn net.Conn) {
	r := bufio.NewReaderSize(conn, maxHeader)
	for {
		req, err := s.read(r, conn)
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			body := fmt.Sprintf("{ \"error\": \"%s\nAll previous unanswered requests will be dropped.\" }", err)
			_ = answer(conn, 400, []byte(body))
			return
		}
		s.one.Lock()
		status, body := s.handle(req)
		s.one.Unlock()
		err = answer(conn, status, body)
		s.answered()
		if err != nil {
			return
		}
	}
}

// answer writes an answer as micro_http does: a status line without a reason.
func answer(w io.Writer, status int, body []byte) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "HTTP/1.1 %d \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n", status)
	if status != 204 {
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	b.WriteString("\r\n")
	b.Write(body)
	_, err := w.Write(b.Bytes())
	return err
}

// read reads a request. io.EOF is the end of the connection between two; every other error is for its sender.
func (s *server) read(r *bufio.Reader, w io.Writer) (req request, err error) {
	line, err := readHeader(r)
	if err != nil {
		return req, err
	}
	if req, err = requestLine(line); err != nil {
		return req, err
	}
	length, expect, err := req.readHead(r)
	switch {
	case err != nil:
		return req, err
	case length > s.maxPayload:
		return req, faultf("Request payload with size %d is larger than the limit of %d allowed by server.", length, s.maxPayload)
	case length == 0:
		return req, nil
	}
	if expect {
		if _, err := io.WriteString(w, "HTTP/1.1 100 \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n\r\n"); err != nil {
			return req, io.EOF
		}
	}
	req.body, req.hasBody = make([]byte, length), true
	if _, err := io.ReadFull(r, req.body); err != nil {
		return req, io.EOF
	}
	return req, nil
}

// requestLine parses the first line.
func requestLine(line string) (req request, err error) {
	words := strings.Split(line, " ")
	if len(words) != 3 {
		return req, errInvalidRequest
	}
	req.method, req.path = words[0], words[1]
	if !slices.Contains([]string{"GET", "PUT", "PATCH"}, req.method) {
		return req, fault("Invalid HTTP Method: Unsupported HTTP method.")
	}
	if rest, ok := strings.CutPrefix(req.path, "http://"); ok {
		_, path, _ := strings.Cut(rest, "/")
		req.path = "/" + path
	}
	if !strings.HasPrefix(req.path, "/") {
		return req, fault("Invalid URI: Invalid URI.")
	}
	if words[2] != "HTTP/1.1" && words[2] != "HTTP/1.0" {
		return req, fault("Invalid HTTP Version: Unsupported HTTP version.")
	}
	return req, nil
}

// readHead reads the rest of a head: the length of the body, and whether its sender waits to be asked for it.
func (req request) readHead(r *bufio.Reader) (length int, expect bool, err error) {
	for {
		line, err := readHeader(r)
		if err != nil {
			return 0, false, errInvalidRequest
		}
		if line == "" {
			return length, expect, nil
		}
		name, value, ok := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch {
		case !ok:
			return 0, false, faultf("Invalid header. Reason: Header contains invalid characters. Key: %s", line)
		case strings.EqualFold(name, "Content-Length"):
			if length, err = strconv.Atoi(value); err != nil || length < 0 {
				return 0, false, faultf("Invalid header. Reason: Invalid value. Key:%s; Value:%s", name, value)
			}
		case strings.EqualFold(name, "Transfer-Encoding") && strings.EqualFold(value, "chunked"):
			// Firecracker takes the request as one without a body, and the body as the next request.
			violation("%s %s: a body in chunks, which Firecracker does not read", req.method, req.path)
		case strings.EqualFold(name, "Expect"):
			expect = true
		}
	}
}

// readHeader reads a line of a request's head.
func readHeader(r *bufio.Reader) (string, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return "", errInvalidRequest
	}
	if err != nil {
		return "", io.EOF
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r"), nil
}

package fakefc

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// raw sends text to the API and reads what comes until n bytes are there, or the connection ends.
func raw(t *testing.T, p *program, text string, n int) string {
	t.Helper()
	conn, err := dialSocket(deadline(t), filepath.Join(p.dir, "fc.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if text != "" {
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, n)
	got, err := io.ReadFull(conn, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Fatal(err)
	}
	return string(b[:got])
}

func put(path, body string) string {
	return fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
}

func TestAnswersAsBytes(t *testing.T) {
	p := start(t, newDir(t, Knobs{}, nil), "--api-sock", "fc.sock")
	const head = "Server: Firecracker API\r\nConnection: keep-alive\r\n"
	const typed = head + "Content-Type: application/json\r\n"
	parse := func(text string) string {
		body := "{ \"error\": \"" + text + "\nAll previous unanswered requests will be dropped.\" }"
		return fmt.Sprintf("HTTP/1.1 400 \r\n%sContent-Length: %d\r\n\r\n%s", typed, len(body), body)
	}
	for name, c := range map[string]struct{ send, want string }{
		"204":          {put("/entropy", "{}"), "HTTP/1.1 204 \r\n" + head + "\r\n"},
		"two":          {strings.Repeat(put("/entropy", "{}"), 2), strings.Repeat("HTTP/1.1 204 \r\n"+head+"\r\n", 2)},
		"200":          {"GET /version HTTP/1.1\r\n\r\n", "HTTP/1.1 200 \r\n" + typed + "Content-Length: 32\r\n\r\n{\"firecracker_version\":\"1.17.0\"}"},
		"absolute":     {"GET http://localhost/version HTTP/1.1\r\n\r\n", "HTTP/1.1 200 \r\n" + typed + "Content-Length: 32\r\n\r\n{\"firecracker_version\":\"1.17.0\"}"},
		"method":       {"POST / HTTP/1.1\r\n\r\n", parse("Invalid HTTP Method: Unsupported HTTP method.")},
		"long header":  {"GET / HTTP/1.1\r\nX: " + strings.Repeat("x", 1100), parse("Invalid request.")},
		"long body":    {"PUT /entropy HTTP/1.1\r\nContent-Length: 51201\r\n\r\n", parse("Request payload with size 51201 is larger than the limit of 51200 allowed by server.")},
		"no JSON":      {put("/entropy", "nonsense"), ""},
		"continue":     {"PUT /entropy HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 100 \r\n" + head + "\r\nHTTP/1.1 204 \r\n" + head + "\r\n"},
		"wrong length": {"PUT /entropy HTTP/1.1\r\nContent-Length: many\r\n\r\n", parse("Invalid header. Reason: Invalid value. Key:Content-Length; Value:many")},
	} {
		t.Run(name, func(t *testing.T) {
			if c.want == "" {
				if got := raw(t, p, c.send, 12); got != "HTTP/1.1 400" {
					t.Errorf("got %q", got)
				}
				return
			}
			if diff := cmp.Diff(c.want, raw(t, p, c.send, len(c.want))); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
	if got := p.file(t, ViolationFile); got != "" && !strings.Contains(got, "invalid character") {
		t.Errorf("violations: %s", got)
	}
}

// TestChunks: a body in chunks is none.
func TestChunks(t *testing.T) {
	p := start(t, newDir(t, Knobs{}, nil), "--api-sock", "fc.sock")
	got := raw(t, p, "PUT /entropy HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 1000)
	if !strings.HasPrefix(got, "HTTP/1.1 400 ") || !strings.Contains(got, "Invalid request.") {
		t.Errorf("got %q", got)
	}
	if v := p.file(t, ViolationFile); !strings.Contains(v, "chunks") {
		t.Errorf("violations: %q", v)
	}
}

func TestTooManyConnections(t *testing.T) {
	p := start(t, newDir(t, Knobs{}, nil), "--api-sock", "fc.sock")
	for range maxConnections {
		conn, err := dialSocket(deadline(t), filepath.Join(p.dir, "fc.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// Its answer says that it was taken.
		if _, err := io.WriteString(conn, "GET /version HTTP/1.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	if got := raw(t, p, "", 1000); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.HasSuffix(got, `{ "error": "Too many open connections" }`) {
		t.Errorf("the eleventh gets %q", got)
	}
}

func FuzzDecode(f *testing.F) {
	for _, text := range []string{good, "{", "[]", "null", `{"drives":[{}]}`, `{"drives":[1]}`, `{"vsock":null,"drives":[]} x`, "{\"\xff\":1}"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var c config
		if err := decode(text, &c); err == nil && c.BootSource == nil && !strings.Contains(string(text), "null") {
			t.Errorf("%q has no boot-source", text)
		}
	})
}

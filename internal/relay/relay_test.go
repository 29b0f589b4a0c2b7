package relay

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// pair returns the ends of a unix socket connection.
func pair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: filepath.Join(t.TempDir(), "s")})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a, err = net.DialUnix("unix", nil, ln.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	if b, err = ln.AcceptUnix(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	limit := time.Now().Add(30 * time.Second)
	_, _ = a.SetDeadline(limit), b.SetDeadline(limit)
	return a, b
}

// whole is a connection that cannot end one direction, and wrapped one in a type of its own.
type (
	whole   struct{ *net.UnixConn }
	wrapped struct{ *net.UnixConn }
)

func (whole) CloseWrite() error { return errors.ErrUnsupported }

// TestJoin: a question and its end go one way, the answer and its end the other.
func TestJoin(t *testing.T) {
	client, near := pair(t)
	far, server := pair(t)
	done := make(chan struct{})
	go func() { defer close(done); Join(wrapped{near}, far) }()
	_, _ = io.WriteString(client, "question")
	_ = client.CloseWrite()
	if got, err := io.ReadAll(server); string(got) != "question" || err != nil {
		t.Errorf("the server got %q, %v", got, err)
	}
	_, _ = io.WriteString(server, "answer")
	server.Close()
	if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
		t.Errorf("the client got %q, %v", got, err)
	}
	<-done
}

// TestJoinWhole: where the end of one direction would be that of both, it is not passed on; a client that is gone is.
func TestJoinWhole(t *testing.T) {
	for _, gone := range []bool{false, true} {
		client, near := pair(t)
		far, server := pair(t)
		done := make(chan struct{})
		go func() { defer close(done); Join(wrapped{near}, whole{far}) }()
		_, _ = io.WriteString(client, "question")
		_ = client.CloseWrite()
		b := make([]byte, 100)
		if n, err := server.Read(b); string(b[:n]) != "question" || err != nil {
			t.Errorf("the server got %q, %v", b[:n], err)
		}
		if gone {
			client.Close()
			if n, err := server.Read(b); n != 0 || !errors.Is(err, io.EOF) {
				t.Errorf("after the client was gone the server got %q, %v", b[:n], err)
			}
		} else {
			_, _ = io.WriteString(server, "answer")
			server.Close()
			if got, err := io.ReadAll(client); string(got) != "answer" || err != nil {
				t.Errorf("the client got %q, %v", got, err)
			}
		}
		<-done
	}
}

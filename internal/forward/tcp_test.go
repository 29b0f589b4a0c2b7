package forward

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// resetBy reads until the connection ends, and reports whether a reset ended it.
func resetBy(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("it ended without a reset: %w", cmp.Or(err, io.EOF))
	}
	return nil
}

// refused dials a port and reports whether a reset is all there is, which may come before the connection is told to be one.
func refused(t *testing.T, to netip.AddrPort) error {
	t.Helper()
	conn, err := net.Dial("tcp", to.String())
	if err != nil {
		if errors.Is(err, syscall.ECONNRESET) {
			return nil
		}
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(within))
	return resetBy(conn)
}

func TestHalfClose(t *testing.T) {
	s := newService(t)
	got := make(chan string, 1)
	at := open(t, s, "web", api.Forward{GuestPort: 1}, dialTo(map[uint16]string{1: listen(t, func(c *net.TCPConn) {
		b, err := io.ReadAll(c) // all that the client has, before a word is said
		fmt.Fprintf(c, "%d bytes, %v", len(b), err)
	})}))
	c := connect(t, at)
	if _, err := c.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); err != nil || string(b) != "1048576 bytes, <nil>" {
		t.Errorf("the client's end first: %q, %v", b, err)
	}
	s.Close("id-web")

	at = open(t, s, "web", api.Forward{GuestPort: 1}, dialTo(map[uint16]string{1: listen(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "all I have")
		_ = c.CloseWrite()
		b, err := io.ReadAll(c)
		got <- fmt.Sprintf("%s, %v", b, err)
	})}))
	c = connect(t, at)
	if b, err := io.ReadAll(c); err != nil || string(b) != "all I have" {
		t.Errorf("the guest's end first: %q, %v", b, err)
	}
	if _, err := io.WriteString(c, "still here"); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if g := <-got; g != "still here, <nil>" {
		t.Errorf("the guest got %q", g)
	}
}

func TestBulk(t *testing.T) {
	s := newService(t)
	at := open(t, s, "web", api.Forward{GuestPort: 1}, dialTo(map[uint16]string{1: listen(t, echo)}))
	c := connect(t, at)
	sent, got := sha256.New(), sha256.New()
	go func() {
		_, _ = io.CopyN(io.MultiWriter(c, sent), rand.Reader, 32<<20)
		_ = c.CloseWrite()
	}()
	if n, err := io.Copy(got, c); err != nil || n != 32<<20 || string(got.Sum(nil)) != string(sent.Sum(nil)) {
		t.Errorf("%d bytes came back, %v, and not the same", n, err)
	}
}

func TestThousandConnections(t *testing.T) {
	s := newService(t)
	at := open(t, s, "web", api.Forward{GuestPort: 1}, dialTo(map[uint16]string{1: listen(t, echo)}))
	const count = 1000
	var open, done sync.WaitGroup
	open.Add(count)
	goOn := make(chan struct{})
	for i := range count {
		done.Go(func() {
			conn, err := net.Dial("tcp", at.String())
			if err != nil {
				open.Done()
				t.Error(err)
				return
			}
			defer conn.Close()
			word := fmt.Sprintf("I am %04d", i)
			answer := make([]byte, len(word))
			for round := range 2 {
				if _, err := io.WriteString(conn, word); err != nil {
					t.Error(err)
				}
				if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != word {
					t.Errorf("%q was answered with %q, %v", word, answer, err)
				}
				if round == 0 { // all are open at once
					open.Done()
					<-goOn
				}
			}
		})
	}
	open.Wait()
	if st := s.Status("id-web"); len(st) != 1 || st[0].Connections != count || !st[0].Listening {
		t.Errorf("status %+v", st)
	}
	close(goOn)
	done.Wait()
	eventually(t, "no connections", func() bool { return s.Status("id-web")[0].Connections == 0 })
}

func TestResetsArePassedOn(t *testing.T) {
	s := newService(t)
	got := make(chan error, 1)
	dial := dialTo(map[uint16]string{
		1: listen(t, func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 4))
			_ = c.SetLinger(0)
		}),
		2: listen(t, func(c *net.TCPConn) { got <- resetBy(c) }),
		3: listen(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "hello")
			got <- resetBy(c)
		}),
	})
	list, err := s.Open(VM{ID: "1", Name: "web", Dial: dial}, []api.Forward{{GuestPort: 1}, {GuestPort: 2}, {GuestPort: 3}, {GuestPort: 4}})
	if err != nil {
		t.Fatal(err)
	}
	c := connect(t, at(list[0]))
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	if err := resetBy(c); err != nil {
		t.Errorf("a reset by the guest: %v", err)
	}
	c = connect(t, at(list[1]))
	if _, err := io.WriteString(c, "ping"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a connection", func() bool { return s.Status("1")[1].Connections == 1 })
	reset(c)
	if err := <-got; err != nil {
		t.Errorf("a reset by the client: %v", err)
	}
	c = connect(t, at(list[2])) // reset while the guest's answer is unread
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-got; err != nil {
		t.Errorf("a client that does not want to read: %v", err)
	}
	if err := refused(t, at(list[3])); err != nil {
		t.Errorf("a port where nobody listens: %v", err)
	}
}

// TestNeverAnswers: connections to a guest that says nothing, or that cannot be reached, end with their forward and no sooner.
func TestNeverAnswers(t *testing.T) {
	for name, end := range map[string]func(*Service, api.Forward){
		"remove": func(s *Service, f api.Forward) { s.Remove("1", f) },
		"close":  func(s *Service, _ api.Forward) { s.Close("1") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t)
			hold := make(chan struct{})
			defer close(hold)
			silent := dialTo(map[uint16]string{1: listen(t, func(*net.TCPConn) { <-hold })})
			dialling := make(chan struct{}, 1)
			list, err := s.Open(VM{ID: "1", Name: "web", Dial: func(ctx context.Context, network string, port uint16) (net.Conn, error) {
				if port == 1 {
					return silent(ctx, network, port)
				}
				dialling <- struct{}{}
				<-ctx.Done()
				return nil, ctx.Err()
			}}, []api.Forward{{GuestPort: 1}, {GuestPort: 2}})
			if err != nil {
				t.Fatal(err)
			}
			// The first fills all buffers on the way: its writer stands.
			full, waiting := connect(t, at(list[0])), connect(t, at(list[1]))
			wrote := make(chan error, 1)
			go func() {
				_, err := io.CopyN(struct{ io.Writer }{full}, zeros{}, 1<<30)
				wrote <- err
			}()
			<-dialling
			eventually(t, "two connections", func() bool {
				st := s.Status("1")
				return st[0].Connections == 1 && st[1].Connections == 1
			})
			end(s, list[0])
			if err := <-wrote; err == nil {
				t.Error("a gigabyte went to nobody")
			}
			end(s, list[1])
			if err := resetBy(waiting); err != nil {
				t.Error(err)
			}
			if _, err := net.Dial("tcp", at(list[0]).String()); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("it listens still: %v", err)
			}
		})
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func TestTooManyConnections(t *testing.T) {
	s := newService(t)
	at := open(t, s, "web", api.Forward{GuestPort: 1}, dialTo(map[uint16]string{1: listen(t, echo)}))
	s.guest("id-web").connections.Store(maxConnections)
	if err := refused(t, at); err != nil {
		t.Errorf("one too many: %v", err)
	}
	s.guest("id-web").connections.Add(-1)
	c := connect(t, at)
	if _, err := io.WriteString(c, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Errorf("the last one: %v", err)
	}
	c.Close()
	eventually(t, "the count", func() bool { return s.guest("id-web").connections.Load() == maxConnections-1 })
}

// tired is a listener without files, now and then.
type tired struct {
	net.Listener
	fails int
}

func (l *tired) Accept() (net.Conn, error) {
	if l.fails > 0 {
		l.fails--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestAcceptGoesOn(t *testing.T) {
	s := newService(t)
	at := open(t, s, "web", api.Forward{GuestPort: 1}, dialTo(map[uint16]string{1: listen(t, echo)}))
	g := s.guest("id-web")
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := g.serve(api.Forward{GuestPort: 1}, &tired{Listener: ln, fails: 4})
	for _, to := range []string{at.String(), ln.Addr().String()} {
		conn, err := net.Dial("tcp", to)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, "x")
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		conn.Close()
	}
	p.close()
}

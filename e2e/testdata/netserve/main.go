// Command netserve is a guest's servers for the tests of what leads into a VM: netserve HOST. They listen on HOST alone: TCP and UDP
// echo on port 7, on 10 TCP that never says anything, on 11 TCP that takes all until its peer has said its last and answers with
// the hash, and HTTP on 8080: / says who asked for what, /ws echoes a WebSocket, /events sends one event a second, /sum hashes what it is sent,
// /bytes?n= sends, /never does not answer.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/coder/websocket"
)

func main() {
	if len(os.Args) != 2 {
		fail("usage: netserve HOST")
	}
	host := os.Args[1]
	for port, serve := range map[int]func(*net.TCPConn){
		7:  echo,
		10: func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) },
		11: func(c *net.TCPConn) {
			h := sha256.New()
			_, _ = io.Copy(h, c)
			fmt.Fprintln(c, hex.EncodeToString(h.Sum(nil)))
		},
	} {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			fail(err)
		}
		go accept(ln, serve)
	}
	u, err := net.ListenPacket("udp", net.JoinHostPort(host, "7"))
	if err != nil {
		fail(err)
	}
	go echoDatagrams(u)
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "8080"))
	if err != nil {
		fail(err)
	}
	fmt.Println("ready")
	fail(http.Serve(ln, routes()))
}

func routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s for %s\n", r.Method, r.URL.Path, r.Host)
	})
	mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		for {
			kind, text, err := c.Read(r.Context())
			if err != nil || c.Write(r.Context(), kind, text) != nil {
				return
			}
		}
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 0; ; i++ {
			fmt.Fprintf(w, "data: %d\n\n", i)
			if http.NewResponseController(w).Flush() != nil {
				return
			}
			select {
			case <-time.After(time.Second):
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		h := sha256.New()
		_, _ = io.Copy(h, r.Body)
		fmt.Fprint(w, hex.EncodeToString(h.Sum(nil)))
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		h := sha256.New()
		w.Header().Set("Trailer", "Sum")
		_, _ = io.CopyN(io.MultiWriter(w, h), &counter{}, n)
		w.Header().Set("Sum", hex.EncodeToString(h.Sum(nil)))
	})
	mux.HandleFunc("/never", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	return mux
}

// counter is endless bytes that do not repeat soon.
type counter struct{ n uint64 }

func (c *counter) Read(p []byte) (int, error) {
	for i := range p {
		c.n = c.n*6364136223846793005 + 1442695040888963407
		p[i] = byte(c.n >> 56)
	}
	return len(p), nil
}

func accept(ln net.Listener, serve func(*net.TCPConn)) {
	for {
		c, err := ln.Accept()
		if err != nil {
			fail(err)
		}
		go func() {
			defer c.Close()
			serve(c.(*net.TCPConn))
		}()
	}
}

func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

func echoDatagrams(u net.PacketConn) {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := u.ReadFrom(buf)
		if err != nil {
			fail(err)
		}
		_, _ = u.WriteTo(buf[:n], from)
	}
}

func fail(v any) {
	fmt.Fprintln(os.Stderr, "netserve:", v)
	os.Exit(1)
}

//go:build !e2e

package e2e

import (
	"io"
	"net"
	"strconv"

	"github.com/rogpeppe/go-internal/testscript"

	"git.thaloco.com/thaloco/banger/internal/hostports/hostportstest"
)

// cmdGreeter starts a server, which says TEXT to who connects, at a port of this host, which a fake guest shares, and puts it into VAR. It is
// there until the script ends. Without a TEXT VAR is a port where nobody listens.
func cmdGreeter(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 || len(args) > 2 {
		ts.Fatalf("usage: greeter VAR [TEXT]")
	}
	if len(args) == 1 {
		port, err := hostportstest.Free()
		ts.Check(err)
		ts.Setenv(args[0], strconv.Itoa(int(port)))
		return
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], strconv.Itoa(ln.Addr().(*net.TCPAddr).Port))
	ts.Defer(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, args[1]+"\n")
			conn.Close()
		}
	}()
}

package fakeguest

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
)

// apiServer serves the agent's HTTP API on connections that are handed to it.
type apiServer struct {
	server http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newAPIServer(g *Guest) *apiServer {
	// Like an init, the guest does it after the answer has gone.
	end := func(_ context.Context, verb string) error {
		_, err := fmt.Fprintln(g.fifo, verb)
		return err
	}
	a := &apiServer{conns: make(chan net.Conn), closed: make(chan struct{})}
	a.server.Handler = guestapi.Handler(guestapi.Config{
		Processes: g.procs,
		Sessions:  g.sessions,
		State: func() guestapi.State {
			return guestapi.State{Agent: Version, Init: "none", Mark: api.MarkFull}
		},
		Shutdown: end,
		End:      end,
		Sync:     func(context.Context) error { return nil },
		GrowDisk: func(_ context.Context, bytes int64) (int64, error) { return bytes, nil },
		Logs: func(ctx context.Context, w io.Writer, follow bool) error {
			_, err := io.WriteString(w, "fake agent\n")
			if err == nil && follow {
				<-ctx.Done()
			}
			return err
		},
		Root:    root,
		DataDir: g.cfg.Dir,
		Log:     g.cfg.Log,
	})
	g.done.Go(func() { _ = a.server.Serve(a) })
	return a
}

// root writes the root file system of a guest that has none: a program, and what its user put there.
func root(_ context.Context, w io.Writer, clean bool) (files.Result, error) {
	t := tar.NewWriter(w)
	for _, name := range []string{"usr/made", "root/mine"} {
		if clean && name == "root/mine" {
			continue
		}
		if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, ModTime: time.Unix(1e9, 0)}); err != nil {
			return files.Result{}, err
		}
	}
	return files.Result{}, t.Close()
}

// accept hands a connection to the server.
func (a *apiServer) accept(conn net.Conn) bool {
	select {
	case a.conns <- conn:
		return true
	case <-a.closed:
		return false
	}
}

// close lets requests that are being answered have their answer, for a moment.
func (a *apiServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_ = a.server.Shutdown(ctx)
	_ = a.server.Close()
}

// Accept implements net.Listener.
func (a *apiServer) Accept() (net.Conn, error) {
	select {
	case conn := <-a.conns:
		return conn, nil
	case <-a.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (a *apiServer) Close() error {
	a.once.Do(func() { close(a.closed) })
	return nil
}

// Addr implements net.Listener.
func (a *apiServer) Addr() net.Addr { return &net.UnixAddr{Net: "unix", Name: "guest"} }

//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"

	"git.thaloco.com/thaloco/banger/api"
)

// netserve starts the servers of testdata/netserve in a VM, on one of its addresses, until the test ends.
func (h *host) netserve(t testing.TB, vm, address string) {
	t.Helper()
	program := filepath.Join(h.dir, "netserve")
	t.Setenv("CGO_ENABLED", "0")
	commandIn(t, ".", "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "./testdata/netserve")
	h.ok("vm", "cp", program, vm+":/root/netserve")
	d := h.begin("vm", "exec", vm, "--", "/root/netserve", address)
	d.await("ready\n")
	t.Cleanup(func() {
		h.run("vm", "exec", vm, "--", "pkill", "netserve")
		d.wait()
	})
}

// forward adds a forward to a VM and returns where it listens.
func (h *host) forward(vm, spec string) string {
	h.t.Helper()
	h.ok("vm", "forward", vm, "add", spec)
	guest := spec[strings.LastIndexByte(spec, ':')+1:]
	for _, f := range h.forwards(vm) {
		if fmt.Sprintf("%d/%s", f.GuestPort, f.Protocol) == guest || strconv.Itoa(int(f.GuestPort)) == guest && f.Protocol == api.TCP {
			if !f.Listening {
				h.t.Errorf("forward %s does not listen: %s", f, f.Error)
			}
			return netip.AddrPortFrom(f.HostAddress, f.HostPort).String()
		}
	}
	h.t.Fatalf("forward %s is not in the list", spec)
	return ""
}

func (h *host) forwards(vm string) []api.ForwardStatus {
	h.t.Helper()
	return decode[[]api.ForwardStatus](h.t, h.ok("vm", "forward", vm, "list", "-o", "json"))
}

// dialTCP connects to an address of this host.
func dialTCP(t testing.TB, address string) *net.TCPConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, waitShort)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
	return c.(*net.TCPConn)
}

// TestForwards: ports of the host lead to what listens on the guest's loopback.
func TestForwards(t *testing.T) {
	h := box(t)
	h.netserve(t, "box", "127.0.0.1")
	t.Cleanup(func() {
		for _, f := range h.forwards("box") {
			h.ok("vm", "forward", "box", "remove", fmt.Sprintf("%d/%s", f.HostPort, f.Protocol))
		}
	})
	echo := h.forward("box", "0:7")
	hash := h.forward("box", "0:11")
	sumInto(t, hash, 64<<20)
	halfCloseByGuest(t, echo)

	t.Run("udp", func(t *testing.T) {
		c, err := net.Dial("udp", h.forward("box", "0:7/udp"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for _, n := range []int{1, 1400, 60000} {
			msg := make([]byte, n)
			_, _ = rand.Read(msg)
			buf := make([]byte, 1<<16)
			_ = c.SetDeadline(time.Now().Add(waitShort))
			_, err := c.Write(msg)
			k := 0
			if err == nil {
				k, err = c.Read(buf)
			}
			if err != nil || !bytes.Equal(buf[:k], msg) {
				t.Errorf("%d bytes: %d came back, %v", n, k, err)
			}
		}
	})
	t.Run("never answers", func(t *testing.T) {
		c := dialTCP(t, h.forward("box", "0:10"))
		_ = c.SetDeadline(time.Now().Add(time.Second))
		if _, err := c.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(make([]byte, 1)); n > 0 || !isTimeout(err) {
			t.Errorf("read %d, %v; want a time-out", n, err)
		}
	})
	t.Run("nobody listens", func(t *testing.T) {
		c := dialTCP(t, h.forward("box", "0:999"))
		if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read %d, %v; want a reset", n, err)
		}
	})
	t.Run("a thousand at once", func(t *testing.T) { thousand(t, echo) })
	t.Run("taken", func(t *testing.T) {
		_, port, _ := net.SplitHostPort(echo)
		h.fails(1, []string{"port", port, "box"}, "vm", "forward", "box", "add", port+":80")
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		taken := strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
		before := len(h.vms())
		h.fails(125, []string{taken, "e2e.test"}, "vm", "run", "-p", taken+":80", "--", "true")
		if got := len(h.vms()); got != before {
			t.Errorf("%d VMs, %d before", got, before)
		}
	})
	for _, bad := range []string{"", "x", "80:", ":80", "1:2:3:4", "70000:80", "80:70000", "80:80/sctp", "300.1.1.1:80:80", "8000-8010:80"} {
		h.fails(2, []string{"forward"}, "vm", "forward", "box", "add", bad)
	}
	h.fails(1, []string{"nosuch"}, "vm", "forward", "nosuch", "list")
}

func isTimeout(err error) bool {
	var e net.Error
	return errors.As(err, &e) && e.Timeout()
}

// sumInto sends n bytes to a server that hashes what it gets until the end.
func sumInto(t testing.TB, address string, n int) {
	t.Helper()
	c := dialTCP(t, address)
	sum := sha256.New()
	start := time.Now()
	go func() {
		_, _ = io.CopyN(io.MultiWriter(c, sum), rand.Reader, int64(n))
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if want := hex.EncodeToString(sum.Sum(nil)); err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("the guest got %s of %d bytes, not %s; %v", got, n, want, err)
	}
	t.Logf("%d MiB into the guest took %s", n>>20, time.Since(start).Round(time.Millisecond))
}

// halfCloseByGuest: what echoes ends when it has read the end, and not before.
func halfCloseByGuest(t testing.TB, address string) {
	t.Helper()
	c := dialTCP(t, address)
	data := make([]byte, 8<<20)
	_, _ = rand.Read(data)
	go func() {
		_, _ = c.Write(data)
		_ = c.CloseWrite()
	}()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, %v", len(got), err)
	}
}

// thousand has so many connections to an echo server open at the same time.
func thousand(t testing.TB, address string) {
	t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	open, failed := 0, 0
	all := make(chan struct{})
	var once sync.Once
	goOn := func() { once.Do(func() { close(all) }) }
	for i := range 1000 {
		wg.Go(func() {
			err := func() error {
				c, err := net.DialTimeout("tcp", address, time.Minute)
				if err != nil {
					return err
				}
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(2 * time.Minute))
				msg := []byte(fmt.Sprintf("%04d", i))
				for range 2 { // at first, and while all are open
					got := make([]byte, 4)
					if _, err := c.Write(msg); err != nil {
						return err
					}
					if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, msg) {
						return fmt.Errorf("%q came back: %w", got, err)
					}
					mu.Lock()
					if open++; open == 1000 {
						goOn()
					}
					mu.Unlock()
					<-all
				}
				return nil
			}()
			if err != nil {
				mu.Lock()
				if failed++; failed == 1 {
					t.Errorf("connection %d: %v", i, err)
					goOn() // the others need not wait
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}

// TestPreview: the web pages of a VM by names of their own, without DNS or root.
func TestPreview(t *testing.T) {
	h := box(t)
	h.netserve(t, "box", "127.0.0.1")
	status := decode[api.DaemonStatus](t, h.ok("daemon", "status", "-o", "json"))
	if status.WebAddress == "" {
		t.Fatalf("the daemon has no web port: %s", status.WebWarning)
	}
	_, port, _ := net.SplitHostPort(status.WebAddress)
	if got := h.ok("ui"); got != "http://localhost:"+port+"/\n" {
		t.Errorf("banger ui says %q", got)
	}
	page := "http://8080.box.localhost:" + port + "/"
	found := false
	for _, p := range decode[[]api.GuestPort](t, h.ok("vm", "ports", "box", "-o", "json")) {
		found = found || p.Port == 8080 && p.URL == page && p.Process == "netserve" && p.Address.IsLoopback()
	}
	if !found {
		t.Errorf("vm ports does not tell %s:\n%s", page, h.ok("vm", "ports", "box"))
	}
	// As a browser does: what ends in .localhost is this machine.
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", status.WebAddress)
	}}}
	defer client.CloseIdleConnections()
	get := func(url string, header ...string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Error(err)
		}
		return resp.StatusCode, string(body)
	}
	if code, got := get(page + "a/b"); code != 200 || got != "GET /a/b for 8080.box.localhost:"+port+"\n" {
		t.Errorf("%d %q", code, got)
	}
	if code, got := get("http://localhost:" + port + "/"); code != 200 || !strings.Contains(got, "box") {
		t.Errorf("the index: %d %q", code, got)
	}
	for what, tc := range map[string]struct {
		code int
		url  string
		head []string
	}{
		"a page elsewhere posts":     {403, page, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors"}},
		"another origin":             {403, page, []string{"Origin", "http://evil.example"}},
		"a link elsewhere":           {200, page, []string{"Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"}},
		"a foreign host":             {421, "http://evil.example/", nil},
		"no such VM":                 {404, "http://8080.nosuch.localhost/", nil},
		"nobody listens on the port": {502, "http://81.box.localhost/", nil},
	} {
		if code, got := get(tc.url, tc.head...); code != tc.code {
			t.Errorf("%s: %d, want %d: %q", what, code, tc.code, got)
		}
	}
	t.Run("websocket", func(t *testing.T) { previewSocket(t, client, page) })
	t.Run("events", func(t *testing.T) {
		resp, err := client.Get(page + "events")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body) // the server never ends: what comes through was not held back
		for lines.Scan() && lines.Text() != "data: 1" {
		}
		if lines.Text() != "data: 1" {
			t.Errorf("no events: %v", lines.Err())
		}
	})
	t.Run("bulk", func(t *testing.T) { previewBulk(t, client, page, 64<<20) })
	t.Run("another user", func(t *testing.T) {
		out := asNobody(t, "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "--resolve", "8080.box.localhost:"+port+":127.0.0.1", page)
		if out != "403" {
			t.Errorf("another user got %q", out)
		}
	})
}

func previewSocket(t *testing.T, client *http.Client, page string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dialer := &http.Client{Transport: client.Transport}
	c, _, err := websocket.Dial(ctx, page+"ws", &websocket.DialOptions{HTTPClient: dialer, HTTPHeader: http.Header{"Origin": {strings.TrimSuffix(page, "/")}}})
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseNow()
	for _, msg := range []string{"hello", strings.Repeat("x", 30_000)} {
		if err := c.Write(ctx, websocket.MessageText, []byte(msg)); err != nil {
			t.Fatal(err)
		}
		if _, got, err := c.Read(ctx); err != nil || string(got) != msg {
			t.Errorf("%d bytes came back, %v", len(got), err)
		}
	}
	if _, _, err := websocket.Dial(ctx, page+"ws", &websocket.DialOptions{HTTPClient: dialer, HTTPHeader: http.Header{"Origin": {"http://evil.example"}}}); err == nil {
		t.Error("a WebSocket of another origin was let in")
	}
}

// asNobody runs a program of the host as a user who has nothing to do with the tests, and returns what it printed.
func asNobody(t testing.TB, argv ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	c := exec.Command(argv[0], argv[1:]...)
	c.Dir, c.SysProcAttr = "/", &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	return string(out)
}

// previewBulk sends and fetches n bytes.
func previewBulk(t testing.TB, client *http.Client, page string, n int64) {
	t.Helper()
	sum := sha256.New()
	resp, err := client.Post(page+"sum", "application/octet-stream", io.TeeReader(io.LimitReader(rand.Reader, n), sum))
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	if want := hex.EncodeToString(sum.Sum(nil)); err != nil || string(got) != want {
		t.Errorf("up: %s, want %s, %v", got, want, err)
	}
	if resp, err = client.Get(fmt.Sprintf("%sbytes?n=%d", page, n)); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	sum.Reset()
	k, err := io.Copy(sum, resp.Body)
	if want := hex.EncodeToString(sum.Sum(nil)); err != nil || k != n || resp.Trailer.Get("Sum") != want {
		t.Errorf("down: %d bytes, %s, want %s, %v", k, resp.Trailer.Get("Sum"), want, err)
	}
}

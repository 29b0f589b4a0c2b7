package daemon

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/preview"
)

// closeAll closes listeners at the end of a test.
func closeAll(t *testing.T, lns []net.Listener) {
	t.Cleanup(func() {
		for _, ln := range lns {
			_ = ln.Close()
		}
	})
}

func portOf(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

// taken takes a port of a loopback address that is followed by others.
func taken(t *testing.T, host string) (port int) {
	t.Helper()
	for {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Skipf("no %s here: %v", host, err)
		}
		if port = portOf(ln); port < 65000 {
			closeAll(t, []net.Listener{ln})
			return port
		}
		_ = ln.Close()
	}
}

func TestWebPortTaken(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} { // browsers go to either for localhost
		port := taken(t, host)
		lns, warning := bindWeb(fmt.Sprintf("127.0.0.1:%d", port))
		closeAll(t, lns)
		if len(lns) == 0 || portOf(lns[0]) == port || portOf(lns[0]) > port+webPorts {
			t.Fatalf("%s: %v, %s", host, lns, warning)
		}
		want := fmt.Sprintf("the web port %s is used by banger itself (pid %d); it is %s instead",
			net.JoinHostPort(host, fmt.Sprint(port)), os.Getpid(), lns[0].Addr())
		if warning != want {
			t.Errorf("%q, want %q", warning, want)
		}
		for _, ln := range lns[1:] {
			if portOf(ln) != portOf(lns[0]) {
				t.Errorf("the ports differ: %v", lns)
			}
		}
	}
}

func TestWebPortAllTaken(t *testing.T) {
	var first int
	for tries := 0; first == 0; tries++ { // a row of ports of which we have all
		if tries == 100 {
			t.Skip("no row of free ports")
		}
		port := taken(t, "127.0.0.1")
		var row []net.Listener
		for p := port + 1; p <= port+webPorts; p++ {
			ln, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", p))
			if err != nil {
				break
			}
			row = append(row, ln)
		}
		closeAll(t, row)
		if len(row) == webPorts {
			first = port
		}
	}
	lns, warning := bindWeb(fmt.Sprintf("localhost:%d", first))
	closeAll(t, lns)
	if len(lns) == 0 || portOf(lns[0]) >= first && portOf(lns[0]) <= first+webPorts || !strings.Contains(warning, " instead") {
		t.Errorf("%v, %s", lns, warning)
	}
}

func TestWebPortOdd(t *testing.T) {
	for configured, want := range map[string]string{
		"127.0.0.1:0":     "",
		"localhost:0":     "",
		"[::1]:0":         "",
		"0.0.0.0:0":       "none but this host's own connections to 127.0.0.1 are served",
		"127.0.0.2:0":     "at 127.0.0.1",
		"192.0.2.1:7777":  "there are no web pages: the web port cannot be opened: listen on 192.0.2.1:7777: ", // TEST-NET-1, nobody's
		"nothing":         "web_listen_addr \"nothing\": ",
		"example.org:777": "web_listen_addr \"example.org:777\": ",
	} {
		lns, warning := bindWeb(configured)
		closeAll(t, lns)
		if (want == "") != (warning == "") || !strings.Contains(warning, want) {
			t.Errorf("%s: %q, want %q", configured, warning, want)
		}
		if want == "" && len(lns) == 0 {
			t.Errorf("%s: nothing listens", configured)
		}
	}
	if w := openWeb("", quiet()); w.address != "" || w.url("web", 3000) != "" {
		t.Errorf("with no web_listen_addr: %+v", w)
	}
}

// TestWebServes: the port is served at all its addresses, and closed with the daemon.
func TestWebServes(t *testing.T) {
	w := openWeb("127.0.0.1:0", quiet())
	w.serve(nil) // whom nobody asks about is not needed
	for _, ln := range w.lns {
		a := netip.MustParseAddrPort(ln.Addr().String())
		req, err := http.NewRequestWithContext(t.Context(), "GET", "http://"+a.String()+"/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "elsewhere.example"
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusMisdirectedRequest {
			t.Errorf("%s: %s", a, res.Status)
		}
	}
	if got := w.url("web", 3000); got != preview.URL(w.address, "web", 3000) || !strings.HasPrefix(got, "http://3000.web.localhost:") {
		t.Errorf("url %q", got)
	}
	w.close()
	w.close()
	if _, err := net.Dial("tcp", w.address); err == nil {
		t.Error("the port is open after its end")
	}
}

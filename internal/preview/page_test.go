package preview

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

const html = "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"

func TestIndex(t *testing.T) {
	h := newHost("web", "db", "old", "mute", "boot")
	h.listen("web", 3000, "x")
	h.listen("web", 22, "x")
	h.procs[3000] = `node <script>alert("1")</script>`
	h.set("old", func(v *api.VM) { v.State, v.Reason = api.StateStopped, `it "ended" <b>` })
	h.set("mute", func(v *api.VM) { v.Reason = "mute" })
	s := start(t, h)
	res, body := s.do(s.request("GET", s.url("localhost"), nil, "Accept", html))
	for _, want := range []string{
		`<a href="` + s.url("3000.web.localhost") + `"><b>3000</b><small>node &lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;</small></a>`,
		`<a href="` + s.url("db.localhost") + `">db</a>`, "4 of 5 running", "banger vm start old", `stopped: it &#34;ended&#34; &lt;b&gt;`,
		"its agent does not answer", "banger vm ssh web", "banger vm exec db -- python3 -m http.server 3000",
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, no := range []string{"<script", "<b>68<", "http-equiv=\"refresh\"", "src=", "url(", "@import"} {
		if strings.Contains(body, no) {
			t.Errorf("the page has %q", no)
		}
	}
	if res.StatusCode != 200 || strings.Count(body, "<b>3000</b>") != 1 || strings.Index(body, ">web<") > strings.Index(body, ">old<") {
		t.Errorf("%d, %s", res.StatusCode, body)
	}
	_, rest, _ := strings.Cut(body, "<style>")
	style, _, _ := strings.Cut(rest, "</style>")
	sum := sha256.Sum256([]byte(style))
	if csp := res.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'") {
		t.Errorf("the policy %q is not that of the page's style", csp)
	}
	h.set("boot", func(v *api.VM) { v.State = api.StateStarting })
	if _, body := s.get(s.url("127.0.0.1"), "Accept", html); !strings.Contains(body, `<meta http-equiv="refresh" content="2">`) {
		t.Error("a page with a VM that starts does not ask again")
	}
}

func TestVMPage(t *testing.T) {
	h := newHost("web", "db")
	h.listen("web", 3000, "x")
	s := start(t, h)
	status, body := s.get(s.url("web.localhost"), "Accept", html)
	if status != 200 || !strings.Contains(body, s.url("3000.web.localhost")) || strings.Contains(body, ">db<") || !strings.Contains(body, `href="`+s.url("localhost")+`"`) {
		t.Errorf("%d %s", status, body)
	}
	if status, body := s.get(s.url("nosuch.localhost")); status != 404 || !strings.Contains(body, "There is no VM nosuch.") {
		t.Errorf("%d %s", status, body)
	}
	if status, _ := s.get(s.url("id-web.localhost")); status != 404 {
		t.Errorf("by its id: %d", status)
	}
}

func TestEmptyIndex(t *testing.T) {
	s := start(t, newHost())
	if status, body := s.get(s.url("localhost"), "Accept", html); status != 200 || !strings.Contains(body, "No VMs yet") || strings.Contains(body, " of 0") {
		t.Errorf("%d %s", status, body)
	}
	if _, body := s.get(s.url("3000.web.localhost")); !strings.Contains(body, "hint: make one: banger vm run --name web\n") {
		t.Error(body)
	}
}

func TestOwnPagesAreOnlyRead(t *testing.T) {
	s := start(t, newHost("web"))
	for _, host := range []string{"localhost", "web.localhost"} {
		if res, body := s.do(s.request("HEAD", s.url(host), nil)); res.StatusCode != 200 || body != "" {
			t.Errorf("HEAD %s: %d %q", host, res.StatusCode, body)
		}
		for _, method := range []string{"POST", "DELETE", "OPTIONS", "CONNECT"} {
			r := s.request(method, s.url(host), nil)
			if res, _ := s.do(r); res.StatusCode != http.StatusMethodNotAllowed || res.Header.Get("Allow") != "GET, HEAD" && method != "CONNECT" {
				t.Errorf("%s %s: %d", method, host, res.StatusCode)
			}
		}
		if status, body := s.get(s.url(host) + "favicon.ico"); status != 404 || !strings.Contains(body, "favicon.ico") {
			t.Errorf("%d %s", status, body)
		}
	}
}

// TestTrouble: what keeps a guest from answering is said, in text and on a page.
func TestTrouble(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(t *testing.T, h *host)
		host    string
		status  int
		says    []string
	}{
		"nobody listens": {func(t *testing.T, h *host) {
			h.listen("web", 8080, "x")
			h.procs[8080] = "python3"
		}, "3000.web", 502, []string{"In the VM web nothing listens on port 3000.", "What does listen", "8080.web.localhost", "python3", "banger vm exec web -- python3 -m http.server 3000"}},
		"nobody, and the agent is mute": {func(t *testing.T, h *host) { h.set("web", func(v *api.VM) { v.Reason = "mute" }) }, "3000.web", 502,
			[]string{"nothing listens on port 3000"}},
		"no such VM":    {func(*testing.T, *host) {}, "3000.wbe", 404, []string{"There is no VM wbe.", "Did you mean", "http://3000.web.localhost:"}},
		"nothing near":  {func(*testing.T, *host) {}, "3000.quite-another", 404, []string{"There is no VM quite-another.", "banger vm list"}},
		"an id is none": {func(*testing.T, *host) {}, "3000.id-web", 404, []string{"There is no VM id-web."}},
		"stopped": {func(t *testing.T, h *host) { h.set("web", func(v *api.VM) { v.State = api.StateStopped }) }, "3000.web", 503,
			[]string{"The VM web is stopped.", "banger vm start web"}},
		"failed": {func(t *testing.T, h *host) {
			h.set("web", func(v *api.VM) { v.State, v.Reason = api.StateFailed, "the disk is <full>." })
		}, "3000.web", 503, []string{"The VM web is failed: the disk is ", "banger vm start web"}},
		"starting": {func(t *testing.T, h *host) { h.set("web", func(v *api.VM) { v.State = api.StateStarting }) }, "3000.web", 503,
			[]string{"The VM web is starting."}},
		"deleted meanwhile": {func(t *testing.T, h *host) { h.listen("web", 3000, "x") }, "3000.gone", 404, []string{"There is no VM gone."}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost("web", "db")
			c.prepare(t, h)
			s := start(t, h)
			if name == "deleted meanwhile" {
				s.server.proxy.known["gone"] = known{"id-gone", time.Now().Add(time.Hour)}
			}
			url := s.url(c.host + ".localhost")
			for _, accept := range []string{html, "*/*"} {
				status, body := s.get(url, "Accept", accept)
				if status != c.status {
					t.Errorf("status %d, want %d", status, c.status)
				}
				for _, text := range c.says {
					if !strings.Contains(body, text) {
						t.Errorf("%s lacks %q:\n%s", accept, text, body)
					}
				}
				if isPage := strings.HasPrefix(body, "<!DOCTYPE html>"); isPage != (accept == html) || strings.Contains(body, "<full>") && isPage {
					t.Errorf("for %s: %s", accept, body)
				}
			}
			if _, still := s.server.proxy.known["gone"]; still {
				t.Error("the id of what is gone is still known")
			}
		})
	}
}

// TestSlowDial: a VM that gives no connection is given up by a client that leaves.
func TestSlowDial(t *testing.T) {
	h := newHost("web")
	h.wait = make(chan struct{})
	s := start(t, h)
	c := s.dial()
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: 1.web.localhost\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	close(h.wait)
}

func TestLasting(t *testing.T) {
	for d, want := range map[time.Duration]string{-time.Second: "0 s", 59 * time.Second: "59 s", 90 * time.Minute: "1 h 30 min", 5 * time.Minute: "5 min", 49 * time.Hour: "2 days"} {
		if got := lasting(d); got != want {
			t.Errorf("%s is %q, want %q", d, got, want)
		}
	}
}

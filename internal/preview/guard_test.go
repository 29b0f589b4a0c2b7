package preview

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHost(t *testing.T) {
	for host, want := range map[string]target{
		"localhost":                   {host: "localhost", web: 80},
		"localhost:7777":              {host: "localhost", web: 7777},
		"LocalHost:7777":              {host: "localhost", web: 7777},
		"127.0.0.1:7777":              {host: "127.0.0.1", web: 7777},
		"127.1.2.3":                   {host: "127.1.2.3", web: 80},
		"[::1]:7777":                  {host: "::1", web: 7777},
		"[::1]":                       {host: "::1", web: 80},
		"web.localhost:7777":          {host: "web.localhost", vm: "web", web: 7777},
		"3000.web.localhost:7777":     {host: "3000.web.localhost", vm: "web", port: 3000, web: 7777},
		"3000.WEB.Localhost":          {host: "3000.web.localhost", vm: "web", port: 3000, web: 80},
		"65535.a-1.localhost:1":       {host: "65535.a-1.localhost", vm: "a-1", port: 65535, web: 1},
		"1.localhost.localhost:65535": {host: "1.localhost.localhost", vm: "localhost", port: 1, web: 65535},
	} {
		if got, err := parseHost(host); err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", host, got, err, want)
		}
	}
	for _, host := range []string{
		"", ":", ":80", "localhost:", "localhost:0", "localhost:65536", "localhost:07777", "localhost:+1", "localhost:7777:1", "localhost.",
		"localhost.:80", ".localhost", "example.com", "evil.example:7777", "localhost.evil.example", "notlocalhost", "xlocalhost:7777",
		"0.0.0.0:7777", "[::]:7777", "192.168.1.2:7777", "169.254.169.254", "[::1", "::1", "[::1%25lo]:80", "[127.0.0.1]", "[::ffff:127.0.0.1x]", "2130706433",
		"127.1", "0x7f.1", "3000.localhost", "0.web.localhost", "65536.web.localhost", "03000.web.localhost", "-1.web.localhost",
		"3000..localhost", "..localhost", "a.3000.web.localhost", "web.web.localhost", "3000.-web.localhost", "3000.web-.localhost",
		"3000.we b.localhost", "3000.we_b.localhost", "3000.wéb.localhost", "user@3000.web.localhost", "3000.web.localhost/x", "3000.web.localhost\x00",
		"3000." + strings.Repeat("a", 64) + ".localhost", strings.Repeat("a.", 200) + "localhost",
	} {
		if got, err := parseHost(host); err == nil {
			t.Errorf("%q is %+v", host, got)
		}
	}
}

func FuzzParseHost(f *testing.F) {
	for _, s := range []string{"localhost:7777", "3000.web.localhost:7777", "web.localhost", "[::1]:80", "127.0.0.1", "3000.localhost", "[::1]:", "a:b:c", "3000.web.localhost."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseHost(s)
		if err != nil {
			if len(err.Error()) > 1000 {
				t.Errorf("%q: an error of %d bytes", s, len(err.Error()))
			}
			return
		}
		if a, err := netip.ParseAddr(got.host); err == nil {
			if !a.IsLoopback() || got.vm != "" {
				t.Fatalf("%q is %+v", s, got)
			}
			return
		}
		want := "localhost"
		if got.vm != "" {
			want = got.vm + "." + want
			if !isName(got.vm) {
				t.Fatalf("%q is %+v", s, got)
			}
		}
		if got.port != 0 {
			want = fmt.Sprintf("%d.%s", got.port, want)
		}
		if got.host != want || got.web == 0 {
			t.Fatalf("%q is %+v", s, got)
		}
		// Written by us it is the same, and its own origin owns it.
		if again, err := parseHost(fmt.Sprintf("%s:%d", want, got.web)); err != nil || again != got {
			t.Fatalf("%q is %+v, again %+v, %v", s, got, again, err)
		}
		if !got.owns(fmt.Sprintf("http://%s:%d", want, got.web)) {
			t.Fatalf("%q does not own itself", s)
		}
	})
}

// TestAdmitTable goes through every combination of what browsers say, and compares with the rule written down another way.
func TestAdmitTable(t *testing.T) {
	const none = "-"
	own := map[string]bool{"http://3000.web.localhost:7777": true, "http://8080.web.localhost:7777": true, "http://web.localhost:7777": true}
	origins := []string{none, "http://3000.web.localhost:7777", "http://8080.web.localhost:7777", "http://web.localhost:7777", "http://3000.db.localhost:7777",
		"http://localhost:7777", "http://3000.web.localhost:8888", "http://3000.web.localhost", "https://3000.web.localhost:7777", "https://evil.example",
		"http://3000.web.localhost.evil.example:7777", "http://evil.example#http://3000.web.localhost:7777", "null", "", "http://", "file://", "chrome-extension://abc"}
	sites := []string{none, "same-origin", "same-site", "cross-site", "none", "", "SAME-ORIGIN", "same-origin, cross-site", "else"}
	modes := []string{none, "navigate", "no-cors", "cors", "websocket", "same-origin", "nested-navigate"}
	dests := []string{none, "document", "iframe", "frame", "embed", "object", "image", "script", "empty", "serviceworker", "worker"}
	referers := []string{none, "http://8080.web.localhost:7777/x?y", "http://3000.db.localhost:7777/", "http://8080.web.localhost:1/", "https://evil.example/"}
	methods := []string{"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "get"}
	to, err := parseHost("3000.web.localhost:7777")
	if err != nil {
		t.Fatal(err)
	}
	count := map[bool]int{}
	r := &http.Request{Header: http.Header{}}
	set := func(name, value string) {
		if value == none {
			r.Header.Del(name)
		} else {
			r.Header.Set(name, value)
		}
	}
	for _, origin := range origins {
		set("Origin", origin)
		for _, site := range sites {
			set("Sec-Fetch-Site", site)
			for _, mode := range modes {
				set("Sec-Fetch-Mode", mode)
				for _, dest := range dests {
					set("Sec-Fetch-Dest", dest)
					for _, referer := range referers {
						set("Referer", referer)
						for _, method := range methods {
							r.Method = method
							ownReferer := referer == referers[1]
							read := method == "GET" || method == "HEAD"
							follow := origin == none && read && mode == "navigate" && dest == "document" // a link
							var want bool
							switch s := site; {
							case origin == "null":
								want = s == "same-origin"
							case origin != none && !own[origin]:
								want = false
							case s == "same-origin", s == "none":
								want = true
							case s == none, s == "":
								want = origin != none || read || referer == none || ownReferer
							case s == "same-site":
								want = origin != none || ownReferer || follow
							default:
								want = follow
							}
							if got := admit(r, to) == nil; got != want {
								t.Fatalf("%s with %v: admitted %v, want %v", method, r.Header, got, want)
							}
							count[want]++
						}
					}
				}
			}
		}
	}
	if count[true] < 1000 || count[false] < 1000 {
		t.Errorf("%d admitted, %d not", count[true], count[false])
	}
}

// TestAdmit: what people and pages do, by name.
func TestAdmit(t *testing.T) {
	const vm, index, page = "3000.web.localhost:7777", "localhost:7777", "web.localhost:7777"
	h := func(kv ...string) []string { return kv }
	for name, c := range map[string]struct {
		method, host string
		header       []string
		want         bool
	}{
		"curl":                            {"GET", vm, nil, true},
		"curl -d":                         {"POST", vm, nil, true},
		"the address bar":                 {"GET", vm, h("Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Sec-Fetch-User", "?1"), true},
		"a link on another site":          {"GET", vm, h("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Referer", "https://evil.example/"), true},
		"a link on the page of all":       {"GET", vm, h("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), true},
		"a link to the page of all":       {"GET", index, h("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), true},
		"a form on another site":          {"POST", vm, h("Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), false},
		"the same, an old browser":        {"POST", vm, h("Origin", "https://evil.example"), false},
		"the same without an origin":      {"POST", vm, h("Referer", "https://evil.example/"), false},
		"a form without referrers":        {"POST", vm, h("Origin", "null", "Sec-Fetch-Site", "same-origin", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), true},
		"a sandboxed page":                {"POST", vm, h("Origin", "null", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), false},
		"a frame on another site":         {"GET", vm, h("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"), false},
		"a picture on another site":       {"GET", vm, h("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"), false},
		"a script on another site":        {"GET", vm, h("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "script"), false},
		"fetch on another VM":             {"GET", vm, h("Origin", "http://3000.db.localhost:7777", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), false},
		"fetch on another port of the VM": {"GET", vm, h("Origin", "http://8080.web.localhost:7777", "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), true},
		"and its preflight":               {"OPTIONS", vm, h("Origin", "http://8080.web.localhost:7777", "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), true},
		"a picture on another port of it": {"GET", vm, h("Referer", "http://8080.web.localhost:7777/", "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"), true},
		"the same of another program":     {"GET", vm, h("Referer", "http://8080.web.localhost:9999/", "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"), false},
		"the same without a referrer":     {"GET", vm, h("Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"), false},
		"another site's WebSocket":        {"GET", vm, h("Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "websocket", "Sec-Fetch-Dest", "empty", "Upgrade", "websocket"), false},
		"the same, an old browser's":      {"GET", vm, h("Origin", "https://evil.example", "Upgrade", "websocket"), false},
		"two origins":                     {"GET", vm, h("Origin", "http://3000.web.localhost:7777", "Origin", "https://evil.example"), false},
		"two sites":                       {"GET", vm, h("Sec-Fetch-Site", "same-origin", "Sec-Fetch-Site", "cross-site"), false},
		"a program on localhost":          {"GET", index, h("Origin", "http://localhost:3000", "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), false},
		"its picture":                     {"GET", index, h("Referer", "http://localhost:3000/", "Sec-Fetch-Site", "same-site", "Sec-Fetch-Mode", "no-cors", "Sec-Fetch-Dest", "image"), false},
		"a VM reads the page of all":      {"GET", index, h("Origin", "http://3000.web.localhost:7777", "Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "cors", "Sec-Fetch-Dest", "empty"), false},
		"a VM frames the page of all":     {"GET", index, h("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"), false},
		"a VM's page asks another's":      {"GET", page, h("Origin", "http://3000.db.localhost:7777"), false},
		"the page of all by address":      {"GET", "127.0.0.1:7777", h("Sec-Fetch-Site", "none", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), true},
	} {
		r := &http.Request{Method: c.method, Header: http.Header{}}
		for i := 0; i < len(c.header); i += 2 {
			r.Header.Add(c.header[i], c.header[i+1])
		}
		to, err := parseHost(c.host)
		if err != nil {
			t.Fatal(err)
		}
		if err := admit(r, to); (err == nil) != c.want {
			t.Errorf("%s: %v, want admitted %v", name, err, c.want)
		}
	}
}

// TestGuardComesFirst: nothing is dialled or looked up for whom is not admitted.
func TestGuardComesFirst(t *testing.T) {
	h := newHost("web")
	s := start(t, h)
	h.serve(t, "web", 3000, func(http.ResponseWriter, *http.Request) { t.Error("the guest was asked") })
	for _, c := range []struct {
		host, origin string
		status       int
	}{
		{"3000.web.localhost", "https://evil.example", 403}, {"3000.nosuch.localhost", "https://evil.example", 403},
		{"localhost", "https://evil.example", 403}, {"evil.example", "", 421}, {"evil.example", "http://evil.example:" + s.port, 421},
		{"192.168.1.1", "", 421}, {"3000.localhost", "", 421},
	} {
		header := []string{"Accept", "*/*"}
		if c.origin != "" {
			header = append(header, "Origin", c.origin)
		}
		status, body := s.get(s.url(c.host), header...)
		if status != c.status || !strings.HasPrefix(body, "banger: The request ") || !strings.Contains(body, "\nhint: ") {
			t.Errorf("%s from %q: %d %q", c.host, c.origin, status, body)
		}
	}
	if n := h.dialled(); n != 0 {
		t.Errorf("%d connections to guests", n)
	}
}

func TestURL(t *testing.T) {
	got := []string{URL("127.0.0.1:7777", "", 0), URL("127.0.0.1:7777", "web", 0), URL("127.0.0.1:7777", "web", 3000), URL("0.0.0.0:1", "web", 1),
		URL("127.0.0.2:7777", "", 0), URL("[::1]:7777", "", 0), URL("[::]:7777", "", 0), URL("", "web", 3000)}
	want := []string{"http://localhost:7777/", "http://web.localhost:7777/", "http://3000.web.localhost:7777/", "http://1.web.localhost:1/",
		"http://127.0.0.2:7777/", "http://localhost:7777/", "http://localhost:7777/", ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

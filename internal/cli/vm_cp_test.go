package cli

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseCp(t *testing.T) {
	opt := cmp.AllowUnexported(cpEnds{}, cpEnd{})
	for _, tc := range []struct {
		args string
		want cpEnds
		bad  string
	}{
		{"a box:b", cpEnds{[]cpEnd{{path: "a"}}, cpEnd{vm: "box", path: "b"}}, ""},
		{"box:/a ./b", cpEnds{[]cpEnd{{vm: "box", path: "/a"}}, cpEnd{path: "./b"}}, ""},
		{"./a:b box:", cpEnds{[]cpEnd{{path: "./a:b"}}, cpEnd{vm: "box"}}, ""},
		{"/a:b box:x:y", cpEnds{[]cpEnd{{path: "/a:b"}}, cpEnd{vm: "box", path: "x:y"}}, ""},
		{"box:/a other:/b", cpEnds{[]cpEnd{{vm: "box", path: "/a"}}, cpEnd{vm: "other", path: "/b"}}, ""},
		{"a b box:", cpEnds{[]cpEnd{{path: "a"}, {path: "b"}}, cpEnd{vm: "box"}}, ""},
		{"x/. y/. box:", cpEnds{[]cpEnd{{path: "x/."}, {path: "y/."}}, cpEnd{vm: "box"}}, ""},
		{"- box:x", cpEnds{[]cpEnd{{stream: true}}, cpEnd{vm: "box", path: "x"}}, ""},
		{"box:x -", cpEnds{[]cpEnd{{vm: "box", path: "x"}}, cpEnd{stream: true}}, ""},
		{"a b", cpEnds{}, "neither side"},
		{"- -", cpEnds{}, "neither side"},
		{"a:x b c:", cpEnds{}, "both sides"},
		{"a:x - c:", cpEnds{}, "both sides"},
		{"a - c:", cpEnds{}, "one tar stream"},
		{"a:x a:y -", cpEnds{}, "one tar stream"},
		{":a b:", cpEnds{}, "no name of a VM"},
		{"d/a e/a box:", cpEnds{}, "both be copied"},
		{"box:d/a other:a .", cpEnds{}, "both be copied"},
	} {
		got, err := (&vmCpOptions{args: strings.Fields(tc.args)}).parse()
		if tc.bad != "" {
			if err == nil || !strings.Contains(err.Error(), tc.bad) || exitCode(err) != exitUsage {
				t.Errorf("%s: error %v, want %q", tc.args, err, tc.bad)
			}
			continue
		}
		if diff := cmp.Diff(tc.want, got, opt); err != nil || diff != "" {
			t.Errorf("%s: %v, %s", tc.args, err, diff)
		}
	}
	if _, err := (&vmCpOptions{args: []string{"", "box:"}}).parse(); err == nil {
		t.Error("an empty path was taken")
	}
}

func TestCpNames(t *testing.T) {
	for _, tc := range []struct {
		end      cpEnd
		name     string
		contents bool
	}{
		{cpEnd{vm: "box", path: "/a/b"}, "b", false},
		{cpEnd{vm: "box", path: "/a/b/"}, "b", false},
		{cpEnd{vm: "box", path: "/a/b/."}, "", true},
		{cpEnd{vm: "box", path: "."}, "", true},
		{cpEnd{vm: "box"}, "", true},
		{cpEnd{vm: "box", path: "~"}, "", false},
		{cpEnd{vm: "box", path: "~/x"}, "x", false},
		{cpEnd{vm: "box", path: "x/.."}, "", false},
		{cpEnd{path: "/a/b/"}, "b", false},
		{cpEnd{path: "/a/b/.."}, "a", false},
		{cpEnd{path: "/a/b/."}, "b", true},
	} {
		if got := tc.end.name(); got != tc.name || tc.end.contents() != tc.contents {
			t.Errorf("%+v: %q, %v", tc.end, got, tc.end.contents())
		}
	}
}

// TestCpTerminal: a tar stream neither goes to a terminal nor comes from one.
func TestCpTerminal(t *testing.T) {
	a := newTestApp(t)
	a.Terminal.Out, a.Terminal.In = true, true
	for _, args := range [][]string{{"vm", "cp", "box:x", "-"}, {"vm", "cp", "-", "box:x"}} {
		if code := a.run(args...); code != exitUsage || !strings.Contains(a.err.String(), "tar stream is nothing") {
			t.Errorf("%q: status %d, %q", args, code, a.err.String())
		}
	}
}

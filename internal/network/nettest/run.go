package nettest

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"
)

// inside tells a child of Run where the namespaces are.
const inside = "BANGER_NETTEST"

// Run runs f as the test t in a process of its own, all of whose threads are in the host's namespace of an Internet: what f
// starts dials and listens there, whichever goroutine does it. change may alter the Internet first. t must call nothing else.
func Run(t *testing.T, f func(*testing.T, *Internet), change ...func(*Internet)) {
	t.Helper()
	if paths := os.Getenv(inside); paths != "" {
		host, outside, _ := strings.Cut(paths, " ")
		f(t, &Internet{Host: openNS(t, host), Outside: openNS(t, outside)})
		return
	}
	in := NewInternet(t)
	for _, c := range change {
		c(in)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{os.Args[0], "-test.run=" + pattern(t.Name()), "-test.v", "-test.count=1"}
	if d, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+time.Until(d).Truncate(time.Second).String())
	}
	var child *os.Process
	in.Host.Do(t, func() (err error) {
		child, err = os.StartProcess("/proc/self/exe", args, &os.ProcAttr{
			Env:   append(os.Environ(), fmt.Sprintf("%s=%s %s", inside, in.Host.Path(), in.Outside.Path())),
			Files: []*os.File{nil, w, w},
		})
		return err
	})
	_ = w.Close() // the child has it
	var out bytes.Buffer
	_, _ = io.Copy(&out, r) // ends with the child
	_ = r.Close()
	state, err := child.Wait()
	switch {
	case err != nil:
		t.Fatal(err)
	case !state.Success():
		t.Fatalf("in the host's namespace: %s\n%s", state, out.String())
	case !strings.Contains(out.String(), "--- PASS: "+t.Name()) && !strings.Contains(out.String(), "--- SKIP: "+t.Name()):
		t.Fatalf("the test did not run in the host's namespace:\n%s", out.String())
	}
	t.Log(strings.TrimSpace(out.String()))
}

// pattern matches one test of that name.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

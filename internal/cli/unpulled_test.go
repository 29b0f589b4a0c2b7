package cli

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
)

// lost is what would be lost with a VM.
func lost(refs ...string) []api.Unpulled {
	return []api.Unpulled{{WorkspaceCopy: api.WorkspaceCopy{GuestPath: "/root/r"}, Refs: refs}}
}

// TestDeleteAsks about what would be lost, where somebody is there.
func TestDeleteAsks(t *testing.T) {
	const question = "banger: vm \"a\" has commits that were not pulled:\n  /root/r: refs/heads/x\\x1b\nbanger: Delete it all the same? [y/N] "
	for name, c := range map[string]struct {
		args, typed string
		terminal    bool
		code        int
		out, err    string
		left        string
	}{
		"yes":               {"a", "y\n", true, 0, "a\n", question, "b stopped\nc running"},
		"no":                {"a", "n\n", true, 1, "", question, "a stopped\nb stopped\nc running"},
		"return":            {"a", "\n", true, 1, "", question, "a stopped\nb stopped\nc running"},
		"end of input":      {"a", "", true, 1, "", question + "\n", "a stopped\nb stopped\nc running"},
		"quiet asks, too":   {"a -q", "what\nyes\n", true, 0, "a\n", question + "banger: Delete it all the same? [y/N] ", "b stopped\nc running"},
		"forced":            {"a --force", "", true, 0, "a\n", "", "b stopped\nc running"},
		"nobody there":      {"a", "y\n", false, 1, "", "banger: delete vm \"a\": it has commits that were not pulled\nhint: banger vm workspace pull a\n", "a stopped\nb stopped\nc running"},
		"several, one kept": {"b a", "n\n", true, 1, "b\n", question, "a stopped\nc running"},
		"all":               {"--all", "y\n", true, 1, "a\nb\n", question + "banger: vm \"c\" has commits that were not pulled:\n  /root/r: y\nbanger: delete vm \"c\": it runs\nhint: banger vm delete --force c\n", "c running"},
		"one that runs is refused without a question": {"c", "", true, 1, "", "banger: vm \"c\" has commits that were not pulled:\n  /root/r: y\nbanger: delete vm \"c\": it runs\nhint: banger vm delete --force c\n", "a stopped\nb stopped\nc running"},
		"none of that name":                           {"nope", "", true, 1, "", "banger: vm \"nope\": there is none of that name\nhint: banger vm list\n", "a stopped\nb stopped\nc running"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t)
			d := startFake(t, a.env)
			d.add(api.VM{Name: "a", State: api.StateStopped})
			d.add(api.VM{Name: "b", State: api.StateStopped})
			d.add(api.VM{Name: "c", State: api.StateRunning})
			d.work.lost = map[string][]api.Unpulled{"a": lost("refs/heads/x\x1b"), "c": lost("y")}
			a.Terminal.In, a.Terminal.Err = c.terminal, c.terminal
			a.In = strings.NewReader(c.typed)
			code := a.run(append([]string{"vm", "delete"}, strings.Fields(c.args)...)...)
			if code != c.code || a.out.String() != c.out || a.err.String() != c.err || d.String() != c.left {
				t.Errorf("status %d, stdout %q, left %q, stderr\n%s, want\n%s", code, a.out.String(), d, a.err.String(), c.err)
			}
		})
	}
}

// TestDeleteAsksAboutNothing: where there is no VM, and where the daemon cannot say what would be lost.
func TestDeleteAsksAboutNothing(t *testing.T) {
	a := newTestApp(t)
	d := startFake(t, a.env)
	a.Terminal.In, a.Terminal.Err = true, true
	if code := a.run("vm", "delete", "--all"); code != 0 || a.err.Len() > 0 {
		t.Errorf("no VMs: status %d, %q", code, a.err.String())
	}
	d.add(api.VM{Name: "a", State: api.StateStopped})
	d.work.unknown = api.Errorf(api.KindConflict, "it does not run")
	if code := a.run("vm", "delete", "a"); code != 0 || a.out.String() != "a\n" {
		t.Errorf("not known: status %d, %q", code, a.err.String())
	}
	d.add(api.VM{Name: "a", State: api.StateStopped})
	d.work.unknown, d.work.lost = nil, map[string][]api.Unpulled{"a": lost(strings.Fields("1 2 3 4 5 6 7 8 9 10 11 12")...)}
	r, w := io.Pipe()
	defer w.Close()
	a.In = &signallingReader{r, a.interrupt}
	if code := a.run("vm", "delete", "a"); code != 130 || d.String() != "a stopped" || !strings.Contains(a.err.String(), "9, 10 and 2 more\n") {
		t.Errorf("interrupted: status %d, %q, left %s", code, a.err.String(), d)
	}
}

// TestRunAsksBeforeItDeletes: a --rm VM with commits that were not pulled stays, unless somebody says that it may go.
func TestRunAsksBeforeItDeletes(t *testing.T) {
	const (
		question = "banger: vm \"quiet-otter\" has commits that were not pulled:\n  /root/r: refs/heads/x\nbanger: Delete it all the same? [y/N] "
		stays    = "banger: vm \"quiet-otter\" stays; get its commits: banger vm workspace pull quiet-otter\nbanger: remove it: banger vm delete --force quiet-otter\n"
		kept     = "quiet-otter running"
		unknown  = "banger: it is not known whether vm \"quiet-otter\" has commits that were not pulled: an old agent\nbanger: Delete it all the same? [y/N] "
	)
	for name, c := range map[string]struct {
		flags    string
		typed    string // after what the command reads
		terminal bool
		unknown  error
		err      string
		left     string
	}{
		"yes":             {"", "y\n", true, nil, question, ""},
		"no":              {"", "n\n", true, nil, question + stays, kept},
		"return":          {"", "\n", true, nil, question + stays, kept},
		"end of input":    {"", "", true, nil, question + "\n" + stays, kept},
		"quiet asks, too": {"-q", "n\n", true, nil, question + stays, kept},
		"forced":          {"--force", "n\n", true, nil, "", ""},
		"nobody there":    {"", "n\n", false, nil, "", ""},
		"not known":       {"", "n\n", true, api.Errorf(api.KindGuest, "an old agent"), unknown + stays, kept},
		"gone":            {"", "n\n", true, api.Errorf(api.KindNotFound, "no vm"), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTestApp(t)
			d := startFake(t, a.env)
			d.work.lost, d.work.unknown = map[string][]api.Unpulled{"quiet-otter": lost("refs/heads/x")}, c.unknown
			a.Terminal.In, a.Terminal.Err = c.terminal, c.terminal
			a.In = strings.NewReader(c.typed)
			args := append([]string{"vm", "run", "--rm", "-i=false"}, strings.Fields(c.flags)...)
			if code := a.run(append(args, "--", "sh", "-c", "exit 7")...); code != 7 || a.err.String() != c.err || d.String() != c.left {
				t.Errorf("status %d, left %q, stderr\n%s, want\n%s", code, d, a.err.String(), c.err)
			}
			if vm := d.vms["quiet-otter"]; vm != nil && (vm.RemoveOnExit || d.owners["quiet-otter"] != nil) {
				t.Error("it would go all the same")
			}
		})
	}
	a := newTestApp(t)
	d := startFake(t, a.env)
	d.work.lost = map[string][]api.Unpulled{"quiet-otter": lost("refs/heads/x")}
	a.Terminal.In, a.Terminal.Err = true, true
	r, w := io.Pipe()
	defer w.Close()
	a.In = &signallingReader{r, a.interrupt}
	if code := a.run("vm", "run", "--rm", "-i=false", "--", "true"); code != 0 || d.String() != kept || a.err.String() != question+"\n"+stays {
		t.Errorf("interrupted: status %d, left %q, %q", code, d, a.err.String())
	}
}

// TestSeat: a read that waits ends when its reader leaves, and what comes then is for the next.
func TestSeat(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := takeSeat(r)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "ab")
	buf := make([]byte, 100)
	if n, err := s.Read(buf); string(buf[:n]) != "ab" || err != nil {
		t.Errorf("%q, %v", buf[:n], err)
	}
	ended := make(chan error)
	go func() {
		_, err := s.Read(buf) // waits
		ended <- err
	}()
	s.leave()
	if err := <-ended; !errors.Is(err, io.EOF) {
		t.Errorf("after it left: %v", err)
	}
	io.WriteString(w, "y\nrest")
	w.Close()
	if n, err := s.Read(buf); n > 0 || !errors.Is(err, io.EOF) {
		t.Errorf("it read on: %d, %v", n, err)
	}
	if line, err := readLine(r); line != "y" || err != nil {
		t.Errorf("%q, %v", line, err)
	}
	if all, err := io.ReadAll(r); string(all) != "rest" || err != nil {
		t.Errorf("%q, %v", all, err)
	}
}

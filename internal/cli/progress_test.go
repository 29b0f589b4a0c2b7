package cli

import (
	"bytes"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// clock is a clock that is set by hand.
type clock struct{ t time.Time }

func (c *clock) now() time.Time          { return c.t }
func (c *clock) advance(d time.Duration) { c.t = c.t.Add(d) }

func viewFor(t *testing.T, live bool, ops int) (*progressView, *bytes.Buffer, *clock) {
	a := newTestApp(t)
	a.Terminal.Err = live
	c := &clock{t: time.Unix(1e9, 0)}
	a.Now = c.now
	return newProgressView(a.App, ops), &a.err, c
}

func step(name string, done, total int64, notes ...string) api.Operation {
	return api.Operation{State: api.OperationRunning, Progress: api.Progress{Step: name, Done: done, Total: total}, Notes: notes}
}

func TestProgressPlain(t *testing.T) {
	v, out, c := viewFor(t, false, 1)
	v.update(0, "", step("resolve", 0, 0))
	v.update(0, "", step("download x", 0, 90<<20, "no KVM here: software emulation"))
	if got := out.String(); got != "banger: no KVM here: software emulation\n" {
		t.Errorf("before %s: %q", showAfter, got)
	}
	c.advance(time.Second)
	v.tick()
	v.update(0, "", step("download x", 50<<20, 90<<20, "no KVM here: software emulation"))
	v.update(0, "", step("boot \x1bweb", 0, 0, "no KVM here: software emulation", "two"))
	v.update(0, "", api.Operation{State: api.OperationDone, Notes: []string{"no KVM here: software emulation", "two", "three"}})
	v.close()
	want := "banger: no KVM here: software emulation\nbanger: resolve\nbanger: download x (90MiB)\nbanger: two\nbanger: boot \\x1bweb\nbanger: three\n"
	if out.String() != want {
		t.Errorf("printed\n%s, want\n%s", out.String(), want)
	}
}

func TestProgressOfWhatIsQuick(t *testing.T) {
	for _, live := range []bool{false, true} {
		v, out, c := viewFor(t, live, 1)
		v.update(0, "", step("boot", 0, 0))
		c.advance(showAfter - 1)
		v.tick()
		v.update(0, "", api.Operation{State: api.OperationDone})
		c.advance(time.Hour)
		v.tick()
		v.close()
		if out.Len() != 0 {
			t.Errorf("live %t: printed %q", live, out.String())
		}
	}
}

func TestProgressLive(t *testing.T) {
	v, out, c := viewFor(t, true, 1)
	v.width = func() int { return 50 }
	v.update(0, "", step("download", 1<<20, 10<<20))
	c.advance(2 * time.Second)
	v.update(0, "", step("download", 5<<20, 10<<20))
	if want := "\rdownload  5MiB/10MiB 50%  2MiB/s  2s\x1b[K"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	v.update(0, "", step("a step whose name is much longer than the terminal is wide", 0, 0, "note"))
	if want := "\r\x1b[Kbanger: note\n\ra step whose name is much longer than the te…  0s\x1b[K"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	v.close()
	v.close()
	if want := "\r\x1b[K"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

// TestProgressNarrow: where not all fits, the figures stay and the step is shortened, down to a few columns.
func TestProgressNarrow(t *testing.T) {
	at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	o := opView{step: "download linux-image-6.12", began: at, op: step("download linux-image-6.12", 5<<20, 10<<20)}
	for _, tc := range []struct {
		width int
		want  string
	}{
		{0, "download linux-image-6.12  5MiB/10MiB 50%  2.5MiB/s  2s"},
		{55, "download linux-image-6.12  5MiB/10MiB 50%  2.5MiB/s  2s"},
		{50, "download linux-imag…  5MiB/10MiB 50%  2.5MiB/s  2s"},
		{30, "download li…  5MiB/10MiB 50% …"},
		{1, "…"},
	} {
		if got := o.line(at.Add(2*time.Second), tc.width); got != tc.want {
			t.Errorf("width %d: %q, want %q", tc.width, got, tc.want)
		}
	}
}

func TestProgressOfSeveral(t *testing.T) {
	v, out, c := viewFor(t, false, 2)
	c.advance(time.Second)
	v.update(0, "web", step("stop", 0, 0))
	v.update(1, "db", step("stop", 0, 0))
	if want := "banger: web: stop\nbanger: db: stop\n"; out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
}

func TestProgressQuiet(t *testing.T) {
	v, out, c := viewFor(t, true, 1)
	v.quiet = true
	c.advance(time.Second)
	v.update(0, "", step("download", 0, 0, "note"))
	v.tick()
	v.line("x")
	v.close()
	if out.Len() != 0 {
		t.Errorf("%q", out.String())
	}
}

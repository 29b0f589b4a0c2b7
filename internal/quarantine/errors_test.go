package quarantine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// What goes wrong in a quarantine is said with its kind, and in one harmless line.
func TestExplain(t *testing.T) {
	said := func(stderr string) error {
		return &hostexec.ExitError{Argv: []string{"git"}, Status: 128, Stderr: stderr}
	}
	cfg := Config{MaxBytes: 3 << 29, Stall: time.Minute, Timeout: time.Hour}
	for name, tt := range map[string]struct {
		err        error
		kind       api.ErrorKind
		says, hint string
	}{
		"too much":       {errTooMuch, api.KindInvalid, "larger than 1.5 GiB", "--max-size"},
		"too much, git":  {said("fatal: pack exceeds maximum allowed size (1.00 GiB)"), api.KindInvalid, "larger than 1.5 GiB", "--max-size"},
		"disk full":      {said("fatal: write error: No space left on device"), api.KindUnavailable, "disk is full", "make room"},
		"host disk full": {hostWrite(said("fatal: write error: Disk quota exceeded"), "/repo"), api.KindUnavailable, `"/repo"`, "make room"},
		"host":           {hostWrite(said("fatal: x"), "/repo"), api.KindInvalid, "x", ""},
		"signal":         {&hostexec.ExitError{Argv: []string{"git"}, Status: -1, Signal: syscall.SIGSEGV}, api.KindGuest, "segmentation fault", ""},
		"stalled":        {fmt.Errorf("git: %w", errStalled), api.KindGuest, "nothing for 1m0s", ""},
		"slow":           {fmt.Errorf("git: %w", errSlow), api.KindGuest, "more than 1h0m0s", "large"},
		"fsck":           {said("error: object 12: hasDotgit: contains '.git'\nfatal: fsck error"), api.KindGuest, "object 12: hasDotgit", "cat-file"},
		"guest":          {guestError{errors.New("a\x1b\nb")}, api.KindGuest, `a\x1b\nb`, ""},
		"guest's own":    {guestError{api.Errorf(api.KindUnavailable, "agent: gone")}, api.KindUnavailable, "agent: gone", ""},
		"cancelled":      {fmt.Errorf("git: %w", context.Canceled), api.KindInternal, "context canceled", ""},
	} {
		err := explain("dev", tt.err, cfg)
		e := api.AsError(err)
		if e.Kind != tt.kind || !strings.Contains(e.Message, tt.says) || !strings.Contains(e.Hint, tt.hint) || strings.ContainsAny(e.Message, "\n\x1b") {
			t.Errorf("%s: %q %q %q", name, e.Kind, e.Message, e.Hint)
		}
		if name == "cancelled" && !errors.Is(err, context.Canceled) {
			t.Error("the cause is gone")
		}
	}
}

// Hooks that the configuration names, which git has since 2.54, are off by name.
func TestConfiguredHooksAreOff(t *testing.T) {
	w := newWorld(t)
	w.git(w.host, "config", "hook.a b.c.command", "true")
	w.git(w.host, "config", "--global", "hook.x=y.event", "reference-transaction")
	w.git(w.host, "config", "hook.jobs", "2")
	h, err := openHost(t.Context(), w.cfg, w.host)
	must(t, err)
	for _, hook := range []string{"hook.a b.c", "hook.x=y"} {
		if !slices.ContainsFunc(h.git.env, func(kv string) bool { return strings.HasSuffix(kv, "="+hook+".enabled") }) {
			t.Errorf("%s is not off: %q", hook, h.git.env)
		}
		if out, err := h.git.output(t.Context(), nil, "config", "--get", hook+".enabled"); string(out) != "false\n" {
			t.Errorf("%s: %q, %v", hook, out, err)
		}
	}
	if h.partial {
		t.Error("it is no partial clone")
	}
}

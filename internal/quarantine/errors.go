package quarantine

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// fatal is the line of git's stderr that says why it failed, bounded and harmless on a terminal. The rest are warnings and
// consequences.
func fatal(stderr string) string {
	var first, best string
	for l := range strings.Lines(stderr) {
		l = strings.TrimSpace(l)
		rest, isFatal := strings.CutPrefix(l, "fatal: ")
		err, isError := strings.CutPrefix(l, "error: ")
		switch {
		case isError && best == "": // "error: object …: hasDotgit: …" comes before "fatal: fsck error in packed object"
			best = err
		case isFatal && first == "":
			first = rest
		}
	}
	switch {
	case best != "":
		return harmless(best)
	case first != "":
		return harmless(first)
	}
	last := strings.TrimSpace(stderr)
	return harmless(last[strings.LastIndexByte(last, '\n')+1:])
}

// harmless makes one bounded line of text that may be the guest's.
func harmless(s string) string {
	const most = 300
	if len(s) > most {
		s = s[:most] + "…"
	}
	q := strconv.QuoteToGraphic(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// full tells whether git ran out of room.
func full(stderr string) bool {
	for _, s := range []string{"No space left on device", "Out of diskspace", "Disk quota exceeded"} {
		if strings.Contains(stderr, s) {
			return true
		}
	}
	return false
}

// hostWrite is the error where the host's git cannot write.
func hostWrite(err error, where string) error {
	ee, ok := errors.AsType[*hostexec.ExitError](err)
	if !ok {
		return err
	}
	if full(ee.Stderr) {
		return api.Errorf(api.KindUnavailable, "store commits in %q: the disk is full", where).WithHint("make room on its file system")
	}
	return api.Errorf(api.KindInvalid, "store commits in %q: %s", where, fatal(ee.Stderr))
}

// explain is the error of a pull for the user: that of the host as it is, and what git says in the quarantine.
func explain(vm string, err error, cfg Config) error {
	ee, ok := errors.AsType[*hostexec.ExitError](err)
	known, isKnown := errors.AsType[*api.Error](err)
	guest, isGuest := errors.AsType[guestError](err)
	switch {
	case errors.Is(err, errTooMuch) || ok && strings.Contains(ee.Stderr, "exceeds maximum allowed size"):
		return api.Errorf(api.KindInvalid, "pull %q: the guest's commits are larger than %s, packed", vm, size(cfg.MaxBytes)).
			WithHint("if you want them: banger vm workspace pull --max-size")
	case errors.Is(err, errStalled):
		return api.Errorf(api.KindGuest, "pull %q: the guest has sent nothing for %s", vm, cfg.Stall)
	case errors.Is(err, errSlow):
		return api.Errorf(api.KindGuest, "pull %q: receiving and checking the guest's commits takes more than %s", vm, cfg.Timeout).
			WithHint("it may be made to take long; look at what is large in the guest's repository")
	case isGuest:
		if _, is := errors.AsType[*api.Error](guest.error); is {
			return fmt.Errorf("pull %q: %w", vm, guest.error)
		}
		return api.Errorf(api.KindGuest, "pull %q: %s", vm, harmless(guest.Error()))
	case isKnown:
		return known
	case !ok:
		return fmt.Errorf("pull %q: %w", vm, err)
	case full(ee.Stderr):
		return api.Errorf(api.KindUnavailable, "pull %q: the disk is full", vm).
			WithHint("make room on the file system of banger's cache (~/.cache/banger); commits are checked there")
	case ee.Status < 0:
		return api.Errorf(api.KindGuest, "pull %q: git on the host was ended by signal %s while it read the guest's commits", vm, ee.Signal)
	case strings.Contains(ee.Stderr, "attempting to allocate"), strings.Contains(ee.Stderr, "ut of memory"):
		return api.Errorf(api.KindGuest, "pull %q: an object of the guest's takes more than %s of memory", vm, allocLimit).
			WithHint("pull without it: delete the branch it is in, in the guest")
	}
	return api.Errorf(api.KindGuest, "pull %q: git refuses what the guest has sent: %s", vm, fatal(ee.Stderr)).
		WithHint("look at the object in the guest (git cat-file -p), and take the branch that has it away there; nothing was pulled")
}

// size is n bytes for people.
func size(n int64) string {
	const units = "KMGTPE"
	f, unit := float64(n), -1
	for f >= 1024 && unit < len(units)-1 {
		f, unit = f/1024, unit+1
	}
	if unit < 0 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%.4g %ciB", f, units[unit])
}

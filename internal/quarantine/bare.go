package quarantine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// allocLimit bounds one allocation of git in the quarantine: what a delta makes, a commit, a tree, or the table of a pack's
// objects (about 12 million). git makes deltas of blobs up to 512 MiB.
const allocLimit = "768m"

// strict is git's check of each object, with the exceptions that hosters of git make for old histories.
const strict = "--strict=badTimezone=ignore,missingSpaceBeforeDate=ignore,zeroPaddedFilemode=ignore"

// bare is a quarantine: a bare repository of its own.
type bare struct {
	git git
	dir string
	// partial says that objects may be missing which a remote of the host has.
	partial  bool
	maxBytes int64
	stall    time.Duration
	// hostShallow is what the host's file shallow has.
	hostShallow []byte
}

// makeBare makes an empty quarantine that sees the host's objects. shallow are commits without parents in the guest.
func makeBare(cfg Config, h *host, shallow []string) (*bare, error) {
	temp, err := filepath.Abs(cmp.Or(cfg.TempDir, os.TempDir()))
	if err == nil {
		err = os.MkdirAll(temp, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("make a quarantine: %w", err)
	}
	dir, err := os.MkdirTemp(temp, tempPrefix)
	if err != nil {
		return nil, fmt.Errorf("make a quarantine: %w", err)
	}
	b := &bare{dir: dir, partial: h.partial, maxBytes: cfg.MaxBytes, stall: cfg.Stall}
	if b.hostShallow, err = os.ReadFile(h.shallow); errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	if err == nil {
		err = b.fill(cfg, h, shallow)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a quarantine: %w", err), os.RemoveAll(dir))
	}
	return b, nil
}

// fill writes what makes the directory a repository. It is not left to git, whose templates and defaults are the user's.
func (b *bare) fill(cfg Config, h *host, shallow []string) error {
	for _, sub := range []string{"repo/objects/info", "repo/objects/pack", "repo/refs", "home", "out"} {
		if err := os.MkdirAll(filepath.Join(b.dir, sub), 0o700); err != nil {
			return err
		}
	}
	config := "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n"
	if h.format != "sha1" {
		config += "\tobjectformat = " + string(h.format) + "\n"
	}
	if b.partial {
		config += "\tpartialclone = host\n[remote \"host\"]\n\tpromisor = true\n"
	}
	var lines strings.Builder
	lines.Write(b.hostShallow)
	for _, id := range shallow {
		if h.format.valid(id) {
			lines.WriteString(id + "\n")
		}
	}
	files := map[string]string{"config": config, "HEAD": "ref: refs/heads/main\n", "objects/info/alternates": quote(h.objects) + "\n"}
	if lines.Len() > 0 {
		files["shallow"] = lines.String()
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(b.dir, "repo", name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	home := filepath.Join(b.dir, "home")
	env := append([]string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, "TMPDIR=" + home, "GIT_DIR=" + filepath.Join(b.dir, "repo"),
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_ALLOC_LIMIT=" + allocLimit}, common...)
	for _, kv := range cfg.Environ {
		if strings.HasPrefix(kv, "PATH=") {
			env = append(env, kv)
		}
	}
	// A commit-graph of the host's may name commits that have been pruned.
	own := append(slices.Clip(settings), [2]string{"core.commitGraph", "false"})
	b.git = git{run: cfg.Run, dir: b.dir, env: append(env, configEnv(own)...)}
	return nil
}

// quote writes a path as git quotes it: one of alternates may hold any byte then.
func quote(path string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(path) + `"`
}

var (
	errEnded   = errors.New("git takes no more")
	errTooMuch = errors.New("the pack is larger than the limit")
	errStalled = errors.New("the guest sends nothing more")
	errSlow    = errors.New("it takes too long")
)

// guestError is a failure of the guest's end.
type guestError struct{ error }

// Unwrap returns the cause.
func (e guestError) Unwrap() error { return e.error }

// receive takes the guest's pack.
func (b *bare) receive(ctx context.Context, req Request, want, have []string) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	packing, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ended := make(chan error, 1)
	go func() {
		check := strict
		if b.partial {
			check = "--fsck-objects" // strict is also that links are whole, and here they may lead to what a remote has
		}
		_, err := b.git.output(ctx, r, "index-pack", "--stdin", "--fix-thin", check, "--max-input-size="+strconv.FormatInt(b.maxBytes, 10))
		ended <- err
		_ = r.Close() // the guest's writes fail from here on
		stop(errEnded)
	}()
	c := &counter{w: w, left: b.maxBytes, report: req.Report.Bytes, stall: b.stall}
	c.timer = time.AfterFunc(b.stall, func() { cancel(errStalled) })
	packErr := req.Pack(packing, want, have, c)
	c.timer.Stop()
	_ = w.Close()
	select {
	case err = <-ended: // before the guest did
	default:
		if packErr != nil && ctx.Err() == nil && c.left >= 0 {
			if err = <-ended; err == nil { // the pack was whole all the same
				return nil
			}
			return guestError{packErr}
		}
		err = <-ended
	}
	if c.left < 0 {
		return errTooMuch
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// counter bounds what the guest sends, and notices where it sends nothing.
type counter struct {
	w      io.Writer
	left   int64 // negative where it was too much
	done   int64
	report func(done, total int64)
	timer  *time.Timer
	stall  time.Duration
}

// Write passes p on.
func (c *counter) Write(p []byte) (int, error) {
	if c.left < 0 || int64(len(p)) > c.left {
		c.left = -1
		return 0, errTooMuch
	}
	c.timer.Stop() // what follows is git's time
	n, err := c.w.Write(p)
	c.timer.Reset(c.stall)
	c.left -= int64(n)
	c.done += int64(n)
	c.report(c.done, 0)
	return n, err
}

// check walks all that tips reach and have does not. It returns why a tip is not to be taken, by id.
func (b *bare) check(ctx context.Context, tips, have []string) (map[string]string, error) {
	// What the guest says it has cut off was good for index-pack, which looks at each object. Here only the host counts.
	file := filepath.Join(b.dir, "repo", "shallow")
	err := os.Remove(file)
	if err == nil && len(b.hostShallow) > 0 {
		err = os.WriteFile(file, b.hostShallow, 0o600)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	bad := map[string]string{}
	return bad, b.sift(ctx, tips, have, bad)
}

// sift finds the tips that cannot be taken by halves: mostly there are none.
func (b *bare) sift(ctx context.Context, tips, have []string, bad map[string]string) error {
	why, err := b.walk(ctx, tips, have)
	if why == "" || err != nil {
		return err
	}
	if len(tips) == 1 {
		bad[tips[0]] = why
		return nil
	}
	half := len(tips) / 2
	if err := b.sift(ctx, tips[:half], have, bad); err != nil {
		return err
	}
	return b.sift(ctx, tips[half:], have, bad)
}

// walk returns why what tips reach cannot be taken, or nothing.
func (b *bare) walk(ctx context.Context, tips, have []string) (string, error) {
	if len(tips) == 0 {
		return "", nil
	}
	args := []string{"rev-list", "--objects", "--quiet", "--stdin",
		"--filter=blob:limit=" + strconv.FormatInt(b.maxBytes+1, 10), "--filter-print-omitted"}
	if b.partial {
		args = append(args, "--missing=allow-promisor")
	}
	large := ""
	err := b.git.lines(ctx, input(tips, have), func(line []byte) error {
		if id, ok := strings.CutPrefix(string(line), "~"); ok && large == "" {
			large = id
		}
		return nil
	}, args...)
	if ee, ok := errors.AsType[*hostexec.ExitError](err); ok {
		if ee.Status < 0 { // trees that are too deep for git's recursion
			return "git on the host was ended by signal " + ee.Signal.String() + " while it read it", nil
		}
		return "what it reaches is not whole: " + fatal(ee.Stderr), nil
	}
	if err == nil && large != "" {
		return fmt.Sprintf("its file %s is larger than %s; banger vm workspace pull --max-size sets the limit", large, size(b.maxBytes)), nil
	}
	return "", err
}

// pack packs what ids reach and have does not, and returns the packs.
func (b *bare) pack(ctx context.Context, ids, have []string) ([]string, error) {
	args := []string{"pack-objects", "--revs", "--non-empty", "--delta-base-offset", "-q"}
	if b.partial {
		args = append(args, "--missing=allow-promisor")
	}
	out, err := b.git.output(ctx, input(ids, have), append(args, filepath.Join(b.dir, "out", "pack"))...)
	if err != nil {
		return nil, err
	}
	var packs []string
	for hash := range strings.FieldsSeq(string(out)) {
		packs = append(packs, filepath.Join(b.dir, "out", "pack-"+hash+".pack"))
	}
	return packs, nil
}

// input are revisions as git reads them: those of ids without those of have.
func input(ids, have []string) io.Reader {
	var in strings.Builder
	for _, id := range ids {
		in.WriteString(id + "\n")
	}
	for _, id := range have {
		in.WriteString("^" + id + "\n")
	}
	return strings.NewReader(in.String())
}

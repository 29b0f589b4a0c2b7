package quarantine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// host is the user's repository.
type host struct {
	git     git
	repo    string
	format  format
	objects string // its object directory
	shallow string // its file of that name, which may not be there
	// partial says that objects may be missing because a remote has them.
	partial bool
}

// openHost finds the repository whose work tree's top is repo.
func openHost(ctx context.Context, cfg Config, repo string) (*host, error) {
	env := append(inherited(cfg.Environ), common...)
	h := &host{repo: repo, git: git{run: cfg.Run, dir: repo, env: append(env, configEnv(settings)...)}}
	out, err := h.git.output(ctx, nil, "rev-parse", "--show-object-format", "--show-cdup", "--path-format=absolute",
		"--git-path", "objects", "--git-path", "shallow")
	if errors.Is(err, hostexec.ErrNotInstalled) {
		return nil, api.Errorf(api.KindUnavailable, "pull to %q: git is not installed on the host", repo).
			WithHint("install it: sudo apt install git")
	}
	if err != nil {
		return nil, h.broken("the git directory", err)
	}
	lines := strings.Split(string(out), "\n")
	if len(lines) != 5 || lines[1] != "" {
		return nil, api.Errorf(api.KindInvalid, "pull to %q: it is not the top of a git work tree", repo).
			WithHint("make it one: git -C %s init", repo)
	}
	h.format, h.objects, h.shallow = format(lines[0]), lines[2], lines[3]
	off := settings
	names, err := h.config(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		// Since 2.54, git also runs hooks that the configuration names.
		off = append(slices.Clip(off), [2]string{name + ".enabled", "false"})
	}
	h.git.env = append(slices.Clip(env), configEnv(off)...)
	h.removeStaleKeeps()
	return h, nil
}

// config finds out whether the repository is a partial clone, and returns the sections of hooks.
func (h *host) config(ctx context.Context) (hooks []string, err error) {
	out, err := h.git.output(ctx, nil, "config", "-z", "--get-regexp", `^(extensions\.partialclone|remote\..*\.promisor|hook\..*)$`)
	if ee, ok := errors.AsType[*hostexec.ExitError](err); ok && ee.Status == 1 {
		return nil, nil // none
	}
	if err != nil {
		return nil, h.broken("the configuration", err)
	}
	for entry := range strings.SplitSeq(string(out), "\x00") {
		key, value, _ := strings.Cut(entry, "\n")
		switch i := strings.LastIndexByte(key, '.'); {
		case strings.HasPrefix(key, "hook.") && i > len("hook"):
			hooks = append(hooks, key[:i])
		case key != "" && !strings.HasPrefix(key, "hook.") && value != "false":
			h.partial = true
		}
	}
	return hooks, nil
}

// refs are all refs of the repository.
func (h *host) refs(ctx context.Context) ([]Ref, error) {
	out, err := h.git.output(ctx, nil, "for-each-ref", "--format=%(objectname) %(refname)")
	if err != nil {
		return nil, h.broken("the refs", err)
	}
	var refs []Ref
	for l := range bytes.Lines(out) {
		id, name, _ := strings.Cut(strings.TrimSuffix(string(l), "\n"), " ")
		refs = append(refs, Ref{name, id})
	}
	return refs, nil
}

// broken is the error where the host's git cannot read the repository.
func (h *host) broken(what string, err error) error {
	ee, ok := errors.AsType[*hostexec.ExitError](err)
	if !ok {
		return fmt.Errorf("read %s of %q: %w", what, h.repo, err)
	}
	said := fatal(ee.Stderr)
	out := api.Errorf(api.KindInvalid, "read %s of the git repository %q: %s", what, h.repo, said)
	if strings.Contains(said, "dubious ownership") || strings.Contains(said, "unsafe repository") {
		return out.WithHint("if you trust it: git config --global --add safe.directory %s", h.repo)
	}
	return out.WithHint("git -C %s fsck shows what is wrong", h.repo)
}

// keepPrefix begins the .keep file that guards a new pack from a git gc until refs reach it. The rest is the quarantine it
// came from.
const keepPrefix = "banger pulls from "

// removeStaleKeeps removes the .keep files whose quarantine is gone: those of a pull at its end, or of one that was killed.
func (h *host) removeStaleKeeps() {
	files, _ := filepath.Glob(filepath.Join(escapeGlob(h.objects), "pack", "pack-*.keep"))
	for _, file := range files {
		text, err := readStart(file)
		if err != nil {
			continue
		}
		dir, ours := strings.CutPrefix(strings.TrimSuffix(text, "\n"), keepPrefix)
		if !ours {
			continue
		}
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			_ = os.Remove(file)
		}
	}
}

// escapeGlob makes a pattern that matches only path.
func escapeGlob(path string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(path)
}

func readStart(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 4200))
	return string(b), err
}

// store brings what ids reach, and those of have do not, from the quarantine to the repository's objects, in packs that
// are kept as long as the quarantine is there.
func (h *host) store(ctx context.Context, b *bare, ids, have []string) error {
	packs, err := b.pack(ctx, ids, have)
	if err != nil {
		return err
	}
	for _, pack := range packs {
		f, err := os.Open(pack) // as a file, so that git also ends well where this process does not
		if err != nil {
			return err
		}
		// It is not cancelled: a git that is killed leaves its half of a pack among the host's objects.
		_, err = h.git.output(context.WithoutCancel(ctx), f, "index-pack", "--stdin", "--keep="+keepPrefix+b.dir)
		_ = f.Close()
		if ee, ok := errors.AsType[*hostexec.ExitError](err); ok && !full(ee.Stderr) {
			return fmt.Errorf("%w: %s", errMoved, fatal(ee.Stderr)) // git gc --prune=now removes what another git is writing
		}
		if err != nil {
			return hostWrite(err, h.objects)
		}
	}
	return nil
}

// errMoved says that the repository is not what it was when the plan was made.
var errMoved = errors.New("something else is at work there")

// update makes the changes, all or none.
func (h *host) update(ctx context.Context, changes []change) error {
	if len(changes) == 0 {
		return nil
	}
	var in strings.Builder
	for _, c := range changes {
		old := c.Old
		if old == "" {
			old = h.format.zero()
		}
		if c.New == "" {
			fmt.Fprintf(&in, "delete %s\x00%s\x00", c.Ref, old)
		} else {
			fmt.Fprintf(&in, "update %s\x00%s\x00%s\x00", c.Ref, c.New, old)
		}
	}
	_, err := h.git.output(ctx, strings.NewReader(in.String()), "update-ref", "--no-deref", "--stdin", "-z")
	ee, ok := errors.AsType[*hostexec.ExitError](err)
	if !ok {
		return err
	}
	if blocks := h.blocks(ctx, changes[0].Ref); blocks != "" {
		return api.Errorf(api.KindConflict, "pull to %q: the ref %q is where refs below it are to go", h.repo, blocks).
			WithHint("keep it by another name: git -C %s branch NAME %s && git -C %[1]s update-ref -d %[2]s", h.repo, blocks)
	}
	if full(ee.Stderr) {
		return hostWrite(err, h.repo)
	}
	return fmt.Errorf("%w: %s", errMoved, fatal(ee.Stderr)) // or is locked: git has many words for either
}

// blocks returns the ref that stands where the directory of all of a VM's refs is to be.
func (h *host) blocks(ctx context.Context, ref string) string {
	vm, _, _ := strings.Cut(strings.TrimPrefix(ref, prefix), "/")
	for _, name := range []string{strings.TrimSuffix(prefix, "/"), prefix + vm} {
		if _, err := h.git.output(ctx, nil, "show-ref", "--verify", "--quiet", name); err == nil {
			return name
		}
	}
	return ""
}

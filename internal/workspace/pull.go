package workspace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/quarantine"
)

// PullConfig says how commits are pulled.
type PullConfig struct {
	Config
	// VM is the name of the VM.
	VM string
	// MaxBytes limits what the guest sends of each repository, in bytes.
	MaxBytes int64
	Report   progress.Reporter
	// Received is called when the guest has sent what it has and does nothing any more; may be nil.
	Received func()
}

func (c PullConfig) quarantine() quarantine.Config {
	return quarantine.Config{Run: c.Run, Environ: c.Environ, TempDir: c.TempDir, MaxBytes: c.MaxBytes}
}

// Pull brings the commits of the guest, of the repositories that were copied, to refs/banger/<vm>/… of those of the host. What package quarantine
// says of it holds. A repository that the guest has no more is left out.
func Pull(ctx context.Context, cfg PullConfig, g Guest, base *Manifest) (api.Pull, error) {
	var out api.Pull
	var lines skipped
	for _, prefix := range slices.Sorted(maps.Keys(base.Repos)) {
		if _, err := os.Lstat(filepath.Join(base.Root, prefix, ".git")); err != nil && prefix != "" {
			lines.add("%s: there is no such repository here any more; its commits stay in the VM", printable(prefix))
			continue
		}
		cfg.Report.Step("look at the commits of " + printable(filepath.Base(filepath.Join(base.Root, prefix))))
		gr, refs, err := guestRefs(ctx, g, prefix)
		if gone(err) && prefix != "" {
			lines.add("%s: the VM has no such repository any more", printable(prefix))
			continue
		}
		if err != nil {
			return out, err
		}
		shallow, err := guestShallow(ctx, g, prefix, gr)
		if err != nil {
			return out, err
		}
		res, err := quarantine.Pull(ctx, cfg.quarantine(), quarantine.Request{
			Repo: filepath.Join(base.Root, prefix), VM: cfg.VM, Refs: refs, Shallow: shallow, Have: base.Repos[prefix].ids(), Report: cfg.Report,
			Pack: func(ctx context.Context, want, have []string, w io.Writer) error {
				err := packInGuest(ctx, g, prefix, gr, want, have, w)
				if cfg.Received != nil && prefix == "" {
					cfg.Received()
				}
				return err
			},
		})
		if err != nil {
			return out, err
		}
		for _, p := range res.Refs {
			out.Refs = append(out.Refs, api.PulledRef{Repository: prefix, Ref: p.Host, Guest: p.Guest, Old: p.Old, New: p.New, Commits: p.Commits, Rewritten: p.Rewritten})
		}
		for _, l := range res.Skipped {
			lines.add("%s", l)
		}
		if prefix == "" {
			out.Current = currentRef(ctx, cfg, base, gr)
		}
	}
	out.Skipped = lines.all()
	return out, nil
}

// gone tells whether the guest says that a directory or a repository is not there.
func gone(err error) bool {
	return api.KindOf(err) == api.KindNotFound || api.KindOf(err) == api.KindGuest && strings.Contains(err.Error(), "not a git repository")
}

// ids are the commits that the guest was given.
func (s *RepoState) ids() []string {
	ids := []string{s.Given.Commit}
	for _, id := range s.Refs {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), func(id string) bool { return !isID(id) })
}

// guestRefs are all that holds commits in a repository of the guest.
func guestRefs(ctx context.Context, g Guest, prefix string) (guestRepo, []quarantine.Ref, error) {
	gr, err := readGuestRepo(ctx, g, prefix)
	if err != nil {
		return gr, nil, err
	}
	var refs []quarantine.Ref
	for _, name := range slices.Sorted(maps.Keys(gr.refs)) {
		if id := gr.refs[name]; isID(id) {
			refs = append(refs, quarantine.Ref{Name: name, ID: id})
		}
	}
	if c := gr.checkout; c.Commit != "" && c.Head == c.Commit+"\n" {
		refs = append(refs, quarantine.Ref{Name: "HEAD", ID: c.Commit})
	}
	if gr.refs["refs/stash"] == "" {
		return gr, refs, nil
	}
	out := &bounded{limit: maxGuestList}
	if err := g.Git(ctx, prefix, nil, out, "log", "--walk-reflogs", "--format=%H", "refs/stash", "--"); err != nil {
		return gr, nil, err
	}
	for i, id := range split(out.Bytes(), "\n") {
		if i > 0 && isID(id) {
			refs = append(refs, quarantine.Ref{Name: fmt.Sprintf("stash@{%d}", i), ID: id})
		}
	}
	return gr, refs, nil
}

// guestShallow are the commits whose parents the guest does not have.
func guestShallow(ctx context.Context, g Guest, prefix string, gr guestRepo) ([]string, error) {
	whole := true
	err := g.Hash(ctx, formatSHA1, []string{filepath.Join(prefix, ".git/shallow")}, func(f GuestFile) error {
		whole = f.Missing
		return nil
	})
	if whole || err != nil {
		return nil, err
	}
	// Commits without parents, of which those that have some on the host are the ones that were cut off.
	args := []string{"rev-list", "--max-parents=0", "--all"}
	if gr.checkout.Commit != "" {
		args = append(args, "HEAD")
	}
	out := &bounded{limit: maxGuestList}
	err = g.Git(ctx, prefix, nil, out, args...)
	return slices.DeleteFunc(split(out.Bytes(), "\n"), func(id string) bool { return !isID(id) }), err
}

// packInGuest lets the guest's git pack what want reaches and have does not, as far as it knows have.
func packInGuest(ctx context.Context, g Guest, prefix string, gr guestRepo, want, have []string, w io.Writer) error {
	var in strings.Builder
	for _, id := range want {
		in.WriteString(id + "\n")
	}
	named := slices.Collect(maps.Values(gr.refs))
	var ask []string
	for _, id := range have {
		if slices.Contains(named, id) { // what a ref names is there
			in.WriteString("^" + id + "\n")
		} else {
			ask = append(ask, id)
		}
	}
	known := &bounded{limit: maxGuestList}
	if len(ask) > 0 {
		err := g.Git(ctx, prefix, strings.NewReader(strings.Join(ask, "\n")+"\n"), known, "cat-file", "--batch-check=%(objectname) %(objecttype)")
		if err != nil {
			return err
		}
	}
	for _, l := range split(known.Bytes(), "\n") {
		if id, kind, _ := strings.Cut(l, " "); isID(id) && (kind == "commit" || kind == "tag") {
			in.WriteString("^" + id + "\n")
		}
	}
	// Deltas are not looked for: the guest may be emulated, and the pack goes nowhere but to this host.
	return g.Git(ctx, prefix, strings.NewReader(in.String()), w, "-c", "pack.threads=1", "pack-objects", "--revs", "--stdout",
		"--delta-base-offset", "--window=0", "--compression=1", "--missing=allow-promisor", "-q")
}

// currentRef is the host's ref for what the guest has checked out; empty where there is none.
func currentRef(ctx context.Context, cfg PullConfig, base *Manifest, gr guestRepo) string {
	branch, ok := strings.CutPrefix(strings.TrimSpace(gr.checkout.Head), symbolic+"refs/heads/")
	if !ok {
		branch = "@/HEAD"
	}
	ref := PulledRefs + cfg.VM + "/" + branch
	out, err := newGit(cfg.Config).output(ctx, base.Root, nil, nil, "rev-parse", "--verify", "--quiet", "--end-of-options", ref)
	if err != nil || gr.checkout.Commit == "" || !strings.Contains(string(out), gr.checkout.Commit) {
		return ""
	}
	return ref
}

// Missing are the refs of the guest with commits that the host does not have, of all repositories that were copied, as lines for the user. Where the
// host's repository is gone, it is the refs with commits that the guest was not given.
func Missing(ctx context.Context, cfg PullConfig, base *Manifest, refs map[string][]quarantine.Ref) ([]string, error) {
	var lines []string
	for _, prefix := range slices.Sorted(maps.Keys(refs)) {
		given := base.Repos[prefix].ids()
		missing := slices.DeleteFunc(slices.Clone(refs[prefix]), func(r quarantine.Ref) bool { return slices.Contains(given, r.ID) })
		if len(missing) == 0 {
			continue
		}
		repo := filepath.Join(base.Root, prefix)
		if _, err := os.Lstat(filepath.Join(repo, ".git")); err == nil {
			if missing, err = quarantine.Missing(ctx, cfg.quarantine(), repo, missing); err != nil {
				return nil, err
			}
		}
		for _, r := range missing {
			name := strings.TrimPrefix(strings.TrimPrefix(r.Name, "refs/heads/"), "refs/")
			lines = append(lines, filepath.Join(printable(prefix), printable(name)))
		}
	}
	return lines, nil
}

// MissingRefs asks a running guest for its refs, and returns those that Missing finds.
func MissingRefs(ctx context.Context, cfg PullConfig, g Guest, base *Manifest) ([]string, error) {
	refs := map[string][]quarantine.Ref{}
	for prefix := range base.Repos {
		_, list, err := guestRefs(ctx, g, prefix)
		if api.KindOf(err) == api.KindNotFound || prefix != "" && gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		refs[prefix] = list
	}
	return Missing(ctx, cfg, base, refs)
}

// Uncommitted is how many files of the guest differ from its commit, and how many of them it does not know at all.
func Uncommitted(ctx context.Context, g Guest) (modified, untracked int, err error) {
	out := &bounded{limit: maxGuestList}
	err = g.Git(ctx, "", nil, out, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
	if errors.Is(err, errTooMuch) {
		err = api.Errorf(api.KindGuest, "git in the VM lists too many changes")
	}
	for _, l := range split(out.Bytes(), "\x00") {
		if strings.HasPrefix(l, "?? ") {
			untracked++
		} else {
			modified++
		}
	}
	return modified, untracked, err
}

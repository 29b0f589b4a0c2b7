package workspace

import (
	"context"
	"fmt"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
)

// maxStatusChanges is how many changes a status lists.
const maxStatusChanges = 10_000

// Status compares the guest's copy with the host.
func Status(ctx context.Context, cfg PullConfig, g Guest, base *Manifest) (api.WorkspaceStatus, error) {
	st := api.WorkspaceStatus{}
	cfg.Report.Step("look for what has changed")
	changes, err := Changes(ctx, g, base)
	if err != nil {
		return st, err
	}
	here, err := HostChanges(ctx, cfg.Config, base)
	if err != nil {
		return st, err
	}
	st.ChangedHere = len(here)
	for _, c := range changes {
		if len(st.Changes) == maxStatusChanges {
			st.More = len(changes) - maxStatusChanges
			break
		}
		st.Changes = append(st.Changes, api.WorkspaceChange{Path: strings.ToValidUTF8(c.Path, "\uFFFD"), Kind: c.Kind, Here: here[c.Path]})
	}
	if !base.Git {
		return st, nil
	}
	cfg.Report.Step("ask git in the VM")
	if st.Modified, st.Untracked, err = Uncommitted(ctx, g); err != nil {
		return st, err
	}
	gr, err := readGuestRepo(ctx, g, "")
	if err != nil {
		return st, err
	}
	st.GuestBranch = strings.TrimPrefix(strings.TrimSpace(strings.TrimPrefix(gr.checkout.Head, symbolic)), "refs/heads/")
	if st.GuestCommit = gr.checkout.Commit; st.GuestBranch == st.GuestCommit {
		st.GuestBranch = ""
	}
	if err := distance(ctx, cfg.Config, g, base, gr, &st); err != nil {
		return st, err
	}
	st.Unpulled, err = MissingRefs(ctx, cfg, g, base)
	return st, err
}

// HostChanges are the files that the host has changed since base.
func HostChanges(ctx context.Context, cfg Config, base *Manifest) (map[string]bool, error) {
	src, err := Prepare(ctx, cfg, base.Root, Options{Depth: base.Depth, Base: base})
	if err != nil {
		return nil, err
	}
	defer func() { _ = src.Close() }()
	u := update{src: src, base: base, next: src.manifest()}
	if err := u.compare(ctx); err != nil {
		return nil, err
	}
	here := map[string]bool{}
	for _, e := range u.changed {
		here[e.name] = true
	}
	for _, name := range u.removed {
		here[name] = true
	}
	return here, nil
}

// distance counts the commits between what the guest has checked out and the host's side of it: the branch of that name, else what
// the copy began at.
func distance(ctx context.Context, cfg Config, g Guest, base *Manifest, gr guestRepo, st *api.WorkspaceStatus) error {
	if gr.checkout.Commit == "" {
		return nil
	}
	host := newGit(cfg)
	against, began := "refs/heads/"+st.GuestBranch, base.Repos[""].Refs["refs/heads/"+st.GuestBranch]
	if _, known := base.Repos[""].Refs[against]; !known || st.GuestBranch == base.Branch {
		against, began = "HEAD", base.Repos[""].Host.Commit
		if base.From != "" {
			against, began = base.From, base.Repos[""].Given.Commit
		}
	}
	out, err := host.output(ctx, base.Root, nil, nil, "rev-parse", "--verify", "--quiet", "--end-of-options", against+"^{commit}")
	if err != nil {
		return nil // there is none any more
	}
	tip := line(out)
	st.Against = strings.TrimPrefix(against, "refs/heads/")
	if out, err = host.output(ctx, base.Root, nil, nil, "rev-list", "--left-right", "--count", tip+"..."+gr.checkout.Commit); err == nil {
		return scanCounts(out, st)
	}
	known := &bounded{limit: 4 << 10}
	if err := g.Git(ctx, "", nil, known, "rev-list", "--left-right", "--count", tip+"..."+gr.checkout.Commit); err == nil {
		return scanCounts(known.Bytes(), st)
	}
	// Neither has both: what each has beyond the last copy.
	if !isID(began) {
		return nil
	}
	counted := &bounded{limit: 4 << 10}
	if err := g.Git(ctx, "", nil, counted, "rev-list", "--count", gr.checkout.Commit, "^"+began); err == nil {
		_, _ = fmt.Sscan(counted.String(), &st.Ahead) // the guest's word for it
	}
	if out, err = host.output(ctx, base.Root, nil, nil, "rev-list", "--count", tip, "^"+began); err == nil {
		_, _ = fmt.Sscan(string(out), &st.Behind) // 0 where git says something else
	}
	return nil
}

// scanCounts reads what rev-list --left-right --count says: the host's commits, then the guest's.
func scanCounts(out []byte, st *api.WorkspaceStatus) error {
	if _, err := fmt.Sscan(string(out), &st.Behind, &st.Ahead); err != nil || st.Behind < 0 || st.Ahead < 0 {
		return api.Errorf(api.KindGuest, "git counts commits as %.40q", out)
	}
	return nil
}

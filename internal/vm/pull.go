package vm

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/workspace"
)

// defaultPullBytes is how much is taken out of a VM where nobody says how much.
const defaultPullBytes = 4 << 30

// Workspaces are the copies of directories of the host that a VM has, in the order of their paths in the VM.
func (s *Service) Workspaces(ctx context.Context, nameOrID string) ([]api.WorkspaceCopy, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	copies := []api.WorkspaceCopy{}
	heads, err := s.workspaceHeads(rec.ID)
	for _, m := range heads {
		copies = append(copies, copyOf(m))
	}
	return copies, err
}

// workspaceHeads are the manifests of a VM, without files.
func (s *Service) workspaceHeads(id string) ([]*workspace.Manifest, error) {
	dir := s.cfg.Paths.Workspaces(id)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list the workspaces of a vm: %w", err)
	}
	var heads []*workspace.Manifest
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), manifestSuffix) || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		m, err := workspace.LoadHead(filepath.Join(dir, e.Name()))
		if err != nil {
			s.cfg.Log.Warn("cannot read a workspace", "error", err.Error())
			continue
		}
		heads = append(heads, m)
	}
	slices.SortFunc(heads, func(a, b *workspace.Manifest) int { return cmp.Compare(a.GuestPath, b.GuestPath) })
	return heads, nil
}

func copyOf(m *workspace.Manifest) api.WorkspaceCopy {
	return api.WorkspaceCopy{Path: m.Root, GuestPath: m.GuestPath, Git: m.Git, Branch: m.Branch, Copying: m.Copying, CopiedAt: m.CopiedAt}
}

// copied is one copy in a running VM, for as long as unlock was not called.
type copied struct {
	base   *workspace.Manifest
	file   string
	guest  *guestTree
	rec    store.VM
	cfg    workspace.PullConfig
	unlock func()
	// lockRoot lets one VM at a time change the host's directory.
	lockRoot func(context.Context) (unlock func(), err error)
}

// openWorkspace finds the copy that is asked for.
func (s *Service) openWorkspace(ctx context.Context, nameOrID string, ask api.AskWorkspace, rep progress.Reporter) (*copied, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	guestPath, err := s.pickWorkspace(rec, ask)
	if err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx, "workspaces of "+rec.ID)
	if err != nil {
		return nil, err
	}
	c := &copied{file: s.manifestFile(rec.ID, guestPath), guest: s.guestTree(l, rec, guestPath), rec: rec, unlock: unlock,
		cfg: workspace.PullConfig{Config: s.workspaceConfig(), VM: rec.Name, MaxBytes: defaultPullBytes, Report: rep}}
	c.lockRoot = func(ctx context.Context) (func(), error) { return s.lock(ctx, "directory "+c.base.Root) }
	c.base, err = workspace.Load(c.file)
	if err == nil && c.base.Copying {
		err = api.Errorf(api.KindConflict, "the copy of %q at %q in vm %q was broken off", c.base.Root, guestPath, rec.Name).
			WithHint("copy it again: banger vm workspace prepare %s %s", rec.Name, c.base.Root)
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return c, nil
}

// pickWorkspace is where in the guest the copy is that is asked for.
func (s *Service) pickWorkspace(rec store.VM, ask api.AskWorkspace) (string, error) {
	heads, err := s.workspaceHeads(rec.ID)
	if err != nil {
		return "", err
	}
	var paths []string
	for _, m := range heads {
		if ask.GuestPath != "" && m.GuestPath == path.Clean(ask.GuestPath) {
			return m.GuestPath, nil
		}
		paths = append(paths, m.GuestPath)
	}
	switch {
	case len(paths) == 0:
		return "", api.Errorf(api.KindNotFound, "vm %q has no copy of a directory of this host", rec.Name).
			WithHint("make one: banger vm workspace prepare %s PATH", rec.Name)
	case ask.GuestPath != "":
		return "", api.Errorf(api.KindNotFound, "vm %q has no copy at %q", rec.Name, ask.GuestPath).WithHint("it has: %s", strings.Join(paths, ", "))
	case len(paths) > 1:
		return "", api.Errorf(api.KindConflict, "vm %q has more than one copy: %s", rec.Name, strings.Join(paths, ", ")).
			WithHint("say which: --guest-path %s", paths[0])
	}
	return paths[0], nil
}

// WorkspaceStatus compares a copy with what it is a copy of.
func (s *Service) WorkspaceStatus(ctx context.Context, nameOrID string, ask api.AskWorkspace, rep progress.Reporter) (api.WorkspaceStatus, error) {
	c, err := s.openWorkspace(ctx, nameOrID, ask, rep)
	if err != nil {
		return api.WorkspaceStatus{}, err
	}
	defer c.unlock()
	st, err := workspace.Status(ctx, c.cfg, c.guest, c.base)
	st.WorkspaceCopy = copyOf(c.base)
	return st, err
}

// PullWorkspace brings work out of a VM: its commits, and where it is asked for all that has changed as a patch or into the host's directory.
func (s *Service) PullWorkspace(ctx context.Context, nameOrID string, req api.PullWorkspace, rep progress.Reporter) (api.Pull, error) {
	switch {
	case req.Patch != "" && !filepath.IsAbs(req.Patch):
		return api.Pull{}, api.Errorf(api.KindInvalid, "path %q is not absolute", req.Patch)
	case req.Patch != "" && req.Apply:
		return api.Pull{}, api.Errorf(api.KindInvalid, "a patch and its application exclude each other")
	}
	c, err := s.openWorkspace(ctx, nameOrID, req.AskWorkspace, rep)
	if err != nil {
		return api.Pull{}, err
	}
	defer c.unlock()
	c.cfg.MaxBytes = cmp.Or(req.MaxBytes, defaultPullBytes)
	out := api.Pull{}
	if !req.NoCommits && c.base.Git {
		look := &look{c: c, wanted: req.Patch == "" && !req.Apply}
		c.cfg.Received = func() { look.begin(ctx) } // the guest looks while the host checks
		if out, err = workspace.Pull(ctx, c.cfg, c.guest, c.base); err != nil {
			return out, fmt.Errorf("pull from vm %q: %w", c.rec.Name, err)
		}
		look.begin(ctx)
		look.end(&out)
	}
	out.WorkspaceCopy = copyOf(c.base)
	switch {
	case req.Patch == "" && !req.Apply && !c.base.Git:
		return out, api.Errorf(api.KindInvalid, "%q is not a git work tree: it has no commits to pull", c.base.Root).
			WithHint("bring the files: banger vm workspace pull --apply %s", c.rec.Name)
	case req.Patch == "" && !req.Apply:
		return out, nil
	}
	err = c.takeFiles(ctx, req, &out)
	if err != nil {
		err = fmt.Errorf("pull from vm %q: %w", c.rec.Name, err)
	}
	return out, err
}

// lookWithin bounds how long a pull looks for what is not committed: in a large work tree of an emulated guest that may take longer than all else.
const lookWithin = 500 * time.Millisecond

// look finds out how much of the work in a guest no commit has.
type look struct {
	c      *copied
	wanted bool
	once   sync.Once
	done   chan struct{}
	count  int
	err    error
}

// begin begins to look, once.
func (l *look) begin(ctx context.Context) {
	l.once.Do(func() {
		l.done = make(chan struct{})
		if !l.wanted {
			close(l.done)
			return
		}
		go func() {
			defer close(l.done)
			ctx, cancel := context.WithTimeout(ctx, lookWithin)
			defer cancel()
			modified, untracked, err := workspace.Uncommitted(ctx, l.c.guest)
			l.count, l.err = modified+untracked, err
		}()
	})
}

// end waits for what was found, and says it.
func (l *look) end(out *api.Pull) {
	<-l.done
	out.Uncommitted, out.UncommittedUnknown = l.count, l.err != nil
}

// takeFiles makes a patch of what has changed, or applies it.
func (c *copied) takeFiles(ctx context.Context, req api.PullWorkspace, out *api.Pull) (err error) {
	w, err := workspace.Fetch(ctx, workspace.WorkConfig{Config: c.cfg.Config, Store: storeOf(c.file, c.base), MaxBytes: c.cfg.MaxBytes, Report: c.cfg.Report}, c.guest, c.base)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if req.Apply {
		unlock, lockErr := c.lockRoot(ctx)
		if lockErr != nil {
			return lockErr
		}
		defer unlock()
		c.cfg.Report.Step("apply to " + filepath.Base(c.base.Root))
		if out.Applied, err = w.Apply(ctx); err == nil || len(out.Applied) > 0 {
			err = errors.Join(err, c.base.Save(c.file))
		}
	} else {
		c.cfg.Report.Step("make a patch")
		out.Patched, err = writePatch(ctx, w, req.Patch)
	}
	out.Skipped = append(out.Skipped, w.Skipped...)
	return err
}

// storeOf is where the contents of a base are kept that the host's repository does not have; empty for none.
func storeOf(file string, m *workspace.Manifest) string {
	if !m.Git {
		return ""
	}
	return strings.TrimSuffix(file, manifestSuffix) + ".base"
}

// writePatch writes a patch to a file of the user's, whole or not at all.
func writePatch(ctx context.Context, w *workspace.Work, file string) (n int, err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".banger-patch-*")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, api.Errorf(api.KindInvalid, "write %q: there is no directory %q", file, filepath.Dir(file))
	}
	if err != nil {
		return 0, api.Errorf(api.KindInvalid, "write %q: %w", file, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	buffered := bufio.NewWriter(f)
	n, err = w.Patch(ctx, buffered)
	if err := errors.Join(err, buffered.Flush(), f.Chmod(0o644), f.Close()); err != nil {
		return 0, err
	}
	return n, os.Rename(f.Name(), file)
}

// Unpulled is the work that would be lost with a VM: commits that no repository of the host has. Of a VM that does not run it is read from its drive.
func (s *Service) Unpulled(ctx context.Context, nameOrID string) ([]api.Unpulled, error) {
	rec, err := s.cfg.Records.VM(ctx, nameOrID)
	if err != nil {
		return nil, err
	}
	return s.unpulled(ctx, rec)
}

func (s *Service) unpulled(ctx context.Context, rec store.VM) ([]api.Unpulled, error) {
	heads, err := s.workspaceHeads(rec.ID)
	if err != nil {
		return nil, err
	}
	cfg := workspace.PullConfig{Config: s.workspaceConfig(), VM: rec.Name, Report: progress.Discard}
	found := []api.Unpulled{}
	var failed error
	for _, m := range heads {
		if !m.Git {
			continue
		}
		if m.Copying { // broken off: what was given is not known, so all the host lacks counts
			m.Repos = map[string]*workspace.RepoState{"": {}}
		}
		refs, err := s.missingRefs(ctx, cfg, rec, m)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("look for commits at %q in vm %q: %w", m.GuestPath, rec.Name, err))
			continue
		}
		if len(refs) > 0 {
			found = append(found, api.Unpulled{WorkspaceCopy: copyOf(m), Refs: refs})
		}
	}
	if len(found) > 0 && failed != nil {
		s.cfg.Log.Warn("cannot tell of all workspaces what would be lost", "vm", rec.Name, "error", failed.Error())
		return found, nil
	}
	return found, failed
}

// missingRefs asks a running guest, or reads the drive of one that does not run.
func (s *Service) missingRefs(ctx context.Context, cfg workspace.PullConfig, rec store.VM, m *workspace.Manifest) ([]string, error) {
	if l := s.running(rec.ID); l != nil && l.now().Mark.Reached(api.MarkAgent) {
		return workspace.MissingRefs(ctx, cfg, s.guestTree(l, rec, m.GuestPath), m)
	}
	return s.refsOnDrive(ctx, cfg, rec, m)
}

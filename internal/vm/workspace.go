package vm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/workspace"
)

// workspaceConfig is what package workspace needs.
func (s *Service) workspaceConfig() workspace.Config {
	return workspace.Config{Environ: os.Environ(), Home: s.cfg.Host.Home, TempDir: s.cfg.Paths.Cache}
}

// CheckWorkspace finds what is wrong with a first copy before there is a VM for it.
func (s *Service) CheckWorkspace(ctx context.Context, req api.PrepareWorkspace) error {
	if err := checkPrepare(req); err != nil {
		return err
	}
	return workspace.Check(ctx, s.workspaceConfig(), req.Path, optionsOf(req))
}

func optionsOf(req api.PrepareWorkspace) workspace.Options {
	return workspace.Options{Branch: req.Branch, From: req.From, Depth: req.Depth}
}

// checkPrepare finds what is wrong with a request by itself.
func checkPrepare(req api.PrepareWorkspace) error {
	switch {
	case !filepath.IsAbs(req.Path):
		return api.Errorf(api.KindInvalid, "path %q is not absolute", req.Path)
	case req.GuestPath != "" && (!path.IsAbs(req.GuestPath) || path.Clean(req.GuestPath) == "/"):
		return api.Errorf(api.KindInvalid, "guest path %q is not possible", req.GuestPath).
			WithHint("use an absolute path below /, such as /root/repo")
	case req.Depth < 0:
		return api.Errorf(api.KindInvalid, "depth %d is not a number of commits", req.Depth)
	}
	return nil
}

// PrepareWorkspace copies a directory of the host into a running VM, or brings the copy up to date that is there.
func (s *Service) PrepareWorkspace(ctx context.Context, nameOrID string, req api.PrepareWorkspace, rep progress.Reporter) (api.Workspace, error) {
	l, rec, err := s.reachable(ctx, nameOrID)
	if err != nil {
		return api.Workspace{}, err
	}
	if err := checkPrepare(req); err != nil {
		return api.Workspace{}, err
	}
	rep.Step("read " + filepath.Base(req.Path))
	place, err := workspace.Find(ctx, s.workspaceConfig(), req.Path)
	if err != nil {
		return api.Workspace{}, err
	}
	p := prepare{s: s, live: l, rec: rec, req: req, place: place, guestPath: path.Clean(req.GuestPath), rep: rep}
	if req.GuestPath == "" {
		p.guestPath = "/root/" + place.Name
	}
	p.guest = s.guestTree(l, rec, p.guestPath)
	p.file = s.manifestFile(rec.ID, p.guestPath)
	unlock, err := s.lock(ctx, "workspaces of "+rec.ID)
	if err != nil {
		return api.Workspace{}, err
	}
	defer unlock()
	ws, err := p.run(ctx)
	if err != nil {
		return api.Workspace{}, fmt.Errorf("copy %q to vm %q: %w", req.Path, rec.Name, err)
	}
	return ws, nil
}

// manifestFile is where it is written what a directory of a VM shares with one of the host.
func (s *Service) manifestFile(id, guestPath string) string {
	sum := sha256.Sum256([]byte(guestPath))
	return filepath.Join(s.cfg.Paths.Workspaces(id), hex.EncodeToString(sum[:8])+manifestSuffix)
}

// manifestSuffix ends the names of saved manifests.
const manifestSuffix = ".manifest"

// prepare is one PrepareWorkspace.
type prepare struct {
	s         *Service
	live      *live
	rec       store.VM
	req       api.PrepareWorkspace
	place     workspace.Place
	guestPath string
	guest     *guestTree
	file      string // of the manifest
	rep       progress.Reporter
}

// run copies for the first time, or what has changed.
func (p *prepare) run(ctx context.Context) (api.Workspace, error) {
	base, err := workspace.Load(p.file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		base = nil
	case err != nil && !p.req.Force:
		return api.Workspace{}, api.Errorf(api.KindInternal, "%w", err).WithHint("--force copies everything again")
	case err != nil:
		return p.first(ctx, true)
	case base.Copying && base.Root != p.place.Root && !p.req.Force:
		return api.Workspace{}, p.fits(base)
	case base.Copying:
		return p.first(ctx, true)
	}
	there, err := p.guestHas(ctx)
	switch {
	case err != nil:
		return api.Workspace{}, err
	case !there || base == nil && p.req.Force:
		return p.first(ctx, there)
	case base == nil:
		return api.Workspace{}, api.Errorf(api.KindConflict, "the VM has something at %q that was not copied from here", p.guestPath).
			WithHint("give another directory (--guest-path), or write over it with --force")
	}
	if err := p.fits(base); err != nil {
		return api.Workspace{}, err
	}
	pending, err := workspace.Load(p.pendingFile())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		p.s.cfg.Log.Warn("cannot read what a copy that was broken off was about to bring", "vm", p.rec.Name, "error", err.Error())
	}
	ws, next, err := workspace.Update(ctx, p.s.workspaceConfig(), p.guest, workspace.UpdateRequest{Base: base, Pending: pending, Force: p.req.Force,
		Begin: func(m *workspace.Manifest) error { return m.Save(p.pendingFile()) }, Report: p.rep})
	if err != nil {
		return api.Workspace{}, err
	}
	return ws, p.save(ctx, next, base)
}

// pendingFile is where it is written what a copy is about to bring, until it has.
func (p *prepare) pendingFile() string {
	return strings.TrimSuffix(p.file, manifestSuffix) + ".pending"
}

// save writes down what both sides have in common now; old is what they had before, nil for nothing.
func (p *prepare) save(ctx context.Context, base, old *workspace.Manifest) error {
	if err := base.Save(p.file); err != nil {
		return err
	}
	if err := os.Remove(p.pendingFile()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("save a workspace: %w", err)
	}
	if err := workspace.SaveBase(ctx, p.s.workspaceConfig(), base, old, storeOf(p.file, base)); err != nil {
		// The copy is whole; only what the guest changes in these files cannot be shown as a patch.
		p.s.cfg.Log.Warn("cannot keep what a workspace held when it was copied", "vm", p.rec.Name, "error", err.Error())
	}
	return nil
}

// fits is an error where the request is for another copy than base is of.
func (p *prepare) fits(base *workspace.Manifest) error {
	switch {
	case base.Root != p.place.Root:
		return api.Errorf(api.KindConflict, "%q in the VM is a copy of %q", p.guestPath, base.Root).
			WithHint("give another directory: --guest-path %s-2", p.guestPath)
	case base.Git != p.place.Git:
		return api.Errorf(api.KindConflict, "%q was copied when it was not what it is now: a git work tree, or none", base.Root).
			WithHint("copy it to another directory: --guest-path %s-2", p.guestPath)
	case p.req.Branch != "" && (p.req.Branch != base.Branch || p.req.From != base.From):
		return api.Errorf(api.KindConflict, "the VM has a copy at %q already, and --branch is for a first one", p.guestPath).
			WithHint("make the branch in the VM: git switch -c %s %s", p.req.Branch, p.req.From)
	}
	return nil
}

// guestHas tells whether there is anything at the path in the guest.
func (p *prepare) guestHas(ctx context.Context) (bool, error) {
	stop := errors.New("one is enough")
	err := p.guest.Hash(ctx, "sha1", []string{".git"}, func(f workspace.GuestFile) error {
		if !f.Missing {
			return stop
		}
		return nil
	})
	if err == nil {
		err = p.guest.List(ctx, false, func(workspace.GuestFile) error { return stop })
	}
	switch {
	case errors.Is(err, stop):
		return true, nil
	case api.KindOf(err) == api.KindNotFound:
		return false, nil
	}
	return false, err
}

// first copies everything, over what is there. Until that is done the manifest says so, and another attempt begins anew.
func (p *prepare) first(ctx context.Context, over bool) (api.Workspace, error) {
	opts := optionsOf(p.req)
	if opts.Over = over; over {
		if err := workspace.KeepCommits(ctx, p.s.workspaceConfig(), p.guest, p.place); err != nil {
			return api.Workspace{}, err
		}
	}
	src, err := workspace.Prepare(ctx, p.s.workspaceConfig(), p.req.Path, opts)
	if err != nil {
		return api.Workspace{}, err
	}
	defer func() { _ = src.Close() }()
	begun := &workspace.Manifest{Root: src.Root, GuestPath: p.guestPath, Git: src.Git, Branch: p.req.Branch, From: p.req.From, Copying: true, CopiedAt: time.Now()}
	if err := begun.Save(p.file); err != nil {
		return api.Workspace{}, err
	}
	ws, base, err := p.send(ctx, src)
	if err != nil {
		return api.Workspace{}, err
	}
	ws.GuestPath, base.GuestPath = p.guestPath, p.guestPath
	if err := p.save(ctx, base, nil); err != nil {
		return api.Workspace{}, err
	}
	if !p.req.NoTooling {
		ws.ToolingLog = p.startTooling(ctx, base)
	}
	return ws, nil
}

// send streams a workspace into the guest. Where both sides fail, the host's error is the cause.
func (p *prepare) send(ctx context.Context, src *workspace.Source) (api.Workspace, *workspace.Manifest, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	type result struct {
		ws   api.Workspace
		base *workspace.Manifest
		err  error
	}
	done := make(chan result, 1)
	go func() {
		ws, base, err := src.Stream(ctx, pw, p.rep)
		_ = pw.CloseWithError(err)
		done <- result{ws, base, err}
	}()
	putErr := p.guest.Put(ctx, pr)
	_ = pr.CloseWithError(io.ErrClosedPipe) // a guest that stopped reading must not hold the sender
	if putErr != nil {
		cancel()
	}
	res := <-done
	switch {
	case res.err != nil && putErr == nil:
		return res.ws, nil, res.err
	case putErr != nil && res.err != nil && api.KindOf(res.err) != api.KindInternal:
		return res.ws, nil, res.err
	case putErr != nil:
		return res.ws, nil, api.Errorf(api.KindGuest, "the guest did not take the files: %w", putErr)
	}
	return res.ws, res.base, nil
}

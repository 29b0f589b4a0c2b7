package vm

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"path"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/store"
	"git.thaloco.com/thaloco/banger/internal/workspace"
)

// maxGuestSays bounds what is kept of the stderr of a program of the guest, in bytes.
const maxGuestSays = 4 << 10

// guestTree is a directory of a guest as package workspace needs it.
type guestTree struct {
	live  *live
	rec   store.VM
	agent *guestapi.Client
	root  string
}

var _ workspace.Guest = (*guestTree)(nil)

func (s *Service) guestTree(l *live, rec store.VM, root string) *guestTree {
	return &guestTree{live: l, rec: rec, agent: s.guest(l), root: root}
}

// List implements workspace.Guest.
func (g *guestTree) List(ctx context.Context, git bool, fn func(workspace.GuestFile) error) error {
	return g.agent.ListTree(ctx, g.root, git, func(e guestapi.TreeEntry) error {
		return fn(workspace.GuestFile{Path: e.Path, Mode: e.Mode, Size: e.Size, MTime: e.MTime})
	})
}

// Hash implements workspace.Guest.
func (g *guestTree) Hash(ctx context.Context, format string, paths []string, fn func(workspace.GuestFile) error) error {
	return g.agent.HashTree(ctx, g.root, format, paths, func(e guestapi.TreeState) error {
		f := workspace.GuestFile{Path: e.Path, Mode: e.Mode, Size: e.Size, MTime: e.MTime, Missing: e.Missing, Other: e.Special, ID: e.ID}
		if e.Dir {
			f.Mode |= fs.ModeDir
		}
		return fn(f)
	})
}

// Pack implements workspace.Guest.
func (g *guestTree) Pack(ctx context.Context, paths []string) (io.ReadCloser, error) {
	return g.agent.PackTree(ctx, g.root, paths)
}

// Remove implements workspace.Guest.
func (g *guestTree) Remove(ctx context.Context, paths []string) error {
	return g.agent.RemoveTree(ctx, g.root, paths)
}

// Put implements workspace.Guest.
func (g *guestTree) Put(ctx context.Context, r io.Reader) error {
	return g.agent.PutFiles(ctx, g.root, r)
}

// packScript runs the command behind it, and what that writes goes to a file first: git writes packs in small pieces, and to wake the agent for each
// on an emulated guest's one CPU takes as long as to make them. Where there is no room for a file it is written as it comes.
const packScript = `in=$(cat)
if f=$(mktemp /var/tmp/banger-pull.XXXXXX 2>/dev/null); then
	trap 'rm -f "$f"' EXIT
	trap 'exit 1' HUP INT TERM
	printf '%s\n' "$in" | "$@" >"$f" 2>/dev/null && { cat "$f"; exit; }
fi
printf '%s\n' "$in" | "$@"`

// Git implements workspace.Guest: as root, with the guest's own configuration.
func (g *guestTree) Git(ctx context.Context, dir string, stdin io.Reader, stdout io.Writer, args ...string) error {
	said := &head{limit: maxGuestSays}
	argv := append([]string{"git", "-c", "safe.directory=*"}, args...)
	if slices.Contains(args, "pack-objects") {
		argv = append([]string{"/bin/sh", "-c", packScript, "sh"}, argv...)
	}
	exit, err := exec.Run(ctx, exec.Options{
		Dial: func(ctx context.Context) (net.Conn, error) { return g.live.machine.Dial(ctx, wire.PortExec) },
		Start: wire.ExecStart{Argv: argv, Dir: path.Join(g.root, dir), User: "root",
			Env: []string{"LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0"}},
		Stdin: stdin, Stdout: stdout, Stderr: said,
	})
	start, isStart := errors.AsType[*wire.ExecError](err)
	switch {
	case isStart && start.Code == wire.ExecNotFound:
		return api.Errorf(api.KindUnavailable, "git is not installed in vm %q", g.rec.Name).
			WithHint("install it: banger vm exec %s -- apt-get install -y git", g.rec.Name)
	case isStart && start.Code == wire.ExecBadDir:
		return api.Errorf(api.KindNotFound, "vm %q has no directory %q any more", g.rec.Name, path.Join(g.root, dir))
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return api.Errorf(api.KindGuest, "run git in vm %q: %w", g.rec.Name, err)
	case exit.Status == 0:
		return nil
	case exit.Status == 1 && said.Len() == 0:
		return api.Errorf(api.KindNotFound, "git %s in vm %q: no", args[0], g.rec.Name)
	}
	text, _, _ := strings.Cut(strings.TrimSpace(strings.ToValidUTF8(said.String(), "?")), "\n")
	return api.Errorf(api.KindGuest, "git %s in vm %q: %s", args[0], g.rec.Name, text)
}

// head keeps the beginning of what is written.
type head struct {
	bytes.Buffer
	limit int
}

// Write implements io.Writer.
func (h *head) Write(p []byte) (int, error) {
	h.Buffer.Write(p[:min(len(p), max(h.limit-h.Len(), 0))])
	return len(p), nil
}

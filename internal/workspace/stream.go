package workspace

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"slices"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"golang.org/x/sys/unix"
)

// Stream writes the workspace as one tar stream. The names in it are relative to the directory in the guest, "./" first; all
// belongs to root; only directories, regular files and symbolic links occur; times have whole seconds. A file that changes while it is
// read gets a consistent entry and a line in Skipped. The Workspace and the Manifest have no GuestPath; the caller knows it.
func (s *Source) Stream(ctx context.Context, w io.Writer, rep progress.Reporter) (api.Workspace, *Manifest, error) {
	rep.Step("copy " + printable(s.Name))
	if s.Subdir != "." {
		rep.Note(fmt.Sprintf("the whole work tree %s is copied, not only %s", printable(s.Root), printable(s.Subdir)))
	}
	for _, n := range s.notes {
		rep.Note(n)
	}
	m := s.manifest()
	t := s.streamer(ctx, w, rep, m)
	if err := t.all(s.entries, s.bytes); err != nil {
		return api.Workspace{}, nil, err
	}
	return api.Workspace{Path: s.Root, Git: s.Git, Branch: s.opts.Branch, Files: t.files, Bytes: t.done, Skipped: t.skipped.all()}, m, nil
}

// manifest is what the guest has once everything was sent, still without files.
func (s *Source) manifest() *Manifest {
	m := &Manifest{Root: s.Root, Git: s.Git, Format: s.format, Branch: s.opts.Branch, From: s.opts.From, Depth: s.opts.Depth,
		CopiedAt: s.read, Repos: map[string]*RepoState{}, Files: make(map[string]File, len(s.entries))}
	for prefix, r := range s.repos {
		m.Repos[prefix] = r.state(s.format)
	}
	return m
}

func (s *Source) streamer(ctx context.Context, w io.Writer, rep progress.Reporter, m *Manifest) *streamer {
	buffered := bufio.NewWriterSize(w, 256<<10)
	return &streamer{ctx: ctx, buffered: buffered, tar: tar.NewWriter(buffered), rep: rep, manifest: m,
		skipped: skipped{lines: slices.Clone(s.skipped.lines), more: s.skipped.more}}
}

// all sends entries, of total bytes, and ends the stream.
func (t *streamer) all(entries []entry, total int64) error {
	t.total = total
	for _, e := range entries {
		if err := t.entry(e); err != nil {
			return err
		}
	}
	if err := errors.Join(t.tar.Close(), t.buffered.Flush()); err != nil {
		return fmt.Errorf("copy %q: %w", t.manifest.Root, err)
	}
	return nil
}

// streamer is one run of Stream.
type streamer struct {
	ctx         context.Context
	tar         *tar.Writer
	buffered    *bufio.Writer
	manifest    *Manifest // gets what is sent
	rep         progress.Reporter
	done, total int64
	files       int // regular files and symbolic links
	skipped     skipped
	sum         hash.Hash // of the file that is sent; nil for none
	buf         [128 << 10]byte
}

func (t *streamer) entry(e entry) error {
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	h := &tar.Header{Name: e.name, Mode: int64(e.mode.Perm()), ModTime: e.mtime, Format: tar.FormatGNU}
	switch {
	case e.mode.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, "./"
		if e.name != "" {
			h.Name = e.name + "/"
		}
		t.sent(e, h, "")
		return t.header(h)
	case e.mode.Type() == fs.ModeSymlink:
		target, err := os.Readlink(e.host)
		if err != nil {
			return t.changed(e, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		t.files++
		e.size = int64(len(target))
		t.sent(e, h, idOf(t.manifest.Format, []byte(target)))
		return t.header(h)
	case e.host == "":
		h.Typeflag, h.Size = tar.TypeReg, int64(len(e.content))
		t.files++
		if err := t.header(h); err != nil {
			return err
		}
		return t.write(e.content)
	}
	return t.file(e, h)
}

// sent notes what the guest is given.
func (t *streamer) sent(e entry, h *tar.Header, id string) {
	if e.made {
		return
	}
	t.manifest.Files[e.name] = File{Mode: e.mode, Size: e.size, MTime: h.ModTime.Unix(), ID: id, Host: e.stat}
}

func (t *streamer) header(h *tar.Header) error {
	if err := t.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("copy %q: %w", h.Name, err)
	}
	return nil
}

func (t *streamer) write(b []byte) error {
	if _, err := t.tar.Write(b); err != nil {
		return fmt.Errorf("copy: %w", err)
	}
	if t.sum != nil {
		_, _ = t.sum.Write(b) // never fails
	}
	t.done += int64(len(b))
	t.rep.Bytes(t.done, t.total)
	return nil
}

// changed deals with something that is not any more what it was when it was listed.
func (t *streamer) changed(e entry, err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		t.skipped.add("%s: it went away while the workspace was copied", printable(e.name))
		return nil
	}
	return unreadable(e.host, err)
}

// file writes a regular file as long as it is now, whatever happens to it meanwhile.
func (t *streamer) file(e entry, h *tar.Header) error {
	// A file that has become a link or a pipe since is not followed and not waited for.
	f, err := os.OpenFile(e.host, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return t.changed(e, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return unreadable(e.host, err)
	}
	if !st.Mode().IsRegular() {
		return t.changed(e, fs.ErrNotExist)
	}
	h.Typeflag, h.Size = tar.TypeReg, st.Size()
	t.files++
	if err := t.header(h); err != nil {
		return err
	}
	if !e.made {
		t.sum, e.size = newHash(t.manifest.Format, st.Size()), st.Size()
	}
	changed, err := t.content(f, e, st)
	if err != nil {
		return err
	}
	if !e.made {
		if changed { // what the host has now is not what was sent
			e.stat = HostStat{}
		}
		t.sent(e, h, hex.EncodeToString(t.sum.Sum(nil)))
		t.sum = nil
	}
	return nil
}

// content writes as many bytes of f as st says, and tells whether the file has changed meanwhile.
func (t *streamer) content(f *os.File, e entry, st fs.FileInfo) (changed bool, err error) {
	left := st.Size()
	for left > 0 && t.ctx.Err() == nil {
		n, err := f.Read(t.buf[:min(left, int64(len(t.buf)))])
		if err != nil && err != io.EOF {
			return false, unreadable(e.host, err)
		}
		if n == 0 { // shorter than it was: zeros stand for the rest
			clear(t.buf[:])
			t.skipped.add("%s: it became shorter while it was copied", printable(e.name))
			return true, t.pad(left)
		}
		if err := t.write(t.buf[:n]); err != nil {
			return false, err
		}
		left -= int64(n)
	}
	if t.ctx.Err() != nil {
		return false, context.Cause(t.ctx)
	}
	if after, err := f.Stat(); err == nil && (after.Size() != st.Size() || !after.ModTime().Equal(st.ModTime())) {
		t.skipped.add("%s: it changed while it was copied", printable(e.name))
		return true, nil
	}
	return e.stat != hostStat(st), nil
}

func (t *streamer) pad(left int64) error {
	for left > 0 {
		n := min(left, int64(len(t.buf)))
		if err := t.write(t.buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

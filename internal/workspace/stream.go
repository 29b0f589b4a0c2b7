package workspace

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"

	"golang.org/x/sys/unix"
)

// Stream writes the workspace as one tar stream. The names in it are relative to the directory in the guest, "./" first; all
// belongs to root; only directories, regular files and symbolic links occur; times have whole seconds. A file that changes while it is
// read gets a consistent entry and a line in Skipped. The Workspace has no GuestPath; the caller knows it.
func (s *Source) Stream(ctx context.Context, w io.Writer, rep progress.Reporter) (api.Workspace, error) {
	rep.Step("copy " + printable(s.Name))
	if s.Subdir != "." {
		rep.Note(fmt.Sprintf("the whole work tree %s is copied, not only %s", printable(s.Root), printable(s.Subdir)))
	}
	buffered := bufio.NewWriterSize(w, 256<<10)
	t := streamer{ctx: ctx, tar: tar.NewWriter(buffered), rep: rep, total: s.bytes, skipped: skipped{lines: append([]string(nil), s.skipped.lines...), more: s.skipped.more}}
	for _, e := range s.entries {
		if err := t.entry(e); err != nil {
			return api.Workspace{}, err
		}
	}
	if err := errors.Join(t.tar.Close(), buffered.Flush()); err != nil {
		return api.Workspace{}, fmt.Errorf("copy %q: %w", s.Root, err)
	}
	return api.Workspace{Path: s.Root, Git: s.Git, Files: t.files, Bytes: t.done, Skipped: t.skipped.all()}, nil
}

// streamer is one run of Stream.
type streamer struct {
	ctx         context.Context
	tar         *tar.Writer
	rep         progress.Reporter
	done, total int64
	files       int // regular files and symbolic links
	skipped     skipped
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
		return t.header(h)
	case e.mode.Type() == fs.ModeSymlink:
		target, err := os.Readlink(e.host)
		if err != nil {
			return t.changed(e, err)
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		t.files++
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
	left := st.Size()
	for left > 0 && t.ctx.Err() == nil {
		n, err := f.Read(t.buf[:min(left, int64(len(t.buf)))])
		if err != nil && err != io.EOF {
			return unreadable(e.host, err)
		}
		if n == 0 { // shorter than it was: zeros stand for the rest
			clear(t.buf[:])
			t.skipped.add("%s: it became shorter while it was copied", printable(e.name))
			return t.pad(left)
		}
		if err := t.write(t.buf[:n]); err != nil {
			return err
		}
		left -= int64(n)
	}
	if t.ctx.Err() != nil {
		return context.Cause(t.ctx)
	}
	if after, err := f.Stat(); err == nil && (after.Size() != st.Size() || !after.ModTime().Equal(st.ModTime())) {
		t.skipped.add("%s: it changed while it was copied", printable(e.name))
	}
	return nil
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

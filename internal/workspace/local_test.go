package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// localGuest is a guest that is a directory of this host.
type localGuest struct {
	h      *host
	dir    string
	puts   [][]string  // names of the entries of each Put
	rename [][2]string // for Pack
}

func (l *localGuest) state(name, format string) GuestFile {
	f := GuestFile{Path: name}
	st, err := os.Lstat(filepath.Join(l.dir, name))
	if err != nil {
		f.Missing = true
		return f
	}
	f.Mode, f.Size, f.MTime = st.Mode(), st.Size(), st.ModTime().Unix()
	switch f.Mode.Type() {
	case 0:
		b, err := os.ReadFile(filepath.Join(l.dir, name))
		if err != nil {
			l.h.Fatal(err)
		}
		f.ID = idOf(format, b)
	case fs.ModeSymlink:
		target, _ := os.Readlink(filepath.Join(l.dir, name))
		f.ID = idOf(format, []byte(target))
	case fs.ModeDir:
	default:
		f.Other = true
	}
	return f
}

func (l *localGuest) List(_ context.Context, git bool, fn func(GuestFile) error) error {
	if git {
		return l.listGit("", fn)
	}
	return filepath.WalkDir(l.dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == l.dir {
			return err
		}
		if d.Name() == ".git" {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		return fn(l.state(strings.TrimPrefix(p, l.dir+"/"), formatSHA1))
	})
}

func (l *localGuest) listGit(prefix string, fn func(GuestFile) error) error {
	out := l.h.git(filepath.Join(l.dir, prefix), "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	last := ""
	for _, name := range split([]byte(out), "\x00") {
		if name == last {
			continue
		}
		last = name
		name = filepath.Join(prefix, name)
		f := l.state(name, formatSHA1)
		if f.Mode.IsDir() {
			if _, err := os.Lstat(filepath.Join(l.dir, name, ".git")); err == nil {
				if err := l.listGit(name, fn); err != nil {
					return err
				}
			}
			continue
		}
		if f.Missing {
			continue
		}
		if err := fn(f); err != nil {
			return err
		}
	}
	return nil
}

func (l *localGuest) Hash(_ context.Context, format string, paths []string, fn func(GuestFile) error) error {
	for _, p := range paths {
		if err := fn(l.state(p, format)); err != nil {
			return err
		}
	}
	return nil
}

func (l *localGuest) Pack(_ context.Context, paths []string) (io.ReadCloser, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, p := range paths {
		st, err := os.Lstat(filepath.Join(l.dir, p))
		if err != nil {
			continue
		}
		target := ""
		if st.Mode().Type() == fs.ModeSymlink {
			target, _ = os.Readlink(filepath.Join(l.dir, p))
		}
		h, err := tar.FileInfoHeader(st, target)
		if err != nil {
			return nil, err
		}
		h.Name, h.Format = p, tar.FormatGNU
		for _, r := range l.rename {
			if r[0] == p {
				h.Name = r[1]
			}
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if st.Mode().IsRegular() {
			content, err := os.ReadFile(filepath.Join(l.dir, p))
			if err != nil {
				return nil, err
			}
			if _, err := w.Write(content); err != nil {
				return nil, err
			}
		}
	}
	return io.NopCloser(&b), w.Close()
}

func (l *localGuest) Remove(_ context.Context, paths []string) error {
	for _, p := range paths {
		full := filepath.Join(l.dir, p)
		if err := os.Remove(full); err != nil && !errors.Is(err, fs.ErrNotExist) && !strings.Contains(err.Error(), "not empty") {
			return err
		}
		for dir := filepath.Dir(full); dir != l.dir && os.Remove(dir) == nil; dir = filepath.Dir(dir) {
		}
	}
	return nil
}

func (l *localGuest) Put(ctx context.Context, r io.Reader) error {
	var b bytes.Buffer
	if _, err := io.Copy(&b, r); err != nil {
		return err
	}
	var names []string
	for tr := tar.NewReader(bytes.NewReader(b.Bytes())); ; {
		h, err := tr.Next()
		if err != nil {
			break
		}
		names = append(names, h.Name)
	}
	l.puts = append(l.puts, names)
	_, err := files.Unpack(ctx, l.dir, &b, files.Options{Own: true})
	return err
}

func (l *localGuest) Git(ctx context.Context, dir string, stdin io.Reader, stdout io.Writer, args ...string) error {
	err := hostexec.Runner{}.Run(ctx, hostexec.Cmd{Argv: append([]string{"git"}, args...), Dir: filepath.Join(l.dir, dir), Env: l.h.env, Stdin: stdin, Stdout: stdout})
	if code, said := status(err); code == 1 && said == "" {
		return api.Errorf(api.KindNotFound, "git %v: no", args)
	} else if code > 0 {
		return api.Errorf(api.KindGuest, "git %v: %s", args, said)
	}
	return err
}

func newPipe() (*io.PipeReader, *io.PipeWriter) { return io.Pipe() }

package workspace

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Bounds of what SaveBase keeps, in bytes.
const (
	maxSavedFile = 16 << 20
	maxSaved     = 512 << 20
)

// SaveBase keeps in the directory store what the files of a git work tree held when they were copied, as far as the repository does not have it: what was
// not committed. So that later it can be told what the guest has changed in them. It keeps nothing of files above 16 MiB, 512 MiB in all, and
// nothing of plain directories.
//
// old is what SaveBase was called with before, nil where it is a first copy: only what differs from it is looked at.
func SaveBase(ctx context.Context, cfg Config, m, old *Manifest, store string) error {
	if !m.Git {
		return nil
	}
	missing, err := uncommitted(ctx, newGit(cfg), m, old)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(store, 0o700); err != nil {
		return err
	}
	have, err := os.ReadDir(store)
	if err != nil {
		return err
	}
	needed := map[string]bool{}
	if len(have) > 0 {
		for _, f := range m.Files {
			needed[f.ID] = true
		}
	}
	var total int64
	for _, e := range have {
		if !needed[e.Name()] {
			if err := os.Remove(filepath.Join(store, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			continue
		}
		if st, err := e.Info(); err == nil {
			total += st.Size()
		}
		delete(missing, e.Name())
	}
	for id, name := range missing {
		f := m.Files[name]
		if f.Size > maxSavedFile || total+f.Size > maxSaved {
			continue
		}
		if err := saveContent(m, name, filepath.Join(store, id)); err != nil {
			return err
		}
		total += f.Size
	}
	return nil
}

// saveContent copies what the host has at name, unless it is not what m says any more.
func saveContent(m *Manifest, name, to string) error {
	tmp := to + ".tmp"
	ok, err := hostContent(m, name, tmp)
	if err == nil && ok {
		err = os.Rename(tmp, to)
	}
	return err
}

// hostContent writes what the host has at name to a new file, where that is what m says; else there is no such file afterwards.
func hostContent(m *Manifest, name, to string) (ok bool, err error) {
	full := filepath.Join(m.Root, name)
	f := m.Files[name]
	if f.Mode.Type() == fs.ModeSymlink {
		target, err := os.Readlink(full)
		if err != nil || idOf(m.Format, []byte(target)) != f.ID {
			return false, nil
		}
		return true, os.WriteFile(to, []byte(target), 0o600)
	}
	in, err := os.OpenFile(full, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, nil // gone, or not readable any more
	}
	defer in.Close()
	if st, err := in.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() != f.Size {
		return false, err
	}
	sum := newHash(m.Format, f.Size)
	_ = os.Remove(to)
	err = writeFile(to, io.TeeReader(io.LimitReader(in, f.Size), sum))
	if ok = err == nil && hex.EncodeToString(sum.Sum(nil)) == f.ID; !ok {
		_ = os.Remove(to)
	}
	return ok, err
}

// uncommitted are ids of contents that old does not have and their repositories do not have, each with one of the paths that had it.
func uncommitted(ctx context.Context, g git, m, old *Manifest) (map[string]string, error) {
	byRepo := map[string]map[string]string{}
	for name, f := range m.Files {
		if f.ID == "" || old != nil && old.Files[name].ID == f.ID {
			continue
		}
		prefix := m.repoOf(name)
		if byRepo[prefix] == nil {
			byRepo[prefix] = map[string]string{}
		}
		byRepo[prefix][f.ID] = name
	}
	missing := map[string]string{}
	for prefix, ids := range byRepo {
		if _, err := os.Lstat(filepath.Join(m.Root, prefix, ".git")); err != nil {
			maps.Copy(missing, ids) // the repository is gone
			continue
		}
		var in strings.Builder
		for id := range ids {
			in.WriteString(id + "\n")
		}
		out, err := g.output(ctx, filepath.Join(m.Root, prefix), strings.NewReader(in.String()), nil, "cat-file", "--batch-check=%(objectname)")
		if err != nil {
			return nil, fmt.Errorf("read the objects of %q: %w", m.Root, err)
		}
		for _, l := range split(out, "\n") {
			if id, ok := strings.CutSuffix(l, " missing"); ok {
				missing[id] = ids[id]
			}
		}
	}
	return missing, nil
}

// repoOf is the directory of the repository that name is in.
func (m *Manifest) repoOf(name string) string {
	for dir := filepath.Dir(name); dir != "."; dir = filepath.Dir(dir) {
		if m.Repos[dir] != nil {
			return dir
		}
	}
	return ""
}

// baseContents writes what the base had at paths to files of temp, and returns them; what nobody has any more is left out.
func (w *Work) baseContents(ctx context.Context, paths []string) (map[string]string, error) {
	found := map[string]string{}
	ask := map[string][]string{} // by repository
	for _, name := range paths {
		id := w.base.Files[name].ID
		if saved := filepath.Join(w.store, id); w.store != "" {
			if have, err := hashFile(w.base.Format, entry{host: saved}); err == nil && have == id {
				found[name] = saved
				continue
			}
		}
		file := filepath.Join(w.temp, fmt.Sprintf("base-%d", len(found)))
		ok, err := hostContent(w.base, name, file)
		if err != nil {
			return nil, err
		}
		if !ok {
			ask[w.base.repoOf(name)] = append(ask[w.base.repoOf(name)], name)
			continue
		}
		found[name] = file
	}
	if !w.base.Git {
		return found, nil
	}
	for prefix, names := range ask {
		if _, err := os.Lstat(filepath.Join(w.base.Root, prefix, ".git")); err != nil {
			continue
		}
		if err := w.gitContents(ctx, prefix, names, found); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// batchBytes is how much of contents git is asked for at once.
const batchBytes = 16 << 20

// gitContents writes contents that a repository of the host has.
func (w *Work) gitContents(ctx context.Context, prefix string, names []string, found map[string]string) error {
	for len(names) > 0 {
		n, total := 1, w.base.Files[names[0]].Size
		for n < len(names) && total+w.base.Files[names[n]].Size <= batchBytes {
			total += w.base.Files[names[n]].Size
			n++
		}
		if err := w.gitBatch(ctx, prefix, names[:n], found); err != nil {
			return err
		}
		names = names[n:]
	}
	return nil
}

func (w *Work) gitBatch(ctx context.Context, prefix string, names []string, found map[string]string) error {
	var in strings.Builder
	for _, name := range names {
		in.WriteString(w.base.Files[name].ID + "\n")
	}
	out, err := newGit(w.cfg).output(ctx, filepath.Join(w.base.Root, prefix), strings.NewReader(in.String()), nil, "cat-file", "--batch")
	if err != nil {
		return fmt.Errorf("read the objects of %q: %w", w.base.Root, err)
	}
	for _, name := range names {
		head, rest, _ := bytes.Cut(out, []byte("\n"))
		out = rest
		if bytes.HasSuffix(head, []byte(" missing")) {
			continue
		}
		var id, kind string
		var size int64
		if _, err := fmt.Sscanf(string(head), "%s %s %d", &id, &kind, &size); err != nil || size < 0 || size >= int64(len(out)) {
			return fmt.Errorf("read the objects of %q: git says %.100q", w.base.Root, head)
		}
		file := filepath.Join(w.temp, fmt.Sprintf("base-%d", len(found)))
		if err := os.WriteFile(file, out[:size], 0o600); err != nil {
			return err
		}
		found[name], out = file, out[size+1:]
	}
	return nil
}

// changedPaths are the paths of changes of a kind that have a base.
func (w *Work) changedPaths(kinds ...string) (paths []string) {
	for _, c := range w.Changes {
		if slices.Contains(kinds, string(c.Kind)) && !c.Before.Mode.IsDir() {
			paths = append(paths, c.Path)
		}
	}
	return paths
}

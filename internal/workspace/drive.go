package workspace

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/quarantine"
)

// Drive is the file system of a guest that does not run. What it holds is the guest's.
type Drive interface {
	// ReadFile reads a regular file of at most limit bytes; fs.ErrNotExist where there is none.
	ReadFile(name string, limit int64) ([]byte, error)
	// Files calls fn for each regular file below dir; fs.ErrNotExist where there is no such directory.
	Files(ctx context.Context, dir string, fn func(name string) error) error
}

// Bounds of what is read of a repository on a drive.
const (
	maxDriveFile = 64 << 20 // bytes
	maxDriveRefs = 100_000
)

// DriveRefs reads what holds commits in the repositories that were copied to root, a directory of the drive, by the repository's
// directory. One that cannot be read is left out: the guest has removed it, or made it something that only its git knows.
func DriveRefs(ctx context.Context, d Drive, root string, base *Manifest) (map[string][]quarantine.Ref, error) {
	all := map[string][]quarantine.Ref{}
	for prefix := range base.Repos {
		refs, err := driveRefs(ctx, d, path.Join(root, prefix, ".git"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read the refs of %q: %w", path.Join(base.GuestPath, prefix), err)
		}
		all[prefix] = refs
	}
	return all, nil
}

func driveRefs(ctx context.Context, d Drive, dir string) ([]quarantine.Ref, error) {
	head, err := d.ReadFile(path.Join(dir, "HEAD"), maxStateFile)
	if err != nil {
		return nil, err
	}
	refs := map[string]string{}
	packed, err := d.ReadFile(path.Join(dir, "packed-refs"), maxDriveFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(packed)); lines.Scan() && len(refs) < maxDriveRefs; {
		if id, name, ok := strings.Cut(lines.Text(), " "); ok && isID(id) {
			refs[name] = id
		}
	}
	err = d.Files(ctx, path.Join(dir, "refs"), func(name string) error {
		if len(refs) >= maxDriveRefs || strings.HasSuffix(name, ".lock") {
			return nil
		}
		content, err := d.ReadFile(name, maxStateFile)
		if id := strings.TrimSpace(string(content)); err == nil && isID(id) {
			refs[strings.TrimPrefix(name, dir+"/")] = id
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if id := strings.TrimSpace(string(head)); isID(id) {
		refs["HEAD"] = id
	}
	list := make([]quarantine.Ref, 0, len(refs))
	for name, id := range refs {
		list = append(list, quarantine.Ref{Name: name, ID: id})
	}
	return append(list, driveStash(d, dir)...), nil
}

// driveStash are the older entries of the stash, which only its reflog holds.
func driveStash(d Drive, dir string) (refs []quarantine.Ref) {
	log, err := d.ReadFile(path.Join(dir, "logs/refs/stash"), maxDriveFile)
	if err != nil {
		return nil
	}
	entries := split(log, "\n")
	for i, e := range entries { // the oldest first; the last is refs/stash itself
		fields := strings.Fields(e)
		if n := len(entries) - 1 - i; n > 0 && len(fields) > 1 && isID(fields[1]) {
			refs = append(refs, quarantine.Ref{Name: fmt.Sprintf("stash@{%d}", n), ID: fields[1]})
		}
	}
	return refs
}

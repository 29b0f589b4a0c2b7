// Package hostfiles puts what comes out of a guest onto the host. The guest is hostile: a stream is unpacked with the
// code the agent has (guest/files), strictly: nothing but files, directories and links, no setuid, setgid or sticky
// bits, the caller's own files only, no absolute names and none with "..", nothing written through a link, hard links to files
// of the same stream only, at most MaxEntries entries, no sparse files, and no more bytes than the disk has room for.
package hostfiles

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
)

// MaxEntries is how many files, links and directories one copy may hold.
const MaxEntries = 1_000_000

// A copy leaves so much of a file system free: reserveBytes, or one in reserveShare of its size where that is less.
const (
	reserveBytes = 256 << 20
	reserveShare = 20
)

// Receive puts a tar stream of one file, link or directory where t says. progress is called with the number
// of bytes since the last call and may be nil. After an error what was copied before it remains, but no part of a file does.
func Receive(ctx context.Context, r io.Reader, t files.Target, progress func(n int64)) (api.FilesResult, error) {
	room, err := free(t.Path)
	if err != nil {
		return api.FilesResult{}, err
	}
	res, err := files.Receive(ctx, r, t, files.Options{
		Own: true, Merge: true, Strict: true, MaxEntries: MaxEntries, MaxBytes: max(room, 1), Progress: progress,
	})
	out := api.FilesResult{Entries: res.Entries, Bytes: res.Bytes, Skipped: res.Skipped}
	if e, ok := errors.AsType[*files.EntryError](err); ok {
		switch {
		case errors.Is(e, unix.ENOSPC), errors.Is(e, unix.EDQUOT), errors.Is(e, files.ErrTooBig):
			return out, api.Errorf(api.KindUnavailable, "%s %q: the host's disk is full", e.Op, e.Path).
				WithHint("make room on the host; some of a file system always stays free")
		}
		return out, api.Errorf(api.KindInvalid, "%w", err)
	}
	return out, err
}

// free is how many bytes may be written to the file system of a path, whose last parts may be missing.
func free(name string) (int64, error) {
	abs, err := filepath.Abs(name)
	if err != nil {
		return 0, err
	}
	if st, err := os.Stat(abs); err == nil && !st.IsDir() {
		abs = filepath.Dir(abs) // a link is replaced, wherever it leads to
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(abs, &st)
		if err == nil {
			size := func(blocks uint64) int64 { return int64(min(blocks, 1<<62/uint64(st.Bsize))) * st.Bsize }
			return size(st.Bavail) - min(reserveBytes, size(st.Blocks)/reserveShare), nil
		}
		if up := filepath.Dir(abs); up != abs && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) {
			abs = up
			continue
		}
		return 0, fmt.Errorf("copy to %q: %w", name, os.NewSyscallError("statfs", err))
	}
}

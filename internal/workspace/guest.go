package workspace

import (
	"context"
	"io"
	"io/fs"
)

// Guest is the copy of a workspace in a VM. All it tells comes from the guest and is believed only as far as it
// concerns the guest; names are relative to the copy, bounded and without "..".
type Guest interface {
	// List calls fn for every file and link of the copy; with git for those that git there knows or would add,
	// of repositories in it as well, without git for directories, too. Nothing in a .git is listed.
	List(ctx context.Context, git bool, fn func(GuestFile) error) error
	// Hash calls fn for what is at each path, in their order, with ids of a format ("sha1" or "sha256").
	Hash(ctx context.Context, format string, paths []string, fn func(GuestFile) error) error
	// Pack returns a tar stream of the files and links at paths that are there. The stream ends with an error where it is not whole.
	Pack(ctx context.Context, paths []string) (io.ReadCloser, error)
	// Remove removes files and links, empty directories, and directories above them that become empty.
	Remove(ctx context.Context, paths []string) error
	// Put unpacks a tar stream into the copy.
	Put(ctx context.Context, r io.Reader) error
	// Git runs the guest's git in a directory of the copy and writes its stdout, as far as it is bounded by stdout itself. stdin may be nil.
	Git(ctx context.Context, dir string, stdin io.Reader, stdout io.Writer, args ...string) error
}

// GuestFile is what is at a path of the guest.
type GuestFile struct {
	Path string
	// Mode is type and permissions, Size in bytes, MTime in seconds since 1970.
	Mode  fs.FileMode
	Size  int64
	MTime int64
	// Missing: there is nothing. Other: it is neither a regular file nor a link nor a directory.
	Missing, Other bool
	// ID is the id of the content, or of a link's target; empty for what has none, and where it was not asked for.
	ID string
}

// is tells whether the guest has what f says, as far as git would tell the difference.
func (g GuestFile) is(f File) bool {
	return !g.Missing && !g.Other && g.Mode.Type() == f.Mode.Type() && g.ID == f.ID && (g.Mode.IsDir() || executable(g.Mode) == executable(f.Mode))
}

// executable is what git keeps of the permissions of a file.
func executable(m fs.FileMode) bool { return m.IsRegular() && m&0o100 != 0 }

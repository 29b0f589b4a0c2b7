package workspace

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// racySeconds is how long before the copy a file must have been written for its time and size to tell that the guest has left it alone.
const racySeconds = 2

// Change is a file or link that the guest has changed since the last copy.
type Change struct {
	Path string
	Kind api.ChangeKind
	// Before is what both had, zero where it was added; After is what the guest has, zero where it was removed.
	Before File
	After  GuestFile
}

// Changes asks the guest what it has changed since base, in the order of the paths: of a git work tree what git there knows or would add,
// of a plain directory all files. What is in the guest's commits counts as well as what is not.
func Changes(ctx context.Context, g Guest, base *Manifest) ([]Change, error) {
	sure := base.CopiedAt.Unix() - racySeconds
	listed := make(map[string]bool, len(base.Files))
	var ask []string
	err := g.List(ctx, base.Git, func(f GuestFile) error {
		if f.Mode.IsDir() {
			return nil
		}
		listed[f.Path] = true
		before, had := base.Files[f.Path]
		if !had || before.Mode.Type() != f.Mode.Type() || executable(before.Mode) != executable(f.Mode) ||
			before.Size != f.Size || before.MTime != f.MTime || before.MTime >= sure {
			ask = append(ask, f.Path)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for name, f := range base.Files {
		if !f.Mode.IsDir() && !listed[name] {
			ask = append(ask, name)
		}
	}
	if len(ask) == 0 {
		return nil, nil
	}
	slices.Sort(ask)
	var changes []Change
	err = g.Hash(ctx, base.Format, ask, func(f GuestFile) error {
		before, had := base.Files[f.Path]
		switch {
		case !had && !f.Missing && !f.Other && !f.Mode.IsDir():
			changes = append(changes, Change{Path: f.Path, Kind: api.ChangeAdded, After: f})
		case !had || f.is(before):
		case f.Missing || f.Mode.IsDir() || f.Other:
			changes = append(changes, Change{Path: f.Path, Kind: api.ChangeRemoved, Before: before})
		default:
			changes = append(changes, Change{Path: f.Path, Kind: api.ChangeModified, Before: before, After: f})
		}
		return nil
	})
	return changes, err
}

// Work is what a guest has changed, brought to the host. Close it.
type Work struct {
	Changes []Change
	// Skipped names what was left in the guest and why.
	Skipped []string

	cfg  Config
	base *Manifest
	// store has contents of the base that nothing else has any more.
	store string
	temp  string
	files map[string]string // what the guest has at a path: a file in temp, with the target where it is a link
}

// WorkConfig says how work is fetched.
type WorkConfig struct {
	Config
	// Store is the directory that SaveBase was given.
	Store string
	// MaxBytes limits what the guest sends, in bytes.
	MaxBytes int64
	Report   progress.Reporter
}

// Fetch brings what the guest has changed since base to the host, into a temporary directory: nothing of it has a name there that the guest
// has chosen. Paths that must not be written on a host are a KindGuest that names them. More than MaxBytes is a KindInvalid.
func Fetch(ctx context.Context, cfg WorkConfig, g Guest, base *Manifest) (*Work, error) {
	cfg.Report.Step("look for what has changed")
	changes, err := Changes(ctx, g, base)
	if err != nil {
		return nil, err
	}
	if err := checkPaths(changes, base.Git); err != nil {
		return nil, err
	}
	w := &Work{cfg: cfg.Config, base: base, store: cfg.Store, files: map[string]string{}}
	if w.temp, err = makeTemp(cfg.TempDir); err != nil {
		return nil, err
	}
	if err := w.fetch(ctx, cfg, g, changes); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// Close removes temporary files.
func (w *Work) Close() error { return os.RemoveAll(w.temp) }

// checkPaths refuses what no honest tool of a guest would name and no host should write.
func checkPaths(changes []Change, git bool) error {
	var last Change
	for _, c := range changes { // in order, so that what is above comes first
		for part := range strings.SplitSeq(c.Path, "/") {
			if git && looksLikeGitDir(part) || part == ".." || part == "." || part == "" {
				return api.Errorf(api.KindGuest, "the VM has a file %.200q, which could act on the host: nothing is taken over", c.Path).
					WithHint("remove or rename it in the VM, or take over single files with banger vm cp")
			}
		}
		if last.Path != "" && last.Kind != api.ChangeRemoved && strings.HasPrefix(c.Path, last.Path+"/") && c.Kind != api.ChangeRemoved {
			return api.Errorf(api.KindGuest, "the VM says that %.200q is a file and has files in it", last.Path)
		}
		if c.Kind != api.ChangeRemoved {
			last = c
		}
	}
	return nil
}

// looksLikeGitDir tells whether some file system or other would take a name for .git, as git itself does: case does not matter, nor do the
// characters that HFS+ ignores, nor what NTFS drops at the end, nor its short names (git's verify_path, path.c and utf8.c).
func looksLikeGitDir(name string) bool {
	name = strings.Map(func(r rune) rune {
		switch {
		case r >= 0x200c && r <= 0x200f, r >= 0x202a && r <= 0x202e, r >= 0x206a && r <= 0x206f, r == 0xfeff:
			return -1
		}
		return r
	}, strings.ToLower(name))
	name, _, _ = strings.Cut(name, ":")
	if strings.HasPrefix(name, `.git\`) {
		return true
	}
	name = strings.TrimRight(name, ". ")
	return name == ".git" || name == "git~1"
}

// fetch reads the contents of all changes.
func (w *Work) fetch(ctx context.Context, cfg WorkConfig, g Guest, changes []Change) error {
	var total int64
	want := map[string]*Change{}
	var paths []string
	for i := range changes {
		c := &changes[i]
		if c.Kind == api.ChangeRemoved {
			continue
		}
		total += c.After.Size
		want[c.Path] = c
		paths = append(paths, c.Path)
	}
	if total > cfg.MaxBytes {
		return tooMuch(cfg.MaxBytes)
	}
	if len(paths) > 0 {
		cfg.Report.Step(fmt.Sprintf("fetch %d files", len(paths)))
		in, err := g.Pack(ctx, paths)
		if err != nil {
			return err
		}
		err = w.unpack(ctx, cfg, in, want, total)
		if cerr := in.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	for _, c := range changes {
		if _, left := want[c.Path]; left {
			w.Skipped = append(w.Skipped, printable(c.Path)+": it went away while it was fetched")
			continue
		}
		w.Changes = append(w.Changes, c)
	}
	return nil
}

func tooMuch(limit int64) error {
	return api.Errorf(api.KindInvalid, "the VM has changed files of more than %d bytes in all", limit).
		WithHint("allow more with --max-size, or have git in the VM ignore what need not come")
}

// unpack reads a tar stream of what is wanted and takes it out of want.
func (w *Work) unpack(ctx context.Context, cfg WorkConfig, in io.Reader, want map[string]*Change, total int64) error {
	var done int64
	tr := tar.NewReader(in)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, in) // its end says whether the stream was whole
			return err
		}
		if err != nil {
			return guestStream(ctx, err)
		}
		c := want[h.Name]
		if c == nil {
			return api.Errorf(api.KindGuest, "the VM sent %.200q, which it was not asked for", h.Name)
		}
		delete(want, h.Name)
		file := filepath.Join(w.temp, fmt.Sprint(n))
		content := io.Reader(tr)
		switch h.Typeflag {
		case tar.TypeReg:
			c.After.Mode = fs.FileMode(h.Mode) & fs.ModePerm
		case tar.TypeSymlink:
			c.After.Mode, h.Size = fs.ModeSymlink|0o777, int64(len(h.Linkname))
			content = strings.NewReader(h.Linkname)
		default:
			return api.Errorf(api.KindGuest, "the VM sent %.200q as something that is neither a file nor a link", h.Name)
		}
		if done += h.Size; h.Size < 0 || done > cfg.MaxBytes {
			return tooMuch(cfg.MaxBytes)
		}
		sum := newHash(w.base.Format, h.Size)
		if err := writeFile(file, io.TeeReader(content, sum)); err != nil {
			return guestStream(ctx, err)
		}
		c.After.Size, c.After.MTime, c.After.ID = h.Size, h.ModTime.Unix(), hex.EncodeToString(sum.Sum(nil))
		w.files[c.Path] = file
		cfg.Report.Bytes(done, max(done, total))
	}
}

// guestStream is the error for a stream of the guest that ends early.
func guestStream(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if api.KindOf(err) != api.KindInternal {
		return err
	}
	return api.Errorf(api.KindGuest, "fetch the files of the VM: %w", err)
}

func writeFile(name string, r io.Reader) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return cmp.Or(err, f.Close())
}

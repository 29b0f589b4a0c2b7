package workspace

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/sha1" //nolint:gosec // git's object ids are made with it
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

// manifestVersion is that of the form a Manifest is saved in.
const manifestVersion = 1

// Manifest is what host and guest have in common: what was last copied, in either direction. A later copy sends what the host
// has changed since, and what the guest has changed since is its work. Nothing in it comes from the guest.
type Manifest struct {
	Version int `json:"version"`
	// Root is the directory of the host, GuestPath where it is in the guest; both absolute.
	Root      string `json:"root"`
	GuestPath string `json:"guest_path"`
	// Git tells whether Root is a git work tree. Format is "sha1" or "sha256": how ids of contents are made.
	Git    bool   `json:"git"`
	Format string `json:"format"`
	// Branch was made for the guest, at From where that is not empty; Depth is how much history was sent, 0 for all.
	Branch string `json:"branch,omitempty"`
	From   string `json:"from,omitempty"`
	Depth  int    `json:"depth,omitempty"`
	// Copying is set while the first copy goes on: what the guest has is part of it.
	Copying  bool      `json:"copying,omitempty"`
	CopiedAt time.Time `json:"copied_at"`
	// Repos are the repositories, by their directory relative to Root; "" is Root's.
	Repos map[string]*RepoState `json:"repos"`
	// Files is everything but what lies in .git, by its path relative to Root.
	Files map[string]File `json:"-"`
}

// File is a regular file, a symbolic link or a directory as both sides had it.
type File struct {
	// Mode is type and permissions.
	Mode fs.FileMode
	// Size is in bytes; of a link, that of its target.
	Size int64
	// MTime is what the guest was given, in seconds since 1970.
	MTime int64
	// ID is the git object id of the content, or of a link's target, as it is on disk; empty for a directory.
	ID string
	// Host is what tells that the host's file is still the same.
	Host HostStat
}

// HostStat is what changes when a file of the host does. The zero value is like no file.
type HostStat struct {
	MTime, CTime int64 // nanoseconds since 1970
	Ino          uint64
}

// RepoState is what a repository of the guest was given beside its objects.
type RepoState struct {
	// Given is what the guest was given, Host what the host had then. They differ where a branch was made for the guest.
	Given Checkout `json:"given"`
	Host  Checkout `json:"host"`
	// Refs are object ids, or "ref: " and a name, by name.
	Refs map[string]string `json:"refs"`
	// Files are the ids of the other files of the git directory, by name.
	Files map[string]string `json:"files"`
	// Shallow are commits whose parents the guest was not given, because of Depth.
	Shallow []string `json:"shallow,omitempty"`
}

// Checkout is what a work tree has checked out.
type Checkout struct {
	// Head is the content of HEAD, Commit the commit it leads to; empty where there is none yet.
	Head   string `json:"head"`
	Commit string `json:"commit,omitempty"`
	// Index stands for what is in the index.
	Index string `json:"index,omitempty"`
}

// hostStat is what a file of the host looks like.
func hostStat(st fs.FileInfo) HostStat {
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return HostStat{}
	}
	return HostStat{MTime: st.ModTime().UnixNano(), CTime: sys.Ctim.Nano(), Ino: sys.Ino}
}

// newHash begins a content id of a format for size bytes.
func newHash(format string, size int64) hash.Hash {
	h := sha1.New() //nolint:gosec // see above
	if format == formatSHA256 {
		h = sha256.New()
	}
	fmt.Fprintf(h, "blob %d\x00", size)
	return h
}

// formatSHA1 and formatSHA256 are git's object formats.
const (
	formatSHA1   = "sha1"
	formatSHA256 = "sha256"
)

// idOf is the id of a content.
func idOf(format string, content []byte) string {
	h := newHash(format, int64(len(content)))
	_, _ = h.Write(content) // never fails
	return hex.EncodeToString(h.Sum(nil))
}

// Save writes a manifest to file, whole or not at all.
func (m *Manifest) Save(file string) error {
	m.Version = manifestVersion
	var b bytes.Buffer
	head, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("save the workspace of %q: %w", m.Root, err)
	}
	b.Write(head)
	b.WriteByte('\n')
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		f := m.Files[name]
		fmt.Fprintf(&b, "%o %d %d %d %d %d %s\t%s\x00", uint32(f.Mode), f.Size, f.MTime, f.Host.MTime, f.Host.CTime, f.Host.Ino, cmp.Or(f.ID, "-"), name)
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("save the workspace of %q: %w", m.Root, err)
	}
	if err := hostfile.Write(file, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("save the workspace of %q: %w", m.Root, err)
	}
	return nil
}

// LoadHead reads a saved manifest without its Files.
func LoadHead(file string) (*Manifest, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, _, err := readHead(f, file)
	return m, err
}

func readHead(f io.Reader, file string) (*Manifest, *bufio.Reader, error) {
	r := bufio.NewReaderSize(f, 256<<10)
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, nil, fmt.Errorf("read %q: %w", file, noEOF(err))
	}
	m := &Manifest{}
	if err := json.Unmarshal(line, m); err != nil {
		return nil, nil, fmt.Errorf("read %q: %w", file, err)
	}
	if m.Version != manifestVersion {
		return nil, nil, fmt.Errorf("read %q: it has version %d, this banger knows %d", file, m.Version, manifestVersion)
	}
	return m, r, nil
}

// Load reads a saved manifest. The error is fs.ErrNotExist where there is none.
func Load(file string) (*Manifest, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m, r, err := readHead(f, file)
	if err != nil {
		return nil, err
	}
	m.Files = map[string]File{}
	for {
		rec, err := r.ReadString(0)
		if errors.Is(err, io.EOF) && rec == "" {
			return m, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", file, noEOF(err))
		}
		name, entry, err := parseFile(strings.TrimSuffix(rec, "\x00"))
		if err != nil {
			return nil, fmt.Errorf("read %q: %w", file, err)
		}
		m.Files[name] = entry
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// parseFile reads one record of a saved manifest.
func parseFile(rec string) (string, File, error) {
	meta, name, ok := strings.Cut(rec, "\t")
	fields := strings.Split(meta, " ")
	if !ok || len(fields) != 7 || name != "" && !filepath.IsLocal(name) {
		return "", File{}, fmt.Errorf("record %.80q is damaged", rec)
	}
	mode, err := strconv.ParseUint(fields[0], 8, 32)
	ino, inoErr := strconv.ParseUint(fields[5], 10, 64)
	err = errors.Join(err, inoErr)
	var numbers [4]int64
	for i, field := range fields[1:5] {
		var nerr error
		numbers[i], nerr = strconv.ParseInt(field, 10, 64)
		err = errors.Join(err, nerr)
	}
	if err != nil {
		return "", File{}, fmt.Errorf("record %.80q is damaged: %w", rec, err)
	}
	f := File{Mode: fs.FileMode(mode), Size: numbers[0], MTime: numbers[1], ID: fields[6],
		Host: HostStat{MTime: numbers[2], CTime: numbers[3], Ino: ino}}
	if f.ID == "-" {
		f.ID = ""
	}
	return name, f, nil
}

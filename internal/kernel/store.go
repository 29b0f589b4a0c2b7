package kernel

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/deb"
)

// Config is what a Store needs.
type Config struct {
	// Dir holds the kernels, CacheDir packages and package lists; both are made when they are needed.
	Dir, CacheDir string
	// Mirrors are where Debian is fetched from.
	Mirrors deb.Mirrors
	// Keyring is nil for Debian's keys.
	Keyring openpgp.EntityList
	// HTTP is nil for a client that uses the environment's proxy.
	HTTP *http.Client
	// Log is nil for none.
	Log *slog.Logger
	// Now is nil for time.Now.
	Now func() time.Time
}

// Store is a directory of kernels. Its methods may be called from several goroutines; one pull or
// registration runs at a time, others wait for it. One process at a time may use a directory.
type Store struct {
	cfg     Config
	content content.Store
	deb     *deb.Client
	pull    chan struct{} // held, of capacity 1, while a pull or a registration runs
}

// New returns a Store.
func New(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Keyring == nil {
		keys, err := deb.DebianKeyring()
		if err != nil {
			return nil, err
		}
		cfg.Keyring = keys
	}
	client := deb.New(deb.Config{CacheDir: cfg.CacheDir, Keyring: cfg.Keyring, HTTP: cfg.HTTP, Now: cfg.Now, Log: cfg.Log})
	return &Store{
		cfg:     cfg,
		content: content.Store{Dir: cfg.Dir, Noun: "kernel", Log: cfg.Log},
		deb:     client,
		pull:    make(chan struct{}, 1),
	}, nil
}

// Files are the files of a kernel, with absolute paths if the store's is absolute.
type Files struct {
	Vmlinux, BootArchive, ModulesDrive string
	// Release is what uname -r says.
	Release string
}

// Files returns the files of the kernel with a digest, "sha256:HEX". They are compared with what was recorded of them: size and
// time of change, and where the time differs the content. A missing kernel is KindNotFound, a damaged one
// KindUnavailable with the command that mends it.
func (s *Store) Files(ctx context.Context, digest string) (Files, error) {
	dir, err := s.path(digest)
	if err != nil {
		return Files{}, err
	}
	r, err := s.check(ctx, dir, digest, false)
	if err != nil {
		return Files{}, err
	}
	return Files{
		Vmlinux:      filepath.Join(dir, fileVmlinux),
		BootArchive:  filepath.Join(dir, fileBoot),
		ModulesDrive: filepath.Join(dir, fileModules),
		Release:      r.Kernel.Release,
	}, nil
}

// Verify reads every byte of a kernel and compares it with its digest. Its errors are those of Files.
func (s *Store) Verify(ctx context.Context, digest string) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	_, err = s.check(ctx, dir, digest, true)
	return err
}

// List returns the kernels in the store, damaged ones left out. Their names are those they were pulled by.
func (s *Store) List() ([]api.Kernel, error) {
	return content.List(s.content, func(dir string) (api.Kernel, error) {
		r, err := readRecord(dir)
		return r.Kernel, err
	})
}

// Remove deletes a kernel; one that is not there is fine. The caller makes sure that no VM uses it.
func (s *Store) Remove(digest string) error {
	return s.content.Remove(digest)
}

// Sweep deletes what builds left that were broken off before the given time, such as the start of the process.
func (s *Store) Sweep(before time.Time) error {
	return s.content.Sweep(before, os.RemoveAll)
}

// path returns the directory of a digest.
func (s *Store) path(digest string) (string, error) { return s.content.Path(digest) }

// check compares the files in dir with their record, and the record with the digest.
func (s *Store) check(ctx context.Context, dir, digest string, full bool) (record, error) {
	r, err := readRecord(dir)
	if content.Absent(dir, err) {
		return record{}, api.Errorf(api.KindNotFound, "find kernel %s: it is not in the store", digest).
			WithHint("banger kernel pull %s", DefaultName)
	}
	if err != nil {
		return record{}, damaged(api.Kernel{}, "check kernel %s: %w", digest, err)
	}
	if got := r.digest(); got != digest || len(r.Files) != len(contentFiles()) {
		return record{}, damaged(r.Kernel, "check kernel %s: %s is of kernel %s", digest, fileJSON, got)
	}
	touched := false
	for i, want := range r.Files {
		got, err := want.Look(ctx, dir, full)
		switch cause := context.Cause(ctx); {
		case cause != nil && errors.Is(err, cause):
			return record{}, fmt.Errorf("check kernel %s: %w", digest, cause)
		case err != nil:
			return record{}, damaged(r.Kernel, "check kernel %s: %w", digest, err)
		case got.SHA256 != want.SHA256:
			return record{}, damaged(r.Kernel, "check kernel %s: file %q is damaged: expected sha256 %s, got %s",
				digest, filepath.Join(dir, want.Name), want.SHA256, got.SHA256)
		}
		touched = touched || got.ModTime != want.ModTime
		r.Files[i] = got
	}
	if touched { // restored from a backup, say: so that the next check is cheap again
		if err := r.write(dir); err != nil {
			s.cfg.Log.Warn("cannot update the record of a kernel", "path", dir, "error", err.Error())
		}
	}
	return r, nil
}

func damaged(k api.Kernel, format string, args ...any) error {
	return api.Errorf(api.KindUnavailable, format, args...).WithHint("%s", MendHint(k))
}

// MendHint is the command that makes the files of a kernel anew, as far as k tells where they came from.
func MendHint(k api.Kernel) string {
	if !registered(k) {
		return "banger kernel pull " + cmp.Or(k.Name, DefaultName)
	}
	return fmt.Sprintf("register it again, of the same files: banger kernel register --name %s --vmlinux %s", cmp.Or(k.Name, "NAME"), k.Source)
}

// registered reports whether a kernel came from files of the host, and from no package.
func registered(k api.Kernel) bool { return k.Package == "" && k.Source != "" }

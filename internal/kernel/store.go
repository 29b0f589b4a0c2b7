package kernel

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb"
)

// tmpPrefix begins the names of directories that are not complete.
const tmpPrefix = ".tmp-"

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

// Store is a directory of kernels. Its methods may be called from several goroutines; one pull
// runs at a time, others wait for it. One process at a time may use a directory.
type Store struct {
	cfg  Config
	deb  *deb.Client
	pull chan struct{} // held, of capacity 1, while a pull runs
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
	return &Store{cfg: cfg, deb: client, pull: make(chan struct{}, 1)}, nil
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
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list kernels: %w", err)
	}
	var out []api.Kernel
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "sha256-") {
			continue
		}
		if r, err := readRecord(filepath.Join(s.cfg.Dir, e.Name())); err == nil {
			out = append(out, r.Kernel)
		}
	}
	return out, nil
}

// Remove deletes a kernel; one that is not there is fine. The caller makes sure that no VM uses it.
func (s *Store) Remove(digest string) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	if err := s.discard(dir); err != nil {
		return fmt.Errorf("remove kernel %q: %w", digest, err)
	}
	return nil
}

// discard makes a directory vanish at once, then deletes it; what a crash leaves is Sweep's.
func (s *Store) discard(dir string) error {
	tmp, err := os.MkdirTemp(s.cfg.Dir, tmpPrefix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Rename(dir, filepath.Join(tmp, "old")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		_ = os.Remove(tmp)
		return err
	}
	return os.RemoveAll(tmp)
}

// Sweep deletes what builds left that were broken off before the given time, such as the start of the process.
func (s *Store) Sweep(before time.Time) error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sweep kernels: %w", err)
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if !strings.HasPrefix(e.Name(), tmpPrefix) || err != nil || !info.ModTime().Before(before) {
			continue
		}
		s.cfg.Log.Info("removing what is left of a broken build", "path", e.Name())
		if err := os.RemoveAll(filepath.Join(s.cfg.Dir, e.Name())); err != nil {
			errs = append(errs, fmt.Errorf("sweep kernels: %w", err))
		}
	}
	return errors.Join(errs...)
}

// path returns the directory of a digest.
func (s *Store) path(digest string) (string, error) {
	hexa, ok := strings.CutPrefix(digest, "sha256:")
	if b, err := hex.DecodeString(hexa); !ok || err != nil || len(b) != 32 || strings.ToLower(hexa) != hexa {
		return "", api.Errorf(api.KindInvalid, "find kernel %q: not a digest", digest).
			WithHint("a digest is sha256: and 64 hexadecimal digits")
	}
	return filepath.Join(s.cfg.Dir, "sha256-"+hexa), nil
}

// check compares the files in dir with their record, and the record with the digest.
func (s *Store) check(ctx context.Context, dir, digest string, full bool) (record, error) {
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return record{}, api.Errorf(api.KindNotFound, "find kernel %s: it is not in the store", digest).
				WithHint("banger kernel pull %s", DefaultName)
		}
	}
	if err != nil {
		return record{}, damaged(DefaultName, "check kernel %s: %w", digest, err)
	}
	if got := r.digest(); got != digest || len(r.Files) != len(contentFiles()) {
		return record{}, damaged(r.Kernel.Name, "check kernel %s: %s is of kernel %s", digest, fileJSON, got)
	}
	touched := false
	for i, want := range r.Files {
		path := filepath.Join(dir, want.Name)
		info, err := os.Stat(path)
		if err != nil {
			return record{}, damaged(r.Kernel.Name, "check kernel %s: %w", digest, err)
		}
		if !full && info.Size() == want.Size && info.ModTime().UnixNano() == want.ModTime {
			continue
		}
		got, err := hashFile(ctx, dir, want.Name)
		if ctx.Err() != nil {
			return record{}, fmt.Errorf("check kernel %s: %w", digest, context.Cause(ctx))
		}
		if err != nil {
			return record{}, damaged(r.Kernel.Name, "check kernel %s: %w", digest, err)
		}
		if got.SHA256 != want.SHA256 {
			return record{}, damaged(r.Kernel.Name, "check kernel %s: file %q is damaged: expected sha256 %s, got %s",
				digest, path, want.SHA256, got.SHA256)
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

func damaged(name, format string, args ...any) error {
	return api.Errorf(api.KindUnavailable, format, args...).WithHint("banger kernel pull %s", name)
}

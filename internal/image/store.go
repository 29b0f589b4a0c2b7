package image

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
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// tmpPrefix begins the names of directories that are not complete.
const tmpPrefix = ".tmp-"

// Config is what a Store needs.
type Config struct {
	// Dir holds the images, CacheDir what was fetched for them; both are made when they are needed.
	Dir, CacheDir string
	// Mirrors are where Debian is fetched from.
	Mirrors deb.Mirrors
	// Runner runs mmdebstrap.
	Runner hostexec.Runner
	// Keyring is nil for Debian's keys.
	Keyring openpgp.EntityList
	// HTTP is nil for a client that uses the environment's proxy.
	HTTP *http.Client
	// Catalog is nil for the embedded one; else TOML of the same form.
	Catalog []byte
	// ScratchDirs are where a file system may be put together, in order of preference; nil for /var/tmp, /tmp.
	ScratchDirs []string
	// Getenv is nil for os.Getenv.
	Getenv func(string) string
	// Log is nil for none.
	Log *slog.Logger
	// Now is nil for time.Now.
	Now func() time.Time
}

// Store is a directory of images. Its methods may be called from several goroutines; one pull
// runs at a time, others wait for it. One process at a time may use a directory.
type Store struct {
	cfg     Config
	deb     *deb.Client
	catalog []entry
	pull    chan struct{} // held, of capacity 1, while a pull runs
}

// New returns a Store.
func New(cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	if cfg.HTTP == nil {
		cfg.HTTP = deb.NewHTTPClient()
	}
	if cfg.ScratchDirs == nil {
		cfg.ScratchDirs = []string{"/var/tmp", "/tmp"}
	}
	if cfg.Catalog == nil {
		cfg.Catalog = embeddedCatalog
	}
	catalog, err := parseCatalog(cfg.Catalog)
	if err != nil {
		return nil, err
	}
	if cfg.Keyring == nil {
		if cfg.Keyring, err = deb.DebianKeyring(); err != nil {
			return nil, err
		}
	}
	client := deb.New(deb.Config{CacheDir: filepath.Join(cfg.CacheDir, "image"), Keyring: cfg.Keyring, HTTP: cfg.HTTP, Now: cfg.Now, Log: cfg.Log})
	return &Store{cfg: cfg, deb: client, catalog: catalog, pull: make(chan struct{}, 1)}, nil
}

// Files are the files of an image, with absolute paths if the store's is absolute.
type Files struct {
	// Rootfs is the base drive.
	Rootfs string
}

// Files returns the files of the image with a digest, "sha256:HEX". They are compared with what was recorded of
// them: size and time of change, and where the time differs the content. A missing image is
// api.KindNotFound, a damaged one api.KindUnavailable with the command that mends it.
func (s *Store) Files(ctx context.Context, digest string) (Files, error) {
	if err := s.check(ctx, digest, false); err != nil {
		return Files{}, err
	}
	dir, err := s.path(digest)
	return Files{Rootfs: filepath.Join(dir, fileRootfs)}, err
}

// Verify reads all of an image and compares it with its digest; the errors are those of Files.
func (s *Store) Verify(ctx context.Context, digest string) error {
	return s.check(ctx, digest, true)
}

// List returns the images in the store, damaged ones left out. Their names are those they were pulled by.
func (s *Store) List() ([]api.Image, error) {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list images: %w", err)
	}
	var out []api.Image
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "sha256-") {
			continue
		}
		if r, err := readRecord(filepath.Join(s.cfg.Dir, e.Name())); err == nil {
			out = append(out, r.Image)
		}
	}
	return out, nil
}

// Remove deletes an image; one that is not there is fine. The caller makes sure that no VM uses it.
func (s *Store) Remove(digest string) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	if err := s.discard(dir); err != nil {
		return fmt.Errorf("remove image %q: %w", digest, err)
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
		return errors.Join(err, os.Remove(tmp))
	}
	return os.RemoveAll(tmp)
}

// Sweep deletes what builds left that were broken off before the given time, such as the start of the process:
// half-made images and the directories they were put together in.
func (s *Store) Sweep(before time.Time) error {
	entries, err := os.ReadDir(s.cfg.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("sweep images: %w", err)
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if !strings.HasPrefix(e.Name(), tmpPrefix) || err != nil || !info.ModTime().Before(before) {
			continue
		}
		dir := filepath.Join(s.cfg.Dir, e.Name())
		s.cfg.Log.Info("removing what is left of a broken build", "path", dir)
		if err := s.removeBuild(dir); err != nil {
			errs = append(errs, fmt.Errorf("sweep images: %w", err))
		}
	}
	return errors.Join(errs...)
}

// path returns the directory of a digest.
func (s *Store) path(digest string) (string, error) {
	hexa, ok := strings.CutPrefix(digest, "sha256:")
	if b, err := hex.DecodeString(hexa); !ok || err != nil || len(b) != 32 || strings.ToLower(hexa) != hexa {
		return "", api.Errorf(api.KindInvalid, "find image %q: not a digest", digest).
			WithHint("a digest is sha256: and 64 hexadecimal digits")
	}
	return filepath.Join(s.cfg.Dir, "sha256-"+hexa), nil
}

// check compares an image with its record and its digest; full reads all of it in any case.
func (s *Store) check(ctx context.Context, digest string, full bool) error {
	dir, err := s.path(digest)
	if err != nil {
		return err
	}
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		if _, serr := os.Stat(dir); errors.Is(serr, fs.ErrNotExist) {
			return api.Errorf(api.KindNotFound, "find image %s: it is not in the store", digest).
				WithHint("banger image pull %s", DefaultName)
		}
	}
	if err != nil {
		return damaged(DefaultName, "check image %s: %w", digest, err)
	}
	if r.Image.Digest != digest {
		return damaged(r.Image.Name, "check image %s: %s is of image %s", digest, fileJSON, r.Image.Digest)
	}
	path := filepath.Join(dir, fileRootfs)
	info, err := os.Stat(path)
	if err != nil {
		return damaged(r.Image.Name, "check image %s: %w", digest, err)
	}
	if !full && info.Size() == r.RootfsSize && info.ModTime().UnixNano() == r.RootfsModTime {
		return nil
	}
	sum, info, err := hashFile(ctx, path, progress.Discard)
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("check image %s: %w", digest, context.Cause(ctx))
	case err != nil:
		return damaged(r.Image.Name, "check image %s: %w", digest, err)
	case "sha256:"+sum != digest:
		return damaged(r.Image.Name, "check image %s: file %q is damaged: expected %s, got sha256:%s", digest, path, digest, sum)
	}
	if now := info.ModTime().UnixNano(); now != r.RootfsModTime {
		// Restored from a backup, say; recorded, so that the next check is cheap again.
		r.RootfsModTime, r.RootfsSize = now, info.Size()
		if err := r.write(dir); err != nil {
			s.cfg.Log.Warn("cannot update the record of an image", "path", dir, "error", err.Error())
		}
	}
	return nil
}

func damaged(name, format string, args ...any) error {
	return api.Errorf(api.KindUnavailable, format, args...).WithHint("banger image pull %s --build", name)
}

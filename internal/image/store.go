package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/deb"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/image/oci"
)

// tmpPrefix begins the names of files and directories that are not complete.
const tmpPrefix = content.TmpPrefix

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
	// OCI says how registries are asked; its Cache is Store's to choose.
	OCI oci.Config
	// Catalog is nil for the embedded one; else TOML of the same form.
	Catalog []byte
	// Catalogs are those of the user, which add to it: files (absolute), and URLs with a digest, "https://…#sha256=HEX".
	Catalogs []string
	// Offline has no catalog fetched: what is not in the cache is an error of it.
	Offline bool
	// ScratchDirs are where a file system may be put together, in order of preference; nil for /var/tmp, /tmp.
	ScratchDirs []string
	// Getenv is nil for os.Getenv.
	Getenv func(string) string
	// Log is nil for none.
	Log *slog.Logger
	// Now is nil for time.Now.
	Now func() time.Time
}

// converters is how many images are unpacked at the same time.
const converters = 2

// Store is a directory of images. Its methods may be called from several goroutines; one recipe
// runs at a time, others wait for it. One process at a time may use a directory.
type Store struct {
	cfg      Config
	content  content.Store
	deb      *deb.Client
	catalogs *catalogs
	bundles  *bundleCache
	vms      BuildVMs // nil where nothing is built in VMs
	limit    func(emulated bool) time.Duration
	oci      *oci.Client
	pull     chan struct{} // held, of capacity 1, while a recipe runs
	convert  chan struct{} // held while layers are unpacked
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
	embedded, err := parseCatalog(cfg.Catalog)
	if err != nil {
		return nil, fmt.Errorf("read image catalog: %w", err)
	}
	if cfg.Keyring == nil {
		if cfg.Keyring, err = deb.DebianKeyring(); err != nil {
			return nil, err
		}
	}
	client := deb.New(deb.Config{CacheDir: filepath.Join(cfg.CacheDir, "image"), Keyring: cfg.Keyring, HTTP: cfg.HTTP, Now: cfg.Now, Log: cfg.Log})
	s := &Store{
		cfg:      cfg,
		content:  content.Store{Dir: cfg.Dir, Noun: "image", Log: cfg.Log},
		deb:      client,
		catalogs: newCatalogs(cfg, embedded),
		bundles:  &bundleCache{dir: filepath.Join(cfg.CacheDir, "bundles"), client: cfg.HTTP, delay: time.Second, idle: idleTimeout},
		limit:    buildLimit,
		pull:     make(chan struct{}, 1),
		convert:  make(chan struct{}, converters),
	}
	cfg.OCI.Cache, cfg.OCI.Log = s.OCICache(), cfg.Log
	s.oci = oci.New(cfg.OCI)
	return s, nil
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
	dir, err := s.content.Path(digest)
	return Files{Rootfs: filepath.Join(dir, fileRootfs)}, err
}

// Verify reads all of an image and compares it with its digest; the errors are those of Files.
func (s *Store) Verify(ctx context.Context, digest string) error {
	return s.check(ctx, digest, true)
}

// List returns the images in the store, damaged ones left out. Their names are those they were pulled by.
func (s *Store) List() ([]api.Image, error) {
	return content.List(s.content, func(dir string) (api.Image, error) {
		r, err := readRecord(dir)
		return r.Image, err
	})
}

// Remove deletes an image; one that is not there is fine. The caller makes sure that no VM uses it.
func (s *Store) Remove(digest string) error {
	return s.content.Remove(digest)
}

// Sweep deletes what builds left that were broken off before the given time, such as the start of the process:
// half-made images and the directories they were put together in.
func (s *Store) Sweep(before time.Time) error {
	return s.content.Sweep(before, s.removeBuild)
}

// check compares an image with its record and its digest; full reads all of it in any case.
func (s *Store) check(ctx context.Context, digest string, full bool) error {
	dir, err := s.content.Path(digest)
	if err != nil {
		return err
	}
	r, err := readRecord(dir)
	if content.Absent(dir, err) {
		return api.Errorf(api.KindNotFound, "find image %s: it is not in the store", digest).
			WithHint("banger image pull %s", DefaultName)
	}
	if err != nil {
		return damaged(api.Image{Name: DefaultName}, "check image %s: %w", digest, err)
	}
	if r.Image.Digest != digest {
		return damaged(r.Image, "check image %s: %s is of image %s", digest, fileJSON, r.Image.Digest)
	}
	want := r.rootfs()
	got, err := want.Look(ctx, dir, full)
	switch cause := context.Cause(ctx); {
	case cause != nil && errors.Is(err, cause):
		return fmt.Errorf("check image %s: %w", digest, cause)
	case err != nil:
		return damaged(r.Image, "check image %s: %w", digest, err)
	case got.SHA256 != want.SHA256:
		return damaged(r.Image, "check image %s: file %q is damaged: expected %s, got sha256:%s",
			digest, filepath.Join(dir, fileRootfs), digest, got.SHA256)
	}
	if got.ModTime != want.ModTime {
		// Restored from a backup, say; recorded, so that the next check is cheap again.
		r.RootfsModTime, r.RootfsSize = got.ModTime, got.Size
		if err := r.write(dir); err != nil {
			s.cfg.Log.Warn("cannot update the record of an image", "path", dir, "error", err.Error())
		}
	}
	return nil
}

func damaged(img api.Image, format string, args ...any) error {
	return api.Errorf(api.KindUnavailable, format, args...).WithHint("%s", mend(img))
}

// mend is the command that makes a damaged image whole, by where it came from.
func mend(img api.Image) string {
	ref, _, pinned := strings.Cut(img.Source, "@")
	switch name, _, err := Canonical(ref); {
	case Referenced(img.Name):
		return "banger image pull " + img.Name
	case pinned && Referenced(ref) && err == nil:
		return fmt.Sprintf("banger image pull %s --name %s", name, img.Name)
	case filepath.IsAbs(img.Source), strings.HasPrefix(img.Source, "vm "):
		return fmt.Sprintf("banger image delete %s, and make it again of what it was made of", img.Name)
	}
	return fmt.Sprintf("banger image pull %s --build", img.Name)
}

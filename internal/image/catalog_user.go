package image

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
)

const (
	// maxCatalog is the greatest size of a catalog in bytes.
	maxCatalog = 1 << 20
	// catalogTimeout bounds the fetch of a catalog: whoever lists images waits for it.
	catalogTimeout = 15 * time.Second
	// catalogRetry is how long a catalog that could not be fetched is not asked for again.
	catalogRetry = time.Minute
)

// errOffline is the error of a catalog that is not in the cache and may not be fetched.
var errOffline = errors.New("it was not fetched yet")

// catalogs are the embedded catalog and those of the user.
type catalogs struct {
	embedded []entry
	// user are files (absolute) and URLs with a digest, "https://…#sha256=HEX".
	user    []string
	dir     string // of those that were fetched: HEX.toml
	client  *http.Client
	offline bool
	now     func() time.Time
	log     *slog.Logger

	busy   chan struct{}      // of capacity 1: held by whoever uses what follows
	failed map[string]failure // by place
	logged map[string]bool    // errors, by text
}

func newCatalogs(cfg Config, embedded []entry) *catalogs {
	return &catalogs{embedded: embedded, user: cfg.Catalogs, dir: filepath.Join(cfg.CacheDir, "catalog"), client: cfg.HTTP, offline: cfg.Offline,
		now: cfg.Now, log: cfg.Log, busy: make(chan struct{}, 1), failed: map[string]failure{}, logged: map[string]bool{}}
}

// failure is why a catalog could not be fetched, and until when that counts.
type failure struct {
	err   error
	until time.Time
}

// entries returns the images of all catalogs by name, and the errors of those that could not be read. Of several of a name that of the
// last catalog counts.
func (c *catalogs) entries(ctx context.Context) ([]entry, []error) {
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	case <-ctx.Done():
		return c.embedded, []error{context.Cause(ctx)}
	}
	out := slices.Clone(c.embedded)
	var errs []error
	for _, place := range c.user {
		shown := place
		if address, _, ok := splitPinned(place); ok {
			shown = redacted(address)
		}
		more, err := c.load(ctx, place)
		if err != nil {
			err = explainCatalog(shown, err)
			errs = append(errs, err)
			if !c.logged[err.Error()] && ctx.Err() == nil {
				c.logged[err.Error()] = true
				c.log.Warn("cannot read an image catalog", "catalog", shown, "error", err.Error())
			}
			continue
		}
		for _, e := range more {
			e.from = shown
			out = slices.DeleteFunc(out, func(o entry) bool { return o.Name == e.Name })
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Compare(a.Name, b.Name) })
	return out, errs
}

// explainCatalog names the catalog in its error, and gives the error a kind.
func explainCatalog(shown string, err error) error {
	if known, ok := errors.AsType[*api.Error](err); ok {
		return api.Errorf(known.Kind, "read image catalog %q: %w", shown, err).WithHint("%s", known.Hint)
	}
	return api.Errorf(api.KindInvalid, "read image catalog %q: %w", shown, err).WithHint("correct it, or take it out of image_catalog in config.toml")
}

// load reads one of the user's catalogs.
func (c *catalogs) load(ctx context.Context, place string) ([]entry, error) {
	data, err := c.read(ctx, place)
	if err != nil {
		return nil, err
	}
	return parseCatalog(data)
}

func (c *catalogs) read(ctx context.Context, place string) ([]byte, error) {
	if isFile(place) {
		return readCatalogFile(place)
	}
	address, sum, ok := splitPinned(place)
	if !ok {
		return nil, errors.New("it is neither an absolute path nor a URL with a digest, https://…#sha256=HEX")
	}
	cached := filepath.Join(c.dir, sum+".toml")
	if data, err := readCatalogFile(cached); err == nil && digestOf(data) == sum {
		return data, nil
	}
	if c.offline {
		return nil, api.Errorf(api.KindUnavailable, "%w", errOffline)
	}
	if f, ok := c.failed[place]; ok && c.now().Before(f.until) {
		return nil, f.err
	}
	data, err := c.fetch(ctx, address, sum)
	if err != nil {
		if ctx.Err() == nil {
			c.failed[place] = failure{err, c.now().Add(catalogRetry)}
		}
		return nil, err
	}
	delete(c.failed, place)
	return data, saveCatalog(cached, data)
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func readCatalogFile(path string) ([]byte, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCatalog+1))
	if err == nil && len(data) > maxCatalog {
		return nil, fmt.Errorf("it is larger than %d bytes", maxCatalog)
	}
	return data, err
}

// fetch gets a catalog and compares it with its digest.
func (c *catalogs) fetch(ctx context.Context, address, sum string) ([]byte, error) {
	within, cancel := context.WithTimeoutCause(ctx, catalogTimeout, fmt.Errorf("it did not come within %s", catalogTimeout))
	defer cancel()
	var buf bytes.Buffer
	if err := download(within, c.client, address, &buf, maxCatalog); err != nil {
		return nil, api.Errorf(api.KindUnavailable, "%w", err).WithHint("check the network (and http_proxy)")
	}
	if got := digestOf(buf.Bytes()); got != sum {
		return nil, api.Errorf(api.KindUnavailable, "expected sha256 %s, got %s", sum, got).
			WithHint("somebody changed the catalog: look at it, then write its new digest into image_catalog in config.toml")
	}
	return buf.Bytes(), nil
}

func saveCatalog(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".part"
	if err := content.WriteSynced(tmp, data); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return hostfile.SyncDir(filepath.Dir(path))
}

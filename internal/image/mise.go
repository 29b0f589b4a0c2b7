package image

import (
	"archive/tar"
	"bufio"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"
)

const publicRegistry = "https://registry.npmjs.org"

// maxPackage bounds a package of the registry, in bytes.
const maxPackage = 512 << 20

// npmPackage is a program that is taken from the npm registry: one file, packed.
type npmPackage struct {
	Package string `toml:"package"`
	Version string `toml:"version"`
	// Integrity is "sha512-" and the base64 digest of the package's tarball, as the registry's metadata give it.
	Integrity string `toml:"integrity"`
}

// url is the address of p's tarball, which has the same form in every registry.
func (p npmPackage) url(registry string) string {
	return fmt.Sprintf("%s/%s/-/%s-%s.tgz", strings.TrimSuffix(registry, "/"), p.Package, path.Base(p.Package), p.Version)
}

// fetch returns the path of p's tarball in dir, downloaded if it is not there, its digest verified.
func (p npmPackage) fetch(ctx context.Context, client *http.Client, registry, dir string) (string, error) {
	file := filepath.Join(dir, strings.NewReplacer("@", "", "/", "-").Replace(p.Package)+"-"+p.Version+".tgz")
	if p.verify(file) == nil {
		return file, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Always the same name, so that what a crash leaves is overwritten by the next; one pull runs at a time.
	tmp, err := os.Create(file + ".part")
	if err != nil {
		return "", err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := download(ctx, client, p.url(registry), tmp, maxPackage); err != nil {
		return "", err
	}
	if err := p.verify(tmp.Name()); err != nil {
		return "", fmt.Errorf("%s: %w", redacted(p.url(registry)), err)
	}
	return file, os.Rename(tmp.Name(), file)
}

// redacted is an address without the password it may hold: a registry of one's own may want one.
func redacted(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the registry"
	}
	return u.Redacted()
}

// idleTimeout is how long a server may deliver nothing.
const idleTimeout = 30 * time.Second

// download writes what is at an address to w, at most limit bytes and one.
func download(ctx context.Context, client *http.Client, address string, w io.Writer, limit int64) error {
	shown := redacted(address)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(idleTimeout, func() { cancel(fmt.Errorf("nothing came for %s", idleTimeout)) })
	defer idle.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err
		}
		return fmt.Errorf("get %s: %w", shown, cmp.Or(context.Cause(ctx), err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("get %s: %s", shown, resp.Status)
	}
	n, err := io.Copy(w, io.LimitReader(readerFunc(func(p []byte) (int, error) {
		n, err := resp.Body.Read(p)
		idle.Reset(idleTimeout)
		return n, err
	}), limit+1))
	if err != nil {
		return fmt.Errorf("get %s: %w", shown, cmp.Or(context.Cause(ctx), err))
	}
	if n > limit {
		return fmt.Errorf("get %s: it is longer than %d bytes", shown, limit)
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (p npmPackage) verify(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxPackage+1)); err != nil {
		return err
	}
	if got := "sha512-" + base64.StdEncoding.EncodeToString(h.Sum(nil)); got != p.Integrity {
		return fmt.Errorf("expected %s, got %s", p.Integrity, got)
	}
	return nil
}

// writeProgram writes the file bin/NAME of the package in tgz to w as a tar
// entry called name, executable, of the given time; the end mark is left out, so that another tar can follow.
func writeProgram(w io.Writer, tgz, name string, at time.Time) error {
	f, err := os.Open(tgz)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return fmt.Errorf("read %q: %w", tgz, err)
	}
	in, want := tar.NewReader(z), "package/bin/"+path.Base(name)
	for {
		h, err := in.Next()
		if err == io.EOF {
			return fmt.Errorf("read %q: no %s in it", tgz, want)
		}
		if err != nil {
			return fmt.Errorf("read %q: %w", tgz, err)
		}
		if h.Name != want || h.Typeflag != tar.TypeReg {
			continue
		}
		out := tar.NewWriter(w)
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: h.Size, ModTime: at}); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return fmt.Errorf("read %q: %w", tgz, err)
		}
		return out.Flush()
	}
}

// npmRegistry is the registry npm would use on this host: of the environment,
// the user's npmrc, the host's, or the public one.
func npmRegistry(getenv func(string) string, host fs.FS) string {
	for _, name := range []string{"npm_config_registry", "NPM_CONFIG_REGISTRY"} {
		if v := getenv(name); isHTTP(v) {
			return v
		}
	}
	files := []string{filepath.Join(getenv("HOME"), ".npmrc"), "usr/etc/npmrc", "usr/local/etc/npmrc", "etc/npmrc"}
	for _, name := range files {
		data, err := fs.ReadFile(host, strings.TrimPrefix(name, "/"))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			key, value, ok := strings.Cut(line, "=")
			value = strings.Trim(strings.TrimSpace(value), `"'`)
			if ok && strings.TrimSpace(key) == "registry" && isHTTP(value) {
				return value
			}
		}
	}
	return publicRegistry
}

func isHTTP(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Host != ""
}

package deb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// Package is a package as an archive's index describes it.
type Package struct {
	Name, Version, Arch string
	// Depends is the field's value; ParseRelations parses it.
	Depends string
	// Archive is the URL of the archive, Filename the path in it.
	Archive, Filename string
	Size              int64
	SHA256            string
}

// URL is where the package is fetched from.
func (p Package) URL() string { return p.Archive + "/" + p.Filename }

// Index is a list of packages.
type Index []Package

// Newest returns the newest version of the package called name that satisfies rel; rel may be the zero Relation.
func (x Index) Newest(name string, rel Relation) (Package, bool) {
	var best Package
	found := false
	for _, p := range x {
		if p.Name == name && rel.Satisfied(p.Version) && (!found || Compare(p.Version, best.Version) > 0) {
			best, found = p, true
		}
	}
	return best, found
}

// Satisfied reports whether a version meets r's condition; an unknown operator is never met.
func (r Relation) Satisfied(version string) bool {
	c := Compare(version, r.Version)
	switch r.Op {
	case "":
		return true
	case "=":
		return c == 0
	case ">=", ">":
		return c >= 0
	case "<=", "<":
		return c <= 0
	case ">>":
		return c > 0
	case "<<":
		return c < 0
	}
	return false
}

// Packages fetches the index of a component ("main") and architecture of a release and returns the packages whose
// names keep accepts.
func (c *Client) Packages(ctx context.Context, rel *Release, component, arch string, keep func(name string) bool, rep progress.Reporter) (Index, error) {
	name := component + "/binary-" + arch + "/Packages"
	var sum fileSum
	ext, ok := "", false
	for _, ext = range []string{".xz", ".gz", ""} {
		if sum, ok = rel.files[name+ext]; ok {
			break
		}
	}
	if !ok {
		return nil, api.Errorf(api.KindUnavailable, "find %s in %s/dists/%s: the release has no such index", name, rel.URL, rel.Codename).
			WithHint("the mirror does not carry %s: name another as debian_mirror in the configuration", arch)
	}
	prefix := strings.Join([]string{rel.Codename, component, arch, ""}, "_")
	dst := filepath.Join(c.cfg.CacheDir, "lists", prefix+sum.sha256+ext)
	base := rel.URL + "/dists/" + rel.Codename + "/"
	urls := []string{base + name + ext}
	if rel.ByHash {
		urls = []string{base + path.Dir(name) + "/by-hash/SHA256/" + sum.sha256, urls[0]}
	}
	rep.Step("fetch the package list of " + rel.Codename)
	if err := c.fetchFirst(ctx, urls, dst, sum, rep); err != nil {
		return nil, err
	}
	c.dropOlderLists(prefix, dst)
	f, err := os.Open(dst)
	if err != nil {
		return nil, fmt.Errorf("read package list: %w", err)
	}
	defer f.Close()
	text, err := decompress(hostfile.Reader(ctx, f), ext)
	if err != nil {
		return nil, fmt.Errorf("read package list %q: %w", dst, err)
	}
	defer text.Close()
	out, err := parsePackages(text, rel.URL, keep)
	if err != nil {
		return nil, fmt.Errorf("read package list %q: %w", dst, err)
	}
	return out, nil
}

// fetchFirst fetches from the first of urls that has the file.
func (c *Client) fetchFirst(ctx context.Context, urls []string, dst string, sum fileSum, rep progress.Reporter) error {
	for i, u := range urls {
		err := c.fetch(ctx, u, dst, sum, rep)
		var status *statusError
		if errors.As(err, &status) && status.status == http.StatusNotFound && i < len(urls)-1 {
			continue
		}
		return err
	}
	return nil
}

// dropOlderLists removes what earlier releases left in the cache.
func (c *Client) dropOlderLists(prefix, current string) {
	dir := filepath.Dir(current)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && e.Name() != filepath.Base(current) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // a cache: what stays only takes room
		}
	}
}

func parsePackages(r io.Reader, archive string, keep func(name string) bool) (Index, error) {
	cr := NewControlReader(r)
	cr.keep = keep
	var out Index
	for {
		p, err := cr.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		pkg := Package{Name: p["package"], Version: p["version"], Arch: p["architecture"], Depends: p["depends"],
			Archive: archive, Filename: p["filename"], SHA256: p["sha256"]}
		var bad error
		if pkg.Size, bad = strconv.ParseInt(p["size"], 10, 64); bad != nil || pkg.Size < 0 {
			return nil, fmt.Errorf("package %q: size %q: %w", pkg.Name, p["size"], ErrControl)
		}
		if pkg.Name == "" || pkg.Version == "" || !isSHA256(pkg.SHA256) || !filepath.IsLocal(pkg.Filename) {
			return nil, fmt.Errorf("package %q: a field is missing or malformed: %w", pkg.Name, ErrControl)
		}
		out = append(out, pkg)
	}
}

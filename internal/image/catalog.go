package image

import (
	"cmp"
	"context"
	_ "embed"
	"errors"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
)

//go:embed catalog.toml
var embeddedCatalog []byte

// DefaultName is the name of the image that is used where none is named.
const DefaultName = "debian-bookworm"

// entry is an image of a catalog.
type entry struct {
	Name        string `toml:"name"`
	Description string `toml:"description"`
	// Arch is as Go names it. Entries for another one than this host's are not in the catalog here.
	Arch   string `toml:"arch"`
	Kernel string `toml:"kernel"`
	// Size is what the base drive has, Download what is fetched for it from the first source: about so many bytes; 0 where nobody said.
	Size     int64    `toml:"size"`
	Download int64    `toml:"download"`
	Env      []string `toml:"env"` // NAME=VALUE
	WorkDir  string   `toml:"work_dir"`
	User     string   `toml:"user"`
	// Sources are where the image comes from, in the order they are tried; one at least.
	Sources []source `toml:"source"`

	// from is the catalog of the user's that has the entry, as it may be shown; empty for the embedded one.
	from string
}

// sourceKind is what sort of source an image comes from.
type sourceKind string

// The kinds of sources.
const (
	sourceBundle sourceKind = "bundle"
	sourceOCI    sourceKind = "oci"
	sourceRecipe sourceKind = "recipe"
)

// source is where an image comes from: one of Bundle, OCI and Recipe is set, and of the other keys those that go with it.
type source struct {
	// Bundle is the http or https URL of a file as package bundle writes it, SHA256 the digest of that file in hex.
	Bundle string `toml:"bundle"`
	SHA256 string `toml:"sha256"`
	// OCI is an image in a registry, by digest: "REPOSITORY@sha256:HEX".
	OCI string `toml:"oci"`
	// Recipe is "debian", the only one there is.
	Recipe string `toml:"recipe"`
	// Release, Updates and Security are the codenames of suites; the last two may be empty.
	Release  string `toml:"release"`
	Updates  string `toml:"updates"`
	Security string `toml:"security"`
	// Packages are installed besides Debian's essential ones, apt, and Docker.
	Packages []string `toml:"packages"`
	// Base is the reference of an image with apt and Debian's keys: what is installed is installed in a VM of it where the host has no
	// mmdebstrap. Empty: there the image cannot be built.
	Base string      `toml:"base"`
	Mise *npmPackage `toml:"mise"`
	// Docker is where Docker comes from: one of the values of dockerFrom.
	Docker dockerFrom `toml:"docker"`
	// DockerMirror is the URL of Docker's own archive for Debian, DockerKey the key that signs it: armored, or the absolute path
	// of a file that holds it. For dockerCE only, which needs both.
	DockerMirror string `toml:"docker_mirror"`
	DockerKey    string `toml:"docker_key"`
}

func (s source) kind() sourceKind {
	switch {
	case s.Bundle != "":
		return sourceBundle
	case s.OCI != "":
		return sourceOCI
	}
	return sourceRecipe
}

// String says in a few words where the image comes from.
func (s source) String() string {
	switch s.kind() {
	case sourceBundle:
		return redacted(s.Bundle)
	case sourceOCI:
		return s.OCI
	}
	text := "built on this host from Debian " + s.Release
	if s.Docker == dockerCE {
		text += " and Docker's archive"
	}
	return text
}

// image is e as the API shows it before it is local.
func (e entry) image() api.Image {
	from := e.Sources[0].String()
	if e.from != "" {
		from += " (catalog " + e.from + ")"
	}
	return api.Image{Name: e.Name, Description: e.Description, Source: from, Arch: e.Arch, Kernel: e.Kernel, SizeBytes: e.Size, DownloadBytes: e.Download,
		Env: e.Env, WorkDir: e.WorkDir, User: e.User, Default: e.Name == DefaultName}
}

// over is img, as it came from a source, with what the catalog says of it instead, where that says anything.
func (e entry) over(img api.Image, src source) api.Image {
	img.Name, img.Arch, img.Source = e.Name, e.Arch, src.String()
	img.Description, img.Kernel = cmp.Or(e.Description, img.Description), cmp.Or(e.Kernel, img.Kernel)
	img.WorkDir, img.User = cmp.Or(e.WorkDir, img.WorkDir), cmp.Or(e.User, img.User)
	if len(e.Env) > 0 {
		img.Env = e.Env
	}
	return img
}

// Catalog returns the images that can be pulled by name, by name: the embedded ones and those of the user's catalogs, which are read, and
// fetched where they are not in the cache. Catalogs that fail are left out and their errors returned, which the log has as well, once.
func (s *Store) Catalog(ctx context.Context) ([]api.Image, []error) {
	entries, errs := s.catalogs.entries(ctx)
	var out []api.Image
	for _, e := range entries {
		out = append(out, e.image())
	}
	return out, errs
}

// find returns the image of that name, and what is wrong with catalogs, one of which might have had it too; the error is
// api.KindNotFound and hints at near names, that of a broken catalog, or api.KindCancelled.
func (s *Store) find(ctx context.Context, name string) (entry, []error, error) {
	entries, errs := s.catalogs.entries(ctx)
	if ctx.Err() != nil {
		return entry{}, nil, s.explain(ctx, name, context.Cause(ctx))
	}
	var names []string
	for _, e := range entries {
		if e.Name == name {
			return e, errs, nil
		}
		names = append(names, e.Name)
	}
	if len(errs) > 0 {
		return entry{}, errs, api.Errorf(api.KindOf(errs[0]), "pull image %q: no image of that name, and not all catalogs could be read: %w", name, errors.Join(errs...)).
			WithHint("%s", api.AsError(errs[0]).Hint)
	}
	err := api.Errorf(api.KindNotFound, "pull image %q: no image of that name", name)
	slices.Sort(names)
	if near := suggest.Near(name, names); len(near) > 0 {
		return entry{}, nil, err.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return entry{}, nil, err.WithHint("the images there are: %s", strings.Join(names, ", "))
}

package image

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
)

//go:embed catalog.toml
var embeddedCatalog []byte

// DefaultName is the name of the image that is used where none is named.
const DefaultName = "debian-bookworm"

// entry is an image of the catalog.
type entry struct {
	Name        string   `toml:"name"`
	Description string   `toml:"description"`
	Arch        string   `toml:"arch"`
	Kernel      string   `toml:"kernel"`
	Env         []string `toml:"env"`
	WorkDir     string   `toml:"work_dir"`
	User        string   `toml:"user"`
	Sources     []source `toml:"source"`
}

// source is where an image comes from.
type source struct {
	// Recipe is "debian", the only one there is.
	Recipe string `toml:"recipe"`
	// Release, Updates and Security are the codenames of suites; the last two may be empty.
	Release  string `toml:"release"`
	Updates  string `toml:"updates"`
	Security string `toml:"security"`
	// Packages are installed besides Debian's essential ones and apt.
	Packages []string    `toml:"packages"`
	Mise     *npmPackage `toml:"mise"`
}

// String says in a few words where the image comes from.
func (s source) String() string { return "built on this host from Debian " + s.Release }

// parseCatalog reads a catalog; it is part of the program or of its configuration, so every oddity is an error.
func parseCatalog(data []byte) ([]entry, error) {
	var c struct {
		Images []entry `toml:"image"`
	}
	dec := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return nil, fmt.Errorf("read image catalog: %w", err)
	}
	for i, e := range c.Images {
		if e.Name == "" || e.Arch == "" || len(e.Sources) == 0 {
			return nil, fmt.Errorf("read image catalog: image %d (%q) lacks a name, an architecture or a source", i+1, e.Name)
		}
		for _, s := range e.Sources {
			if s.Recipe != "debian" || s.Release == "" {
				return nil, fmt.Errorf("read image catalog: image %q: source of recipe %q and release %q", e.Name, s.Recipe, s.Release)
			}
		}
	}
	slices.SortFunc(c.Images, func(a, b entry) int { return cmp.Compare(a.Name, b.Name) })
	return c.Images, nil
}

// image is e as the API shows it before it is local.
func (e entry) image() api.Image {
	return api.Image{Name: e.Name, Description: e.Description, Source: e.Sources[0].String(), Arch: e.Arch, Kernel: e.Kernel,
		Env: e.Env, WorkDir: e.WorkDir, User: e.User, Default: e.Name == DefaultName}
}

// Catalog returns the images that can be pulled by name, by name.
func (s *Store) Catalog() []api.Image {
	var out []api.Image
	for _, e := range s.catalog {
		out = append(out, e.image())
	}
	return out
}

// find returns the image of that name; the error is api.KindNotFound and hints at near names.
func (s *Store) find(name string) (entry, error) {
	var names []string
	for _, e := range s.catalog {
		if e.Name == name {
			return e, nil
		}
		names = append(names, e.Name)
	}
	err := api.Errorf(api.KindNotFound, "pull image %q: no image of that name", name)
	if near := suggest.Near(name, names); len(near) > 0 {
		return entry{}, err.WithHint("did you mean %s?", strings.Join(near, " or "))
	}
	return entry{}, err.WithHint("the images there are: %s", strings.Join(names, ", "))
}

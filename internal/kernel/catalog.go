package kernel

import (
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
)

// DefaultName is the kernel used where nothing else is asked for.
const DefaultName = "generic-6.12"

// arch is the one architecture so far; Debian's name for it.
const arch = "amd64"

// recipe says of which package a kernel is made.
type recipe struct {
	name, description string
	// suite is a Debian release, whose security archive is looked at as well; the higher version counts.
	suite string
	// meta is a package that depends on the package of the current kernel, whose name begins with prefix and
	// ends in "-cloud-amd64".
	meta, prefix string
}

func recipes() []recipe {
	return []recipe{{
		name:        DefaultName,
		description: "Debian 13's kernel for virtual machines: Linux 6.12, maintained until 2028",
		suite:       "trixie",
		meta:        "linux-image-cloud-amd64",
		prefix:      "linux-image-6.12.",
	}}
}

// Catalog returns the kernels that can be pulled.
func (s *Store) Catalog() []api.Kernel {
	var out []api.Kernel
	for _, r := range recipes() {
		out = append(out, api.Kernel{Name: r.name, Description: r.description, Arch: "x86_64",
			Source: s.cfg.Mirrors.Main + " " + r.suite, Default: r.name == DefaultName})
	}
	return out
}

func findRecipe(name string) (recipe, error) {
	var names []string
	for _, r := range recipes() {
		if r.name == name {
			return r, nil
		}
		names = append(names, r.name)
	}
	err := api.Errorf(api.KindNotFound, "find kernel %q: the catalog has no kernel of that name", name)
	if near := suggest.Near(name, names); len(near) > 0 {
		names = near
	}
	return recipe{}, err.WithHint("there is: %s", strings.Join(names, ", "))
}

package oci

import (
	"path"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"git.thaloco.com/thaloco/banger/api"
)

// dockerHub is what the library calls what everybody calls docker.io.
const dockerHub = "index.docker.io"

// reference is where an image is.
type reference struct {
	name.Reference
}

// IsReference tells whether a word can only be meant for an image in a registry: one with a registry, a path, a tag or a digest.
func IsReference(s string) bool { return strings.ContainsAny(s, "/:@") }

// parse reads a reference as docker does: without a registry it is docker.io's, without a tag or digest it is the tag latest.
func parse(s string) (reference, error) {
	r, err := name.ParseReference(s)
	if err != nil {
		return reference{}, api.Errorf(api.KindInvalid, "%q is no reference to an image: %w", s, err).
			WithHint("as in docker.io/library/alpine:3.20, or ghcr.io/org/image@sha256:HEX")
	}
	return reference{r}, nil
}

// Normalize is a reference in full: "docker.io/library/alpine:latest". One with a tag and a digest loses the tag, which says nothing more then.
func Normalize(s string) (string, error) {
	r, err := parse(s)
	if err != nil {
		return "", err
	}
	return r.String(), nil
}

// String is the reference in full.
func (r reference) String() string { return hub(r.Name()) }

func (r reference) repository() string { return hub(r.Context().Name()) }

func hub(s string) string {
	if rest, ok := strings.CutPrefix(s, dockerHub+"/"); ok {
		return "docker.io/" + rest
	}
	return s
}

// registry is the host that is asked, as people call it.
func (r reference) registry() string {
	return strings.TrimSuffix(hub(r.Context().RegistryStr()+"/"), "/")
}

// ShortName is the last part of a reference, without tag and digest: what an image is called here that was given no name.
func ShortName(s string) (string, error) {
	r, err := parse(s)
	if err != nil {
		return "", err
	}
	return path.Base(r.Context().RepositoryStr()), nil
}

// Repository is a reference without tag and digest; "" for what is none.
func Repository(s string) string {
	r, err := parse(s)
	if err != nil {
		return ""
	}
	return r.repository()
}

// Registry is the host that a reference is asked from; "" for what is none.
func Registry(s string) string {
	r, err := parse(s)
	if err != nil {
		return ""
	}
	return r.registry()
}

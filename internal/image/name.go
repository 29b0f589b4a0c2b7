package image

import (
	"regexp"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/image/oci"
)

// plainName is a name that is no reference: those of the catalog, and those users give.
var plainName = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)

// CheckName says what is wrong with a name that a user gives to an image; api.KindInvalid.
func CheckName(name string) error {
	if plainName.MatchString(name) {
		return nil
	}
	return api.Errorf(api.KindInvalid, "%q is no name for an image", name).
		WithHint("use 1 to 63 lower-case letters, digits, dots, dashes and underscores, as in my-image")
}

// Canonical is the name by which an image is recorded that a user calls name: a reference is written as docker writes it, without
// docker.io/library/ and with its tag, so that "alpine", once pulled as docker.io/library/alpine, is "alpine:latest". Other words are names
// already; which of the two it is the second result says.
func Canonical(name string) (canonical string, reference bool, err error) {
	if !oci.IsReference(name) {
		return name, false, nil
	}
	if strings.HasPrefix(name, "/") || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "~") {
		return "", true, api.Errorf(api.KindInvalid, "%q is no name of an image", name).
			WithHint("an image of a file: banger image register --name NAME --rootfs %s", name)
	}
	full, err := oci.Normalize(name)
	if err != nil {
		return "", true, err
	}
	return familiar(full), true, nil
}

// familiar is a full reference as people write it.
func familiar(full string) string {
	s := strings.TrimPrefix(full, "docker.io/")
	if s == full {
		return full
	}
	short := strings.TrimPrefix(s, "library/")
	if strings.ContainsAny(short, "/") || !oci.IsReference(short) {
		return s // without "library/" it would be another repository's
	}
	return short
}

// SameRepository tells whether an image's source and a reference are of one repository of a registry.
func SameRepository(source, reference string) bool {
	r := oci.Repository(reference)
	if name, _, ok := strings.Cut(source, "@"); ok {
		source = name
	}
	return r != "" && oci.Repository(source) == r
}

// Referenced tells whether a name is a reference.
func Referenced(name string) bool { return oci.IsReference(name) }

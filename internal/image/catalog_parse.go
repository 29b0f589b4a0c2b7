package image

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/pelletier/go-toml/v2"

	"git.thaloco.com/thaloco/banger/internal/suggest"
)

// parseCatalog reads a catalog, TOML with an [[image]] for each entry, and returns those for this host, by name. Every oddity is an
// error, which names the entry and the key.
func parseCatalog(data []byte) ([]entry, error) {
	var doc map[string]any
	if err := toml.Unmarshal(data, &doc); err != nil {
		text := strings.TrimPrefix(err.Error(), "toml: ")
		if de, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, column := de.Position()
			text = fmt.Sprintf("line %d, column %d: %s", line, column, text)
		}
		return nil, errors.New(text)
	}
	var c struct {
		Images []entry `toml:"image"`
	}
	if err := fill("", reflect.ValueOf(&c).Elem(), doc); err != nil {
		return nil, err
	}
	var out []entry
	seen := map[string]bool{}
	for i, e := range c.Images {
		if err := e.check(); err != nil {
			return nil, fmt.Errorf("%s: %w", label("image", i, e.Name), err)
		}
		if id := e.Name + " " + e.Arch; seen[id] {
			return nil, fmt.Errorf("image %q: it is there twice", e.Name)
		} else {
			seen[id] = true
		}
		if e.Arch == runtime.GOARCH {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b entry) int { return cmp.Compare(a.Name, b.Name) })
	return out, nil
}

// label is what errors call an element of a list: by its name, where it has one.
func label(noun string, i int, name any) string {
	if s, ok := name.(string); ok && s != "" {
		return fmt.Sprintf("%s %q", noun, s)
	}
	return fmt.Sprintf("%s %d", noun, i+1)
}

// fill sets the fields of the struct dst, by their tags, to the values of a table; where is what errors call the table.
func fill(where string, dst reflect.Value, table map[string]any) error {
	if where != "" {
		where += ": "
	}
	fields := map[string]reflect.Value{}
	var names []string
	for i := range dst.NumField() {
		if tag := dst.Type().Field(i).Tag.Get("toml"); tag != "" {
			fields[tag] = dst.Field(i)
			names = append(names, tag)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(table)) {
		f, ok := fields[key]
		if !ok {
			text := fmt.Sprintf("%sunknown key %q; the keys are %s", where, key, strings.Join(names, ", "))
			if near := suggest.Near(key, names); len(near) > 0 {
				text = fmt.Sprintf("%sunknown key %q; did you mean %s?", where, key, near[0])
			}
			return errors.New(text)
		}
		if err := set(where, key, f, table[key]); err != nil {
			return err
		}
	}
	return nil
}

// set sets a field to the value of a key.
func set(where, key string, f reflect.Value, value any) error {
	wrong := func(want string) error { return fmt.Errorf("%s%s: expected %s", where, key, want) }
	switch f.Kind() {
	case reflect.String:
		s, ok := value.(string)
		if !ok {
			return wrong("a string in quotes")
		}
		f.SetString(s)
	case reflect.Int64:
		n, ok := value.(int64)
		if !ok || n < 0 {
			return wrong("a number of bytes")
		}
		f.SetInt(n)
	case reflect.Pointer:
		table, ok := value.(map[string]any)
		if !ok {
			return wrong("a table")
		}
		f.Set(reflect.New(f.Type().Elem()))
		return fill(where+key, f.Elem(), table)
	case reflect.Slice:
		return setList(where, key, f, value)
	}
	return nil
}

func setList(where, key string, f reflect.Value, value any) error {
	list, ok := value.([]any)
	tables := f.Type().Elem().Kind() == reflect.Struct
	if !ok && tables {
		return fmt.Errorf("%s%s: expected entries that begin with [[…%s]]", where, key, key)
	}
	if !ok {
		return fmt.Errorf("%s%s: expected a list of strings", where, key)
	}
	f.Set(reflect.MakeSlice(f.Type(), len(list), len(list)))
	for i, v := range list {
		table, isTable := v.(map[string]any)
		s, isString := v.(string)
		switch {
		case tables && isTable:
			if err := fill(where+label(key, i, table["name"]), f.Index(i), table); err != nil {
				return err
			}
		case !tables && isString:
			f.Index(i).SetString(s)
		default:
			return fmt.Errorf("%s%s: entry %d is of another type", where, key, i+1)
		}
	}
	return nil
}

var (
	// packageName is as Debian's policy manual, 5.6.1, has it; suiteName what suites are called.
	packageName = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)
	suiteName   = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]*$`)
)

// check says what is wrong with an entry, beginning with the key.
func (e entry) check() error {
	switch {
	case CheckName(e.Name) != nil:
		return fmt.Errorf("name: expected letters a to z, digits, dots, hyphens and underscores, found %q", e.Name)
	case e.Arch != "amd64" && e.Arch != "arm64":
		return fmt.Errorf("arch: expected amd64 or arm64, found %q", e.Arch)
	case e.WorkDir != "" && !path.IsAbs(e.WorkDir):
		return fmt.Errorf("work_dir: %q is not an absolute path", e.WorkDir)
	case len(e.Sources) == 0:
		return errors.New("source: there is none")
	}
	for _, v := range e.Env {
		if name, _, ok := strings.Cut(v, "="); !ok || name == "" || strings.ContainsRune(v, 0) {
			return fmt.Errorf("env: %q is not NAME=VALUE", v)
		}
	}
	for i, s := range e.Sources {
		if err := s.check(); err != nil {
			return fmt.Errorf("source %d: %w", i+1, err)
		}
	}
	return nil
}

// check says what is wrong with a source.
func (s source) check() error {
	var kinds []string
	for kind, v := range map[sourceKind]string{sourceBundle: s.Bundle, sourceOCI: s.OCI, sourceRecipe: s.Recipe} {
		if v != "" {
			kinds = append(kinds, string(kind))
		}
	}
	slices.Sort(kinds)
	if len(kinds) != 1 {
		return fmt.Errorf("expected one of the keys bundle, oci and recipe, found %s", cmp.Or(strings.Join(kinds, " and "), "none"))
	}
	if err := s.stray(); err != nil {
		return err
	}
	switch s.kind() {
	case sourceBundle:
		if !isHTTP(s.Bundle) {
			return fmt.Errorf("bundle: %q is not an http or https URL", s.Bundle)
		}
		if !isSHA256(s.SHA256) {
			return fmt.Errorf("sha256: expected the 64 hexadecimal digits that sha256sum prints for the bundle, found %q", s.SHA256)
		}
	case sourceOCI:
		if _, err := name.NewDigest(s.OCI); err != nil {
			return fmt.Errorf("oci: %q is not REPOSITORY@sha256:HEX", s.OCI)
		}
	case sourceRecipe:
		return s.checkRecipe()
	}
	return nil
}

// stray refuses keys that do not go with the source's kind.
func (s source) stray() error {
	rest := s
	switch s.kind() {
	case sourceBundle:
		rest.Bundle, rest.SHA256 = "", ""
	case sourceOCI:
		rest.OCI = ""
	case sourceRecipe:
		rest = source{SHA256: s.SHA256}
	}
	v := reflect.ValueOf(rest)
	for i := range v.NumField() {
		if !v.Field(i).IsZero() {
			return fmt.Errorf("%s: this key does not go with %s", v.Type().Field(i).Tag.Get("toml"), s.kind())
		}
	}
	return nil
}

func (s source) checkRecipe() error {
	if s.Recipe != "debian" {
		return fmt.Errorf("recipe: expected debian, found %q", s.Recipe)
	}
	suites := []struct{ key, value string }{{"release", s.Release}, {"updates", s.Updates}, {"security", s.Security}}
	for _, suite := range suites {
		if suite.key == "release" && suite.value == "" || suite.value != "" && !suiteName.MatchString(suite.value) {
			return fmt.Errorf("%s: expected the codename of a suite, found %q", suite.key, suite.value)
		}
	}
	for _, p := range s.Packages {
		if !packageName.MatchString(p) {
			return fmt.Errorf("packages: %q is not the name of a package", p)
		}
	}
	if s.Base != "" {
		if _, reference, err := Canonical(s.Base); err != nil || !reference {
			return fmt.Errorf("base: expected a reference such as docker.io/library/debian:bookworm-slim, found %q", s.Base)
		}
	}
	if s.Mise != nil && (s.Mise.Package == "" || s.Mise.Version == "" || !strings.HasPrefix(s.Mise.Integrity, "sha512-")) {
		return errors.New("mise: expected package, version and integrity, the last as in sha512-…")
	}
	return s.checkDocker()
}

// isSHA256 tells whether s is a digest as sha256sum prints it.
func isSHA256(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32 && strings.ToLower(s) == s
}

// isFile tells whether a catalog's place, or that of something in it, is a file.
func isFile(s string) bool { return filepath.IsAbs(s) }

// splitPinned splits URL#sha256=HEX.
func splitPinned(s string) (address, sum string, ok bool) {
	address, sum, ok = strings.Cut(s, "#sha256=")
	u, err := url.Parse(address)
	return address, sum, ok && err == nil && isHTTP(address) && u.Fragment == "" && isSHA256(sum)
}

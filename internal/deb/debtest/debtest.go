// Package debtest makes Debian archives for tests: signed by a key of their own and served over HTTP on the loopback
// interface.
package debtest

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Archive is an archive served at URL. Its files are those of Files; the path is the part after URL and a slash.
type Archive struct {
	URL string
	// Key signs releases.
	Key *openpgp.Entity

	tb testing.TB
	mu sync.Mutex // guards what follows
	// files by path
	files     map[string][]byte
	requests  []string
	intercept func(w http.ResponseWriter, r *http.Request) bool
}

// New serves an empty archive until the test ends.
func New(tb testing.TB) *Archive {
	tb.Helper()
	a := &Archive{Key: NewKey(tb), tb: tb, files: map[string][]byte{}}
	srv := httptest.NewServer(a)
	tb.Cleanup(srv.Close)
	a.URL = srv.URL + "/debian"
	return a
}

// NewKey makes a signing key.
func NewKey(tb testing.TB) *openpgp.Entity {
	tb.Helper()
	key, err := openpgp.NewEntity("Test Archive", "", "", &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA,
		Time: func() time.Time { return time.Unix(1_000_000_000, 0) }})
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

// Keyring holds the archive's key.
func (a *Archive) Keyring() openpgp.EntityList { return openpgp.EntityList{a.Key} }

// ServeHTTP serves the files, with ranges.
func (a *Archive) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/debian/")
	a.mu.Lock()
	line := path
	if rng := r.Header.Get("Range"); rng != "" {
		line += " " + rng
	}
	a.requests = append(a.requests, line)
	data, ok := a.files[path]
	intercept := a.intercept
	a.mu.Unlock()
	if intercept != nil && intercept(w, r) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
}

// Intercept has f see every request first; it returns true where it answered.
func (a *Archive) Intercept(f func(w http.ResponseWriter, r *http.Request) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.intercept = f
}

// Requests returns the paths asked for since the last call, with their ranges.
func (a *Archive) Requests() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := a.requests
	a.requests = nil
	return r
}

// Put makes or replaces a file; nil data removes it.
func (a *Archive) Put(path string, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if data == nil {
		delete(a.files, path)
		return
	}
	a.files[path] = data
}

// Get returns a file.
func (a *Archive) Get(path string) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.files[path]
}

// Suite is what Publish writes.
type Suite struct {
	Codename string
	Date     time.Time
	// ValidUntil is left out where it is zero.
	ValidUntil time.Time
	// ByHash offers indexes by their hash, NoPlain does not offer them by their names.
	ByHash, NoPlain bool
	// Index is the ending of Packages: "", ".gz" or ".xz".
	Index    string
	Packages []Package
	// Keys sign the release; the archive's own where it is empty.
	Keys []*openpgp.Entity
}

// Package is a package of a suite.
type Package struct {
	Name, Version, Depends string
	// Data is the .deb.
	Data []byte
}

// Filename is where a package lies in the archive.
func (p Package) Filename() string {
	return fmt.Sprintf("pool/main/%s_%s_amd64.deb", p.Name, p.Version)
}

// Publish writes a suite's packages, index and release.
func (a *Archive) Publish(s Suite) {
	a.tb.Helper()
	var index strings.Builder
	for _, p := range s.Packages {
		a.Put(p.Filename(), p.Data)
		fmt.Fprintf(&index, "Package: %s\nVersion: %s\nArchitecture: amd64\n", p.Name, p.Version)
		if p.Depends != "" {
			fmt.Fprintf(&index, "Depends: %s\n", p.Depends)
		}
		fmt.Fprintf(&index, "Filename: %s\nSize: %d\nSHA256: %x\n\n", p.Filename(), len(p.Data), sha256.Sum256(p.Data))
	}
	packed := Compress(a.tb, []byte(index.String()), s.Index)
	sum := sha256.Sum256(packed)
	dir := "dists/" + s.Codename + "/main/binary-amd64/"
	if !s.NoPlain {
		a.Put(dir+"Packages"+s.Index, packed)
	}
	var rel strings.Builder
	fmt.Fprintf(&rel, "Origin: Test\nSuite: stable\nCodename: %s\nDate: %s\n", s.Codename, s.Date.UTC().Format(time.RFC1123))
	if !s.ValidUntil.IsZero() {
		fmt.Fprintf(&rel, "Valid-Until: %s\n", s.ValidUntil.UTC().Format(time.RFC1123))
	}
	if s.ByHash {
		a.Put(fmt.Sprintf("%sby-hash/SHA256/%x", dir, sum), packed)
		rel.WriteString("Acquire-By-Hash: yes\n")
	}
	fmt.Fprintf(&rel, "SHA256:\n %x %d main/binary-amd64/Packages%s\n", sum, len(packed), s.Index)
	keys := s.Keys
	if len(keys) == 0 {
		keys = []*openpgp.Entity{a.Key}
	}
	a.Put("dists/"+s.Codename+"/InRelease", Sign(a.tb, rel.String(), s.Date, keys...))
}

// Sign returns text clear-signed by all keys.
func Sign(tb testing.TB, text string, at time.Time, keys ...*openpgp.Entity) []byte {
	tb.Helper()
	var private []*packet.PrivateKey
	for _, k := range keys {
		private = append(private, k.PrivateKey)
	}
	var out bytes.Buffer
	w, err := clearsign.EncodeMulti(&out, private, &packet.Config{Time: func() time.Time { return at }})
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write([]byte(text)); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return append(out.Bytes(), '\n')
}

// Compress compresses data as the ending of a name says: "", ".gz", ".xz" or ".zst".
func Compress(tb testing.TB, data []byte, ext string) []byte {
	tb.Helper()
	var out bytes.Buffer
	var w interface {
		Write([]byte) (int, error)
		Close() error
	}
	var err error
	switch ext {
	case "":
		return data
	case ".gz":
		w = gzip.NewWriter(&out)
	case ".xz":
		w, err = xz.NewWriter(&out)
	case ".zst":
		w, err = zstd.NewWriter(&out)
	default:
		tb.Fatalf("unknown compression %q", ext)
	}
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := w.Write(data); err != nil {
		tb.Fatal(err)
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// Deb returns a package with the given control file and files ("./usr/bin/x" → content), its data compressed as
// ext says.
func Deb(tb testing.TB, control string, files map[string]string, ext string) []byte {
	tb.Helper()
	return Ar(
		Member{"debian-binary", []byte("2.0\n")},
		Member{"control.tar.gz", Compress(tb, Tar(tb, map[string]string{"./control": control}), ".gz")},
		Member{"data.tar" + ext, Compress(tb, Tar(tb, files), ext)},
	)
}

// Tar returns a tar archive of files, sorted, with the directories they need.
func Tar(tb testing.TB, files map[string]string) []byte {
	tb.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	at := time.Unix(1_700_000_000, 0)
	dirs := map[string]bool{}
	add := func(hdr *tar.Header, body string) {
		hdr.ModTime = at
		if err := w.WriteHeader(hdr); err != nil {
			tb.Fatal(err)
		}
		if _, err := w.Write([]byte(body)); err != nil {
			tb.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for i, c := range name {
			if dir := name[:i]; c == '/' && dir != "" && !dirs[dir] {
				dirs[dir] = true
				add(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}, "")
			}
		}
		add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(files[name]))}, files[name])
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return out.Bytes()
}

// Member is a member of an ar archive.
type Member struct {
	Name string
	Data []byte
}

// Ar returns an ar archive.
func Ar(members ...Member) []byte {
	out := []byte("!<arch>\n")
	for _, m := range members {
		out = fmt.Appendf(out, "%-16s%-12d%-6d%-6d%-8s%-10d`\n", m.Name, 0, 0, 0, "100644", len(m.Data))
		out = append(out, m.Data...)
		if len(m.Data)%2 == 1 {
			out = append(out, '\n')
		}
	}
	return out
}

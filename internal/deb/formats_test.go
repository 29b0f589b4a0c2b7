package deb

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/internal/deb/debtest"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// In this list every version is older than the next; the groups of one line are equal.
var versionOrder = []string{
	"0~~", "0~~a", "0~", "0 00 0-0 0: 0:0-00", "0a", "0+", "1~rc1-1", "1 1-0", "1-0.1", "1-1 01-1", "1.0~beta1", "1.0",
	"1.0a", "1.0a7", "1.0+b1", "1.0.1", "1.2.3-1", "1.2.3-1+deb13u1", "1.2.3-1.1", "1.2.3-2~bpo12+1", "1.2.3-2", "1.10",
	"6.12.57-1", "6.12.57-1+b1", "6.12.117-1", "20260101", "99999999999999999999999", "100000000000000000000000",
	"1:0", "1:0.1-1-1", "2:0", "10:0",
}

func TestCompare(t *testing.T) {
	for i, a := range versionOrder {
		for j, b := range versionOrder {
			for va := range strings.FieldsSeq(a) {
				for vb := range strings.FieldsSeq(b) {
					got := Compare(va, vb)
					if i < j && got >= 0 || i == j && got != 0 || i > j && got <= 0 {
						t.Errorf("Compare(%q, %q) = %d", va, vb, got)
					}
				}
			}
		}
	}
}

func FuzzCompare(f *testing.F) {
	for i, v := range versionOrder {
		f.Add(v, versionOrder[(i+1)%len(versionOrder)], "1.0-1")
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if Compare(a, a) != 0 {
			t.Fatalf("%q differs from itself", a)
		}
		if sign(Compare(a, b)) != -sign(Compare(b, a)) {
			t.Fatalf("%q and %q: not antisymmetric", a, b)
		}
		if Compare(a, b) <= 0 && Compare(b, c) <= 0 && Compare(a, c) > 0 {
			t.Fatalf("%q ≤ %q ≤ %q, but not %q ≤ %q", a, b, c, a, c)
		}
	})
}

func sign(n int) int { return max(-1, min(1, n)) }

func TestControlReader(t *testing.T) {
	const text = "# comment\nPackage: a\nDescription: one\n two\n .\n\tthree \n\n\n \nPackage: b\r\nEmpty:\n"
	r := NewControlReader(strings.NewReader(text))
	var got []Paragraph
	for {
		p, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, p)
	}
	want := []Paragraph{
		{"package": "a", "description": "one\ntwo\n.\nthree"},
		{"package": "b", "empty": ""},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestControlReaderRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"no colon":     "Package\n",
		"no name":      ": x\n",
		"blank name":   "a b: x\n",
		"continuation": " x\n",
		"twice":        "A: 1\na: 2\n",
		"too long":     "A: " + strings.Repeat("x", MaxParagraph) + "\n",
		"too many":     "A: 1\n" + strings.Repeat(" 1234567890123456789012345678901\n", MaxParagraph/32),
	} {
		t.Run(name, func(t *testing.T) {
			if p, err := NewControlReader(strings.NewReader(text)).Next(); !errors.Is(err, ErrControl) {
				t.Errorf("got %d fields, %v", len(p), err)
			}
		})
	}
}

func FuzzControl(f *testing.F) {
	f.Add([]byte("Package: a\nVersion: 1\n x\n\nPackage: b\n"))
	f.Add([]byte("# c\nA: b\n\tc\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := NewControlReader(bytes.NewReader(data))
		for n := 0; ; n++ {
			p, err := r.Next()
			if err != nil {
				return
			}
			if len(p) == 0 || n > len(data) {
				t.Fatalf("paragraph %d has %d fields", n, len(p))
			}
			for k, v := range p {
				if k == "" || k != strings.ToLower(k) || len(v) > len(data) {
					t.Fatalf("field %q: %q", k, v)
				}
			}
		}
	})
}

func TestParseRelations(t *testing.T) {
	got, err := ParseRelations("libc6 (>= 2.36), a:any | b (<<1) [amd64] , linux-image-6.12 (= 6.12.1-1),")
	if err != nil {
		t.Fatal(err)
	}
	want := [][]Relation{{{"libc6", ">=", "2.36"}}, {{Name: "a"}, {"b", "<<", "1"}}, {{"linux-image-6.12", "=", "6.12.1-1"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"a (>= 1", "(>= 1)", "a (1)", "a (>=)", "a | "} {
		if got, err := ParseRelations(bad); !errors.Is(err, ErrControl) {
			t.Errorf("ParseRelations(%q) = %v, %v", bad, got, err)
		}
	}
}

func TestSatisfied(t *testing.T) {
	for op, want := range map[string]string{"": "12 13 14", "=": "13", ">=": "13 14", "<=": "12 13", ">>": "14", "<<": "12", "?": ""} {
		var got []string
		for _, v := range []string{"12", "13", "14"} {
			if (Relation{Op: op, Version: "13"}).Satisfied(v) {
				got = append(got, v)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q 13: %v, want %s", op, got, want)
		}
	}
}

func TestUnpack(t *testing.T) {
	files := map[string]string{"./usr/bin/a": "A", "./etc/b": strings.Repeat("b", 100_000), "./c": ""}
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		t.Run("data.tar"+ext, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.deb")
			data := debtest.Deb(t, "Package: a\nVersion: 1\n", files, ext)
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			err := Unpack(t.Context(), path, progress.Discard, func(hdr *tar.Header, r io.Reader) error {
				if hdr.Typeflag != tar.TypeReg {
					return nil
				}
				b, err := io.ReadAll(r)
				got["./"+hdr.Name] = string(b)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(files, got); diff != "" {
				t.Error(diff)
			}
			p, err := Control(t.Context(), path)
			if err != nil || p["version"] != "1" {
				t.Errorf("Control: %v, %v", p, err)
			}
		})
	}
}

func TestUnpackRefuses(t *testing.T) {
	good := debtest.Deb(t, "Package: a\n", map[string]string{"./a": strings.Repeat("a", 10_000)}, ".gz")
	outside := debtest.Ar(debtest.Member{Name: "data.tar", Data: debtest.Tar(t, map[string]string{"../../a": "x"})})
	for name, data := range map[string][]byte{
		"empty":       nil,
		"text":        []byte("<html>not found</html>"),
		"no data":     debtest.Ar(debtest.Member{Name: "debian-binary", Data: []byte("2.0\n")}),
		"cut":         good[:len(good)-20],
		"outside":     outside,
		"compression": debtest.Ar(debtest.Member{Name: "data.tar.lz9", Data: []byte("x")}),
		"bad gzip":    debtest.Ar(debtest.Member{Name: "data.tar.gz", Data: []byte("no gzip at all")}),
		"bad header":  append([]byte("!<arch>\n"), bytes.Repeat([]byte("x"), 80)...),
	} {
		t.Run(name, func(t *testing.T) {
			err := unpack(bytes.NewReader(data), "a.deb", "data.tar", func(_ *tar.Header, r io.Reader) error {
				_, err := io.Copy(io.Discard, r)
				return err
			})
			if err == nil {
				t.Error("no error")
			}
		})
	}
}

func FuzzAr(f *testing.F) {
	f.Add(debtest.Ar(debtest.Member{Name: "debian-binary", Data: []byte("2.0\n")}, debtest.Member{Name: "odd", Data: []byte("x")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		a := &arReader{r: bytes.NewReader(data)}
		total := 0
		for {
			_, size, err := a.next()
			if err != nil {
				return
			}
			body, err := io.ReadAll(a)
			if total += len(body); total > len(data) || err == nil && int64(len(body)) != size {
				t.Fatalf("member of %d bytes gave %d; %d in all of %d", size, len(body), total, len(data))
			}
			if err != nil {
				return
			}
		}
	})
}

func TestDebianKeyring(t *testing.T) {
	keys, err := DebianKeyring()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range keys {
		for name := range k.Identities {
			got = append(got, strings.ToUpper(hexString(k.PrimaryKey.Fingerprint))+" "+name)
		}
	}
	slices.Sort(got)
	want := []string{
		"04B54C3CDCA79751B16BC6B5225629DF75B188BD Debian Archive Automatic Signing Key (13/trixie) <ftpmaster@debian.org>",
		"05AB90340C0C5E797F44A8C8254CF3B5AEC0A8F0 Debian Security Archive Automatic Signing Key (12/bookworm) <ftpmaster@debian.org>",
		"5E04A1E3223A19A20706E20F9904613D4CCE68C6 Debian Security Archive Automatic Signing Key (13/trixie) <ftpmaster@debian.org>",
		"B8B80B5B623EAB6AD8775C45B7C5D7D6350947F8 Debian Archive Automatic Signing Key (12/bookworm) <ftpmaster@debian.org>",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzRelease(f *testing.F) {
	f.Add([]byte("Codename: trixie\nDate: Sat, 21 Nov 2026 09:15:44 UTC\nValid-Until: Sat, 28 Nov 2026 00:53:03 UTC\nAcquire-By-Hash: yes\nSHA256:\n " +
		strings.Repeat("ab", 32) + " 12 main/binary-amd64/Packages.xz\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		rel, _, err := parseRelease(text)
		if err != nil {
			return
		}
		if rel.Date.IsZero() && !bytes.Contains(text, []byte("0001")) {
			t.Fatal("a release without a date")
		}
		for name, sum := range rel.files {
			if name == "" || sum.size < 0 || !isSHA256(sum.sha256) {
				t.Fatalf("file %q: %+v", name, sum)
			}
		}
	})
}

func FuzzPackages(f *testing.F) {
	f.Add([]byte("Package: a\nVersion: 1\nFilename: pool/a.deb\nSize: 3\nSHA256: " + strings.Repeat("ab", 32) + "\n\nPackage: b\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		x, err := parsePackages(bytes.NewReader(text), "http://m", func(name string) bool { return name != "b" })
		if err != nil {
			return
		}
		for _, p := range x {
			if p.Name == "" || p.Size < 0 || !isSHA256(p.SHA256) || !filepath.IsLocal(p.Filename) {
				t.Fatalf("%+v", p)
			}
		}
	})
}

func FuzzSources(f *testing.F) {
	f.Add([]byte("deb [a=b] http://m/debian trixie main\n"))
	f.Add([]byte("Types: deb\nURIs: http://m/debian\nSuites: a b\nComponents: main\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, s := range append(parseList(text), parseSources(text)...) {
			if !strings.HasPrefix(strings.ToLower(s.url), "http") || strings.HasSuffix(s.url, "/") {
				t.Fatalf("%+v", s)
			}
		}
	})
}

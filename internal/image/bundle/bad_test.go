package bundle

import (
	"archive/tar"
	"bytes"
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// member is a member of a bundle that a test makes.
type member struct {
	name    string
	content string
	typ     byte // 0 for a regular file
}

// tarOf is a tar of members, with its end.
func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: cmp.Or(m.typ, tar.TypeReg), Mode: 0o644, Size: int64(len(m.content))}
		if m.typ != 0 {
			h.Size, h.Linkname = 0, m.content
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if m.typ == 0 {
			if _, err := w.Write([]byte(m.content)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func compress(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, opts...)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

var testDrive = strings.Repeat("drive...", 1024)

// manifestOf is the manifest of testDrive, changed.
func manifestOf(t testing.TB, change func(*Manifest)) member {
	t.Helper()
	m := testManifest
	m.Rootfs = Rootfs{SHA256: sum([]byte(testDrive)), Size: int64(len(testDrive))}
	if change != nil {
		change(&m)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return member{name: memberManifest, content: string(b)}
}

func text(content string) member { return member{name: memberManifest, content: content} }

func TestBadBundles(t *testing.T) {
	good, root := manifestOf(t, nil), member{name: memberRootfs, content: testDrive}
	bundle := func(members ...member) []byte { return compress(t, tarOf(t, members...)) }
	with := func(change func(*Manifest)) []byte { return bundle(manifestOf(t, change), root) }
	replaced := func(from, to string) []byte {
		if !strings.Contains(good.content, from) {
			t.Fatalf("no %q in %s", from, good.content)
		}
		return bundle(text(strings.Replace(good.content, from, to, 1)), root)
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":                {nil, "it is empty"},
		"text":                   {[]byte("hello, this is no bundle"), "not compressed with zstd"},
		"a tar alone":            {tarOf(t, good, root), "not compressed with zstd"},
		"no tar":                 {compress(t, bytes.Repeat([]byte("x"), 2000)), "no tar"},
		"an empty tar":           {bundle(), "no manifest.json in it"},
		"the manifest alone":     {bundle(good), "no rootfs.ext4 in it"},
		"the drive alone":        {bundle(root), "rootfs.ext4 comes before manifest.json"},
		"wrong order":            {bundle(root, good), "rootfs.ext4 comes before manifest.json"},
		"two manifests":          {bundle(good, good, root), "manifest.json is there twice"},
		"two drives":             {bundle(good, root, root), "rootfs.ext4 is there twice"},
		"a manifest at the end":  {bundle(good, root, good), "manifest.json is there twice"},
		"another file first":     {bundle(member{name: "README"}, good, root), `"README" does not belong in it`},
		"another file between":   {bundle(good, member{name: "../x\x1b[31m"}, root), `"../x\x1b[31m" does not belong in it`},
		"another file last":      {bundle(good, root, member{name: strings.Repeat("long", 50)}), `long…" does not belong in it`},
		"no name":                {bundle(good, root, member{}), "without a name does not belong"},
		"a path":                 {bundle(member{name: "./" + memberManifest, content: good.content}, root), `"./manifest.json" does not belong`},
		"a link for a drive":     {bundle(good, member{memberRootfs, "/etc/passwd", tar.TypeSymlink}), "rootfs.ext4 in it is not a regular file"},
		"a hard link":            {bundle(good, member{memberRootfs, memberManifest, tar.TypeLink}), "not a regular file"},
		"a directory":            {bundle(member{memberManifest, "", tar.TypeDir}, root), "not a regular file"},
		"a huge manifest":        {bundle(text(`{"version": 1, "name": "`+strings.Repeat("x", 1<<20)+`"}`), root), "larger than"},
		"no JSON":                {bundle(text("version = 1"), root), "manifest.json: invalid character"},
		"an empty manifest":      {bundle(text(""), root), "manifest.json: unexpected end"},
		"not an object":          {bundle(text("[1]"), root), "manifest.json: json: cannot unmarshal array"},
		"no version":             {bundle(text("{}"), root), "has no version"},
		"a later version":        {bundle(text(`{"version": 2, "layers": []}`), root), "version 2, not 1: another version of banger wrote it"},
		"an unknown key":         {replaced(`"name"`, `"nmae":"x","name"`), `unknown field "nmae"`},
		"something after it":     {bundle(text(good.content+"{}"), root), "after top-level value"},
		"no name of the image":   {with(func(m *Manifest) { m.Name = "" }), "the name or the arch"},
		"another arch":           {with(func(m *Manifest) { m.Arch = "arm64" }), "its image is for arm64, and this host is amd64"},
		"control characters":     {with(func(m *Manifest) { m.Description = "a\x1b]0;b" }), "description: \"a\\x1b]0;b\" has characters that cannot be shown"},
		"env":                    {with(func(m *Manifest) { m.Env = []string{"PATH"} }), `env: "PATH" is not NAME=VALUE`},
		"cmd":                    {with(func(m *Manifest) { m.Cmd = []string{"a\x00b"} }), "has a zero in it"},
		"work_dir":               {with(func(m *Manifest) { m.WorkDir = "root" }), `work_dir: "root" is not an absolute path`},
		"no digest":              {with(func(m *Manifest) { m.Rootfs.SHA256 = "" }), "rootfs.sha256"},
		"a digest in capitals":   {with(func(m *Manifest) { m.Rootfs.SHA256 = strings.ToUpper(m.Rootfs.SHA256) }), "is not 64 hexadecimal digits"},
		"no size":                {with(func(m *Manifest) { m.Rootfs.Size = 0 }), "is no size of a drive"},
		"half a sector":          {with(func(m *Manifest) { m.Rootfs.Size -= 256 }), "is no size of a drive"},
		"a negative size":        {with(func(m *Manifest) { m.Rootfs.Size = -512 }), "is no size of a drive"},
		"a huge drive":           {with(func(m *Manifest) { m.Rootfs.Size = 64<<30 + 512 }), "is more than the 64GiB"},
		"another size":           {with(func(m *Manifest) { m.Rootfs.Size += 512 }), "has 8192 bytes, and manifest.json says 8704"},
		"another digest":         {with(func(m *Manifest) { m.Rootfs.SHA256 = sum(nil) }), "rootfs.ext4 is damaged"},
		"no end of the tar":      {compress(t, tarOf(t, good, root)[:len(tarOf(t, good, root))-512]), "cut short"},
		"half a drive":           {compress(t, tarOf(t, good, root)[:4096]), "cut short"},
		"text after the tar":     {compress(t, append(tarOf(t, good, root), "more"...)), "something follows the end of the tar"},
		"zeros without end":      {compress(t, append(tarOf(t, good, root), make([]byte, 2<<20)...)), "more than its manifest says"},
		"text after the end":     {append(bundle(good, root), "more"...), "not compressed with zstd, or not only"},
		"another bundle":         {append(bundle(good, root), bundle(good, root)...), "something follows the end of the tar"},
		"too large a window":     {compress(t, append(tarOf(t, good, root), make([]byte, 80<<20)...), zstd.WithWindowSize(64<<20)), "more than 32 MiB of memory"},
		"headers without end":    {compress(t, endlessHeaders(t)), "more than its manifest says"},
		"garbage after a header": {append(bundle(good)[:40], bytes.Repeat([]byte{0xff}, 400)...), "it is damaged"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := Extract(t.Context(), bytes.NewReader(c.data), dir, progress.Discard)
			if api.KindOf(err) != api.KindInvalid || err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "read bundle: ") {
				t.Errorf("%v, want %q", err, c.want)
			}
			assertEmpty(t, dir)
		})
	}
	if _, err := Extract(t.Context(), bytes.NewReader(bundle(good, root)), t.TempDir(), progress.Discard); err != nil {
		t.Errorf("the good one: %v", err)
	}
	if _, err := Extract(t.Context(), bytes.NewReader(compress(t, append(tarOf(t, good, root), make([]byte, 9000)...))), t.TempDir(), progress.Discard); err != nil {
		t.Errorf("with zeros at the end: %v", err)
	}
}

// endlessHeaders is a tar of 200 extended headers and no member.
func endlessHeaders(t testing.TB) []byte {
	t.Helper()
	var one bytes.Buffer
	w := tar.NewWriter(&one)
	if err := w.WriteHeader(&tar.Header{Name: memberManifest, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"BANGER.x": strings.Repeat("y", 60_000)}}); err != nil {
		t.Fatal(err)
	}
	return bytes.Repeat(one.Bytes()[:one.Len()-tarBlock], 200)
}

// FuzzExtract: whatever is read, nothing is left but a drive that is the one of its manifest.
func FuzzExtract(f *testing.F) {
	root := member{name: memberRootfs, content: testDrive}
	f.Add(compress(f, tarOf(f, manifestOf(f, nil), root)))
	f.Add(compress(f, tarOf(f, root)))
	f.Fuzz(func(t *testing.T, data []byte) { extractAny(t, data) })
}

// FuzzTar is FuzzExtract of what is inside of the compression.
func FuzzTar(f *testing.F) {
	root := member{name: memberRootfs, content: testDrive}
	f.Add(tarOf(f, manifestOf(f, nil), root))
	f.Add(tarOf(f, manifestOf(f, nil), root, root))
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) { extractAny(t, enc.EncodeAll(data, nil)) })
}

func extractAny(t *testing.T, data []byte) {
	dir := t.TempDir()
	m, err := Extract(t.Context(), bytes.NewReader(data), dir, progress.Discard)
	if err != nil {
		if api.KindOf(err) != api.KindInvalid {
			t.Errorf("%v", err)
		}
		assertEmpty(t, dir)
		return
	}
	b, err := os.ReadFile(filepath.Join(dir, memberRootfs))
	if err != nil || int64(len(b)) != m.Rootfs.Size || sum(b) != m.Rootfs.SHA256 || m.check() != nil {
		t.Errorf("%+v: %d bytes, %v", m, len(b), err)
	}
}

package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const (
	d755  = "dir 0755 0:0"
	asked = "dir 0755 0:0 mtime=0" // one that no layer has
)

// capability is cap_net_raw+ep, as setcap writes it.
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func f(body string) string { return fmt.Sprintf("file 0644 0:0 %q", body) }

func f2(body string, links int) string { return fmt.Sprintf("file 0644 0:0 links=%d %q", links, body) }

// merges are images by their layers, and the trees that they are by the rules of the image specification's layer.md. The root, which no layer has
// unless it is said, is not among what is wanted.
var merges = map[string]struct {
	layers [][]entry
	want   map[string]string
}{
	"every type": {
		layers: [][]entry{{
			dir("d").mode(0o1777).owned(70000, 80000),
			file("./d/f", "hello\n").owned(1<<32-2, 1<<32-2),
			symlink("/short", "d/f"),
			symlink("long", strings.Repeat("long/", 50)+"target").owned(7, 8),
			hard("d/hard", "d/f"),
			device("null", tar.TypeChar, 1, 300),
			device("disk", tar.TypeBlock, 259, 70000),
			device("fifo", tar.TypeFifo, 0, 0).owned(1, 2),
			file("su", "#!").mode(0o6755),
			file("ping", "ping").mode(0o755).xattr("security.capability", capability).xattr("user.zero", "a\x00b"),
			dir("e").xattr("user.of", "a directory"),
			file("empty", ""),
			file("big", random(1, 300_000)),
			file("nano", "").with(func(h *tar.Header) { h.ModTime = time.Unix(1_600_000_000, 123_456_789) }),
			file("old", "").with(func(h *tar.Header) { h.ModTime = time.Unix(0, 0) }),
			file("new", "").with(func(h *tar.Header) { h.ModTime = time.Unix(1<<33, 0) }),
		}},
		want: map[string]string{
			"/d":      "dir 1777 70000:80000",
			"/d/f":    `file 0644 4294967294:4294967294 links=2 "hello\n"`,
			"/d/hard": `file 0644 4294967294:4294967294 links=2 "hello\n"`,
			"/short":  "link 0777 0:0 -> d/f",
			"/long":   "link 0777 7:8 -> " + strings.Repeat("long/", 50) + "target",
			"/null":   "char 0600 0:0 1:300",
			"/disk":   "block 0600 0:0 259:70000",
			"/fifo":   "fifo 0600 1:2",
			"/su":     `file 6755 0:0 "#!"`,
			"/ping":   `file 0755 0:0 "ping" security.capability="\x01\x00\x00\x02\x00 \x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00" user.zero="a\x00b"`,
			"/e":      `dir 0755 0:0 user.of="a directory"`,
			"/empty":  f(""),
			"/big":    "file 0644 0:0 " + content([]byte(random(1, 300_000))),
			"/nano":   `file 0644 0:0 mtime=1600000000.123456789 ""`,
			"/old":    `file 0644 0:0 mtime=0 ""`,
			"/new":    `file 0644 0:0 mtime=8589934592 ""`,
		},
	},
	"names": {
		layers: [][]entry{{
			file(strings.Repeat("n", 255), "255"),
			file(strings.Repeat("d", 200)+"/"+strings.Repeat("e", 200)+"/f", "pax"),
			file(strings.Repeat("g", 200)+"/f", "gnu").with(func(h *tar.Header) { h.Format, h.ModTime = tar.FormatGNU, stamp.Truncate(time.Second) }),
			file("latin1-\xe4\xff", "not UTF-8"), file("ütf-8", "UTF-8"), file(" a\tb\n", "blank"), file("//a//./b", "slashes"), file("back\\slash", ""),
		}},
		want: map[string]string{
			"/" + strings.Repeat("n", 255): f("255"),
			"/" + strings.Repeat("d", 200): asked, "/" + strings.Repeat("d", 200) + "/" + strings.Repeat("e", 200): asked,
			"/" + strings.Repeat("d", 200) + "/" + strings.Repeat("e", 200) + "/f": f("pax"),
			"/" + strings.Repeat("g", 200):                                         asked, "/" + strings.Repeat("g", 200) + "/f": `file 0644 0:0 mtime=981173106 "gnu"`,
			"/latin1-\xe4\xff": f("not UTF-8"), "/ütf-8": f("UTF-8"), "/ a\tb\n": f("blank"), "/a": asked, "/a/b": f("slashes"), `/back\slash`: f(""),
		},
	},
	"the upper one wins": {
		layers: [][]entry{
			{file("f", "1"), file("f-d", "1"), dir("d-f"), file("d-f/x", "1"), dir("d-l"), file("d-l/x", "1"), symlink("l-d", "d-f"), symlink("l-f", "f"), dir("d").owned(1, 1).xattr("user.a", "1"), file("d/1", "1")},
			{file("f", "2").owned(5, 5), dir("f-d"), file("f-d/y", "2"), file("d-f", "2"), symlink("d-l", "f"), dir("l-d"), file("l-d/y", "2"), file("l-f", "2"), dir("d").mode(0o700), file("d/2", "2")},
		},
		want: map[string]string{
			"/f": `file 0644 5:5 "2"`, "/f-d": d755, "/f-d/y": f("2"), "/d-f": f("2"), "/d-l": "link 0777 0:0 -> f", "/l-d": d755, "/l-d/y": f("2"), "/l-f": f("2"),
			"/d": "dir 0700 0:0", "/d/1": f("1"), "/d/2": f("2"),
		},
	},
	"the root": {
		layers: [][]entry{{dir(".").mode(0o700)}, {dir(".").mode(0o711).owned(3, 4).xattr("user.r", "x")}, {file("a", "")}},
		want:   map[string]string{"/": `dir 0711 3:4 user.r="x"`, "/a": f("")},
	},
	"whiteouts": {
		layers: [][]entry{
			{file("f", "1"), dir("d"), dir("d/e"), file("d/e/f", "1"), dir("again"), file("again/1", "1"), dir("later"), file("later/1", "1"), file("own", "1"), symlink("l", "f"), file("keep", "1")},
			{file(".wh.f", ""), file("d/.wh.e", ""), file(".wh.again", ""), dir("again").mode(0o700), file("again/2", "2"), dir("later"), file("later/2", "2"), file(".wh.later", ""),
				file("own", "2"), file(".wh.own", ""), file(".wh.l", ""), file(".wh.never", ""), file("never/.wh.was", ""), file("keep/.wh.it", ""), file(".wh..", ""), file(".wh...", "")},
		},
		want: map[string]string{"/d": d755, "/again": "dir 0700 0:0", "/again/2": f("2"), "/later": d755, "/later/2": f("2"), "/own": f("2"), "/keep": f("1")},
	},
	"a whiteout, and the name again further up": {
		layers: [][]entry{{file("a", "1"), dir("d"), file("d/1", "1")}, {file(".wh.a", ""), file(".wh.d", "")}, {file("a", "3"), file("d/3", "3")}},
		want:   map[string]string{"/a": f("3"), "/d": asked, "/d/3": f("3")},
	},
	"opaque directories": {
		layers: [][]entry{
			{dir("first").owned(1, 1), file("first/1", "1"), dir("last"), file("last/1", "1"), dir("last/sub"), file("last/sub/1", "1"), dir("bare").owned(9, 9), file("bare/1", "1"), dir("in"), dir("in/in"), file("in/in/1", "1"), file("in/1", "1")},
			{dir("first"), file("first/.wh..wh..opq", ""), file("first/2", "2"), dir("last"), file("last/2", "2"), dir("last/sub"), file("last/sub/2", "2"), file("last/.wh..wh..opq", ""),
				file("bare/.wh..wh..opq", ""), file("in/in/.wh..wh..opq", ""), file("none/.wh..wh..opq", "")},
		},
		want: map[string]string{
			"/first": d755, "/first/2": f("2"), "/last": d755, "/last/2": f("2"), "/last/sub": d755, "/last/sub/2": f("2"), "/bare": "dir 0755 9:9", "/in": d755, "/in/in": d755, "/in/1": f("1"),
		},
	},
	"an opaque root": {
		layers: [][]entry{{file("a", "1"), dir("d"), file("d/x", "1")}, {file(".wh..wh..opq", ""), file("b", "2")}},
		want:   map[string]string{"/b": f("2")},
	},
	"a new directory in place of a link to another": { // as overlay2 has it after rm lib && mkdir lib
		layers: [][]entry{
			{dir("usr"), dir("usr/lib"), file("usr/lib/so", "1"), symlink("lib", "usr/lib"), symlink("bin", "usr/lib")},
			{dir("lib"), file("lib/.wh..wh..opq", ""), file("lib/new", "2"), dir("bin"), file("bin/.wh.so", "")},
		},
		want: map[string]string{"/usr": d755, "/usr/lib": d755, "/usr/lib/so": f("1"), "/lib": d755, "/lib/new": f("2"), "/bin": d755},
	},
	"links on the way": {
		layers: [][]entry{
			{dir("usr"), dir("usr/lib"), file("usr/lib/so", "1"), file("usr/lib/gone", "1"), dir("usr/share"), file("usr/share/old", "1"), symlink("lib", "usr/lib"), symlink("abs", "/usr/lib"), symlink("out", "../../../../tmp"), symlink("share", "./usr//share/"),
				symlink("usr/up", ".."), symlink("dangling", "not/there"), symlink("chain", "lib")},
			{file("lib/a", "2"), file("abs/b", "2"), file("out/c", "2"), file("usr/up/d", "2"), file("dangling/e", "2"), file("chain/g", "2"), hard("h", "abs/so"), file("lib/.wh.gone", ""), file("share/.wh..wh..opq", "")},
		},
		want: map[string]string{
			"/usr": d755, "/usr/lib": d755, "/usr/lib/so": f2("1", 2), "/h": f2("1", 2), "/lib": "link 0777 0:0 -> usr/lib", "/abs": "link 0777 0:0 -> /usr/lib", "/out": "link 0777 0:0 -> ../../../../tmp",
			"/usr/up": "link 0777 0:0 -> ..", "/dangling": "link 0777 0:0 -> not/there", "/chain": "link 0777 0:0 -> lib", "/usr/lib/a": f("2"), "/usr/lib/b": f("2"), "/tmp": asked, "/tmp/c": f("2"),
			"/d": f("2"), "/not": asked, "/not/there": asked, "/not/there/e": f("2"), "/usr/lib/g": f("2"), "/usr/share": d755, "/share": "link 0777 0:0 -> ./usr//share/",
		},
	},
	"a file on the way": {
		layers: [][]entry{{file("a", "1"), symlink("loop", "loop")}, {file("a/b", "2"), hard("l", "loop")}},
		want:   map[string]string{"/a": asked, "/a/b": f("2"), "/loop": "link 0777 0:0 links=2 -> loop", "/l": "link 0777 0:0 links=2 -> loop"},
	},
	"hard links": {
		layers: [][]entry{
			{file("a", "1"), hard("b", "a"), hard("c", "./b"), file("same", "old"), hard("kept", "same"), file("same", "new"), symlink("s", "a"), hard("s2", "/s"), device("p", tar.TypeFifo, 0, 0), hard("p2", "p"), file("up", "1")},
			{hard("d", "a"), file("a", "2"), file("x", "2"), hard("y", "x"), hard("up2", "up")},
			{file(".wh.x", ""), file("up", "3"), hard("c", "c")},
		},
		want: map[string]string{
			"/a": f("2"), "/b": f2("1", 3), "/c": f2("1", 3), "/d": f2("1", 3), "/same": f("new"), "/kept": f("old"), "/s": "link 0777 0:0 links=2 -> a", "/s2": "link 0777 0:0 links=2 -> a",
			"/p": "fifo 0600 0:0 links=2", "/p2": "fifo 0600 0:0 links=2", "/y": f("2"), "/up": f("3"), "/up2": f("1"),
		},
	},
	"a name twice in a layer": {
		layers: [][]entry{{file("f", "first"), file("f", "second"), dir("d"), file("d/x", ""), file("d", "no directory"), file("e", "no file"), dir("e"), file("e/x", ""), dir("m").mode(0o700), dir("m").mode(0o711), symlink("s", "f"), file("s", "no link")}},
		want:   map[string]string{"/f": f("second"), "/d": f("no directory"), "/e": d755, "/e/x": f(""), "/m": "dir 0711 0:0", "/s": f("no link")},
	},
	"directories that are not said": {
		layers: [][]entry{{file("a/b/c", "1")}, {dir("a").owned(1, 1)}},
		want:   map[string]string{"/a": "dir 0755 1:1", "/a/b": asked, "/a/b/c": f("1")},
	},
	"headers of no file": {
		layers: [][]entry{{{Header: tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "of git"}}}, file("a", "")}},
		want:   map[string]string{"/a": f("")},
	},
	"attributes of overlays": {
		layers: [][]entry{{dir("d").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.whiteout", "y").xattr("trusted.mine", "1")}},
		want:   map[string]string{"/d": `dir 0755 0:0 trusted.mine="1"`},
	},
	"what AUFS left": {
		layers: [][]entry{{file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file(".wh..wh.plnk/12.34", "linked"), hard("a", ".wh..wh.plnk/12.34"), hard("b", ".wh..wh.plnk/12.34"), dir(".wh..wh.orph")}},
		want:   map[string]string{"/a": f2("linked", 2), "/b": f2("linked", 2)},
	},
	"no layer":         {layers: nil, want: map[string]string{}},
	"an empty layer":   {layers: [][]entry{{file("a", "1")}, {}, {file("b", "1")}}, want: map[string]string{"/a": f("1"), "/b": f("1")}},
	"a layer, again":   {layers: [][]entry{{file("a", "1")}, {file(".wh.a", ""), file("a", "2")}, {file("a", "1")}, {file("b", "1")}, {}}, want: map[string]string{"/a": f("1"), "/b": f("1")}},
	"a winner of each": {layers: [][]entry{{file("a", "1"), file("b", "1"), file("c", "1")}, {file("b", "2"), file("c", "2")}, {file("c", "3")}}, want: map[string]string{"/a": f("1"), "/b": f("2"), "/c": f("3")}},
}

func TestMerge(t *testing.T) {
	for name, c := range merges {
		t.Run(name, func(t *testing.T) {
			var layers [][]byte
			for _, l := range c.layers {
				layers = append(layers, layer(t, l...))
			}
			assertMerged(t, layers, c.want)
		})
	}
}

// assertMerged compares the tree of layers, as a tar and as a file system, with the one that is wanted.
func assertMerged(t *testing.T, layers [][]byte, want map[string]string) {
	t.Helper()
	stream, err := flatBytes(t.Context(), layers...)
	if err != nil {
		t.Fatal(err)
	}
	assertTree(t, want, treeOfTar(t, stream))
	if at := mounted(t, stream); at != "" {
		assertTree(t, want, treeOfDir(t, at))
	}
}

func assertTree(t *testing.T, want, got map[string]string) {
	t.Helper()
	if _, said := want["/"]; !said {
		delete(got, "/")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("the tree (- wanted, + found): %s", diff)
	}
}

// TestSparse has what GNU tar makes of a file with holes, in the four ways that it has.
func TestSparse(t *testing.T) {
	body := make([]byte, 1<<20)
	copy(body[300_000:], "in the middle")
	copy(body[1<<20-5:], "end!\n")
	want := map[string]string{"/sparse": "file 0640 3:4 mtime=981173106 " + content(body)}
	for _, format := range []string{"gnu", "pax00", "pax01", "pax10"} {
		t.Run(format, func(t *testing.T) {
			b, err := os.ReadFile(filepath.Join("testdata", "sparse-"+format+".tar.gz"))
			if err != nil {
				t.Fatal(err)
			}
			assertMerged(t, [][]byte{b}, want)
		})
	}
}

// TestCompressions has the same layer in all ways in which it may be served.
func TestCompressions(t *testing.T) {
	body := strings.Repeat("all work and no play ", 100_000)
	plain := plainLayer(t, file("a", body), file("b", "last"))
	want := map[string]string{"/a": "file 0644 0:0 " + content([]byte(body)), "/b": f("last")}
	for name, b := range map[string][]byte{
		"plain":                      plain,
		"gzip":                       zip(t, plain),
		"gzip in two members":        append(zip(t, plain[:70_000]), zip(t, plain[70_000:])...),
		"zstd":                       zstandard(t, plain),
		"zstd in two frames":         append(zstandard(t, plain[:70_000]), zstandard(t, plain[70_000:])...),
		"zstd after a skipped frame": append([]byte("\x51\x2a\x4d\x18\x03\x00\x00\x00abc"), zstandard(t, plain)...),
		"with more after the end":    append(bytes.Clone(plain), make([]byte, 50_000)...),
	} {
		t.Run(name, func(t *testing.T) {
			stream, err := flatBytes(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			assertTree(t, want, treeOfTar(t, stream))
		})
	}
}

func TestLayersThatAreRefused(t *testing.T) {
	good := layer(t, file("a", random(1, 100_000)))
	deep := strings.Repeat("d/", 1000)
	for name, c := range map[string]struct {
		layers [][]byte
		want   string
	}{
		"a name that leads out":      {[][]byte{layer(t, file("a/../../b", ""))}, "leads out of the image"},
		"a link that leads out":      {[][]byte{layer(t, hard("a", "../etc/passwd"))}, "leads out of the image"},
		"a link to nothing":          {[][]byte{layer(t, hard("a", "b"))}, `"a": a hard link to "b", which is not there`},
		"a link to a directory":      {[][]byte{layer(t, dir("b"), hard("a", "b"))}, "which is not there"},
		"a link to a whiteout":       {[][]byte{layer(t, file("b", "")), layer(t, file(".wh.b", "")), layer(t, hard("a", "b"))}, "layer 3: "},
		"a loop of links on the way": {[][]byte{layer(t, symlink("a", "b"), symlink("b", "a"), file("a/c", ""))}, "more than 40 symbolic links"},
		"too deep":                   {[][]byte{layer(t, file(deep+strings.Repeat("e/", 100)+"x", ""))}, "deeper than 1024"},
		"too deep through a link":    {[][]byte{layer(t, dir(deep), symlink("l", deep), file("l/"+deep+"x", ""))}, "deeper than 1024"},
		"a long name":                {[][]byte{layer(t, dir(strings.Repeat("long/", 1000)))}, "a name of 5001 bytes"},
		"an unknown type":            {[][]byte{layer(t, file("a", "").with(func(h *tar.Header) { h.Typeflag, h.Format = 'V', tar.FormatGNU }))}, "an entry of type 'V'"},
		"a root that is a file":      {[][]byte{layer(t, file("./.", ""))}, "the root is no directory"},
		"a cut":                      {[][]byte{good[:50_000]}, "layer 1: unexpected EOF"},
		"a cut at the very end":      {[][]byte{good[:len(good)-1]}, "layer 1: unexpected EOF"},
		"bad gzip":                   {[][]byte{append([]byte("\x1f\x8b"), "nonsense"...)}, "layer 1: "},
		"no tar":                     {[][]byte{[]byte(strings.Repeat("no tar ", 1000))}, "layer 1: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := flatBytes(t.Context(), c.layers...)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
}

// TestMemoryIsBounded has layers that say little and mean much.
func TestMemoryIsBounded(t *testing.T) {
	var many []entry
	for n := range 50 {
		many = append(many, file(fmt.Sprintf("%d/%s/f", n, strings.Repeat("x/", 100)), ""))
	}
	l := layer(t, many...)
	tree := newTree(newBudget(1000, maxMemory))
	items, err := list(t.Context(), bytes.NewReader(l), newBudget(maxEntries, maxMemory))
	if err != nil {
		t.Fatal(err)
	}
	if err := tree.apply(0, items); err == nil {
		t.Error("5,000 directories that no entry is for cost nothing")
	}
	big := layer(t, symlink("l", strings.Repeat("l", 4000)), file("f", "").xattr("user.a", random(1, 4000)), dir("d").xattr("user.a", random(1, 4000)))
	if _, err := list(t.Context(), bytes.NewReader(big), newBudget(maxEntries, 8000)); err == nil {
		t.Error("links and attributes cost nothing")
	}
	b := newBudget(maxEntries, maxMemory)
	before := b.bytes.Load()
	if _, err := flatBytes(t.Context(), l, l); err != nil {
		t.Fatal(err)
	}
	if _, err := list(t.Context(), bytes.NewReader(l), b); err != nil || before-b.bytes.Load() < 50*200 {
		t.Errorf("names cost %d bytes, %v", before-b.bytes.Load(), err)
	}
}

// endless is a reader of a plain layer that never ends.
type endless struct {
	start io.Reader
	read  func()
}

func (e *endless) Read(p []byte) (int, error) {
	e.read()
	if n, err := e.start.Read(p); err == nil {
		return n, nil
	}
	clear(p)
	return len(p), nil
}

func TestFlattenEndsWithItsContext(t *testing.T) {
	var head bytes.Buffer
	if err := tar.NewWriter(&head).WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "endless", Size: 1 << 60}); err != nil {
		t.Fatal(err)
	}
	why := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	reads := 0
	s := source{digest: digestOf(nil), open: func() (io.ReadCloser, error) {
		return io.NopCloser(&endless{bytes.NewReader(head.Bytes()), func() {
			if reads++; reads == 100 {
				cancel(why)
			}
		}}), nil
	}}
	if err := flatten(ctx, []source{s}, io.Discard); !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	// In the second pass, while it waits for its reader.
	ctx, cancel = context.WithCancelCause(t.Context())
	r, w := io.Pipe()
	ended := make(chan error)
	go func() { ended <- flatten(ctx, []source{sourceOf(layer(t, file("a", random(1, 6<<20))))}, w) }()
	if _, err := io.CopyN(io.Discard, r, 1<<20); err != nil {
		t.Fatal(err)
	}
	cancel(why)
	go func() { _, _ = io.Copy(io.Discard, r) }()
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	r.Close()
}

// TestFlattenEndsWithItsReader has one that hangs up, as FromTar does on an error.
func TestFlattenEndsWithItsReader(t *testing.T) {
	r, w := io.Pipe()
	full := errors.New("the disk is full")
	go func() {
		_, _ = io.CopyN(io.Discard, r, 1<<20)
		r.CloseWithError(full)
	}()
	layers := []source{sourceOf(layer(t, file("a", random(1, 6<<20)))), sourceOf(layer(t, file("b", random(2, 1<<20))))}
	if err := flatten(t.Context(), layers, w); !errors.Is(err, full) {
		t.Errorf("error %v", err)
	}
}

func TestFlattenIsTheSameEveryTime(t *testing.T) {
	l := [][]byte{layer(t, file("b", "1"), hard("z", "b"), hard("y", "b"), dir("d"), file("d/2", ""), file("d/1", "")), layer(t, file("a", "2"))}
	first, err := flatBytes(t.Context(), l...)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if again, err := flatBytes(t.Context(), l...); err != nil || !bytes.Equal(first, again) {
			t.Fatalf("another stream, %v", err)
		}
	}
}

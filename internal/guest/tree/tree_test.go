package tree_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/tree"
)

// odd are names that are no text, or look like something else.
var odd = []string{"a b", "new\nline", "tab\t", "\xff\xfe", "ünï", "-rf", `back\slash`, `"quoted"`, "...", " ", ".gitignore", ".git2", "*", ":(top)x", "~", strings.Repeat("n", 255)}

func write(t testing.TB, root string, names ...string) {
	t.Helper()
	for _, name := range names {
		p := root + "/" + name // Join would clean it
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(name), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

func link(t testing.TB, target, name string) {
	t.Helper()
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

// list lists a tree, by path, as it comes out at the other end.
func list(t testing.TB, root string, opt tree.ListOptions) map[string]tree.Entry {
	t.Helper()
	var b bytes.Buffer
	w := tree.NewWriter(t.Context(), &b)
	if err := errors.Join(tree.List(t.Context(), w, root, opt), w.End(nil)); err != nil {
		t.Fatal(err)
	}
	all := map[string]tree.Entry{}
	for r := tree.NewReader(&b); ; {
		e, err := r.Entry()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, again := all[e.Path]; again {
			t.Errorf("%q is listed twice", e.Path)
		}
		all[e.Path] = e
	}
}

func names(all map[string]tree.Entry) []string {
	out := make([]string, 0, len(all))
	for name := range all {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func sorted(in ...string) []string {
	slices.Sort(in)
	return in
}

func encode(t testing.TB, names ...string) tree.Paths {
	t.Helper()
	p, err := tree.EncodePaths(names)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// hash returns the states of paths.
func hash(t testing.TB, root string, format tree.Format, names ...string) []tree.State {
	t.Helper()
	var b bytes.Buffer
	w := tree.NewWriter(t.Context(), &b)
	if err := errors.Join(tree.Hash(t.Context(), w, root, format, encode(t, names...)), w.End(nil)); err != nil {
		t.Fatal(err)
	}
	digits, err := format.Digits()
	if err != nil {
		t.Fatal(err)
	}
	var out []tree.State
	r := tree.NewReader(&b)
	for _, name := range names {
		s, err := r.State(name, digits)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	if err := r.End(); err != nil {
		t.Fatal(err)
	}
	return out
}

func blob(content string) string {
	sum := sha1.Sum(fmt.Appendf(nil, "blob %d\x00%s", len(content), content))
	return hex.EncodeToString(sum[:])
}

// TestListPlain: what is in a directory with all sorts of things in it.
func TestListPlain(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, outside, "secret")
	write(t, root, "run.sh", "d/e/f", ".git/config", "sub/.git", "caps/.GIT/x")
	for _, name := range odd {
		write(t, root, name, "odd/"+name+"/x")
	}
	link(t, outside, root+"/out")
	link(t, "nowhere", root+"/d/dangling")
	if err := errors.Join(os.Mkdir(root+"/empty", 0o750), os.Chmod(root+"/run.sh", 0o4751), unix.Mkfifo(root+"/fifo", 0o600),
		unix.UtimesNano(root+"/run.sh", []unix.Timespec{{Sec: -5, Nsec: 999}, {Sec: -5, Nsec: 999}})); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", root+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	huge, err := os.Create(root + "/huge")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(huge.Truncate(1<<40), huge.Close()); err != nil {
		t.Fatal(err)
	}
	all := list(t, root, tree.ListOptions{})
	want := []string{"run.sh", "d", "d/e", "d/e/f", "d/dangling", "sub", "caps", "out", "empty", "huge", "odd"}
	for _, name := range odd {
		want = append(want, name, "odd/"+name, "odd/"+name+"/x")
	}
	if diff := cmp.Diff(sorted(want...), names(all)); diff != "" {
		t.Fatal(diff)
	}
	for _, e := range []tree.Entry{
		{Path: "run.sh", Mode: 0o751, Size: 6, MTime: -5},
		{Path: "huge", Mode: 0o644, Size: 1 << 40, MTime: all["huge"].MTime},
		{Path: "d/dangling", Mode: fs.ModeSymlink | 0o777, Size: 7, MTime: all["d/dangling"].MTime},
		{Path: "empty", Mode: fs.ModeDir | 0o750, MTime: all["empty"].MTime},
	} {
		if diff := cmp.Diff(e, all[e.Path]); diff != "" {
			t.Error(diff)
		}
	}
	if got := list(t, root+"/empty", tree.ListOptions{}); len(got) != 0 {
		t.Errorf("an empty directory holds %v", got)
	}
	link(t, root+"/d", outside+"/root")
	if diff := cmp.Diff([]string{"dangling", "e", "e/f"}, names(list(t, outside+"/root", tree.ListOptions{}))); diff != "" {
		t.Error("a root that is a link:", diff)
	}
}

// TestListDeep: more levels than descriptors, and more than fit into a path.
func TestListDeep(t *testing.T) {
	root := t.TempDir()
	dir, err := os.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	deep := strings.TrimSuffix(strings.Repeat("d/", 1500), "/")
	if err := dir.MkdirAll(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	if got := list(t, root, tree.ListOptions{}); len(got) != 1500 {
		t.Errorf("%d directories", len(got))
	}
	long := strings.Repeat("n", 255)
	for at, n := dir, 0; n < 20; n++ {
		if err := at.Mkdir(long, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := at.OpenRoot(long)
		if err != nil {
			t.Fatal(err)
		}
		defer next.Close()
		at = next
	}
	err = tree.List(t.Context(), tree.NewWriter(t.Context(), io.Discard), root, tree.ListOptions{})
	if api.KindOf(err) != api.KindInvalid || !strings.Contains(err.Error(), "longer than 4096 bytes") {
		t.Errorf("%.300v", err)
	}
}

// TestHash: every kind of thing, and ids that are git's.
func TestHash(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, outside, "secret")
	write(t, root, "file", "d/file", ".git/config", "empty")
	if err := errors.Join(os.Truncate(root+"/empty", 0), unix.Mkfifo(root+"/fifo", 0o600), os.Chmod(root+"/file", 0o755)); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", root+"/socket")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	big := strings.Repeat("0123456789abcdef", 1<<16) + "x"
	if err := os.WriteFile(root+"/big", []byte(big), 0o600); err != nil {
		t.Fatal(err)
	}
	link(t, outside, root+"/out")
	link(t, outside+"/secret", root+"/toFile")
	st := func(name string) (mtime int64) {
		i, err := os.Lstat(root + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return i.ModTime().Unix()
	}
	file := func(name string, mode fs.FileMode, content string) tree.State {
		return tree.State{Entry: tree.Entry{Path: name, Mode: mode, Size: int64(len(content)), MTime: st(name)}, ID: blob(content)}
	}
	want := []tree.State{
		file("file", 0o755, "file"), file("big", 0o600, big), file("d/file", 0o644, "d/file"), file("empty", 0o644, ""),
		file("toFile", fs.ModeSymlink|0o777, outside+"/secret"), file("out", fs.ModeSymlink|0o777, outside), file(".git/config", 0o644, ".git/config"),
		{Entry: tree.Entry{Path: "out/secret"}, Missing: true}, {Entry: tree.Entry{Path: "file/x"}, Missing: true},
		{Entry: tree.Entry{Path: "none"}, Missing: true}, {Entry: tree.Entry{Path: "none/x/y"}, Missing: true},
		{Entry: tree.Entry{Path: strings.Repeat("n", 300)}, Missing: true},
		{Entry: tree.Entry{Path: "fifo"}, Special: true}, {Entry: tree.Entry{Path: "socket"}, Special: true},
		{Entry: tree.Entry{Path: "d", Mode: fs.ModeDir | 0o755, MTime: st("d")}, Dir: true},
		file("file", 0o755, "file"), // again
	}
	for _, name := range odd {
		write(t, root, "odd/"+name)
		want = append(want, file("odd/"+name, 0o644, "odd/"+name))
	}
	asked := make([]string, len(want))
	for i, s := range want {
		asked[i] = s.Path
	}
	if diff := cmp.Diff(want, hash(t, root, tree.SHA1, asked...)); diff != "" {
		t.Error(diff)
	}
	const empty256 = "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813" // git hash-object in a repository of that format
	if got := hash(t, root, tree.SHA256, "empty", "file"); got[0].ID != empty256 || len(got[1].ID) != 64 {
		t.Errorf("%+v", got)
	}
	if got := hash(t, root, tree.SHA1); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	if got := hash(t, "/", tree.SHA1, "dev/null"); !got[0].Special {
		t.Errorf("a device: %+v", got)
	}
	if got := hash(t, "/sys", tree.SHA1, "kernel/uevent_seqnum"); !got[0].Special {
		t.Errorf("a file that has less than it says: %+v", got)
	}
}

// TestHashMany: what several workers do comes in the order of the paths.
func TestHashMany(t *testing.T) {
	root := t.TempDir()
	var asked []string
	for i := range 1000 {
		name := fmt.Sprintf("%d/%d/%d", i%7, i%70, i)
		if i%5 > 0 {
			write(t, root, name)
		}
		asked = append(asked, name)
	}
	for i, s := range hash(t, root, tree.SHA1, asked...) {
		if s.Path != asked[i] || s.Missing != (i%5 == 0) || !s.Missing && s.ID != blob(asked[i]) {
			t.Fatalf("%d: %+v", i, s)
		}
	}
}

// TestChanges: while a tree is turned over, files by links and directories by links, what is outside is never read or removed, and what
// is read is whole.
func TestChanges(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, outside, "d/secret", "secret")
	kept := func() bool {
		_, err1 := os.Stat(outside + "/d/secret")
		_, err2 := os.Stat(outside + "/secret")
		return err1 == nil && err2 == nil
	}
	contents := []string{strings.Repeat("a", 1000), strings.Repeat("b", 70_000), ""}
	stop := make(chan struct{})
	var turning sync.WaitGroup
	turning.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.RemoveAll(root + "/d")
			if i%2 == 0 {
				_ = os.Symlink(outside+"/d", root+"/d")
			} else {
				_ = os.MkdirAll(root+"/d/secret", 0o755)
			}
			_ = os.Remove(root + "/secret")
			if i%3 == 0 {
				_ = os.Symlink(outside+"/secret", root+"/secret")
			} else {
				_ = os.WriteFile(root+"/new", []byte(contents[i%3]), 0o644)
				_ = os.Rename(root+"/new", root+"/secret")
			}
		}
	})
	asked := []string{"d/secret", "secret", "d"}
	ids := []string{"", blob(contents[0]), blob(contents[1]), blob(contents[2]), blob(outside + "/secret"), blob(outside + "/d")}
	for range 100 {
		for _, s := range hash(t, root, tree.SHA1, asked...) {
			if !slices.Contains(ids, s.ID) {
				t.Errorf("%+v", s)
			}
		}
		for name := range list(t, root, tree.ListOptions{}) {
			if name != "d" && name != "d/secret" && name != "secret" && name != "new" {
				t.Errorf("listed %q", name)
			}
		}
		for name, content := range pack(t, root, asked...) {
			if name == "secret" && !slices.Contains(append(contents, "→"+outside+"/secret"), content) || name == "d/secret" {
				t.Errorf("packed %q: %.100q", name, content)
			}
		}
		if err := tree.Remove(t.Context(), root, encode(t, asked...)); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	turning.Wait()
	if !kept() {
		t.Error("files outside of the root were removed")
	}
}

// pack returns what is packed: contents, and targets of links after an arrow.
func pack(t testing.TB, root string, names ...string) map[string]string {
	t.Helper()
	var b bytes.Buffer
	res, err := tree.Pack(t.Context(), &b, root, encode(t, names...))
	if err != nil {
		t.Fatal(err)
	}
	all, size := map[string]string{}, int64(0)
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		size += int64(len(content))
		all[h.Name] = string(content)
		if h.Typeflag == tar.TypeSymlink {
			all[h.Name] = "→" + h.Linkname
		}
	}
	if res.Entries != len(all) || res.Bytes != size {
		t.Errorf("%d entries of %d bytes: %+v", len(all), size, res)
	}
	return all
}

func TestPack(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, outside, "secret")
	write(t, root, "a", "d/b", ".git/config")
	big := strings.Repeat("0123456789abcdef", 1<<16) + "x"
	if err := errors.Join(os.WriteFile(root+"/big", []byte(big), 0o644), unix.Mkfifo(root+"/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	link(t, outside, root+"/out")
	link(t, outside+"/secret", root+"/toFile")
	want := map[string]string{"a": "a", "d/b": "d/b", ".git/config": ".git/config", "big": big, "out": "→" + outside, "toFile": "→" + outside + "/secret"}
	asked := []string{"a", "d/b", ".git/config", "big", "out", "toFile", "out/secret", "fifo", "d", "none", "a/x"}
	for _, name := range odd {
		write(t, root, "odd/"+name)
		asked, want["odd/"+name] = append(asked, "odd/"+name), "odd/"+name
	}
	if diff := cmp.Diff(want, pack(t, root, asked...)); diff != "" {
		t.Error(diff)
	}
}

// shrinking makes a file shorter once the packing of it has begun.
type shrinking struct{ file string }

func (s shrinking) Write(p []byte) (int, error) { return len(p), os.Truncate(s.file, 10) }

func TestPackShrinks(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(root+"/big", make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := tree.Pack(t.Context(), shrinking{root + "/big"}, root, encode(t, "big"))
	if api.KindOf(err) != api.KindConflict {
		t.Error(err)
	}
}

func TestRemove(t *testing.T) {
	root, outside := t.TempDir(), t.TempDir()
	write(t, outside, "d/secret")
	write(t, root, "a", "b/c/d/e", "b/c/f", "g/h/i", "g/j", "k/.git/config", "l/m", "sock/x", "o/p/q")
	link(t, outside+"/d", root+"/out")
	link(t, "a", root+"/l/n")
	for _, name := range odd {
		write(t, root, "odd/"+name)
	}
	if err := errors.Join(os.MkdirAll(root+"/empty/dir", 0o755), unix.Mkfifo(root+"/sock/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	asked := []string{"a", "b/c/f", "b/c/d/e", "g/h/i", "g/h", "out/secret", "k/.git/config", "l/m", "l/n", "none", "none/x", "a/b", "empty/dir", "sock/x", "sock/fifo", "o/p", "o"}
	for _, name := range odd {
		asked = append(asked, "odd/"+name)
	}
	for range 2 { // the second time nothing is there
		if err := tree.Remove(t.Context(), root, encode(t, asked...)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"g", "g/j", "o", "o/p", "o/p/q", "out"}, names(list(t, root, tree.ListOptions{}))); diff != "" {
			t.Error(diff)
		}
	}
	if _, err := os.Stat(root + "/k"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := os.Stat(outside + "/d/secret"); err != nil {
		t.Error(err)
	}
	if err := tree.Remove(t.Context(), root, encode(t, "g/j", "o/p/q", "out")); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 0 {
		t.Errorf("%v, %v", left, err)
	}
}

func TestPaths(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "a/b": true, "...": true, "..a/b..": true, ".git/x": true, " ": true, "\xff": true, strings.Repeat("a", 4096): true,
		"": false, ".": false, "..": false, "/": false, "/a": false, "a/": false, "a//b": false, "a/./b": false, "a/..": false, "../a": false,
		"a/../b": false, "a\x00b": false, strings.Repeat("a", 4097): false,
	} {
		p, err := tree.EncodePaths([]string{"first", name})
		if ok != (err == nil) || !ok && api.KindOf(err) != api.KindInvalid {
			t.Errorf("%.20q: %v", name, err)
		}
		back, err := tree.ReadPaths(strings.NewReader("first\x00" + name + "\x00"))
		if valid := ok || name == "a\x00b"; valid != (err == nil) || ok && !bytes.Equal(back, p) { // there it is two paths
			t.Errorf("%.20q: %.20q, %v", name, back, err)
		}
	}
	if _, err := tree.ReadPaths(strings.NewReader("a\x00b")); api.KindOf(err) != api.KindInvalid {
		t.Errorf("cut: %v", err)
	}
	many := slices.Repeat([]string{"a"}, tree.MaxPaths+1)
	for _, all := range [][]string{many, slices.Repeat([]string{strings.Repeat("a", tree.MaxPath)}, tree.MaxRequest/tree.MaxPath)} {
		if _, err := tree.EncodePaths(all); api.KindOf(err) != api.KindInvalid {
			t.Errorf("%d paths: %v", len(all), err)
		}
		if _, err := tree.ReadPaths(strings.NewReader(strings.Join(all, "\x00") + "\x00")); api.KindOf(err) != api.KindInvalid {
			t.Errorf("%d paths: %v", len(all), err)
		}
	}
}

// TestRoots: what cannot be a root.
func TestRoots(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "file")
	for root, want := range map[string]error{dir + "/none": fs.ErrNotExist, dir + "/file": unix.ENOTDIR, "relative": nil, dir + "/\x00": nil} {
		w := tree.NewWriter(t.Context(), io.Discard)
		_, packErr := tree.Pack(t.Context(), io.Discard, root, nil)
		for what, err := range map[string]error{
			"list": tree.List(t.Context(), w, root, tree.ListOptions{}), "git": tree.List(t.Context(), w, root, tree.ListOptions{Git: true}),
			"hash": tree.Hash(t.Context(), w, root, tree.SHA1, nil), "pack": packErr, "remove": tree.Remove(t.Context(), root, nil),
		} {
			if want != nil && !errors.Is(err, want) || want == nil && api.KindOf(err) != api.KindInvalid {
				t.Errorf("%s %q: %v", what, root, err)
			}
		}
	}
	if err := tree.Hash(t.Context(), tree.NewWriter(t.Context(), io.Discard), dir, "md5", nil); api.KindOf(err) != api.KindInvalid {
		t.Error(err)
	}
}

// TestCancel: what is cancelled ends, with the reason.
func TestCancel(t *testing.T) {
	root := t.TempDir()
	write(t, root, "a/b", "a/c")
	run(t, root, "git", "init", "-q")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	w := tree.NewWriter(ctx, io.Discard)
	_, packErr := tree.Pack(ctx, io.Discard, root, encode(t, "a/b"))
	for what, err := range map[string]error{
		"list": tree.List(ctx, w, root, tree.ListOptions{}), "git": tree.List(ctx, w, root, tree.ListOptions{Git: true}),
		"hash": tree.Hash(ctx, w, root, tree.SHA1, encode(t, "a/b", "a/c")), "pack": packErr, "remove": tree.Remove(ctx, root, encode(t, "a/b")),
	} {
		if !errors.Is(err, why) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

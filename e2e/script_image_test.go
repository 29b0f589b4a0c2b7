//go:build !e2e

package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/rogpeppe/go-internal/testscript"

	"git.thaloco.com/thaloco/banger/internal/ext4"
)

// imageCommands are those of the scripts that deal with images.
var imageCommands = map[string]func(*testscript.TestScript, bool, []string){
	"registry": cmdRegistry, "push": cmdPush, "mktar": cmdTar, "mkrootfs": cmdRootfs, "mounted": cmdMounted,
}

// cmdRegistry starts a registry on the loopback, which is there until the script ends, and puts its address into VAR. What is below /private/ it
// gives to nobody, a layer of what is below /slow/ only half, and then it waits until the script ends.
func cmdRegistry(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: registry VAR")
	}
	ended := make(chan struct{})
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reads := r.Method == http.MethodGet || r.Method == http.MethodHead
		switch {
		case reads && strings.Contains(r.URL.Path, "/private/"):
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		case reads && strings.Contains(r.URL.Path, "/slow/") && strings.Contains(r.URL.Path, "/blobs/"):
			halve(inner, w, r, ended)
		default:
			inner.ServeHTTP(w, r)
		}
	}))
	ts.Defer(func() {
		close(ended)
		srv.CloseClientConnections()
		srv.Close()
	})
	ts.Setenv(args[0], strings.TrimPrefix(srv.URL, "http://"))
}

// halve answers with half of what h has, if that is no small thing, and then with nothing.
func halve(h http.Handler, w http.ResponseWriter, r *http.Request, ended <-chan struct{}) {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	for key, values := range rec.Header() {
		w.Header()[key] = values
	}
	w.WriteHeader(rec.Code)
	body := rec.Body.Bytes()
	if len(body) < 4096 || r.Method != http.MethodGet {
		_, _ = w.Write(body)
		return
	}
	_, _ = w.Write(body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
	select {
	case <-ended:
	case <-r.Context().Done():
	}
}

// cmdPush pushes an image of which each file is a layer. What begins with - is of its configuration, or the platforms of an index that it is in then.
func cmdPush(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: push REF [-env=K=V] [-cmd=WORD] [-platforms=OS/ARCH,...] NAME=TEXT...")
	}
	img, cfg, platforms := empty.Image, v1.Config{}, ""
	for _, a := range args[1:] {
		key, value, _ := strings.Cut(a, "=")
		switch key {
		case "-env":
			cfg.Env = append(cfg.Env, value)
		case "-cmd":
			cfg.Cmd = append(cfg.Cmd, value)
		case "-platforms":
			platforms = value
		default:
			layer := tarOf(ts, []string{a})
			l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
			ts.Check(err)
			img, err = mutate.AppendLayers(img, l)
			ts.Check(err)
		}
	}
	r, err := name.ParseReference(args[0])
	ts.Check(err)
	if platforms == "" {
		ts.Check(remote.Write(r, configured(ts, img, cfg, v1.Platform{OS: "linux", Architecture: "amd64"})))
		return
	}
	var index v1.ImageIndex = empty.Index
	for p := range strings.SplitSeq(platforms, ",") {
		at, err := v1.ParsePlatform(p)
		ts.Check(err)
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: configured(ts, img, cfg, *at), Descriptor: v1.Descriptor{Platform: at}})
	}
	ts.Check(remote.WriteIndex(r, index))
}

// configured is an image with a configuration, for a platform.
func configured(ts *testscript.TestScript, img v1.Image, cfg v1.Config, p v1.Platform) v1.Image {
	f, err := img.ConfigFile()
	ts.Check(err)
	f = f.DeepCopy()
	f.OS, f.Architecture, f.Config = p.OS, p.Architecture, cfg
	img, err = mutate.ConfigFile(img, f)
	ts.Check(err)
	return img
}

// tarOf is a tar of entries: NAME=TEXT is a file, NAME=@N one of N bytes that compress badly, NAME->TARGET a symbolic link, NAME=>TARGET a hard link.
func tarOf(ts *testscript.TestScript, entries []string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Mode: 0o755, ModTime: time.Unix(1e9, 0)}
		var text []byte
		if n, target, ok := strings.Cut(e, "=>"); ok {
			h.Name, h.Typeflag, h.Linkname = n, tar.TypeLink, target
		} else if n, target, ok := strings.Cut(e, "->"); ok {
			h.Name, h.Typeflag, h.Linkname = n, tar.TypeSymlink, target
		} else {
			n, content, _ := strings.Cut(e, "=")
			text = []byte(content)
			if size, ok := strings.CutPrefix(content, "@"); ok {
				text = noise(ts, size)
			}
			h.Name, h.Typeflag, h.Size = n, tar.TypeReg, int64(len(text))
		}
		ts.Check(w.WriteHeader(h))
		_, err := w.Write(text)
		ts.Check(err)
	}
	ts.Check(w.Close())
	return b.Bytes()
}

// cmdTar writes a tar.
func cmdTar(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mktar FILE ENTRY...")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), tarOf(ts, args[1:]), 0o644))
}

// cmdRootfs writes an ext4 file system.
func cmdRootfs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: mkrootfs FILE ENTRY...")
	}
	path := ts.MkAbs(args[0])
	made := filepath.Join(filepath.Dir(path), "made-"+filepath.Base(path))
	ts.Check(ext4.FromTar(context.Background(), bytes.NewReader(tarOf(ts, args[1:])), made, ext4.Options{Label: "own"}))
	b, err := os.ReadFile(made) // which may not be written to
	ts.Check(err)
	ts.Check(os.WriteFile(path, b, 0o644))
	ts.Check(os.Remove(made))
}

// cmdMounted has an ext4 file system say of itself that it is mounted.
func cmdMounted(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: mounted FILE")
	}
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	super := b[1024:2048]
	super[0x3a] &^= 1 // s_state: cleanly unmounted
	// s_checksum, by the kernel's crc32c, which leaves out the final inversion
	binary.LittleEndian.PutUint32(super[0x3fc:], ^crc32.Checksum(super[:0x3fc], crc32.MakeTable(crc32.Castagnoli)))
	ts.Check(os.WriteFile(path, b, 0o644))
}

// noise is as many bytes as size says, which do not compress and are always the same.
func noise(ts *testscript.TestScript, size string) []byte {
	n, err := strconv.Atoi(size)
	ts.Check(err)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b) // never fails
	return b
}

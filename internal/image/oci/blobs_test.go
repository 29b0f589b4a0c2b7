package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// TestFullDisk has a cache on a disk that is too small, and one that is not.
func TestFullDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root may mount a small disk")
	}
	disk := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk).CombinedOutput(); err != nil {
		t.Skipf("a small disk cannot be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r := newRegistry(t)
	l := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("i:1", l)
	c := newClient(t, func(cfg *Config) { cfg.Cache = disk + "/layers" })
	img := resolve(t, c, ref)
	err := c.Fetch(t.Context(), img, progress.Discard)
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(e.Message, "no space left") || !strings.Contains(e.Hint, "free some space") {
		t.Errorf("error %#v", err)
	}
	if asked, _ := r.counts(l); asked != 1 {
		t.Errorf("asked %d times", asked)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "remount,size=8m", disk).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	flat(t, c, img)
}

// TestDamagedCache changes what is in the cache.
func TestDamagedCache(t *testing.T) {
	changes := map[string]func(b []byte) []byte{
		"in the middle": func(b []byte) []byte { b[len(b)/2]++; return b },
		"at the end":    func(b []byte) []byte { b[len(b)-1]++; return b },
		"all zeros":     func(b []byte) []byte { clear(b); return b },
		"cut":           func(b []byte) []byte { return b[:len(b)/2] },
	}
	for name, change := range changes {
		for _, known := range []bool{false, true} { // whether the entries are from the download
			t.Run(fmt.Sprintf("%s/%v", name, known), func(t *testing.T) {
				r := newRegistry(t)
				fine, l := layer(t, file("b", "")), layer(t, file("a", random(1, 1<<18)), file("c", ""))
				ref := r.pushLayers("i:1", fine, l, layer(t, file("a", ""), file("c", "")))
				c := newClient(t)
				img := resolve(t, c, ref)
				if err := c.Fetch(t.Context(), img, progress.Discard); err != nil {
					t.Fatal(err)
				}
				b := change(bytes.Clone(l))
				if err := os.WriteFile(c.path(digestOf(l)), b, 0o600); err != nil {
					t.Fatal(err)
				}
				if !known {
					img = resolve(t, c, ref)
				}
				if known { // what was decompressed during the download is still what it was
					img.index.known[digestOf(l)].spool = nil
				}
				err := c.Flatten(t.Context(), img, io.Discard)
				var e *api.Error
				if !errors.As(err, &e) || e.Kind != api.KindUnavailable || !strings.Contains(e.Hint, "pull the image again") {
					t.Errorf("error %#v", err)
				}
				if c.has(Layer{digestOf(l), int64(len(b))}) || !c.has(Layer{digestOf(fine), int64(len(fine))}) {
					t.Errorf("in the cache: %v", cached(t, c))
				}
				assertTree(t, map[string]string{"/a": f(""), "/b": f(""), "/c": f("")}, flat(t, c, img))
			})
		}
	}
}

// TestSpool has layers whose content is kept from the download, and those that are too large for that, or their disk too small.
func TestSpool(t *testing.T) {
	r := newRegistry(t)
	l, large, bomb := layer(t, file("a", random(1, 1<<18))), layer(t, file("b", string(make([]byte, 8<<20)))), layer(t, file("c", string(make([]byte, 80<<20))))
	ref := r.pushLayers("i:1", l, large, bomb)
	c := newClient(t)
	img := resolve(t, c, ref)
	if err := c.Fetch(t.Context(), img, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if k := img.index.known[digestOf(l)]; k == nil || k.spool == nil || k.spool.size < 1<<18 {
		t.Errorf("of a layer is kept %+v", k)
	}
	if k := img.index.known[digestOf(large)]; k == nil || k.spool != nil {
		t.Errorf("of a layer that is small only when it is compressed is kept %+v", k)
	}
	if k := img.index.known[digestOf(bomb)]; k != nil {
		t.Errorf("of one that is much larger then is kept %+v", k)
	}
	// What is kept is what is used.
	if err := os.WriteFile(c.path(digestOf(l)), l[:9], 0o600); err != nil {
		t.Fatal(err)
	}
	if err := c.Flatten(t.Context(), img, io.Discard); err != nil {
		t.Error(err)
	}
	if s := newSpool(c.cfg.Cache+"/not-there", 1<<20); s.err == nil || s.finish() != nil {
		t.Error("a spool in no directory")
	}
	s := newSpool(c.cfg.Cache, 1<<20)
	s.f.Close() // a disk that does not work
	if n, err := s.Write(make([]byte, 1<<20)); n != 1<<20 || err != nil || s.finish() != nil {
		t.Errorf("%d bytes written, %v", n, err)
	}
}

// TestDamagedPart has the beginning of a layer that is none of it.
func TestDamagedPart(t *testing.T) {
	l := layer(t, file("a", random(1, 1<<18)))
	for name, part := range map[string][]byte{
		"other bytes": []byte("nonsense"),
		"as long":     make([]byte, len(l)),
		"longer":      append(bytes.Clone(l), "more"...),
		"whole":       l,
		"empty":       {},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			ref := r.pushLayers("i:1", l)
			c := newClient(t)
			if err := os.MkdirAll(c.cfg.Cache, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(c.cfg.Cache, nameOf(l)+".part"), part, 0o600); err != nil {
				t.Fatal(err)
			}
			flat(t, c, resolve(t, c, ref))
			assertCached(t, c, map[string]int{nameOf(l): len(l)})
		})
	}
}

// TestManyPulls has ten pulls at the same time, of two Clients on one cache, as of two processes, of images that share layers.
func TestManyPulls(t *testing.T) {
	r := newRegistry(t)
	var layers [][]byte
	for n := range 6 {
		layers = append(layers, layer(t, file(fmt.Sprint(n), random(byte(n), 100_000))))
	}
	var refs []string
	for n := range 10 {
		refs = append(refs, r.pushLayers(fmt.Sprintf("i%d:1", n), layers[0], layers[1+n%5], layers[1+(n+1)%5]))
	}
	one := newClient(t)
	two := newClient(t, func(cfg *Config) { cfg.Cache = one.cfg.Cache })
	var all sync.WaitGroup
	for n, ref := range refs {
		all.Go(func() {
			c := []*Client{one, two}[n%2]
			img, err := c.Resolve(t.Context(), ref, "")
			if err == nil {
				err = c.Fetch(t.Context(), img, progress.Discard)
			}
			if err == nil {
				err = c.Flatten(t.Context(), img, io.Discard)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for n, l := range layers {
		if asked, served := r.counts(l); asked != 1 || served != int64(len(l)) {
			t.Errorf("layer %d was asked for %d times, and %d of %d bytes served", n, asked, served, len(l))
		}
	}
	for name := range cached(t, one) {
		if strings.HasSuffix(name, ".part") {
			t.Errorf("%s is left", name)
		}
	}
}

// held serves half of a blob, and the rest when it is let go; gone is closed when its client hangs up.
type held struct{ begun, letGo, gone chan struct{} }

func hold(r *fakeRegistry) *held {
	h := &held{make(chan struct{}), make(chan struct{}), make(chan struct{})}
	var once sync.Once
	r.set(func(w http.ResponseWriter, req *http.Request, blob []byte, nth int) bool {
		if nth > 1 {
			return false
		}
		begin(w, req, blob)
		_, _ = w.Write(blob[:len(blob)/2])
		w.(http.Flusher).Flush()
		once.Do(func() { close(h.begun) })
		select {
		case <-h.letGo:
			_, _ = w.Write(blob[len(blob)/2:])
		case <-req.Context().Done():
			close(h.gone)
		}
		return true
	})
	return h
}

// waiters waits until a layer has as many.
func waiters(t *testing.T, c *Client, l []byte, n int) {
	t.Helper()
	for {
		c.mu.Lock()
		f := c.fetches[digestOf(l)]
		enough := f != nil && f.waiting == n
		c.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-time.After(time.Millisecond):
		case <-t.Context().Done():
			t.Fatal("nobody waits")
		}
	}
}

func TestOneOfTwoGoes(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("i:1", l)
	h := hold(r)
	c := newClient(t)
	img, again := resolve(t, c, ref), resolve(t, c, ref)
	ctx, cancel := context.WithCancelCause(t.Context())
	first, second := make(chan error), make(chan error)
	go func() { first <- c.Fetch(ctx, img, progress.Discard) }()
	<-h.begun
	go func() { second <- c.Fetch(t.Context(), again, progress.Discard) }()
	waiters(t, c, l, 2)
	why := errors.New("the user has gone")
	cancel(why)
	if err := <-first; !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	close(h.letGo)
	if err := <-second; err != nil {
		t.Error(err)
	}
	if asked, _ := r.counts(l); asked != 1 {
		t.Errorf("asked %d times", asked)
	}
}

// TestAllGo cancels all who wait: the fetch ends, and what was there is gone on from.
func TestAllGo(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("i:1", l)
	h := hold(r)
	c := newClient(t)
	img, again := resolve(t, c, ref), resolve(t, c, ref)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	for _, img := range []*Image{img, again} {
		go func() { ended <- c.Fetch(ctx, img, progress.Discard) }()
	}
	<-h.begun
	waiters(t, c, l, 2)
	cancel()
	for range 2 {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	}
	<-h.gone
	// One who comes before the old one has let go of the file, or just after.
	flat(t, c, img)
	assertCached(t, c, map[string]int{nameOf(l): len(l)})
}

// TestAnotherProcess has one that fetches the layer, and dies.
func TestAnotherProcess(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("i:1", l)
	c := newClient(t)
	if err := os.MkdirAll(c.cfg.Cache, 0o700); err != nil {
		t.Fatal(err)
	}
	other, err := lockFile(t.Context(), c.path(digestOf(l))+partSuffix)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Write(l[:len(l)/3]); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockPoll)
	defer cancel()
	img := resolve(t, c, ref)
	if err := c.Fetch(ctx, img, progress.Discard); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v while another has the layer", err)
	}
	other.Close()
	flat(t, c, img)
	if _, served := r.counts(l); served != int64(len(l)-len(l)/3) {
		t.Errorf("%d of %d bytes were served", served, len(l))
	}
}

// TestOneComesLate waits for a fetch that has been given up, and has not ended.
func TestOneComesLate(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", ""))
	c := newClient(t)
	img := resolve(t, c, r.pushLayers("i:1", l))
	old := &fetch{done: make(chan struct{}), err: errUnwanted, cancel: func(error) {}}
	c.fetches[digestOf(l)] = old
	ended := make(chan error)
	go func() { ended <- c.Fetch(t.Context(), img, progress.Discard) }()
	waiters(t, c, l, 1)
	c.mu.Lock()
	delete(c.fetches, digestOf(l))
	c.mu.Unlock()
	close(old.done)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	assertCached(t, c, map[string]int{nameOf(l): len(l)})
}

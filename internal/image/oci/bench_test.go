package oci

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/ext4"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

// benchMB is how large the image of BenchmarkPull is: BANGER_BENCH_MB, in MB, or 300.
func benchMB() int {
	if n, err := strconv.Atoi(os.Getenv("BANGER_BENCH_MB")); err == nil {
		return n
	}
	return 300
}

// benchLayer writes a layer of n bytes in files of many sizes, which compress about as well as programs do: to two fifths.
func benchLayer(b *testing.B, path string, seed uint64, n int) Layer {
	b.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4096)
	for k := range words {
		words[k] = make([]byte, 4+rnd.IntN(12))
		for j := range words[k] {
			words[k][j] = byte(rnd.IntN(256))
		}
	}
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	hash := sha256.New()
	z := gzip.NewWriter(io.MultiWriter(f, hash))
	w := tar.NewWriter(z)
	var body []byte
	for k := 0; n > 0; k++ {
		size := min(n, []int{200, 2000, 2000, 20_000, 20_000, 200_000, 2_000_000}[rnd.IntN(7)])
		body = body[:0]
		for len(body) < size {
			body = append(body, words[rnd.IntN(len(words))]...)
			if rnd.IntN(3) == 0 {
				body = append(body, byte(rnd.IntN(256)))
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/%d/%d/file-%d", seed, k/100, k), Size: int64(size), Mode: 0o644, ModTime: stamp}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Write(body[:size]); err != nil {
			b.Fatal(err)
		}
		n -= size
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		b.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		b.Fatal(err)
	}
	return Layer{v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(hash.Sum(nil))}, info.Size()}
}

// benchImage has a registry serve an image of five layers that are in files.
func benchImage(b *testing.B, r *fakeRegistry) (ref string, files []string) {
	b.Helper()
	config := []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[]},"config":{}}`)
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.DockerManifestSchema2, Config: v1.Descriptor{MediaType: types.DockerConfigJSON, Size: int64(len(config)), Digest: digestOf(config)}}
	byDigest := map[string]string{}
	dir := b.TempDir()
	for n := range 5 {
		name := filepath.Join(dir, fmt.Sprint(n))
		l := benchLayer(b, name, uint64(n), benchMB()*1_000_000/5)
		m.Layers = append(m.Layers, v1.Descriptor{MediaType: types.DockerLayer, Size: l.Size, Digest: l.Digest})
		files, byDigest[l.Digest.String()], r.blobs[l.Digest.String()] = append(files, name), name, nil
	}
	r.blobs[digestOf(config).String()] = config
	r.set(func(w http.ResponseWriter, req *http.Request, _ []byte, _ int) bool {
		name := byDigest[filepath.Base(req.URL.Path)]
		if name != "" {
			http.ServeFile(w, req, name)
		}
		return name != ""
	})
	body, err := json.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	return r.push(raw{string(body), types.DockerManifestSchema2}, "i:1"), files
}

// cpu is what the process has used of the processors.
func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkPull pulls an image of five layers from a registry on loopback, and makes a file system of it. It reports how many times as long that takes
// as to read and decompress the layers, and how large the heap was at most.
func BenchmarkPull(b *testing.B) {
	r := newRegistry(b)
	ref, files := benchImage(b, r)
	debug.FreeOSMemory()
	peak, stop := watchHeap()
	var took, floor, tookCPU, floorCPU time.Duration
	for b.Loop() {
		start, used := time.Now(), cpu(b)
		size := int64(0)
		for _, name := range files {
			size += readAll(b, name)
		}
		floor, floorCPU = floor+time.Since(start), floorCPU+cpu(b)-used
		b.SetBytes(size)
		start, used = time.Now(), cpu(b)
		pullInto(b, r, ref)
		took, tookCPU = took+time.Since(start), tookCPU+cpu(b)-used
	}
	stop()
	b.ReportMetric(took.Seconds()/floor.Seconds(), "floors")
	b.ReportMetric(tookCPU.Seconds()/floorCPU.Seconds(), "cpu-floors")
	b.ReportMetric(took.Seconds()/float64(b.N), "s/pull")
	b.ReportMetric(float64(*peak)/(1<<20), "MiB-heap")
}

// readAll reads and decompresses a layer, and returns how many bytes are in it.
func readAll(b *testing.B, name string) int64 {
	b.Helper()
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	z, err := decompress(f)
	if err != nil {
		b.Fatal(err)
	}
	defer z.Close()
	n, err := io.Copy(io.Discard, z)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// pullInto does all of a pull.
func pullInto(b *testing.B, r *fakeRegistry, ref string) {
	b.Helper()
	c := newClient(b)
	phases := []time.Time{time.Now()}
	img := resolve(b, c, ref)
	if err := c.Fetch(b.Context(), img, progress.Discard); err != nil {
		b.Fatal(err)
	}
	phases = append(phases, time.Now())
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(c.Flatten(b.Context(), img, pw)) }()
	if err := ext4.FromTar(b.Context(), pr, filepath.Join(b.TempDir(), "fs.ext4"), ext4.Options{}); err != nil {
		b.Fatal(err)
	}
	b.Logf("fetched in %v, made in %v", phases[1].Sub(phases[0]), time.Since(phases[1]))
}

// watchHeap looks how large the heap is until it is stopped.
func watchHeap() (peak *uint64, stop func()) {
	peak = new(uint64)
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				var m runtime.MemStats
				runtime.ReadMemStats(&m)
				*peak = max(*peak, m.HeapInuse)
			case <-end:
				return
			}
		}
	}()
	return peak, func() { close(end); <-ended }
}

// BenchmarkMerge merges entries without content, to tell what a million of them takes.
func BenchmarkMerge(b *testing.B) {
	const files = 1 << 20
	name := filepath.Join(b.TempDir(), "layer")
	out, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	hash := sha256.New()
	buf := bufio.NewWriterSize(io.MultiWriter(out, hash), 1<<20)
	w := tar.NewWriter(buf)
	for n := range files {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/some/where/%d/a-file-with-a-name-%d", n/30, n)}
		if err := w.WriteHeader(h); err != nil {
			b.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), buf.Flush()); err != nil {
		b.Fatal(err)
	}
	s := source{open: func() (io.ReadCloser, error) { return os.Open(name) }, digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(hash.Sum(nil))}}
	peak, stop := watchHeap()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for b.Loop() {
		if err := flatten(b.Context(), []source{s}, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	stop()
	b.ReportMetric(float64(*peak-m.HeapInuse)/files, "heap-B/file")
}

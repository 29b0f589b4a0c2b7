package oci

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

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

// benchLayer is a layer of n bytes in files of many sizes, which compress about as well as programs do: to two fifths.
func benchLayer(b *testing.B, seed uint64, n int) []byte {
	b.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4096)
	for k := range words {
		words[k] = make([]byte, 4+rnd.IntN(12))
		for j := range words[k] {
			words[k][j] = byte(rnd.IntN(256))
		}
	}
	var body []byte
	var entries []entry
	for k := 0; n > 0; k++ {
		size := min(n, []int{200, 2000, 2000, 20_000, 20_000, 200_000, 2_000_000}[rnd.IntN(7)])
		body = body[:0]
		for len(body) < size {
			body = append(body, words[rnd.IntN(len(words))]...)
			if rnd.IntN(3) == 0 {
				body = append(body, byte(rnd.IntN(256)))
			}
		}
		entries = append(entries, file(fmt.Sprintf("usr/%d/%d/file-%d", seed, k/100, k), string(body[:size])))
		n -= size
	}
	return layer(b, entries...)
}

// BenchmarkPull pulls an image of five layers from a registry on loopback, and makes a file system of it. It reports how many times as long that takes
// as to read and decompress the layers, and how large the heap was at most.
func BenchmarkPull(b *testing.B) {
	r := newRegistry(b)
	var layers [][]byte
	for n := range 5 {
		layers = append(layers, benchLayer(b, uint64(n), benchMB()*1_000_000/5))
	}
	ref := r.pushLayers("i:1", layers...)
	runtime.GC()
	var heap runtime.MemStats
	runtime.ReadMemStats(&heap)
	base := heap.HeapInuse
	peak, stop := watchHeap()
	var took, floor time.Duration
	for b.Loop() {
		start := time.Now()
		size := 0
		for _, l := range layers {
			z, err := decompress(bytes.NewReader(l))
			if err != nil {
				b.Fatal(err)
			}
			n, err := io.Copy(io.Discard, z)
			if err != nil {
				b.Fatal(err)
			}
			size += int(n)
		}
		floor += time.Since(start)
		b.SetBytes(int64(size))
		start = time.Now()
		pullInto(b, r, ref)
		took += time.Since(start)
	}
	stop()
	b.ReportMetric(took.Seconds()/floor.Seconds(), "floors")
	b.ReportMetric(took.Seconds()/float64(b.N), "s/pull")
	b.ReportMetric(float64(max(*peak, base)-base)/(1<<20), "MiB-heap")
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
	pr, pw := io.Pipe()
	go func() {
		w := tar.NewWriter(pw)
		for n := range files {
			_ = w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/share/some/where/%d/a-file-with-a-name-%d", n/30, n)})
		}
		pw.CloseWithError(w.Close())
	}()
	l, err := io.ReadAll(pr)
	if err != nil {
		b.Fatal(err)
	}
	peak, stop := watchHeap()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	for b.Loop() {
		if err := flatten(b.Context(), []source{sourceOf(l)}, io.Discard); err != nil {
			b.Fatal(err)
		}
	}
	stop()
	b.ReportMetric(float64(*peak-m.HeapInuse)/files, "heap-B/file")
}

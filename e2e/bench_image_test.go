//go:build e2e && bench

package e2e

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/gzip"
)

const (
	// pullBytes is how large the image of BenchmarkImagePull is, unpacked, in so many layers.
	pullBytes  = 1_000_000_000
	pullLayers = 5
	// maxDaemonMiB is what the daemon may take at most while it makes an image, and some more: what it takes is a figure, not a test.
	maxDaemonMiB = 2 * 150
)

// benchTar writes a tar with n bytes in files of many sizes, which compress about as well as programs do: to two fifths.
func benchTar(b *testing.B, w io.Writer, seed uint64, n int) {
	b.Helper()
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := make([][]byte, 4096)
	for k := range words {
		words[k] = make([]byte, 4+rnd.IntN(12))
		for j := range words[k] {
			words[k][j] = byte(rnd.IntN(256))
		}
	}
	t := tar.NewWriter(w)
	var body []byte
	for k := 0; n > 0; k++ {
		size := min(n, []int{200, 2000, 2000, 20_000, 20_000, 200_000, 2_000_000}[rnd.IntN(7)])
		for body = body[:0]; len(body) < size; {
			body = append(body, words[rnd.IntN(len(words))]...)
			if rnd.IntN(3) == 0 {
				body = append(body, byte(rnd.IntN(256)))
			}
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("usr/%d/%d/file-%d", seed, k/100, k), Size: int64(size), Mode: 0o644, ModTime: time.Unix(1e9, 0)}
		err := t.WriteHeader(h)
		if err == nil {
			_, err = t.Write(body[:size])
		}
		if err != nil {
			b.Fatal(err)
		}
		n -= size
	}
	if err := t.Close(); err != nil {
		b.Fatal(err)
	}
}

// benchImage puts an image of pullBytes into a registry whose blobs are files, and returns its reference.
func benchImage(b *testing.B) (ref string, img v1.Image) {
	b.Helper()
	dir := b.TempDir()
	blobs := filepath.Join(dir, "blobs")
	if err := os.Mkdir(blobs, 0o700); err != nil {
		b.Fatal(err)
	}
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0)), registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs))))
	b.Cleanup(srv.Close)
	img = empty.Image
	for n := range pullLayers {
		path := filepath.Join(dir, fmt.Sprintf("%d.tar.gz", n))
		f, err := os.Create(path)
		if err != nil {
			b.Fatal(err)
		}
		z := gzip.NewWriter(f)
		benchTar(b, z, uint64(n), pullBytes/pullLayers)
		err = errors.Join(z.Close(), f.Close())
		if err == nil {
			var l v1.Layer
			if l, err = tarball.LayerFromFile(path); err == nil {
				img, err = mutate.AppendLayers(img, l)
			}
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	f, err := img.ConfigFile()
	if err != nil {
		b.Fatal(err)
	}
	f = f.DeepCopy()
	f.OS, f.Architecture = "linux", "amd64"
	ref = strings.TrimPrefix(srv.URL, "http://") + "/bench/gigabyte:1"
	r, err := name.ParseReference(ref)
	if err == nil {
		img, err = mutate.ConfigFile(img, f)
	}
	if err == nil {
		err = remote.Write(r, img)
	}
	if err != nil {
		b.Fatal(err)
	}
	return ref, img
}

// readLayers fetches and decompresses the layers of an image, one after the other, to nowhere: no pull can be faster that does it so.
func readLayers(b *testing.B, ref string, img v1.Image) time.Duration {
	b.Helper()
	m, err := img.Manifest()
	if err != nil {
		b.Fatal(err)
	}
	at, rest, _ := strings.Cut(ref, "/")
	repo, _, _ := strings.Cut(rest, ":")
	start := time.Now()
	for _, l := range m.Layers {
		resp, err := http.Get("http://" + at + "/v2/" + repo + "/blobs/" + l.Digest.String())
		if err != nil {
			b.Fatal(err)
		}
		z, err := gzip.NewReader(resp.Body)
		if err == nil {
			_, err = io.Copy(io.Discard, z)
		}
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			b.Fatal(err)
		}
	}
	return time.Since(start)
}

// peak is the most memory that the daemon has had resident since it started, in MiB. Then it is stopped, so that the next one begins anew.
func peak(b *testing.B, h *host) float64 {
	b.Helper()
	mib := memory(b, h.daemonPID(), "VmHWM:")
	h.ok("daemon", "stop")
	if mib > maxDaemonMiB {
		b.Errorf("the daemon took %.0f MiB", mib)
	}
	return mib
}

// timed runs a command line that must succeed, and returns how long it took.
func timed(b *testing.B, h *host, args ...string) time.Duration {
	b.Helper()
	r := h.run(args...)
	if r.code != 0 {
		b.Fatalf("banger %s: %d, %s", strings.Join(args, " "), r.code, r.stderr)
	}
	return r.took
}

// BenchmarkImagePull pulls an image of 1 GB from a registry of this host, through command line and daemon, and compares that with reading and
// decompressing its layers, in turns.
func BenchmarkImagePull(b *testing.B) {
	ref, img := benchImage(b)
	h := newHost(b)
	h.ownData(b)
	var floors, pulls, seconds []time.Duration
	most := 0.0
	for range 3 {
		floors = append(floors, readLayers(b, ref, img))
		h.ok("daemon", "start")
		pulls = append(pulls, timed(b, h, "image", "pull", ref))
		for range rounds {
			seconds = append(seconds, timed(b, h, "image", "pull", ref))
		}
		most = max(most, peak(b, h))
		h.ok("image", "delete", ref)
		h.ok("image", "prune", "--force")
	}
	b.Logf("floors %v, pulls %v", floors, pulls)
	floor, pull := median(floors), median(pulls)
	b.ReportMetric(floor.Seconds(), "floor-s")
	b.ReportMetric(pull.Seconds(), "pull-s")
	b.ReportMetric(pull.Seconds()/floor.Seconds(), "ratio")
	b.ReportMetric(float64(median(seconds).Milliseconds()), "second-ms")
	b.ReportMetric(most, "peak-MiB")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkImageFiles registers, exports and imports an image of 1 GB, each by a daemon that has done nothing else.
func BenchmarkImageFiles(b *testing.B) {
	h := newHost(b)
	h.ownData(b)
	rootfs, file := filepath.Join(h.dir, "rootfs.tar"), filepath.Join(h.dir, "image.tar.zst")
	f, err := os.Create(rootfs)
	if err != nil {
		b.Fatal(err)
	}
	benchTar(b, f, 1, pullBytes)
	if err := f.Close(); err != nil {
		b.Fatal(err)
	}
	for _, step := range []struct {
		name string
		args []string
	}{
		{"register", []string{"image", "register", "--name", "x", "--rootfs", rootfs}},
		{"export", []string{"image", "export", "x", "-o", file}},
		{"import", []string{"image", "import", file, "--name", "y"}},
	} {
		b.Run(step.name, func(b *testing.B) {
			h.ok("daemon", "start")
			b.ReportMetric(timed(b, h, step.args...).Seconds(), "s")
			b.ReportMetric(peak(b, h), "peak-MiB")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// bootMark is what the agent says at a mark, of which boot_ms is the time since the kernel started.
var bootMark = regexp.MustCompile(`boot_ms=([0-9]+)`)

// BenchmarkGolden makes debian-bookworm with nothing local, takes it to a file and back, and boots it to multi-user.
func BenchmarkGolden(b *testing.B) {
	h := newHost(b)
	h.ownData(b)
	const golden = "debian-bookworm"
	b.ReportMetric(timed(b, h, "image", "pull", "--build", golden).Seconds(), "make-s")
	file := filepath.Join(h.dir, "golden.tar.zst")
	b.ReportMetric(timed(b, h, "image", "export", golden, "-o", file).Seconds(), "export-s")
	st, err := os.Stat(file)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(st.Size())/1e6, "bundle-MB")
	h.ok("image", "delete", golden)
	b.ReportMetric(timed(b, h, "image", "import", file).Seconds(), "import-s")
	var boots []time.Duration
	for range 3 {
		h.ok("vm", "run", "--name", "g", "--detach", "--wait", "full", "--image", golden)
		boots = append(boots, afterInit(b, h.ok("vm", "logs", "g", "--source", "agent")))
		h.ok("vm", "delete", "--force", "g")
	}
	b.ReportMetric(median(boots).Seconds(), "boot-s")
	b.ReportMetric(0, "ns/op")
}

// afterInit is how long after the start of the agent, which is /init, systemd had reached its default target.
func afterInit(b *testing.B, agentLog string) time.Duration {
	b.Helper()
	first, full := -1, -1
	for line := range strings.Lines(agentLog) {
		m := bootMark.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		ms, err := strconv.Atoi(m[1])
		if err != nil {
			b.Fatal(err)
		}
		if first < 0 || ms < first {
			first = ms
		}
		if strings.Contains(line, "mark=full") {
			full = ms
		}
	}
	if full < 0 {
		b.Fatalf("the agent does not say that the guest is up:\n%s", agentLog)
	}
	return time.Duration(full-first) * time.Millisecond
}

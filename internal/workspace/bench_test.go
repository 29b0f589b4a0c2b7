package workspace

import (
	"cmp"
	"io"
	"os"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/progress"
)

// BenchmarkCopy prepares and streams the work tree at BENCH_REPO (this repository).
func BenchmarkCopy(b *testing.B) {
	dir := cmp.Or(os.Getenv("BENCH_REPO"), ".")
	cfg := Config{Environ: os.Environ(), TempDir: b.TempDir()}
	for b.Loop() {
		s, err := Prepare(b.Context(), cfg, dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		ws, _, err := s.Stream(b.Context(), io.Discard, progress.Discard)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(ws.Bytes)
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPrepare is the part before the first byte.
func BenchmarkPrepare(b *testing.B) {
	dir := cmp.Or(os.Getenv("BENCH_REPO"), ".")
	cfg := Config{Environ: os.Environ(), TempDir: b.TempDir()}
	for b.Loop() {
		s, err := Prepare(b.Context(), cfg, dir, Options{})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

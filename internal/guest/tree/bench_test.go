package tree_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/guest/tree"
)

// The tree of the benchmarks: go test -bench . -benchtime 5x ./internal/guest/tree
const (
	benchDirs  = 1000
	benchFiles = 50 // in each
)

// forest makes a tree of many small files and returns their paths.
func forest(b *testing.B, git bool) (root string, paths []string) {
	b.Helper()
	root = b.TempDir()
	for d := range benchDirs {
		dir := fmt.Sprintf("src/part%02d/dir%02d", d/40, d%40)
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range benchFiles {
			name := fmt.Sprintf("%s/some_source_file_%02d.go", dir, f)
			paths = append(paths, name)
			if err := os.WriteFile(filepath.Join(root, name), []byte(strings.Repeat(name+"\n", 40)), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	if git {
		run(b, root, "git", "init", "-q")
		run(b, root, "git", "add", "-A")
		run(b, root, "git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
	}
	return root, paths
}

func run(t testing.TB, dir string, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Stdout = io.Discard
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%q: %v: %s", argv, err, &said)
	}
}

func BenchmarkList(b *testing.B) {
	root, _ := forest(b, true)
	for name, git := range map[string]bool{"plain": false, "git": true} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				w := tree.NewWriter(b.Context(), io.Discard)
				if err := tree.List(b.Context(), w, root, tree.ListOptions{Git: git}); err != nil {
					b.Fatal(err)
				}
				if err := w.End(nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for name, argv := range map[string][]string{
		"find": {"find", ".", "-name", ".git", "-prune", "-o", "-printf", `%m %s %T@ %p\0`}, "git-ls-files": {"git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"},
		"git-status": {"git", "status", "--porcelain"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				run(b, root, argv...)
			}
		})
	}
}

func BenchmarkHash(b *testing.B) {
	root, names := forest(b, false)
	paths, err := tree.EncodePaths(names)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("hash", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			w := tree.NewWriter(b.Context(), io.Discard)
			if err := tree.Hash(b.Context(), w, root, tree.SHA1, paths); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("git-hash-object", func(b *testing.B) {
		for b.Loop() {
			cmd := exec.Command("git", "hash-object", "--stdin-paths", "--no-filters")
			cmd.Dir, cmd.Stdin = root, strings.NewReader(strings.Join(names, "\n")+"\n")
			if err := cmd.Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("pack", func(b *testing.B) {
		for b.Loop() {
			if _, err := tree.Pack(b.Context(), io.Discard, root, paths); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkReader(b *testing.B) {
	var answer strings.Builder
	for i := range benchDirs * benchFiles {
		fmt.Fprintf(&answer, "f644 %d 1700000000 src/part%02d/dir%02d/some_source_file_%d.go\x00", i, i%25, i%40, i)
	}
	fmt.Fprintf(&answer, ".%d\x00", benchDirs*benchFiles)
	b.ReportAllocs()
	for b.Loop() {
		r := tree.NewReader(strings.NewReader(answer.String()))
		for {
			if _, err := r.Entry(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
	}
}

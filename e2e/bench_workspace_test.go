//go:build e2e && bench

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bigRepository makes a repository of 50,000 files with 500 MB in 1,000 directories, text that compresses to about a half, in one commit.
func bigRepository(b *testing.B, h *host) *work {
	b.Helper()
	w := h.newWork(b, "big")
	w.in("config", "gc.auto", "0")
	rnd := rand.New(rand.NewPCG(1, 1))
	words := make([]string, 4096)
	for i := range words {
		words[i] = fmt.Sprintf("%x", rnd.Uint32())
	}
	var text strings.Builder
	for d := range 1000 {
		if err := os.Mkdir(filepath.Join(w.dir, fmt.Sprintf("d%d", d)), 0o755); err != nil {
			b.Fatal(err)
		}
		for f := range 50 {
			text.Reset()
			for text.Len() < 10_000 {
				text.WriteString(words[rnd.IntN(len(words))])
				text.WriteByte("  \n"[rnd.IntN(3)])
			}
			if err := os.WriteFile(filepath.Join(w.dir, fmt.Sprintf("d%d/f%d", d, f)), []byte(text.String()), 0o644); err != nil {
				b.Fatal(err)
			}
		}
	}
	w.commit("big")
	w.in("-c", "pack.window=0", "gc", "-q")
	return w
}

// BenchmarkWorkspace is a big repository on its way in and its changes on their way out.
func BenchmarkWorkspace(b *testing.B) {
	h := newHost(b)
	w := bigRepository(b, h)
	h.ok("vm", "run", "--name", "v", "--memory", "2GiB", "--detach", "--wait", "full")
	var copies, tars []float64
	for i := range 3 {
		start := time.Now()
		command(b, "sh", "-c", fmt.Sprintf("tar c -C %s . | %s vm exec v -- sh -c 'mkdir /root/tar%d && tar x -C /root/tar%d'", w.dir, h.commandLine(), i, i))
		tars = append(tars, time.Since(start).Seconds())
		r := h.run("vm", "workspace", "prepare", "v", w.dir, "--guest-path", fmt.Sprintf("/root/copy%d", i))
		if r.code != 0 {
			b.Fatal(r.stderr)
		}
		copies = append(copies, r.took.Seconds())
		b.Logf("tar %.1f s, copy %.1f s", tars[i], copies[i])
		h.inGuest("v", fmt.Sprintf("rm -rf /root/tar%d; [ %d = 0 ] || rm -rf /root/copy%d; sync", i, i, i))
	}
	b.ReportMetric(medianOf(copies)/medianOf(tars), "copy/tar")

	const at = "/root/copy0"
	var again []float64
	for i := range 5 {
		w.write("d7/f7", fmt.Sprintln("changed", i))
		r := h.run("vm", "workspace", "prepare", "v", w.dir, "--guest-path", at)
		if r.code != 0 {
			b.Fatal(r.stderr)
		}
		again = append(again, r.took.Seconds())
	}
	b.Logf("again %.2f s", again)
	b.ReportMetric(medianOf(again), "again-s")

	commits, files := pullChanged(b, h, at)
	b.ReportMetric(commits, "pull-big-s")
	b.ReportMetric(files, "pull-apply-big-s")
	small := h.newWork(b, "small")
	for d := range 20 {
		for f := range 50 {
			small.write(fmt.Sprintf("d%d/f%d", d, f), w.read(fmt.Sprintf("d%d/f%d", d, f)))
		}
	}
	small.commit("small")
	h.ok("vm", "workspace", "prepare", "v", small.dir)
	commits, files = pullChanged(b, h, "/root/small")
	b.ReportMetric(commits, "pull-s")
	b.ReportMetric(files, "pull-apply-s")
	b.ReportMetric(0, "ns/op")
}

// pullChanged changes 1,000 files in a VM, commits them and pulls the commit, then applies it.
func pullChanged(b *testing.B, h *host, at string) (commit, apply float64) {
	b.Helper()
	var commits, applies []float64
	for i := range 5 {
		h.inGuest("v", fmt.Sprintf("cd %s && for f in d?/f* d1?/f*; do echo %d >> $f; done && git commit -qam 'changed %d' && git status >/dev/null; sync", at, i, i))
		for _, into := range []*[]float64{&commits, &applies} {
			args := []string{"vm", "workspace", "pull", "v", "--guest-path", at}
			if into == &applies {
				args = append(args, "--apply")
			}
			r := h.run(args...)
			if r.code != 0 {
				b.Fatal(r.stderr)
			}
			*into = append(*into, r.took.Seconds())
		}
	}
	b.Logf("%s: pull %.2f s, with --apply %.2f s", at, commits, applies)
	return medianOf(commits), medianOf(applies)
}

// commandLine is banger with this host's environment, for a shell.
func (h *host) commandLine() string {
	var words []string
	for _, kv := range h.env {
		words = append(words, "'"+kv+"'")
	}
	return "env -i " + strings.Join(words, " ") + " banger"
}

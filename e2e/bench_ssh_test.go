//go:build e2e && bench

package e2e

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/creack/pty"
)

func medianOf(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// localSSHD is an OpenSSH server on loopback that lets this user in; it returns the client's arguments.
func localSSHD(b *testing.B, dir string) []string {
	b.Helper()
	path, err := exec.LookPath("/usr/sbin/sshd")
	if err != nil {
		b.Skip("no sshd on this machine: scripts/host-packages bench installs it")
	}
	command(b, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "hostkey"))
	command(b, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "userkey"))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		b.Fatal(err)
	}
	c := exec.Command(path, "-D", "-f", "/dev/null", "-p", strconv.Itoa(port), "-h", filepath.Join(dir, "hostkey"), "-o", "ListenAddress=127.0.0.1",
		"-o", "PidFile=none", "-o", "UsePAM=no", "-o", "StrictModes=no", "-o", "AuthorizedKeysFile="+filepath.Join(dir, "userkey.pub"))
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	if err := waitFor(waitShort, func() bool {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}); err != nil {
		b.Fatal(err)
	}
	return []string{"ssh", "-F", "/dev/null", "-i", filepath.Join(dir, "userkey"), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-p", strconv.Itoa(port), "127.0.0.1", "true"}
}

// BenchmarkSSH compares `vm ssh NAME -- true` with OpenSSH to a server on this machine, in turns.
func BenchmarkSSH(b *testing.B) {
	h := newHost(b)
	h.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	local := localSSHD(b, h.dir)
	var ours, theirs []float64
	for range 3 * rounds {
		start := time.Now()
		command(b, local...)
		theirs = append(theirs, float64(time.Since(start).Microseconds())/1000)
		r := h.run("vm", "ssh", "v", "--", "true")
		if r.code != 0 {
			b.Fatalf("vm ssh: %d, %s", r.code, r.stderr)
		}
		ours = append(ours, float64(r.took.Microseconds())/1000)
	}
	b.ReportMetric(medianOf(ours), "vm-ssh-ms")
	b.ReportMetric(medianOf(theirs), "ssh-ms")
	b.ReportMetric(medianOf(ours)/medianOf(theirs), "ratio")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkPrompt is the time until a shell on a terminal in the guest says its first byte.
func BenchmarkPrompt(b *testing.B) {
	h := newHost(b)
	h.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	var took []float64
	for range 3 * rounds {
		ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
		c := h.cmd(ctx, "vm", "exec", "-it", "v", "--", "bash")
		start := time.Now()
		master, err := pty.Start(c)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := master.Read(make([]byte, 1)); err != nil {
			b.Fatal(err)
		}
		took = append(took, float64(time.Since(start).Microseconds())/1000)
		_, _ = io.WriteString(master, "exit\n")
		_, _ = io.Copy(io.Discard, master)
		_, _ = c.Wait(), master.Close()
		cancel()
	}
	b.ReportMetric(medianOf(took), "ms")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkCopy compares `vm cp` of 500 MB into a VM with cat through vm exec, in turns.
func BenchmarkCopy(b *testing.B) {
	const size = 500e6
	h := newHost(b)
	h.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	file := filepath.Join(h.dir, "file")
	f, err := os.Create(file)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.CopyN(f, rand.NewChaCha8([32]byte{1}), size); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var ours, theirs []float64
	for range 3 {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			b.Fatal(err)
		}
		r := h.feed(f, "vm", "exec", "v", "--", "sh", "-c", "rm -f /root/file; cat > /root/file")
		theirs = append(theirs, r.took.Seconds())
		h.ok("vm", "exec", "v", "--", "rm", "/root/file")
		c := h.run("vm", "cp", file, "v:/root/file")
		if r.code != 0 || c.code != 0 {
			b.Fatalf("cat: %s, cp: %s", r.stderr, c.stderr)
		}
		ours = append(ours, c.took.Seconds())
	}
	b.ReportMetric(medianOf(ours), "cp-s")
	b.ReportMetric(medianOf(theirs), "cat-s")
	b.ReportMetric(medianOf(ours)/medianOf(theirs), "ratio")
	b.ReportMetric(0, "ns/op")
}

//go:build e2e && bench

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/channel"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
	"git.thaloco.com/thaloco/banger/internal/vmm/qemu"
)

// rounds is how often each thing is timed; medians are compared.
const rounds = 7

// by hand: QEMU with the same kernel, initramfs, drives and memory as a VM of banger, started without any of banger's processes.
type byHand struct {
	dir  string
	spec vmm.Spec
	tsc  int
}

// newByHand takes the directory of a stopped VM that ran once.
func newByHand(b *testing.B, h *host, name string) *byHand {
	b.Helper()
	m := &byHand{dir: filepath.Join(h.dir, "state/banger/vms", h.vm(name).ID)}
	text, err := os.ReadFile(filepath.Join(m.dir, "spec.json"))
	if err != nil {
		b.Fatal(err)
	}
	if err := json.Unmarshal(text, &m.spec); err != nil {
		b.Fatal(err)
	}
	m.spec.Unsafe = true // as the --rm VM it is compared with
	m.join(b)
	if m.tsc, err = qemu.MeasureTSC(b.Context()); err != nil {
		b.Fatal(err)
	}
	return m
}

// join writes the initramfs as the supervisor does.
func (m *byHand) join(b *testing.B) {
	b.Helper()
	var all bytes.Buffer
	for _, path := range m.spec.Initramfs {
		part, err := os.ReadFile(path)
		if err != nil {
			b.Fatal(err)
		}
		all.Write(part)
	}
	err := initramfs.WriteBoot(&all, wire.Boot{Version: wire.Version, Secret: strings.Repeat("0", 64), Transport: "virtio-serial", Identity: m.spec.Identity})
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.dir, "initrd"), all.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
}

// boot starts QEMU and returns how long it took until the guest reached a mark. Then QEMU is killed.
func (m *byHand) boot(b *testing.B, want api.Mark) time.Duration {
	b.Helper()
	qmp, qmpFar := socketPair(b)
	agent, agentFar := socketPair(b)
	defer func() { _ = qmp.Close() }()
	start := time.Now()
	c := exec.Command(m.spec.Binary, qemu.Args(m.spec, qemu.Options{Initrd: "initrd", TSCKHz: m.tsc, Sandbox: true})...)
	near, far, err := frames.Pair()
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = near.Close() }()
	c.Dir, c.ExtraFiles = m.dir, []*os.File{qmpFar, agentFar, far}
	if err := c.Start(); err != nil {
		b.Fatal(err)
	}
	_, _, _ = qmpFar.Close(), agentFar.Close(), far.Close()
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	conn, err := net.FileConn(agent)
	if err != nil {
		b.Fatal(err)
	}
	_ = agent.Close()
	session, err := channel.Host(b.Context(), conn)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = session.Close() }()
	reached := make(chan struct{})
	go func() {
		_ = session.Serve(func(port uint32, conn net.Conn) bool {
			if port == wire.PortCall {
				go answerCall(conn, want, reached)
			}
			return port == wire.PortCall
		})
	}()
	select {
	case <-reached:
	case <-time.After(2 * time.Minute):
		b.Fatal("the guest did not come up")
	}
	return time.Since(start)
}

func answerCall(conn net.Conn, want api.Mark, reached chan<- struct{}) {
	lines := wire.NewLineReader(conn)
	for {
		var call wire.Call
		if err := lines.Read(&call); err != nil {
			return
		}
		switch {
		case call.Type == wire.CallHello:
			_ = wire.WriteLine(conn, wire.CallReply{Type: wire.ReplyWelcome, Token: "t", TimeUnixNano: time.Now().UnixNano(), Entropy: make([]byte, 64)})
		case call.Type == wire.CallMark && api.Mark(call.Mark).Reached(want):
			close(reached)
			return
		}
	}
}

func socketPair(b *testing.B) (near, far *os.File) {
	b.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "near"), os.NewFile(uintptr(fds[1]), "far")
}

func median(all []time.Duration) time.Duration {
	slices.Sort(all)
	return all[len(all)/2]
}

// BenchmarkBoot compares `vm run --rm -- true` with an engine started by hand, in turns, to each mark.
func BenchmarkBoot(b *testing.B) {
	h := newHost(b)
	h.ok("vm", "create", "--name", "hand", "--no-start")
	h.ok("vm", "start", "hand")
	h.ok("vm", "stop", "hand")
	hand := newByHand(b, h, "hand")
	for _, mark := range []api.Mark{api.MarkAgent, api.MarkReady} {
		b.Run(string(mark), func(b *testing.B) {
			var byHand, byBanger []time.Duration
			for range rounds {
				byHand = append(byHand, hand.boot(b, mark))
				r := h.run("vm", "run", "--rm", "--wait", string(mark), "--", "true")
				if r.code != 0 {
					b.Fatalf("vm run: %d, %s", r.code, r.stderr)
				}
				byBanger = append(byBanger, r.took)
			}
			m, n := median(byBanger), median(byHand)
			b.ReportMetric(m.Seconds(), "banger-s")
			b.ReportMetric(n.Seconds(), "hand-s")
			b.ReportMetric(m.Seconds()/n.Seconds(), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkCommands times whole command lines.
func BenchmarkCommands(b *testing.B) {
	h := newHost(b)
	h.ok("vm", "run", "--name", "v", "--detach", "--wait", "full")
	for _, tc := range []struct {
		name  string
		args  []string
		after []string
	}{
		{"create", []string{"vm", "create", "--no-start", "--name", "c"}, []string{"vm", "delete", "c"}},
		{"list", []string{"vm", "list"}, nil},
		{"exec", []string{"vm", "exec", "v", "--", "true"}, nil},
	} {
		b.Run(tc.name, func(b *testing.B) {
			var took []time.Duration
			for range 3 * rounds {
				r := h.run(tc.args...)
				if r.code != 0 {
					b.Fatalf("%v: %d, %s", tc.args, r.code, r.stderr)
				}
				took = append(took, r.took)
				if tc.after != nil {
					h.ok(tc.after...)
				}
			}
			b.ReportMetric(float64(median(took).Microseconds())/1000, "ms")
			b.ReportMetric(0, "ns/op")
		})
	}
	b.Run("memory", func(b *testing.B) {
		b.ReportMetric(rss(b, h.daemonPID()), "daemon-MiB")
		b.ReportMetric(rss(b, h.vm("v").SupervisorPID), "supervisor-MiB")
		b.ReportMetric(0, "ns/op")
	})
}

// rss is a process's resident memory in MiB.
func rss(b *testing.B, pid int) float64 {
	b.Helper()
	return memory(b, pid, "VmRSS:")
}

// memory is a line of a process's status, in MiB.
func memory(b *testing.B, pid int, line string) float64 {
	b.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for is := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(is, line); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				b.Fatal(err)
			}
			return float64(kb) / 1024
		}
	}
	b.Fatalf("no %s", line)
	return 0
}

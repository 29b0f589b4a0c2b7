package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/channel"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/driver"
)

const (
	// defaultBootDeadline is Spec.BootDeadline where that is 0.
	defaultBootDeadline = 120 * time.Second
	// defaultStartTimeout is how long the VMM may take until it answers on its control socket.
	defaultStartTimeout = 60 * time.Second
	// defaultEndingGrace is how long after it was acknowledged an announced end may take; then the VMM is killed. A guest
	// announces when all that is left to do is to freeze its data drive.
	defaultEndingGrace = 20 * time.Second
	// diskPoll is how often a VM that waits for room on the host's disk looks for it.
	diskPoll = time.Second
	// maxGarbage is how many sessions or calls with garbage an agent that has never called may begin.
	maxGarbage = 3
)

// boot is one start of the VMM.
type boot struct {
	s     *supervisor
	vmm   driver.VMM
	calls *callServer
	// port opens the guest's virtio-serial port; nil where the guest is reached by vsock.
	port func() (net.Conn, error)

	consolePipe, stderrPipe *outputPipe
	stderr                  *lastLine

	restore  string        // the snapshot it goes on from; empty for a boot
	jailed   *jailed       // nil without a jail
	up, down chan struct{} // closed when the VMM runs, and when it is gone or did not start

	welcome chan struct{} // closed at the first hello
	once    sync.Once
	verb    chan string // of the first ending
	bad     chan string // why the agent is no agent of ours

	halted chan struct{} // the kernel's last words were on the console
	silent chan struct{} // closed when the guest is so since
}

// outcome is how a boot ended.
type outcome struct {
	end vmm.End
	// again: start the VMM again, because the guest rebooted or, with timeout, because it never called.
	again, timeout bool
	// died: the VMM ended, or was ended, before it ran the guest.
	died bool
	// hint is what to do about it.
	hint string
}

func ended(cause vmm.EndCause, format string, args ...any) outcome {
	return outcome{end: vmm.End{Cause: cause, Detail: fmt.Sprintf(format, args...)}}
}

// run starts the VMM and looks after it to its end. The calling thread is the one VMMs hang on.
func (b *boot) run(ctx context.Context) outcome {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer close(b.down)
	defer b.leaveJail()
	if err := b.start(ctx); err != nil {
		if b.s.killAsked() {
			return ended(vmm.EndKilled, "")
		}
		out := ended(vmm.EndStart, "%v", err)
		out.died = errors.As(err, new(*driver.StartError))
		out.hint = api.AsError(err).Hint
		if out.hint == "" && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
			out.hint = "make room on the host's disk, then start it again"
		}
		return out
	}
	var channelEnded sync.WaitGroup
	defer channelEnded.Wait()
	defer cancel()
	if b.port != nil {
		channelEnded.Go(func() { b.channel(ctx) })
	} else {
		channelEnded.Go(func() { b.awaitHalt(ctx) })
	}
	cause := b.watch()
	b.vmm.Kill()
	<-b.vmm.Done()
	b.s.ports.put(nil)
	b.closeOutput()
	b.s.stopped()
	return cause()
}

// start writes the initrd and starts the VMM.
func (b *boot) start(ctx context.Context) error {
	s := b.s
	ctx, cancel := context.WithTimeoutCause(ctx, s.startTimeout, fmt.Errorf("it did not answer within %s", s.startTimeout))
	defer cancel()
	stop := context.AfterFunc(s.killed, cancel)
	defer stop()

	if s.spec.Jailer != "" {
		var err error
		if b.jailed, err = b.enterJail(ctx); err != nil {
			return err
		}
	}
	secret := newSecret()
	b.calls = newCallServer(secret, b, s.log)
	if b.restore != "" {
		return b.resume(ctx)
	}
	s.ports.put(b)
	config := wire.Boot{Version: wire.Version, Secret: secret, Transport: transport(s.spec.Engine), Identity: s.spec.Identity}
	initrd := filepath.Join(b.dir(), paths.VMInitrd)
	if err := writeInitrd(initrd, s.spec.Initramfs, config); err != nil {
		return err
	}
	// The VMM has read it when it answers. It holds the secret and the guest's ssh host key: off the disk with it.
	defer os.Remove(initrd)
	var err error
	switch s.spec.Engine {
	case vmm.EngineFirecracker:
		err = b.startFirecracker(ctx)
	default:
		err = b.startQEMU(ctx)
	}
	if err != nil {
		return err
	}
	s.started(b.vmm)
	close(b.up)
	return nil
}

// resume goes on with the guest of a snapshot.
func (b *boot) resume(ctx context.Context) error {
	info, err := readSnapshot(b.s.spec)
	if err != nil {
		return err
	}
	b.calls.resume(info.Token)
	b.s.ports.put(b)
	if err := b.startFirecracker(ctx); err != nil {
		return err
	}
	b.s.started(b.vmm)
	close(b.up)
	return nil
}

// dir is the VMM's working directory.
func (b *boot) dir() string {
	if b.jailed != nil {
		return b.jailed.jail.Rel()
	}
	return "."
}

func (b *boot) leaveJail() {
	if b.jailed == nil {
		return
	}
	if err := b.jailed.leave(); err != nil {
		b.s.log.Error("the jail stays", "error", err)
	}
}

// transport is how the guests of an engine are reached.
func transport(engine string) string {
	if engine == vmm.EngineFirecracker {
		return wire.TransportVsock
	}
	return wire.TransportSerial
}

// openOutput makes the pipes for what the VMM writes.
func (b *boot) openOutput() (err error) {
	b.stderr = &lastLine{also: b.s.vmmLog}
	console := io.Writer(b.s.consoleLog)
	if b.s.spec.Engine == vmm.EngineFirecracker {
		console = &haltWatch{to: console, halted: b.halted}
	}
	if b.consolePipe, err = newOutputPipe(console); err != nil {
		return err
	}
	if b.stderrPipe, err = newOutputPipe(b.stderr); err != nil {
		b.consolePipe.close()
	}
	return err
}

// closeOutput gets what the VMM wrote into the logs; the VMM is gone.
func (b *boot) closeOutput() {
	b.consolePipe.close()
	b.stderrPipe.close()
}

// vmmEnv is all a VMM gets to see of the environment.
func vmmEnv() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
}

// watch waits for the end of the boot, and for what must be done before.
// What it returns is called when the VMM is gone and all it wrote has been read.
func (b *boot) watch() func() outcome {
	is := func(o outcome) func() outcome { return func() outcome { return o } }
	s := b.s
	deadline := time.NewTimer(s.bootDeadline())
	defer deadline.Stop()
	idle := time.NewTimer(trimEvery)
	defer idle.Stop()
	streams := ^uint32(0)
	disk := b.diskWait()
	var grace <-chan time.Time
	welcome := b.welcome
	verb := ""
	for {
		select {
		case <-b.vmm.Done():
			if verb == "" { // it may have come with the end
				verb = s.board.Status().Ending
			}
			return func() outcome { return classify(b.vmm.Exit(), verb, b.stderr.String()) }
		case <-s.killed.Done():
			return is(ended(vmm.EndKilled, ""))
		case <-b.vmm.Changed():
			s.refresh()
			disk = b.diskWait()
		case <-disk:
			b.retryDisk()
			disk = b.diskWait()
		case <-welcome:
			deadline.Stop()
			welcome = nil
			idle.Reset(trimAfter)
		case <-idle.C:
			// Again only where the guest was talked to in the meantime.
			if n := s.streams.Load(); n != streams {
				streams = n
				trim()
			}
			idle.Reset(trimEvery)
		case <-deadline.C:
			if welcome == nil {
				continue
			}
			if s.board.Status().Phase == vmm.PhasePaused {
				deadline.Reset(s.bootDeadline())
				continue
			}
			out := ended(vmm.EndBootTimeout, "the guest's agent did not call within %s", s.bootDeadline())
			out.again, out.timeout = true, true
			return is(out)
		case verb = <-b.verb:
			t := time.NewTimer(s.endingGrace)
			defer t.Stop()
			grace = t.C
		case <-grace:
			s.log.Info("the vmm did not end by itself and is killed", "verb", verb)
			return is(announced(verb))
		case <-b.silent:
			s.log.Info("the guest has halted and its vmm is killed")
			return is(ended(vmm.EndHalt, ""))
		case detail := <-b.bad:
			return is(ended(vmm.EndBadAgent, "%s", detail))
		}
	}
}

// announced is the outcome of an end the agent announced.
func announced(verb string) outcome {
	switch verb {
	case "reboot":
		return outcome{again: true}
	case "halt":
		return ended(vmm.EndHalt, "")
	default:
		return ended(vmm.EndPoweroff, "")
	}
}

// emptyWords begin what Firecracker says on stderr whenever it ends because of an error that is in its log.
const emptyWords = "Error: RunWithApi(MicroVMStoppedWithError("

// classify says what the end x of the VMM means, after the guest announced verb (or nothing); line is the last of its stderr.
func classify(x driver.Exit, verb, line string) outcome {
	switch {
	case x.Ending == driver.HostSignal:
		return ended(vmm.EndKilled, "the VMM was asked to end by a signal of the host")
	case x.Ending == driver.Failed && line != "" && !strings.HasPrefix(line, emptyWords):
		return ended(vmm.EndCrashed, "%s: %s", x.Detail, line)
	case x.Ending == driver.Failed:
		return ended(vmm.EndCrashed, "%s", x.Detail)
	case verb != "":
		return announced(verb)
	case x.Ending == driver.GuestShutdown:
		return ended(vmm.EndPoweroff, "")
	}
	return ended(vmm.EndUnexpected, "the guest was reset without having said so: a kernel panic, or reboot -f")
}

// diskWait tells when to look for room on the host's disk again: never where the VM does not wait for it, so that
// a supervisor with nothing to do sleeps.
func (b *boot) diskWait() <-chan time.Time {
	if st := b.vmm.State(); !st.Paused || !st.DiskFull {
		return nil
	}
	return time.After(diskPoll)
}

// retryDisk lets a VM go on that stands still for want of room on the host, once there is some.
// A kill does not wait for a VMM that is slow to answer.
func (b *boot) retryDisk() {
	st := b.vmm.State()
	if !st.Paused || !st.DiskFull || b.s.pauseAsked() || !b.s.diskHasRoom() {
		return
	}
	ctx, cancel := context.WithTimeout(b.s.killed, opTimeout)
	defer cancel()
	if err := b.vmm.Resume(ctx); err != nil {
		b.s.log.Error("the vm did not resume", "error", err)
	}
}

// diskHasRoom reports whether the file system of the writable drives has 64 MiB free, or 2 % where it is small.
func (s *supervisor) diskHasRoom() bool {
	for _, d := range s.spec.Drives {
		if d.ReadOnly {
			continue
		}
		var st unix.Statfs_t
		if unix.Statfs(filepath.Dir(d.Path), &st) != nil {
			return false
		}
		need := min(64<<20, st.Blocks*uint64(st.Bsize)/50)
		if st.Bavail*uint64(st.Bsize) < need {
			return false
		}
	}
	return true
}

// channel keeps a session with the agent for as long as ctx lasts.
func (b *boot) channel(ctx context.Context) {
	garbage := 0
	for ctx.Err() == nil {
		err := b.session(ctx)
		if ctx.Err() != nil {
			return
		}
		b.s.log.Warn("the agent's channel broke", "error", err)
		if errors.Is(err, channel.ErrGarbage) && !b.called() {
			if garbage++; garbage >= maxGarbage {
				b.reject(channel.ErrGarbage.Error())
				return
			}
		}
		if !pause(ctx, 100*time.Millisecond) {
			return
		}
	}
}

// session opens one session and serves it to its end.
func (b *boot) session(ctx context.Context) error {
	conn, err := b.port()
	if err != nil {
		return err
	}
	session, err := channel.Host(ctx, conn)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	b.s.guest.put(session)
	defer b.s.guest.put(nil)
	defer session.Close()
	return session.Serve(func(port uint32, conn net.Conn) bool {
		if port == wire.PortCall {
			b.calls.serve(conn)
			return true
		}
		return guestStream(ctx, port, conn)
	})
}

func (b *boot) called() bool {
	select {
	case <-b.welcome:
		return true
	default:
		return false
	}
}

// reject ends the boot because its agent is none of ours.
func (b *boot) reject(detail string) {
	select {
	case b.bad <- detail:
	default:
	}
}

// What follows is listener, called by the callServer.

func (b *boot) hello(m wire.Call) {
	b.once.Do(func() { close(b.welcome) })
	b.s.board.Update(func(st *vmm.Status) {
		st.Agent, st.Init = printable(m.Agent, 64), printable(m.Init, 16)
	})
}

func (b *boot) badVersion(detail string) { b.reject(detail) }

func (b *boot) garbage(err error) {
	b.reject(fmt.Sprintf("the guest calls with what is no call: %v", err))
}

func (b *boot) mark(m api.Mark) {
	b.s.board.Update(func(st *vmm.Status) {
		if !st.Mark.Reached(m) {
			st.Mark = m
		}
	})
}

func (b *boot) ending(verb string) {
	b.s.board.Update(func(st *vmm.Status) { st.Ending = verb })
	select {
	case b.verb <- verb:
	default:
	}
}

func (b *boot) logLine(text string) { _, _ = io.WriteString(b.s.agentLog, text+"\n") }

// printable is what the guest says of itself, fit for a terminal: ASCII without control characters, at most n bytes.
func printable(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, s)
	return s[:min(len(s), n)]
}

// writeInitrd joins archives and the boot configuration to the file name.
func writeInitrd(name string, archives []string, config wire.Boot) (err error) {
	if err := remove(".", name); err != nil {
		return fmt.Errorf("write the initrd: %w", err)
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write the initrd: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = os.Remove(name)
		}
	}()
	for _, path := range archives {
		if err := appendArchive(f, path); err != nil {
			return fmt.Errorf("write the initrd: %w", err)
		}
	}
	return initramfs.WriteBoot(f, config)
}

// appendArchive copies the file path to the end of f (within the kernel, or by reference, where the file systems can) and
// pads it to the 4 bytes cpio archives are aligned to.
func appendArchive(f *os.File, path string) error {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	n, err := io.Copy(f, in)
	if err != nil {
		return err
	}
	if pad := -n & 3; pad > 0 {
		_, err = f.Write(make([]byte, pad))
	}
	return err
}

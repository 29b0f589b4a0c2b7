// Package fakeqemu is a QEMU without a machine, for tests of all that is
// built on one: it understands exactly the argument list banger gives (anything else is an error),
// speaks QMP, and in place of the guest runs a fakeguest on the host, behind the real channel.
//
// What it does wrong is told by a file KnobsFile in its working directory, the VM's, or beside its program.
// The guest's directory is fakeguest/ in the VM's directory; for root that directory's root/ is mounted on /root, in
// a mount namespace of its own, so that guest paths under /root are not the host's.
package fakeqemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/channel"
	"git.thaloco.com/thaloco/banger/internal/guest/sshd"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
	"git.thaloco.com/thaloco/banger/internal/vmm/frames"
)

// KnobsFile holds Knobs as JSON.
const KnobsFile = "fakeqemu.json"

// BootsFile is in the VM's directory and holds how often fakeqemu was started there, in decimal.
const BootsFile = "fakeqemu.boots"

// RefusedFile appears in the VM's directory when a second use of the boot's secret was refused.
const RefusedFile = "fakeqemu.refused"

// DeafFile appears in the VM's directory when a command was left without its answer.
const DeafFile = "fakeqemu.deaf"

// Banner is the first line on the console.
const Banner = "fakeqemu: the guest's console"

// Knobs are ways to misbehave. The zero value behaves.
type Knobs struct {
	// CrashAtStart: exit status 1 and this on stderr.
	CrashAtStart string `json:"crash_at_start,omitempty"`
	// NoSandbox: knows no -sandbox, as a QEMU that was built without seccomp.
	NoSandbox bool `json:"no_sandbox,omitempty"`
	// Hang: never answers on the control socket.
	Hang bool `json:"hang,omitempty"`
	// NeverCall: the guest of the first so many boots does not call.
	NeverCall int `json:"never_call,omitempty"`
	// CallAfter: the guest does not call before so many milliseconds.
	CallAfter int64 `json:"call_after_ms,omitempty"`
	// Garbage: the guest sends noise on its channel and nothing else.
	Garbage bool `json:"garbage,omitempty"`
	// WrongVersion: the agent is of another version.
	WrongVersion bool `json:"wrong_version,omitempty"`
	// CallTwice: the secret is used a second time after the first.
	CallTwice bool `json:"call_twice,omitempty"`
	// Flood writes so many bytes to the console before anything else.
	Flood int64 `json:"flood,omitempty"`
	// Wedge: an announced end does not happen.
	Wedge bool `json:"wedge,omitempty"`
	// DeafToCont: stopped CPUs do not go on, and who asks for it gets no answer.
	DeafToCont bool `json:"deaf_to_cont,omitempty"`
}

// sftpArg makes the program the sftp server of its guest's ssh server.
const sftpArg = "sftp-server"

// Main runs the program with arguments args and returns its exit status.
func Main(args []string) int {
	if len(args) == 1 && args[0] == "--version" {
		fmt.Fprintln(os.Stdout, "QEMU emulator version 9.0.0 (fake)")
		return 0
	}
	if len(args) == 1 && args[0] == sftpArg {
		if err := sshd.ServeSFTP(os.Stdin, os.Stdout); err != nil && !errors.Is(err, io.EOF) {
			fmt.Fprintln(os.Stderr, "fakeqemu:", err)
			return 1
		}
		return 0
	}
	if err := fakeguest.OwnNamespace(); err != nil {
		fmt.Fprintln(os.Stderr, "fakeqemu:", err)
		return 1
	}
	status, err := run(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakeqemu:", err)
	}
	return status
}

// readKnobs reads the knobs of this VM, else those of this program.
func readKnobs() (k Knobs, err error) {
	b, err := os.ReadFile(KnobsFile)
	if errors.Is(err, os.ErrNotExist) {
		if b, err = os.ReadFile(filepath.Join(filepath.Dir(os.Args[0]), KnobsFile)); err != nil {
			return Knobs{}, nil
		}
	}
	if err == nil {
		err = strictJSON(string(b), &k)
	}
	return k, err
}

// Write writes the knobs for the VM in dir.
func (k Knobs) Write(dir string) error {
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, KnobsFile), b, 0o600)
}

// countBoot returns how often there was a boot in this directory, this one included.
func countBoot() (int, error) {
	b, _ := os.ReadFile(BootsFile) // not there: 0
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	n++
	return n, os.WriteFile(BootsFile, []byte(strconv.Itoa(n)), 0o600)
}

func run(args []string) (int, error) {
	m, err := parseArgs(args)
	if err != nil {
		return 1, err
	}
	k, err := readKnobs()
	if err != nil {
		return 1, err
	}
	boots, err := countBoot()
	if err != nil {
		return 1, err
	}
	switch {
	case k.CrashAtStart != "":
		return 1, errors.New(k.CrashAtStart)
	case k.NoSandbox && m.sandbox:
		return 1, errors.New("-sandbox: invalid option")
	}
	boot, err := readBoot(m.initrd)
	if err != nil {
		return 1, err
	}
	qmpConn, err := connOf(m.qmpFD)
	if err != nil {
		return 1, err
	}
	agent, err := connOf(m.agentFD)
	if err != nil {
		return 1, err
	}
	if k.Hang {
		select {}
	}
	q := newMonitor(m, qmpConn)
	q.deafToCont = k.DeafToCont
	v := &vm{knobs: k, boots: boots, boot: boot, monitor: q, end: make(chan string, 1), up: make(chan struct{})}
	go q.serve()
	if err := v.network(m.netFD); err != nil {
		return 1, err
	}
	v.console() // as a kernel does before it has a user space
	if err := v.startGuest(agent); err != nil {
		return 1, err
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	// The supervisor ignores these, and so would all that the guest starts.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGHUP, syscall.SIGPIPE)
	reason := ""
	select {
	case reason = <-v.end:
	case <-term:
		reason = "host-signal"
	}
	q.tell("SHUTDOWN", map[string]any{"guest": strings.HasPrefix(reason, "guest-"), "reason": reason})
	v.guest.Close()
	return 0, nil
}

func readBoot(path string) (wire.Boot, error) {
	f, err := os.Open(path)
	if err != nil {
		return wire.Boot{}, err
	}
	defer f.Close()
	return initramfs.ReadBoot(f)
}

// connOf makes a connection of an inherited descriptor that the guest's processes do not inherit.
func connOf(fd int) (net.Conn, error) {
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "fd"+strconv.Itoa(fd))
	defer f.Close()
	return net.FileConn(f)
}

// vm is the machine that is not there.
type vm struct {
	knobs   Knobs
	boots   int
	boot    wire.Boot
	monitor *monitor
	guest   *fakeguest.Guest
	end     chan string // reasons of a SHUTDOWN event

	mu   sync.Mutex // guards call
	call *fakeguest.Call
	up   chan struct{} // closed when call is there
}

// network answers for the guest on the descriptor of its frames, negative where it has none.
func (v *vm) network(fd int) error {
	n := v.boot.Identity.Network
	device := n != nil && n.Device == wire.DeviceVirtio
	if device != (fd >= 0) {
		return errors.New("a network device without a network that has one, or the other way round")
	}
	if !device {
		return nil
	}
	unix.CloseOnExec(fd)
	link, err := frames.NewLink(os.NewFile(uintptr(fd), "net"), nil)
	if err != nil {
		return err
	}
	go func() { fmt.Fprintln(os.Stderr, "fakeqemu: network:", fakeguest.ServeNetwork(link, *n)) }()
	return nil
}

// console writes what a kernel would.
func (v *vm) console() {
	fmt.Fprintln(os.Stdout, Banner)
	line := []byte(strings.Repeat("flood ", 170) + "\n")
	for left := v.knobs.Flood; left > 0; left -= int64(len(line)) {
		if _, err := os.Stdout.Write(line); err != nil {
			return
		}
	}
	fmt.Fprintln(os.Stdout, "fakeqemu: boot", v.boots)
}

// port is the guest's end of the agent's channel, which stands still while the CPUs do.
type port struct {
	net.Conn
	q *monitor
}

func (p port) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.q.running()
	return n, err
}

func (p port) Write(b []byte) (int, error) {
	p.q.running()
	return p.Conn.Write(b)
}

// startGuest starts the guest behind the channel.
func (v *vm) startGuest(agent net.Conn) (err error) {
	v.guest, err = fakeguest.New(fakeguest.Config{
		Dir: "fakeguest", Identity: v.boot.Identity, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		OnVerb: v.verb, Verbs: []string{"crash", "diskfull"}, SFTP: []string{"/proc/self/exe", sftpArg},
	})
	if err != nil {
		return err
	}
	if v.knobs.Garbage {
		go func() {
			_, _ = io.Copy(agent, zeros{})
		}()
		return nil
	}
	go func() {
		a := channel.Guest(port{agent, v.monitor})
		for {
			s, err := a.Accept(context.Background())
			if err != nil {
				return
			}
			if v.boots > v.knobs.NeverCall {
				go v.callHost(s)
			}
			_ = s.Serve(v.guest.Accept)
		}
	}()
	return nil
}

// zeros is noise without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0x55
	}
	return len(p), nil
}

// callHost makes the agent's call of a session: with the secret at the first, with the token later.
func (v *vm) callHost(s *channel.Session) {
	<-time.After(time.Duration(v.knobs.CallAfter) * time.Millisecond)
	hello := wire.Call{Secret: v.boot.Secret, Version: wire.Version, BootID: strconv.Itoa(v.boots), Init: "none"}
	v.mu.Lock()
	if v.call != nil {
		hello.Secret, hello.Token = "", v.call.Token
	}
	v.mu.Unlock()
	if v.knobs.WrongVersion {
		hello.Version++
	}
	call, err := dialHost(s, hello)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fakeqemu: call:", err)
		return
	}
	v.mu.Lock()
	first := v.call == nil
	v.call = call
	v.mu.Unlock()
	if first {
		close(v.up)
	}
	if v.knobs.CallTwice {
		if _, err := dialHost(s, hello); errors.Is(err, fakeguest.ErrRefused) {
			_ = os.WriteFile(RefusedFile, []byte(err.Error()), 0o600)
		}
	}
	if n := v.boot.Identity.Network; n != nil && n.Device == wire.DeviceTAP {
		go func() { fmt.Fprintln(os.Stderr, "fakeqemu: network:", carryNetwork(s, call.Token, *n)) }()
	}
	_ = call.Logf("boot %d", v.boots)
	for _, mark := range []string{"agent", "ready", "full"} {
		_ = call.Mark(mark)
	}
}

// carryNetwork answers for the guest over a stream, for a session.
func carryNetwork(s *channel.Session, token string, n wire.Network) error {
	conn, err := s.Dial(context.Background(), wire.PortNet)
	if err != nil {
		return err
	}
	return fakeguest.CarryNetwork(context.Background(), conn, token, n)
}

func dialHost(s *channel.Session, hello wire.Call) (*fakeguest.Call, error) {
	conn, err := s.Dial(context.Background(), wire.PortCall)
	if err != nil {
		return nil, err
	}
	return fakeguest.Dial(conn, hello)
}

// verb does what a program of the guest asked for.
func (v *vm) verb(verb string) {
	switch verb {
	case "crash":
		fmt.Fprintln(os.Stderr, "fakeqemu: Aborted on request")
		os.Exit(3)
	case "diskfull":
		v.monitor.tell("BLOCK_IO_ERROR", map[string]any{"node-name": "data", "operation": "write", "action": "stop",
			"nospace": true, "reason": "No space left on device"})
		v.monitor.stop("io-error")
		return
	case fakeguest.VerbPanic:
		v.end <- "guest-reset"
		return
	}
	<-v.up
	v.mu.Lock()
	call := v.call
	v.mu.Unlock()
	if err := call.Ending(verb); err != nil {
		fmt.Fprintln(os.Stderr, "fakeqemu: announce:", err)
	}
	switch {
	case v.knobs.Wedge || verb == "halt": // a halted machine stays where it is
	case verb == "poweroff":
		v.end <- "guest-shutdown"
	default:
		v.end <- "guest-reset"
	}
}

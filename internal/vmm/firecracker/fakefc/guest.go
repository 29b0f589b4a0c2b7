package fakefc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/initramfs"
	"git.thaloco.com/thaloco/banger/internal/vmm/fakeguest"
)

// redialEvery is how long a guest whose call was lost waits before it calls again.
const redialEvery = 50 * time.Millisecond

// guest is what the fake runs in place of a VM.
type guest interface {
	// boot starts it; from then on it ends by calling finish with the exit status of Firecracker.
	boot(finish func(status int)) error
	pause() error
	resume() error
	resizeDrive(id, path string) error
	// active reports whether the guest's drivers have taken their devices.
	active() bool
	// save is its state in a snapshot; what goes on has lost its streams.
	save() (guestState, error)
	ctrlAltDel()
	close()
}

// guestState is what a snapshot holds of a guest.
type guestState struct {
	Boot   wire.Boot `json:"boot"`
	Token  string    `json:"token"`
	BootID string    `json:"boot_id"`
}

func readBoot(path string) (wire.Boot, error) {
	f, err := os.Open(path)
	if err != nil {
		return wire.Boot{}, err
	}
	defer f.Close()
	return initramfs.ReadBoot(f)
}

// defaultArgs are the kernel's arguments where a boot source has none (boot_source.rs).
const defaultArgs = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd swiotlb=noforce"

// machine is a VM that is not there: a fakeguest behind a vsock device.
type machine struct {
	knobs   Knobs
	boots   int
	state   guestState
	args    []string // the kernel's
	log     *logger
	hasNIC  bool
	dev     *device
	gate    *gate
	console io.Writer

	finish func(status int)
	guest  *fakeguest.Guest

	mu    sync.Mutex // guards what follows
	call  *fakeguest.Call
	up    chan struct{} // closed when the first call is there
	saved bool          // since the last resume
	over  chan struct{} // closed by close
}

// boot implements guest.
func (m *machine) boot(finish func(status int)) (err error) {
	m.finish = finish
	m.up, m.over = make(chan struct{}), make(chan struct{})
	restored := m.state.Token != ""
	if !restored {
		m.greet()
	}
	if m.knobs.LogLine != "" {
		m.log.errorf("%s", m.knobs.LogLine)
	}
	n := m.state.Boot.Identity.Network
	if n != nil && n.Device != wire.DeviceTAP && !m.hasNIC {
		violation("a guest with a network device that Firecracker was not given")
	}
	if m.state.Boot.Transport != wire.TransportVsock || m.dev == nil || m.has("nomodule") {
		fmt.Fprintln(os.Stderr, "fakefc: the guest has no vsock to call by")
		return nil // and never calls
	}
	m.guest, err = fakeguest.New(fakeguest.Config{
		Dir: "fakeguest", Identity: m.state.Boot.Identity, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
		OnVerb: m.verb, Verbs: []string{"crash", "diskfull", "halted", "says-halted"}, SFTP: []string{"/proc/self/exe", sftpArg},
	})
	if err != nil {
		return err
	}
	m.dev.start(m.guest.Accept)
	if m.boots > m.knobs.NeverCall {
		go m.calls()
	}
	return nil
}

// has reports whether the kernel was given an argument.
func (m *machine) has(arg string) bool { return slices.Contains(m.args, arg) }

// hasKey likewise, for key=value.
func (m *machine) hasKey(key string) bool {
	return slices.ContainsFunc(m.args, func(a string) bool { return strings.HasPrefix(a, key+"=") })
}

// greet writes what a kernel would to its console, where it has one.
func (m *machine) greet() {
	if m.has("8250.nr_uarts=0") || !m.has("console=ttyS0") {
		return
	}
	fmt.Fprintln(m.console, Banner)
	line := []byte(strings.Repeat("flood ", 170) + "\n")
	for left := m.knobs.Flood; left > 0; left -= int64(len(line)) {
		if _, err := m.console.Write(line); err != nil {
			return
		}
	}
	fmt.Fprintln(m.console, "fakefc: boot", m.boots)
}

func (m *machine) pause() error {
	m.gate.stop()
	return nil
}

func (m *machine) resume() error {
	m.mu.Lock()
	saved := m.saved
	m.saved = false
	m.mu.Unlock()
	m.gate.cont()
	if saved && m.dev != nil {
		m.dev.reset() // the guest takes the event that the snapshot left
	}
	return nil
}

// resizeDrive implements guest: the fakeguest has no drives.
func (m *machine) resizeDrive(string, string) error { return nil }

func (m *machine) active() bool {
	select {
	case <-m.up:
		return true
	default:
		return m.state.Token != ""
	}
}

func (m *machine) save() (guestState, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.saved = true
	if m.call != nil {
		m.state.Token = m.call.Token
	}
	return m.state, nil
}

func (m *machine) ctrlAltDel() { go m.verb("reboot") }

func (m *machine) close() {
	close(m.over)
	m.gate.cont() // or what ends would stand still
	if m.guest != nil {
		m.guest.Close()
	}
}

// calls keeps the agent's call up: with the secret at first, with the token after a call was lost.
func (m *machine) calls() {
	if !m.wait(time.Duration(m.knobs.CallAfter) * time.Millisecond) {
		return
	}
	for {
		lost, err := m.callHost()
		if errors.Is(err, fakeguest.ErrRefused) {
			fmt.Fprintln(os.Stderr, "fakefc: call:", err)
			return
		}
		select {
		case <-lost:
		case <-m.over:
			return
		}
		if !m.wait(redialEvery) {
			return
		}
	}
}

// wait waits for d; false when the guest has ended.
func (m *machine) wait(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-m.over:
		return false
	}
}

// zeros is noise without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 0x55
	}
	return len(p), nil
}

// closed is a channel that is.
func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// callHost makes one call; lost is closed when it has ended.
func (m *machine) callHost() (lost <-chan struct{}, err error) {
	hello := wire.Call{Secret: m.state.Boot.Secret, Version: wire.Version, BootID: m.state.BootID, Init: "none"}
	m.mu.Lock()
	first := m.call == nil && m.state.Token == ""
	if m.call != nil {
		m.state.Token = m.call.Token
	}
	if m.state.Token != "" {
		hello.Secret, hello.Token = "", m.state.Token
	}
	m.mu.Unlock()
	if m.knobs.WrongVersion {
		hello.Version++
	}
	conn, err := m.dev.dial(wire.PortCall)
	if err != nil {
		return closed(), err
	}
	if m.knobs.Garbage {
		_, err := io.Copy(conn, zeros{})
		return conn.stream.gone, err
	}
	call, err := fakeguest.Dial(conn, hello)
	if err != nil {
		return closed(), err
	}
	m.mu.Lock()
	begin := m.call == nil
	m.call = call
	if call.Token == "" {
		call.Token = m.state.Token
	}
	m.state.Token = call.Token
	m.mu.Unlock()
	if begin {
		close(m.up)
		go m.network()
	}
	if m.knobs.CallTwice && first {
		m.callAgain(hello)
	}
	_ = call.Logf("boot %s", m.state.BootID)
	for _, mark := range []string{"agent", "ready", "full"} {
		_ = call.Mark(mark)
	}
	return conn.stream.gone, nil
}

// callAgain uses the secret a second time.
func (m *machine) callAgain(hello wire.Call) {
	conn, err := m.dev.dial(wire.PortCall)
	if err == nil {
		_, err = fakeguest.Dial(conn, hello)
	}
	if errors.Is(err, fakeguest.ErrRefused) {
		_ = os.WriteFile(RefusedFile, []byte(err.Error()), 0o600)
	}
}

// network is the guest's eth0, as the agent carries it to the host, until the guest ends.
func (m *machine) network() {
	n := m.state.Boot.Identity.Network
	if n == nil || n.Device != wire.DeviceTAP {
		return
	}
	for {
		if err := m.carry(*n); err != nil {
			fmt.Fprintln(os.Stderr, "fakefc: network:", err)
		}
		if !m.wait(redialEvery) {
			return
		}
	}
}

func (m *machine) carry(n wire.Network) error {
	conn, err := m.dev.dial(wire.PortNet)
	if err != nil {
		return err
	}
	m.mu.Lock()
	token := m.call.Token
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-m.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	return fakeguest.CarryNetwork(ctx, conn, token, n)
}

// verb does what a program of the guest asked for.
func (m *machine) verb(verb string) {
	switch verb {
	case "crash":
		m.log.errorf("Firecracker panicked at src/vmm/src/lib.rs:1: on request")
		fmt.Fprintln(os.Stderr, "fakefc: panicked on request")
		dieBySignal(sigAbort)
	case "diskfull":
		m.log.errorf(`Failed to execute Out virtio block request: FileEngine(Sync(Transfer(IOError(Os { code: 28, kind: StorageFull, message: "No space left on device" }))))`)
		return
	case "halted", "says-halted":
		fmt.Fprint(m.console, "login: [   12.345678] reboot: System halted\r\n")
		if verb == "halted" {
			m.gate.stop() // for good
		}
		return
	case fakeguest.VerbPanic:
		if m.hasKey("panic") { // else it hangs for ever
			m.reset()
		}
		return
	}
	select {
	case <-m.up:
	case <-m.over:
		return
	}
	m.mu.Lock()
	call := m.call
	m.mu.Unlock()
	if err := call.Ending(verb); err != nil {
		fmt.Fprintln(os.Stderr, "fakefc: announce:", err)
	}
	if !m.knobs.Wedge {
		m.reset() // as the agent, whatever the verb
	}
}

// reset is the guest's reset: by the keyboard controller, or else by a triple fault.
func (m *machine) reset() {
	m.gate.wait()
	if m.has("reboot=k") {
		m.finish(0)
		return
	}
	m.log.tripleFault()
	m.finish(1)
}

func newState(conf config, boots int) (guestState, error) {
	if conf.BootSource.InitrdPath == nil {
		return guestState{}, errors.New("fakefc: a guest without an initrd")
	}
	boot, err := readBoot(*conf.BootSource.InitrdPath)
	return guestState{Boot: boot, BootID: strconv.Itoa(boots)}, err
}

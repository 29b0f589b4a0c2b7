package fakefc

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc/vhostvsock"
	"git.thaloco.com/thaloco/banger/internal/vmm/qemu"
)

const (
	// qemuProgram is looked up in PATH.
	qemuProgram = "qemu-system-x86_64"
	// vhostSocket is where QEMU finds its vsock device, until it has.
	vhostSocket = "fakefc.vhost"
	// qmpTimeout bounds a command to QEMU.
	qmpTimeout = 10 * time.Second
)

// emulator is the VM of the resources in QEMU, with a vsock device like Firecracker's.
type emulator struct {
	config config
	args   []string // the kernel's
	log    *logger
	vhost  *vhostvsock.Device
	taps   []*os.File // of the network devices

	child  *hostexec.Child
	stop   context.CancelFunc // ends the vsock device
	served chan struct{}      // closed when it has ended
	gone   chan struct{}      // closed when QEMU has

	asking  sync.Mutex // held while QEMU is asked something
	qmp     net.Conn
	answers chan qmpMessage
	said    chan struct{} // closed when QEMU says nothing more

	mu       sync.Mutex // guards shutdown
	shutdown string     // the reason of QEMU's SHUTDOWN event
}

// qmpMessage is any line of QEMU's machine protocol.
type qmpMessage struct {
	Event string `json:"event"`
	Data  struct {
		Reason string `json:"reason"`
	} `json:"data"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Desc string `json:"desc"`
	} `json:"error"`
}

// boot implements guest.
func (e *emulator) boot(finish func(status int)) error {
	e.served, e.gone, e.answers = make(chan struct{}), make(chan struct{}), make(chan qmpMessage, 8)
	e.said = make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	e.stop = cancel
	tsc, err := qemu.MeasureTSC(ctx)
	if err != nil {
		return err
	}
	if e.vhost != nil {
		_ = unix.Unlink(vhostSocket) // of one that was killed
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: vhostSocket})
		if err != nil {
			return err
		}
		go func() {
			defer close(e.served)
			if err := e.vhost.Serve(ctx, ln); err != nil && ctx.Err() == nil {
				fmt.Fprintln(os.Stderr, "fakefc: vsock:", err)
			}
		}()
	} else {
		close(e.served)
	}
	ours, theirs, err := pair()
	if err != nil {
		return err
	}
	e.qmp = ours
	started := make(chan error)
	go e.run(theirs, tsc, started, finish)
	if err := <-started; err != nil {
		cancel()
		return err
	}
	go e.readQMP()
	return e.execute("qmp_capabilities", nil)
}

// run starts QEMU and waits for its end, on a thread that lasts as long.
func (e *emulator) run(qmp *net.UnixConn, tsc int, started chan<- error, finish func(status int)) {
	runtime.LockOSThread()
	f, err := qmp.File()
	qmp.Close()
	if err == nil {
		e.child, err = hostexec.Runner{}.StartChild(e.command(tsc), ".", os.Environ(), os.Stdout, os.Stderr, append([]*os.File{f}, e.taps...)...)
		f.Close()
	}
	started <- err
	if err != nil {
		close(e.gone)
		return
	}
	status, sig, err := e.child.Wait()
	<-e.said
	close(e.gone)
	e.mu.Lock()
	reason := e.shutdown
	e.mu.Unlock()
	switch {
	case reason == "guest-shutdown":
		// Firecracker does not hear of it, and lives on.
		fmt.Fprintln(os.Stderr, "fakefc: the guest has switched itself off")
	case reason == "guest-reset" && slices.Contains(e.args, "reboot=k"):
		finish(exitOK)
	case reason == "guest-reset":
		e.log.tripleFault()
		finish(exitError)
	default:
		e.log.errorf("qemu ended: status %d, signal %d, %v", status, sig, err)
		finish(exitError)
	}
}

// command is QEMU with its arguments. A VM is described in full: what a Firecracker's guest does not have, this one does not either.
func (e *emulator) command(tsc int) []string {
	memory := strconv.FormatUint(e.config.MachineConfig.MemSizeMiB, 10) + "M"
	words := slices.Clone(e.args)
	for i, w := range words {
		if w == "reboot=k" {
			words[i] = "reboot=t" // a microvm has no keyboard controller
		}
	}
	words = append(words, fmt.Sprintf("tsc_early_khz=%d", tsc), "tsc=reliable", "no_timer_check")
	argv := []string{
		qemuProgram, "-name", "fakefc", "-M", "microvm,accel=tcg,rtc=on,acpi=on,memory-backend=mem",
		"-object", "memory-backend-memfd,id=mem,share=on,size=" + memory, "-m", memory,
		"-cpu", "max", "-smp", strconv.Itoa(int(e.config.MachineConfig.VCPUCount)),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-global", "virtio-mmio.force-legacy=false",
		"-kernel", e.config.BootSource.KernelImagePath, "-append", strings.Join(words, " "),
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
	}
	if i := e.config.BootSource.InitrdPath; i != nil {
		argv = append(argv, "-initrd", *i)
	}
	for _, d := range e.config.Drives {
		argv = append(argv, "-blockdev", blockNode(d), "-device", "virtio-blk-device,drive="+d.ID)
	}
	for i, n := range e.config.Interfaces {
		device := "virtio-net-device,netdev=" + n.ID
		if n.GuestMAC != nil {
			device += ",mac=" + *n.GuestMAC
		}
		argv = append(argv, "-netdev", fmt.Sprintf("tap,id=%s,fd=%d", n.ID, 4+i), "-device", device)
	}
	if e.config.Entropy != nil {
		argv = append(argv, "-device", "virtio-rng-device")
	}
	if e.vhost != nil {
		argv = append(argv, "-chardev", "socket,id=vsock,path="+vhostSocket, "-device", "vhost-user-vsock-device,chardev=vsock")
	}
	return argv
}

// blockNode is a drive's file for QEMU.
func blockNode(d drive) string {
	cache := map[string]bool{"direct": false, "no-flush": d.CacheType == "Unsafe"}
	b, _ := json.Marshal(map[string]any{
		"driver": "raw", "node-name": d.ID, "read-only": d.readOnly(), "cache": cache,
		"file": map[string]any{"driver": "file", "filename": *d.PathOnHost, "read-only": d.readOnly(), "cache": cache},
	})
	return string(b)
}

// readQMP hands out what QEMU says.
func (e *emulator) readQMP() {
	defer close(e.said)
	defer close(e.answers)
	r := bufio.NewReader(e.qmp)
	for {
		line, err := r.ReadBytes('\n')
		if err != nil {
			return
		}
		var m qmpMessage
		if err := json.Unmarshal(line, &m); err != nil {
			fmt.Fprintln(os.Stderr, "fakefc: qmp:", err)
			return
		}
		switch {
		case m.Event == "SHUTDOWN":
			e.mu.Lock()
			e.shutdown = m.Data.Reason
			e.mu.Unlock()
		case m.Return != nil || m.Error != nil:
			e.answers <- m
		}
	}
}

// execute runs a command of QEMU's.
func (e *emulator) execute(name string, arguments map[string]any) error {
	e.asking.Lock()
	defer e.asking.Unlock()
	command := map[string]any{"execute": name}
	if arguments != nil {
		command["arguments"] = arguments
	}
	b, err := json.Marshal(command)
	if err == nil {
		_, err = e.qmp.Write(append(b, '\n'))
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	select {
	case m, ok := <-e.answers:
		switch {
		case !ok:
			return fmt.Errorf("%s: %w", name, io.ErrUnexpectedEOF)
		case m.Error != nil:
			return fmt.Errorf("%s: %s", name, m.Error.Desc)
		}
		return nil
	case <-time.After(qmpTimeout):
		_ = e.qmp.Close() // or the answer would be taken for the next one's
		return fmt.Errorf("%s: no answer", name)
	}
}

func (e *emulator) pause() error  { return e.execute("stop", nil) }
func (e *emulator) resume() error { return e.execute("cont", nil) }

// resizeDrive implements guest: whole sectors, as Firecracker.
func (e *emulator) resizeDrive(id, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return e.execute("block_resize", map[string]any{"node-name": id, "size": info.Size() &^ 511})
}

func (e *emulator) active() bool { return true }

func (e *emulator) save() (guestState, error) {
	return guestState{}, errors.New("fakefc takes no snapshots of a QEMU")
}

func (e *emulator) ctrlAltDel() { fmt.Fprintln(os.Stderr, "fakefc: there is no keyboard") }

func (e *emulator) close() {
	e.child.Kill()
	<-e.gone
	e.stop()
	<-e.served
	_ = e.qmp.Close()
	_ = unix.Unlink(vhostSocket) // where QEMU never came
}

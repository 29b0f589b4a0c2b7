package agent

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// The verbs of an end, as systemd and the call name them.
const (
	verbPoweroff = guestapi.VerbPoweroff
	verbReboot   = guestapi.VerbReboot
	verbHalt     = guestapi.VerbHalt
)

const (
	announceTimeout = 3 * time.Second
	quietTimeout    = 20 * time.Second
)

func validVerb(v string) bool { return v == verbPoweroff || v == verbReboot || v == verbHalt }

// end tells the host how the guest ends, makes the data drive clean and ends the machine. Whatever the verb, that is
// a reset, for it is what every VMM ends at; the host knows the verb. Where the host could not be told, the machine
// does what the verb says, and a VMM that understands it may draw its conclusion; Firecracker, whose transport vsock is, understands only a
// reset, and would stay.
func (a *agent) end(ctx context.Context, verb string) error {
	a.ending.Lock() // a second end waits for the first, which does not return
	defer a.ending.Unlock()
	told, cancel := context.WithTimeout(ctx, announceTimeout)
	err := a.call.announce(told, verb)
	cancel()
	if err != nil {
		a.log.Warn("the host was not told of the end", "error", err)
	}
	quiet(a.data)
	if err != nil && verb != verbReboot && a.conf.Transport != wire.TransportVsock {
		return powerOffMachine()
	}
	return restartMachine()
}

// lastWords is how long the processes of a guest have between an init's SIGTERM and the agent's taking over. The
// shortest any init waits before SIGKILL, which spares nobody there, is a second.
const lastWords = 700 * time.Millisecond

// takeOver ends the guest in place of an init that is not systemd, when that init kills all processes because the
// host asked for an end: it would kill the agent next, and leave the data drive in need of recovery. Where nobody
// asked, the verb is not known, and the init has its way.
func (a *agent) takeOver(ctx context.Context) {
	a.mu.Lock()
	verb := a.asked
	a.mu.Unlock()
	if verb == "" {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lastWords)
	look := time.NewTicker(20 * time.Millisecond)
	defer look.Stop()
	for ctx.Err() == nil && len(others(1)) > 0 {
		select {
		case <-look.C:
		case <-ctx.Done():
		}
	}
	cancel()
	if err := a.end(context.WithoutCancel(ctx), verb); err != nil {
		a.log.Error("ending the guest", "verb", verb, "error", err)
	}
}

// quiet writes everything to disk and freezes the file system of data, so that it needs no recovery. It gives up
// after quietTimeout: what is left then is what a journal is for.
func quiet(data *os.File) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		unix.Sync()
		if data != nil {
			_ = unix.IoctlSetInt(int(data.Fd()), fiFreeze, 0) // best effort, as said
		}
	}()
	select {
	case <-done:
	case <-time.After(quietTimeout):
		fmt.Fprintln(os.Stderr, "banger: the file systems do not come to rest")
	}
}

// fiFreeze is FIFREEZE.
const fiFreeze = 0xc0045877

func restartMachine() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil {
		return fmt.Errorf("reset: %w", err)
	}
	return nil
}

func powerOffMachine() error {
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		return fmt.Errorf("power off: %w", err)
	}
	return nil
}

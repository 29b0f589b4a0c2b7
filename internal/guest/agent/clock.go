package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// clockSlack is how far the guest's clock may be off before it is set.
const clockSlack = 10 * time.Millisecond

// setClock sets the clock to the host's.
func setClock(now time.Time) error {
	if d := time.Since(now); d < clockSlack && d > -clockSlack {
		return nil
	}
	ts := unix.NsecToTimespec(now.UnixNano())
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &ts); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// Requests of random(4), which x/sys lacks.
const (
	rndAddEntropy = 0x40085203
	rndReseedCRNG = 0x5207
)

// addEntropy gives the kernel random bytes of the host, credited in full, and has it use them at once.
func addEntropy(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	f, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	info := binary.NativeEndian.AppendUint32(nil, uint32(len(b)*8))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(b)))
	info = append(info, b...)
	_, _, e1 := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&info[0])))
	_, _, e2 := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0)
	return errors.Join(errnoOf("add entropy", e1), errnoOf("reseed", e2))
}

func errnoOf(what string, e unix.Errno) error {
	if e == 0 {
		return nil
	}
	return fmt.Errorf("%s: %w", what, e)
}

package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
	"git.thaloco.com/thaloco/banger/internal/hostfile"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
	"git.thaloco.com/thaloco/banger/internal/vmm"
)

// maxFile is the largest JSON file that is read back from a VM's directory, in bytes.
const maxFile = 1 << 20

// record is supervisor.json: who looks after a VM.
type record struct {
	// Version is ProtocolVersion of the supervisor.
	Version    int              `json:"version"`
	Supervisor hostproc.Process `json:"supervisor"`
	// VMM is the VMM of the current boot; its PID is 0 while there is none.
	VMM hostproc.Process `json:"vmm"`
	// Transport is wire.TransportVsock where vsock.sock is Firecracker's own; else it is the supervisor's.
	Transport string `json:"transport,omitempty"`
}

// writeJSON writes v to dir/name, all of it or nothing; durable where it must outlive a crash of the host.
func writeJSON(dir, name string, v any, durable bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	f, err := os.CreateTemp(dir, "."+name+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %q: %w", name, err)
	}
	_, err = f.Write(append(b, '\n'))
	if durable && err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), filepath.Join(dir, name))
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fmt.Errorf("write %q: %w", name, err)
	}
	if durable {
		return hostfile.SyncDir(dir)
	}
	return nil
}

// readJSON reads dir/name into v; fs.ErrNotExist where it is not there.
func readJSON(dir, name string, v any) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return fmt.Errorf("read %q: %w", name, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %q: %w", name, err)
	}
	return nil
}

// readRecord reads supervisor.json of dir; fs.ErrNotExist where it is not there, and where a crash of the host, which no
// supervisor survives, cut it short.
func readRecord(dir string) (record, error) {
	var rec record
	err := readJSON(dir, paths.VMSupervisor, &rec)
	if _, ok := errors.AsType[*json.SyntaxError](err); ok {
		err = &fs.PathError{Op: "read", Path: filepath.Join(dir, paths.VMSupervisor), Err: fs.ErrNotExist}
	}
	return rec, err
}

// readEnd returns the recorded end of the VM in dir, nil where there is none.
func readEnd(dir string) *vmm.End {
	var end vmm.End
	if readJSON(dir, paths.VMEnd, &end) != nil || end.Cause == "" {
		return nil
	}
	return &end
}

// sweepTime is how long a supervisor that starts waits for a sweep in its directory to be over, and a sweep for a dead supervisor.
const sweepTime = time.Second

// transient are the files that are in a VM's directory only while it runs, beside supervisor.json.
func transient() []string {
	return []string{paths.VMControl, paths.VMVsock, portSocket(wire.PortCall), portSocket(wire.PortNet), paths.VMInitrd,
		paths.VMFirecrackerAPI, paths.VMFirecrackerConfig, paths.VMFirecrackerLog}
}

// sweep removes what a supervisor that was killed left in dir, unless another one runs there.
func sweep(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return // there is nothing any more
	}
	defer f.Close()
	for end := time.Now().Add(sweepTime); ; {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = remove(dir, transient()...) // else the next start does
			return
		}
		// The threads of one that is dead may be dying still.
		if rec, err := readRecord(dir); err == nil && rec.Supervisor.Alive() || time.Now().After(end) || !pause(context.Background(), 10*time.Millisecond) {
			return
		}
	}
}

// remove removes files of dir; what is not there is fine.
func remove(dir string, names ...string) error {
	var errs []error
	for _, name := range names {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

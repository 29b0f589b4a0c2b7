package initramfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// WriteAgent writes the archive with the program at the path agentBinary as
// /init, the directories it mounts on, and the two devices a process needs before
// /dev is mounted.
func WriteAgent(w io.Writer, agentBinary string) error {
	f, err := os.Open(agentBinary)
	if err != nil {
		return fmt.Errorf("write agent archive: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("write agent archive: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("write agent archive: %q is not a file", agentBinary)
	}
	a := NewWriter(w)
	for _, dir := range []string{"dev", "proc", "sys", "run", "banger", "newroot"} {
		if err := a.Dir(dir, 0o755); err != nil {
			return err
		}
	}
	err = errors.Join(
		a.CharDevice("dev/console", 0o600, 5, 1),
		a.CharDevice("dev/null", 0o666, 1, 3),
		a.File("init", 0o755, info.Size(), f),
	)
	if err != nil {
		return fmt.Errorf("write agent archive: %w", err)
	}
	return a.Close()
}

// WriteBoot writes the archive with the boot configuration, readable by root only.
func WriteBoot(w io.Writer, boot wire.Boot) error {
	data, err := json.Marshal(boot)
	if err != nil {
		return fmt.Errorf("write boot archive: %w", err)
	}
	a := NewWriter(w)
	if err := a.Dir(path.Dir(wire.BootFile), 0o755); err != nil {
		return err
	}
	if err := a.Bytes(wire.BootFile, 0o600, data); err != nil {
		return err
	}
	return a.Close()
}

// ErrNoBoot says that an initramfs carries no boot configuration.
var ErrNoBoot = errors.New("no " + wire.BootFile + " in the initramfs")

// ReadBoot returns the boot configuration of an initramfs: the last one where there are several, as the kernel
// would leave it. The error is ErrNoBoot where there is none.
func ReadBoot(r io.Reader) (wire.Boot, error) {
	var boot wire.Boot
	err := ErrNoBoot
	ar := NewReader(r)
	for {
		h, nerr := ar.Next()
		if nerr == io.EOF {
			return boot, err
		}
		if nerr != nil {
			return wire.Boot{}, fmt.Errorf("read initramfs: %w", nerr)
		}
		if "/"+h.Name != wire.BootFile || !h.IsFile() {
			continue
		}
		boot = wire.Boot{}
		if err = json.NewDecoder(io.LimitReader(ar, h.Size)).Decode(&boot); err != nil {
			return wire.Boot{}, fmt.Errorf("read %s of the initramfs: %w", wire.BootFile, err)
		}
	}
}

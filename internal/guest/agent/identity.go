package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// maxEtcFile is more than any of the files below ever is, in bytes; a longer one is taken for absent.
const maxEtcFile = 1 << 20

// setIdentity gives the guest its name and id. Files that say so already are not touched. It does what it can
// and returns all errors.
func setIdentity(id wire.Identity) error {
	var errs []error
	if id.Hostname != "" {
		if err := unix.Sethostname([]byte(id.Hostname)); err != nil {
			errs = append(errs, fmt.Errorf("set hostname %q: %w", id.Hostname, err))
		}
		errs = append(errs, writeChanged("/etc/hostname", id.Hostname+"\n"))
		old, _ := readSmall("/etc/hosts")
		errs = append(errs, writeChanged("/etc/hosts", hostsFile(old, id.Hostname)))
	}
	if id.MachineID != "" {
		errs = append(errs, writeChanged("/etc/machine-id", id.MachineID+"\n"))
	}
	if id.Network != nil {
		errs = append(errs, networkFiles(*id.Network))
	}
	return errors.Join(errs...)
}

// hostsFile returns old with a line for this host's name, and with those for localhost where there are none.
func hostsFile(old, hostname string) string {
	var b strings.Builder
	local := false
	for line := range strings.Lines(old) {
		f := strings.Fields(line)
		if len(f) > 0 && f[0] == "127.0.1.1" {
			continue
		}
		local = local || len(f) > 1 && f[0] == "127.0.0.1"
		b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
	}
	if !local {
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	}
	b.WriteString("127.0.1.1\t" + hostname + "\n")
	return b.String()
}

// readSmall reads a regular file of an image, which may be anything.
func readSmall(p string) (string, error) {
	f, err := os.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() || info.Size() > maxEtcFile {
		return "", fmt.Errorf("%q is no small file", p)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEtcFile))
	return string(b), err
}

// writeChanged makes p a file with the given content, unless it is one. A link is replaced, not followed.
func writeChanged(p, content string) error {
	if info, err := os.Lstat(p); err == nil && info.Mode().IsRegular() && info.Size() == int64(len(content)) {
		if old, err := readSmall(p); err == nil && old == content {
			return nil
		}
	}
	if err := os.MkdirAll(path.Dir(p), 0o755); err != nil {
		return err
	}
	tmp := p + ".banger"
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, p)
}

// loopbackUp brings the loopback interface up, which gives it its addresses.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	defer unix.Close(s)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring up lo: %w", err)
	}
	return nil
}

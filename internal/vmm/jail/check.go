package jail

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// versionTimeout is how long a program may take to say its version.
const versionTimeout = 10 * time.Second

const noJail = `set jail = "off" in config.toml to run firecracker without its jailer`

// Check reports why a VM whose directory is dir, or will be in it, could not be jailed by the program jailer: nil where it
// could. It tries what the jailer will do, and leaves nothing of it. The error's hint says what to do.
func Check(dir, jailer string) error {
	refuse := func(format string, args ...any) *api.Error {
		return api.Errorf(api.KindUnavailable, "jail firecracker: "+format, args...)
	}
	if os.Geteuid() != 0 {
		return refuse("only root can").WithHint(noJail)
	}
	if st, err := os.Stat(jailer); err != nil {
		return refuse("%w", err).WithHint("install the jailer of firecracker's release beside firecracker, or %s", noJail)
	} else if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return refuse("%q is no program", jailer).WithHint("chmod +x %s", jailer)
	}
	if missing := missingCapabilities(); len(missing) > 0 {
		return refuse("root has not got %s here, as in a container", strings.Join(missing, ", ")).
			WithHint("run the container with --privileged, or %s", noJail)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return refuse("%w", &os.PathError{Op: "statfs", Path: dir, Err: err})
	}
	// statfs(2)'s ST_NODEV and ST_NOEXEC are the same.
	for option, flag := range map[string]int64{"nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC} {
		if int64(st.Flags)&flag != 0 {
			return refuse("%q is on a file system mounted %s", dir, option).
				WithHint("mount -o remount,%s \"$(findmnt -n -o TARGET -T %s)\"   # or %s", strings.TrimPrefix(option, "no"), dir, noJail)
		}
	}
	if rootIsInitramfs() {
		return refuse("the host runs from its initramfs, whose root cannot be changed").WithHint(noJail)
	}
	if err := tryDevice(dir); err != nil {
		return refuse("%w", err).WithHint("run the container with --privileged and --device /dev/kvm, or %s", noJail)
	}
	if err := tryMount(dir); err != nil {
		return refuse("%w", err).WithHint("run the container with --privileged, or %s", noJail)
	}
	return nil
}

// missingCapabilities returns the names of the capabilities the jailer needs and the process lacks.
func missingCapabilities() []string {
	need := []struct {
		bit  uint
		name string
	}{
		{unix.CAP_CHOWN, "CAP_CHOWN"}, {unix.CAP_DAC_OVERRIDE, "CAP_DAC_OVERRIDE"}, {unix.CAP_FOWNER, "CAP_FOWNER"},
		{unix.CAP_SETGID, "CAP_SETGID"}, {unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
		{unix.CAP_MKNOD, "CAP_MKNOD"},
	}
	have, err := capabilities("/proc/thread-self/status")
	if err != nil {
		return nil // then the tries tell
	}
	var missing []string
	for _, c := range need {
		if have&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	return missing
}

// capabilities reads the effective capabilities in a /proc/PID/status.
func capabilities(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if v, ok := strings.CutPrefix(sc.Text(), "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	return 0, errors.New("no CapEff in " + path)
}

// rootIsInitramfs reports whether the root file system is the kernel's own rootfs, which pivot_root(2) refuses.
func rootIsInitramfs() bool {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	rootfs := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		mount, kind, _ := strings.Cut(sc.Text(), " - ")
		if fields := strings.Fields(mount); len(fields) > 4 && fields[4] == "/" {
			rootfs = strings.HasPrefix(kind, "rootfs ") // of several, the last is on top
		}
	}
	return rootfs
}

// tryDevice makes /dev/kvm's double in dir and opens it: what keeps the jailer from it (a user namespace, a cgroup's list
// of devices, a file system without any) is seen in no flag. That there is no KVM is not its matter.
func tryDevice(dir string) error {
	tmp, err := os.MkdirTemp(dir, ".jail-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	path := filepath.Join(tmp, "kvm")
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 232))); err != nil {
		return &os.PathError{Op: "make the device", Path: path, Err: err}
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return &os.PathError{Op: "open the device", Path: path, Err: err}
	}
	if err == nil {
		_ = unix.Close(fd)
	}
	return nil
}

// tryMount mounts dir on itself in a mount namespace, on a thread that ends with it.
func tryMount(dir string) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine, and the namespace with it
		err := ownMounts()
		if err == nil {
			if err = unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
				err = fmt.Errorf("mount %q: %w", dir, err)
			}
		}
		result <- err
	}()
	return <-result
}

// sameVersion refuses a jailer that is not of Firecracker's release: they go together.
func sameVersion(ctx context.Context, jailer, firecracker string) error {
	ctx, cancel := context.WithTimeout(ctx, versionTimeout)
	defer cancel()
	j, err := version(ctx, jailer, "Jailer ")
	if err != nil {
		return err
	}
	f, err := version(ctx, firecracker, "Firecracker ")
	if err != nil {
		return err
	}
	if j != f {
		return api.Errorf(api.KindUnavailable, "jail firecracker: %s is of version %s, %s of %s", firecracker, f, jailer, j).
			WithHint("install both from one release, or %s", noJail)
	}
	return nil
}

// version asks a program for its version, as in "v1.17.0"; before it, on the first line, it says its name.
func version(ctx context.Context, program, name string) (string, error) {
	out, err := hostexec.Runner{}.Output(ctx, hostexec.Cmd{Argv: []string{program, "--version"}})
	if err != nil {
		return "", api.Errorf(api.KindUnavailable, "jail firecracker: ask for a version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	v, ok := strings.CutPrefix(strings.TrimSpace(line), name)
	if !ok {
		return "", api.Errorf(api.KindUnavailable, "jail firecracker: %s says %.100q for a version", program, line)
	}
	return v, nil
}

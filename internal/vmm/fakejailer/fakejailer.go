// Package fakejailer is a jailer for tests of what is built on Firecracker's: like that of version 1.17 it takes its
// arguments (args.go) and does its steps in its order, with its failures (fakejailer.go), for whatever program it is given.
// What banger does not use it refuses. It needs root, as the real one does.
//
// What is said of the real one is from its sources: src/jailer/src/{main,env,chroot}.rs.
package fakejailer

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Version is what --version says, unless the environment variable VersionVar is set.
const (
	Version    = "1.17.0"
	VersionVar = "FAKEJAILER_VERSION"
)

// Main is the program: args are its arguments without its name. It returns only where it failed, or had nothing to jail.
func Main(args []string) int {
	runtime.LockOSThread() // all it does to itself, it does to this thread, which becomes the program
	version := os.Getenv(VersionVar)
	if version == "" {
		version = Version
	}
	// The real one closes them at once; the Go runtime has some of its own, which end here too when the program begins.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		panic(err)
	}
	os.Clearenv()
	values, extra, err := split(args)
	switch {
	case err != nil:
	case values["--version"] != nil:
		fmt.Fprintf(os.Stdout, "Jailer v%s\n\n", version)
		return 0
	case values["--help"] != nil:
		fmt.Fprintln(os.Stdout, "A jailer for tests.")
		return 0
	default:
		var c config
		if c, err = newConfig(values, extra); err == nil {
			err = c.run()
		}
	}
	fmt.Fprintln(os.Stderr, err)
	fmt.Fprintf(os.Stderr, "Error: %q\n", err)
	return 1
}

// said is an error in the real one's words, which are not those of Go's errors.
func said(format string, args ...any) error { return fmt.Errorf(format, args...) }

// failure is an error in the words of Rust's std::io::Error.
func failure(what string, err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		text := errno.Error()
		return fmt.Errorf("%s: %s (os error %d)", what, strings.ToUpper(text[:1])+text[1:], int(errno))
	}
	return fmt.Errorf("%s: %w", what, err)
}

// run jails the program; where that succeeds this process is the program.
func (c config) run() error {
	name := filepath.Base(c.execFile)
	root := filepath.Join(c.base, name, c.id, "root")
	if err := os.MkdirAll(root, 0o777); err != nil {
		return failure("Failed to create directory "+root, err)
	}
	if err := c.copyExec(filepath.Join(root, name)); err != nil {
		return err
	}
	limit := unix.Rlimit{Cur: c.files, Max: c.files}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return failure("Failed to set limit for resource: no-file", err)
	}
	userfault := miscMinor("userfaultfd")
	if err := enter(root); err != nil {
		return err
	}
	for _, dir := range []string{"/", "/dev", "/dev/net", "/run"} {
		if err := c.setUpDir(dir); err != nil {
			return err
		}
	}
	if err := c.devices(userfault); err != nil {
		return err
	}
	pidFile := "/" + name + ".pid"
	fd, err := unix.Open(pidFile, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o666)
	if err == nil {
		_, err = unix.Write(fd, []byte(strconv.Itoa(os.Getpid())))
		_ = unix.Close(fd)
	}
	if err != nil {
		return failure("Failed to open/write "+pidFile, err)
	}
	return c.exec("/" + name)
}

// copyExec copies the program into the jail.
func (c config) copyExec(to string) error {
	data, err := os.ReadFile(c.execFile)
	if err != nil {
		return failure("Failed to copy "+c.execFile, err)
	}
	st, err := os.Stat(c.execFile)
	if err != nil {
		return failure("Failed to copy "+c.execFile, err)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, st.Mode().Perm()) // not truncated
	if err != nil {
		return failure("Failed to copy "+c.execFile, err)
	}
	defer f.Close()
	var at syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &at); err != nil {
		return failure("Failed to copy "+c.execFile, err)
	}
	if at.Nlink > 1 {
		return said("Detected hard link at: %s", to)
	}
	if _, err := f.Write(data); err != nil {
		return failure("Failed to copy "+c.execFile, err)
	}
	if err := f.Chown(int(c.uid), int(c.gid)); err != nil {
		return failure("Failed to change owner for "+to, err)
	}
	return f.Close()
}

// miscMinor is the minor number of a device in /proc/misc, -1 where it is not there.
func miscMinor(name string) int {
	f, err := os.Open("/proc/misc")
	if err != nil {
		return -1
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) == 2 && fields[1] == name {
			if n, err := strconv.Atoi(fields[0]); err == nil {
				return n
			}
		}
	}
	return -1
}

// enter makes root the root directory, in a mount namespace of this thread's own.
func enter(root string) error {
	steps := []struct {
		what string
		do   func() error
	}{
		{"Failed to unshare into new mount namespace", func() error { return unix.Unshare(unix.CLONE_NEWNS) }},
		{"Failed to change the propagation type to slave", func() error { return unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "") }},
		{"Failed to bind mount the jail root directory", func() error { return unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, "") }},
		{"Failed to change current directory", func() error { return unix.Chdir(root) }},
		{"Failed to create the jail root directory before pivoting root", func() error { return unix.Mkdir("old_root", 0o600) }},
		{"Failed to pivot root", func() error { return unix.PivotRoot(".", "old_root") }},
		{"Failed to chdir into / after pivoting", func() error { return unix.Chdir("/") }},
		{"Failed to unmount the old jail root", func() error { return unix.Unmount("old_root", unix.MNT_DETACH) }},
		{"Failed to remove old jail root directory", func() error { return unix.Rmdir("old_root") }},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			return failure(s.what, err)
		}
	}
	return nil
}

// setUpDir makes a directory of the jail, which may be there, the user's.
func (c config) setUpDir(dir string) error {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return failure("Failed to create directory "+dir, err)
	}
	if err := unix.Chmod(dir, 0o700); err != nil {
		return failure("Failed to change permissions on "+dir, err)
	}
	if err := unix.Chown(dir, int(c.uid), int(c.gid)); err != nil {
		return failure("Failed to change owner for "+dir, err)
	}
	return nil
}

// devices makes the device files.
func (c config) devices(userfault int) error {
	devices := []struct {
		path         string
		major, minor uint32
	}{{"/dev/net/tun", 10, 200}, {"/dev/kvm", 10, 232}, {"/dev/urandom", 1, 9}}
	for _, d := range devices {
		if err := c.device(d.path, d.major, d.minor); err != nil {
			if d.path == "/dev/urandom" {
				fmt.Fprintf(os.Stdout, "Warning! Could not create /dev/urandom: %v\n", err)
				continue
			}
			return err
		}
	}
	if userfault < 0 {
		return nil
	}
	return c.device("/dev/userfaultfd", 10, uint32(userfault))
}

func (c config) device(path string, major, minor uint32) error {
	if err := unix.Mknod(path, unix.S_IFCHR|0o600, int(unix.Mkdev(major, minor))); err != nil {
		return failure("Failed to create "+path+" via mknod inside the jail", err)
	}
	if err := unix.Chown(path, int(c.uid), int(c.gid)); err != nil {
		return failure("Failed to change owner for "+path, err)
	}
	return nil
}

// exec becomes the program, as the jail's user and with an empty environment. Credentials are those of the thread that calls it.
func (c config) exec(path string) error {
	argv := []string{
		path, "--id", c.id, "--start-time-us", strconv.FormatInt(time.Now().UnixMicro(), 10),
		"--start-time-cpu-us", "0", "--parent-cpu-time-us", "0",
	}
	uid, gid := uintptr(c.uid), uintptr(c.gid)
	for _, call := range [][4]uintptr{
		{unix.SYS_SETGROUPS, 0, 0, 0}, {unix.SYS_SETRESGID, gid, gid, gid}, {unix.SYS_SETRESUID, uid, uid, uid},
	} {
		if _, _, errno := unix.RawSyscall(call[0], call[1], call[2], call[3]); errno != 0 {
			return failure("Failed to exec into Firecracker", errno)
		}
	}
	return failure("Failed to exec into Firecracker", syscall.Exec(path, append(argv, c.extra...), nil))
}

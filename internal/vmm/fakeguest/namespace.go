package fakeguest

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// inNamespace marks the process that is in its own mount namespace.
const inNamespace = "FAKEGUEST_NAMESPACE"

// OwnNamespace puts the home of the guest in the directory "fakeguest" in place of the host's /root, and the host's poweroff out of
// reach, where the process may: as root. The namespace is the calling thread's, and becomes the process's by executing
// the program again: where OwnNamespace returns nil, that has happened, or there is nothing to do.
func OwnNamespace() error {
	if os.Geteuid() != 0 || os.Getenv(inNamespace) != "" {
		return nil
	}
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = mountHome()
	}
	// Whatever a test gets wrong: nothing in the guest ends the host.
	for _, name := range []string{"poweroff", "reboot", "halt", "shutdown", "telinit"} {
		path := "/usr/sbin/" + name
		if _, serr := os.Stat(path); serr == nil && err == nil {
			err = unix.Mount("/dev/null", path, "", unix.MS_BIND, "")
		}
	}
	if err != nil {
		return fmt.Errorf("make a mount namespace: %w", err)
	}
	// By this name the program is found even where its path is hidden now.
	return unix.Exec("/proc/self/exe", os.Args, append(os.Environ(), inNamespace+"=1"))
}

// mountHome mounts the guest's home on /root. A VM's directory under /root must stay where it is: then
// guest paths under /root are the host's after all.
func mountHome() error {
	cwd, err := os.Getwd()
	if err != nil || strings.HasPrefix(cwd+"/", "/root/") {
		return err
	}
	home := filepath.Join("fakeguest", "root")
	if err := os.MkdirAll(home, 0o700); err != nil {
		return err
	}
	return unix.Mount(home, "/root", "", unix.MS_BIND, "")
}

package jail

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

func TestCheck(t *testing.T) {
	needRoot(t)
	runtime.LockOSThread()
	if err := ownMounts(); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, c := range map[string]struct {
		dir, jailer string
		flags       uintptr
		want        string
	}{
		"fine":         {dir, self, 0, ""},
		"no jailer":    {dir, dir + "/jailer", 0, "no such file or directory"},
		"no program":   {dir, dir, 0, "is no program"},
		"no directory": {dir + "/none", self, 0, "no such file or directory"},
		"nodev":        {dir, self, unix.MS_NODEV, "is on a file system mounted nodev"},
		"noexec":       {dir, self, unix.MS_NOEXEC, "is on a file system mounted noexec"},
		"read-only":    {dir, self, unix.MS_RDONLY, "read-only file system"},
	} {
		if c.flags != 0 {
			if err := unix.Mount("tmpfs", dir, "tmpfs", c.flags, ""); err != nil {
				t.Fatal(err)
			}
		}
		err := Check(c.dir, c.jailer)
		var e *api.Error
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want == "":
		case !errors.As(err, &e) || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Hint, "jail = \"off\"") && !strings.HasPrefix(name, "no "):
			t.Errorf("%s: %v, want %s and a hint", name, err, c.want)
		}
		if c.flags != 0 {
			if err := unix.Unmount(dir, 0); err != nil {
				t.Fatal(err)
			}
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%s: left %v, %v", name, entries, err)
		}
	}
}

// TestCheckOfOthers: who is not root, or root of less than the host, is told so.
func TestCheckOfOthers(t *testing.T) {
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, c := range map[string]struct {
		attr syscall.SysProcAttr
		want string
	}{
		"nobody": {syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, "jail firecracker: only root can"},
		"root of a user namespace": {syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER,
			UidMappings: []syscall.SysProcIDMap{{Size: 1}}, GidMappings: []syscall.SysProcIDMap{{Size: 1}},
		}, "jail firecracker: make the device"},
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "check", dir, self)
		cmd.SysProcAttr = &c.attr
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), c.want) {
			t.Errorf("%s: %q, %v, want %s", name, out, err, c.want)
		}
	}
}

func TestMissingCapabilities(t *testing.T) {
	needRoot(t)
	runtime.LockOSThread() // they are this thread's
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1<<unix.CAP_MKNOD | 1<<unix.CAP_SYS_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	if got, want := missingCapabilities(), []string{"CAP_SYS_ADMIN", "CAP_MKNOD"}; !slices.Equal(got, want) {
		t.Errorf("missing %q, want %q", got, want)
	}
}

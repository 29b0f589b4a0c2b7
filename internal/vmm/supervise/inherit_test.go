package supervise

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/vmm"
	"git.thaloco.com/thaloco/banger/internal/vmm/firecracker/fakefc"
)

// TestFirecrackerInheritsNothing: the VMM that a supervisor starts, confined as VMs of users are, gains no privileges, leaves nothing for others
// to read, and has no descriptor that it did not open but the first three.
func TestFirecrackerInheritsNothing(t *testing.T) {
	left := filepath.Join(t.TempDir(), "left")
	fd, err := syscall.Open(left, syscall.O_CREAT|syscall.O_RDWR, 0o600) // not closed by exec, as a script may leave one
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	dir, spec := newFCVM(t, fakefc.Knobs{})
	if err := (fakefc.Knobs{}).Write(dir); err != nil { // confined, it reads no document of Firecracker's API
		t.Fatal(err)
	}
	spec.Unconfined = false
	r := launchFC(t, dir, spec)
	st := r.awaitFull(t)
	if st.Phase != vmm.PhaseRunning {
		t.Fatalf("the status is %+v", st)
	}
	for field, want := range map[string]string{"NoNewPrivs": "1", "Umask": "0077"} {
		if got := procStatus(t, st.VMMPID, field); got != want {
			t.Errorf("%s is %q, want %q", field, got, want)
		}
	}
	theirs, supervisors := descriptors(t, st.VMMPID), descriptors(t, st.SupervisorPID)
	for n, file := range theirs {
		if file == left {
			t.Errorf("descriptor %d is %s of whoever started the daemon", n, file)
		}
		if n == 0 && file != os.DevNull || (n == 1 || n == 2) && !strings.HasPrefix(file, "pipe:") {
			t.Errorf("descriptor %d is %s", n, file)
		}
		if n <= 2 {
			continue
		}
		for m := range supervisors {
			same, err := sameFile(st.VMMPID, n, st.SupervisorPID, m)
			if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
				t.Skip("descriptors cannot be compared here:", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			if same {
				t.Errorf("descriptor %d, %s, is the supervisor's", n, file)
			}
		}
	}
	if same, err := sameFile(st.VMMPID, 1, st.VMMPID, 1); err != nil || !same {
		t.Errorf("a descriptor is itself: %v, %v", same, err)
	}
}

// procStatus is a field of /proc/PID/status.
func procStatus(t *testing.T, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); name == field {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// descriptors are those of a process, and what they are.
func descriptors(t *testing.T, pid int) map[int]string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	all := map[int]string{}
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		if file, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil { // it may be closed by now
			all[n] = file
		}
	}
	if len(all) < 3 {
		t.Fatalf("process %d has the descriptors %v", pid, all)
	}
	return all
}

// sameFile reports by kcmp(2) whether two descriptors came of one open, as one that was inherited and its origin do.
func sameFile(pid1, fd1, pid2, fd2 int) (bool, error) {
	const kcmpFile = 0
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid1), uintptr(pid2), kcmpFile, uintptr(fd1), uintptr(fd2), 0)
	switch errno {
	case 0:
		return order == 0, nil
	case unix.EBADF: // it was closed
		return false, nil
	}
	return false, os.NewSyscallError("kcmp", errno)
}

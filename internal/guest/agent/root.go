package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

const (
	// runDir holds what banger has to say in a running guest. Root only.
	runDir = "/run/banger"
	// hookDir is where systemd looks for the program to end with; runUnits is the first place it looks for units
	// that are gone with the boot, and the one before those of the image.
	hookDir     = "/run/initramfs"
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

	// layoutDir is the layout of a data drive: upper and work of the overlay, and bind/NAME for boundDirs.
	layoutDir = "v1"
	// overlayOptions: renames of directories and changes of owners do not copy what is below them, hard
	// links stay together, and inode numbers stay the same over a copy-up (which takes 64 bits).
	overlayOptions = "lowerdir=/base,upperdir=/data/" + layoutDir + "/upper,workdir=/data/" + layoutDir +
		"/work,redirect_dir=on,metacopy=on,index=on,xino=auto"
)

// boundDir is a directory of the guest that lies on the data drive itself, outside the overlay:
// container stores cannot sit on an overlay, and the others need not pay for one.
type boundDir struct {
	path string
	mode fs.FileMode // where the image has none
}

var boundDirs = []boundDir{
	{"/root", 0o700},
	{"/home", 0o755},
	{"/var/lib/docker", 0o710},
	{"/var/lib/containerd", 0o711},
	{"/var/lib/containers", 0o755},
	{"/var/tmp", 0o777 | fs.ModeSticky},
}

type mountPoint struct {
	source, target, fstype, options string
	flags                           uintptr
}

func (m mountPoint) mount() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.options); err != nil {
		return fmt.Errorf("mount %s on %q: %w", m.source, m.target, err)
	}
	return nil
}

func mountAll(points []mountPoint) error {
	for _, m := range points {
		if err := m.mount(); err != nil {
			return err
		}
	}
	return nil
}

// mountEarly mounts what every Linux has, in the initramfs; enterRoot moves it over.
func mountEarly() error {
	const safe = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	return mountAll([]mountPoint{
		{source: "proc", target: "/proc", fstype: "proc", flags: safe},
		{source: "sysfs", target: "/sys", fstype: "sysfs", flags: safe},
		{source: "devtmpfs", target: "/dev", fstype: "devtmpfs", flags: unix.MS_NOSUID, options: "mode=0755"},
		{source: "devpts", target: "/dev/pts", fstype: "devpts", flags: unix.MS_NOSUID | unix.MS_NOEXEC, options: "gid=5,mode=620,ptmxmode=000"},
		{source: "tmpfs", target: "/dev/shm", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, options: "mode=1777"},
		{source: "tmpfs", target: "/run", fstype: "tmpfs", flags: unix.MS_NOSUID | unix.MS_NODEV, options: "mode=0755,size=20%"},
	})
}

// mountCgroups mounts the cgroup hierarchy for guests whose init is not systemd.
func mountCgroups() error {
	const safe = unix.MS_NOSUID | unix.MS_NOEXEC | unix.MS_NODEV
	err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", safe, "nsdelegate")
	if err != nil {
		return fmt.Errorf("mount cgroup2: %w", err)
	}
	return nil
}

// enterRoot mounts the drives, joins them to the guest's root and makes that the root of PID 1. It
// returns a descriptor of the data drive's file system.
//
// Nothing here follows a symbolic link of the image out of it: what lies below the image's root is
// looked up only after chroot, with the mounts held as descriptors until then.
func enterRoot(d drives, log *bootLog) (int, error) {
	err := mountAll([]mountPoint{
		{source: d.Base, target: "/base", fstype: "ext4", flags: unix.MS_RDONLY},
		{source: d.Data, target: "/data", fstype: "ext4"},
	})
	if err != nil {
		return 0, err
	}
	data, err := unix.Open("/data", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: "/data", Err: err}
	}
	log.step("drives mounted")
	if err := prepareData("/base", "/data", boundDirs); err != nil {
		return 0, fmt.Errorf("prepare the data drive: %w", err)
	}
	overlay := mountPoint{source: "overlay", target: "/newroot", fstype: "overlay", options: overlayOptions}
	if err := overlay.mount(); errors.Is(err, unix.ESTALE) {
		return 0, fmt.Errorf("%w: the data drive was made with another image", err)
	} else if err != nil {
		return 0, err
	}
	log.step("overlay mounted")
	if err := prepareRun(); err != nil {
		return 0, err
	}
	trees, err := takeTrees()
	if err != nil {
		return 0, err
	}
	if err := switchRoot("/newroot"); err != nil {
		return 0, err
	}
	for _, t := range trees {
		err := t.attach()
		if err != nil && t.must {
			return 0, err
		}
		log.warn(err)
	}
	if d.Modules != "" {
		log.warn(mountPoint{source: d.Modules, target: "/lib/modules", fstype: "ext4", flags: unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV}.mount())
	}
	return data, nil
}

// prepareRun fills /run while it is still in the initramfs: this binary as modprobe and as the shutdown hook,
// which systemd makes the root of PID 1 at the end. The initramfs is a file system of its own, so that it
// takes no part in what is unmounted then.
func prepareRun() error {
	for _, dir := range []string{"", "dev", "proc", "sys", "run", "oldroot", "data"} {
		if err := os.MkdirAll(path.Join("/hook", dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Link("/init", "/hook/shutdown"); err != nil {
		return err
	}
	if err := os.MkdirAll(runDir, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(runDir+"/modprobe", nil, 0o700); err != nil {
		return err
	}
	if err := bind("/init", runDir+"/modprobe"); err != nil {
		return err
	}
	if err := os.MkdirAll(hookDir, 0o755); err != nil {
		return err
	}
	return bind("/hook", hookDir)
}

func bind(from, to string) error {
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind %q to %q: %w", from, to, err)
	}
	return nil
}

// tree is a mount that is to go to a path of the new root.
type tree struct {
	fd   int
	path string
	must bool
	mode fs.FileMode // of the directory, where the image lacks it
}

// takeTrees opens the mounts of the initramfs that move on, and the bound directories.
func takeTrees() ([]tree, error) {
	var out []tree
	for _, p := range []string{"/proc", "/sys", "/dev", "/run"} {
		fd, err := unix.OpenTree(unix.AT_FDCWD, p, unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, fmt.Errorf("take mount %q: %w", p, err)
		}
		out = append(out, tree{fd: fd, path: p, must: true, mode: 0o755})
	}
	for _, b := range boundDirs {
		from := path.Join("/data", layoutDir, "bind", bindName(b.path))
		fd, err := unix.OpenTree(unix.AT_FDCWD, from, unix.OPEN_TREE_CLOEXEC|unix.OPEN_TREE_CLONE)
		if err != nil {
			return nil, fmt.Errorf("take %q: %w", from, err)
		}
		out = append(out, tree{fd: fd, path: b.path, mode: b.mode})
	}
	return out, nil
}

// attach puts the tree where it belongs in the present root.
func (t tree) attach() error {
	defer unix.Close(t.fd)
	err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	if errors.Is(err, unix.ENOENT) {
		if err := os.MkdirAll(path.Dir(t.path), 0o755); err != nil {
			return err
		}
		if err := makeDir(t.path, t.mode); err != nil {
			return err
		}
		err = unix.MoveMount(t.fd, "", unix.AT_FDCWD, t.path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	}
	if err != nil {
		return fmt.Errorf("mount on %q: %w", t.path, err)
	}
	return nil
}

// switchRoot makes dir, a mount, the root of this process.
func switchRoot(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move %q to /: %w", dir, err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("chroot to %q: %w", dir, err)
	}
	return os.Chdir("/")
}

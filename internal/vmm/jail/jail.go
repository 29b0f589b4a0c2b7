// Package jail runs Firecracker in the jailer that comes with it, where bangerd is root: as a user of its own, with a root
// directory in which there is nothing but what the VM needs. jail.go makes and removes jails, mount.go what is mounted in
// them, check.go tells whether there can be one here.
//
// A jail is a directory of the VM's, jail/PROGRAM/ID/root, made anew for each start of the VMM. The kernel and the drives
// appear in it by bind mounts in a mount namespace of the thread that starts the VMM, so that nothing stays mounted whatever
// dies; the jailer takes them along when it makes that directory the root.
//
// The jailer starts no process: it becomes Firecracker, which so is the caller's child. But that the kernel kills the child
// with its parent (PR_SET_PDEATHSIG) ends where the child becomes another user: a Firecracker whose supervisor was killed
// lives on, and whoever finds that out ends it (supervise.Engine, by the recorded process; else Prepare). The jailer's
// --landlock-restrict-fs is not used: it adds nothing to a root directory this empty.
//
// Nothing in a jail may be trusted after Firecracker has run: what the host opens there by name might be a link to
// somewhere else.
package jail

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostproc"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// Config is a jail to make; all fields are required but Files.
type Config struct {
	// Jailer and Firecracker are absolute paths of programs of the same version.
	Jailer, Firecracker string
	// ID is the VM's, Firecracker's --id: 1 to 64 letters, digits and hyphens.
	ID string
	// Dir is the VM's directory; its subdirectory jail is the jail's alone.
	Dir string
	// UID and GID are who Firecracker runs as, not root; see UserOf.
	UID, GID int
	Files    []File
}

// File is a file of the host that is to be in the jail.
type File struct {
	// Host is the file, a socket or a regular one. Where it is relative, it counts from the working directory.
	Host string
	// Name is its name in the jail's root.
	Name string
	// Writable makes the file the user's for as long as there is a jail. Others must be readable by anybody; one that is
	// not is made so where a directory above it keeps others out, as banger's do. Its owner stays.
	Writable bool
}

// Jail is a prepared jail, for one start of Firecracker.
type Jail struct {
	cfg  Config
	base string // the jailer's --chroot-base-dir
	root string
	// owned are the files that were made the user's, and whose they were.
	owned []owned
}

type owned struct {
	path     string
	uid, gid int
}

// UserOf is the user, and the group, that the VM with this id, hexadecimal digits, is jailed as: 1900000000 and the first
// 24 bits of the id. They are nobody's on a host that follows systemd's ranges (useradd's end at 60000, containers' at
// 1879048191; the 65536 that follow are banger's own for building images). Among a thousand VMs two share one with a
// probability of 3 %, which makes them no worse off than without a jail.
func UserOf(vmID string) int {
	const first = 1_900_000_000
	n, err := strconv.ParseUint(vmID[:min(6, len(vmID))], 16, 24)
	if err != nil {
		for _, b := range []byte(vmID) { // not one of banger's
			n = (n*131 + uint64(b)) % (1 << 24)
		}
	}
	return first + int(n)
}

// maxSocket is how long the name of a socket may be, in bytes (unix(7)).
const maxSocket = 107

// endTimeout is how long a process that was killed may take to be gone.
const endTimeout = 10 * time.Second

// Prepare makes a jail, after ending and removing what an earlier one in the same directory left. On an error nothing is
// left.
//
// The calling thread gets a mount namespace of its own, and stays the goroutine's: call it from the goroutine that starts the
// VMM, locked to a thread that lives as long. Other threads do not see the files; to them they are empty.
func Prepare(ctx context.Context, cfg Config) (_ *Jail, err error) {
	runtime.LockOSThread()
	if cfg.Dir, err = filepath.Abs(cfg.Dir); err == nil {
		cfg.Dir, err = filepath.EvalSymlinks(cfg.Dir)
	}
	if err == nil {
		// The jailer names the directory after the program it finds at the end of the links.
		cfg.Firecracker, err = filepath.EvalSymlinks(cfg.Firecracker)
	}
	if err != nil {
		return nil, fmt.Errorf("make a jail: %w", err)
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	if err := Check(cfg.Dir, cfg.Jailer); err != nil {
		return nil, err
	}
	if err := sameVersion(ctx, cfg.Jailer, cfg.Firecracker); err != nil {
		return nil, err
	}
	j := &Jail{cfg: cfg, base: filepath.Join(cfg.Dir, "jail")}
	j.root = filepath.Join(cfg.Dir, cfg.rel())
	if err := j.end(ctx); err != nil {
		return nil, err
	}
	if err := j.Remove(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, j.Remove())
		}
	}()
	if err := os.MkdirAll(j.root, 0o700); err != nil {
		return nil, fmt.Errorf("make a jail: %w", err)
	}
	if err := ownMounts(); err != nil {
		return nil, fmt.Errorf("make a jail: %w", err)
	}
	for _, f := range cfg.Files {
		if err := j.put(f); err != nil {
			return nil, err
		}
	}
	return j, nil
}

// check refuses what the jailer would, and names it takes itself.
func (c Config) check() error {
	bad := func(format string, args ...any) error {
		return api.Errorf(api.KindInvalid, "make a jail: "+format, args...)
	}
	if !regexp.MustCompile(`^[0-9A-Za-z-]{1,64}$`).MatchString(c.ID) {
		return bad("%q is no id for firecracker", c.ID)
	}
	if c.UID <= 0 || c.GID <= 0 || int64(c.UID) > 1<<32-2 || int64(c.GID) > 1<<32-2 {
		return bad("user %d, group %d", c.UID, c.GID)
	}
	program := filepath.Base(c.Firecracker)
	taken := map[string]bool{
		"": true, ".": true, "..": true, "dev": true, "run": true, "old_root": true, program: true, program + ".pid": true,
	}
	if n := len(filepath.Join(c.rel(), paths.VMFirecrackerAPI)); n > maxSocket {
		return bad("the name %q leaves too little room for a socket's", program)
	}
	for _, f := range c.Files {
		if taken[f.Name] || filepath.Base(f.Name) != f.Name {
			return bad("%q cannot be the name of a file", f.Name)
		}
		taken[f.Name] = true
	}
	return nil
}

// rel is the root directory, relative to Dir.
func (c Config) rel() string {
	return filepath.Join("jail", filepath.Base(c.Firecracker), c.ID, "root")
}

// Rel is Root, relative to the VM's directory: so, a path to a socket in it is short enough to be dialled.
func (j *Jail) Rel() string { return j.cfg.rel() }

// Root is the jail's root directory on the host, and Firecracker's working directory: its paths are relative to it, and its
// sockets appear there.
func (j *Jail) Root() string { return j.root }

// Command is what runs Firecracker in the jail, up to and without its own arguments. The jailer adds --id to those.
func (j *Jail) Command() []string {
	return []string{
		j.cfg.Jailer, "--id", j.cfg.ID, "--exec-file", j.cfg.Firecracker,
		"--uid", strconv.Itoa(j.cfg.UID), "--gid", strconv.Itoa(j.cfg.GID), "--chroot-base-dir", j.base, "--",
	}
}

// Give makes a file in the jail's root its user's.
func (j *Jail) Give(name string) error {
	path := filepath.Join(j.root, name)
	if filepath.Base(name) != name {
		return fmt.Errorf("give %q to the jail: not a name", name)
	}
	if err := os.Lchown(path, j.cfg.UID, j.cfg.GID); err != nil {
		return fmt.Errorf("give %q to the jail: %w", name, err)
	}
	return nil
}

// Remove removes the jail, and all that is left of an earlier one in the directory; the files are whose they were again.
// Firecracker must be gone. Any thread may call it; removing what is gone is fine.
func (j *Jail) Remove() error {
	var errs []error
	if err := removeTree(j.base); err != nil {
		errs = append(errs, fmt.Errorf("remove the jail %q: %w", j.base, err))
	}
	for _, f := range j.owned {
		// A socket is gone with who listened on it.
		if err := os.Lchown(f.path, f.uid, f.gid); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("take %q back from the jail: %w", f.path, err))
		}
	}
	j.owned = nil
	return errors.Join(errs...)
}

// end ends what still runs in an earlier jail of the directory: a Firecracker whose supervisor died before it had
// recorded it. It would write to the same drive.
func (j *Jail) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	roots, err := fs.Glob(os.DirFS(j.base), "*/*/root")
	if err != nil || len(roots) == 0 {
		return err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("end what runs in the jail %q: %w", j.base, err)
	}
	for _, root := range roots {
		st, err := os.Stat(filepath.Join(j.base, root))
		if err != nil {
			continue
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || !livesIn(pid, st) {
				continue
			}
			p, err := hostproc.Identify(pid)
			if err != nil || !livesIn(pid, st) { // it has ended
				continue
			}
			if err := errors.Join(p.Signal(syscall.SIGKILL), p.Gone(ctx)); err != nil {
				return fmt.Errorf("end what runs in the jail %q: %w", j.base, err)
			}
		}
	}
	return nil
}

// livesIn reports whether a process has this directory for its root.
func livesIn(pid int, root fs.FileInfo) bool {
	st, err := os.Stat(fmt.Sprintf("/proc/%d/root", pid))
	return err == nil && os.SameFile(st, root)
}

// put makes a file appear in the jail.
func (j *Jail) put(f File) error {
	host, err := filepath.Abs(f.Host)
	if err == nil {
		host, err = filepath.EvalSymlinks(host)
	}
	if err != nil {
		return fmt.Errorf("put %q into the jail: %w", f.Name, err)
	}
	fd, err := unix.Open(host, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("put %q into the jail: open %q: %w", f.Name, host, err)
	}
	defer unix.Close(fd)
	if err := j.open(fd, host, f.Writable); err != nil {
		return err
	}
	if err := bind(fd, filepath.Join(j.root, f.Name), !f.Writable); err != nil {
		return fmt.Errorf("put %q into the jail: %w", host, err)
	}
	return nil
}

// open sees to it that the jail's user may use a file, which is open as fd.
func (j *Jail) open(fd int, host string, writable bool) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("put %q into the jail: %w", host, err)
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFSOCK {
		return api.Errorf(api.KindInvalid, "put %q into the jail: neither a file nor a socket", host)
	}
	if writable {
		return j.own(fd, host, st)
	}
	if st.Mode&0o004 != 0 {
		return nil
	}
	if !sheltered(host) {
		return api.Errorf(api.KindUnavailable, "put %q into the jail: its mode %04o keeps the jail's user from reading it",
			host, st.Mode&0o7777).
			WithHint("chmod o+r %s   # or set jail = \"off\"", host)
	}
	if err := os.Chmod(fdPath(fd), fs.FileMode(st.Mode&0o777)|0o004); err != nil {
		return fmt.Errorf("make %q readable for the jail: %w", host, err)
	}
	return nil
}

// own makes a file the jail's user's.
func (j *Jail) own(fd int, host string, st unix.Stat_t) error {
	before := owned{path: host, uid: int(st.Uid), gid: int(st.Gid)}
	if before.uid == j.cfg.UID { // a supervisor died and could not give it back
		before.uid, before.gid = os.Geteuid(), os.Getegid()
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1 {
		return api.Errorf(api.KindConflict, "put %q into the jail: it has %d names, whose owner would change with it", host, st.Nlink)
	}
	j.owned = append(j.owned, before)
	if err := unix.Fchownat(fd, "", j.cfg.UID, j.cfg.GID, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("give %q to the jail: %w", host, err)
	}
	return nil
}

// sheltered reports whether a directory above the file keeps all others out, so that its mode opens it to nobody else.
func sheltered(path string) bool {
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		if err != nil {
			return false
		}
		if st.Mode().Perm()&0o001 == 0 {
			return true
		}
		if dir == "/" {
			return false
		}
	}
}

package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/content"
	"git.thaloco.com/thaloco/banger/internal/disk"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
	"golang.org/x/sys/unix"
)

const (
	// scratchBytes is what putting a file system together takes, at most.
	scratchBytes = 2 << 30
	// scratchFile, in the directory of a build, holds the path of its scratch directory.
	scratchFile = "scratch"
	// scratchPrefix begins the names of scratch directories.
	scratchPrefix = "banger-image-"
)

// A file system is put together in a directory of its own outside the user's
// home, which the users of the build, who are nobody on the host, could not enter.
// Its path is recorded in the directory of the build before it is made, so that Sweep can remove it.

// makeScratch makes the scratch directory of the build in dir; it is owned by ns where that is not nil.
func (s *Store) makeScratch(dir string, ns *hostexec.UserNS) (string, error) {
	parent, err := s.scratchParent()
	if err != nil {
		return "", err
	}
	path := filepath.Join(parent, scratchPrefix+strings.ToLower(rand.Text()))
	if err := content.WriteSynced(filepath.Join(dir, scratchFile), []byte(path)); err != nil {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		return "", err
	}
	if ns != nil {
		if err := os.Chown(path, ns.FirstUID, ns.FirstGID); err != nil {
			return "", err
		}
	}
	return path, os.Chmod(path, 0o711)
}

// scratchParent picks the first of the configured directories that programs can be run in and that has room.
func (s *Store) scratchParent() (string, error) {
	var why []string
	for _, dir := range s.cfg.ScratchDirs {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			why = append(why, fmt.Sprintf("%s: %v", dir, err))
			continue
		}
		_, free, err := disk.Room(dir)
		switch {
		case err != nil:
			why = append(why, err.Error())
		case st.Flags&unix.ST_NOEXEC != 0:
			why = append(why, dir+" is mounted noexec")
		case free < scratchBytes:
			why = append(why, fmt.Sprintf("%s has %s free", dir, disk.FormatSize(free)))
		default:
			return dir, nil
		}
	}
	return "", api.Errorf(api.KindUnavailable, "no directory to put the file system together in, which takes %s: %s",
		disk.FormatSize(scratchBytes), strings.Join(why, "; ")).WithHint("make room in %s", s.cfg.ScratchDirs[0])
}

// cleanTimeout bounds the removal of a scratch directory.
const cleanTimeout = 2 * time.Minute

// removeBuild removes the directory of a build and its scratch directory.
func (s *Store) removeBuild(dir string) error {
	path, err := os.ReadFile(filepath.Join(dir, scratchFile))
	if err == nil && filepath.IsAbs(string(path)) && strings.HasPrefix(filepath.Base(string(path)), scratchPrefix) {
		if err := s.removeScratch(string(path)); err != nil {
			return err // the record stays, for the next Sweep
		}
	}
	return os.RemoveAll(dir)
}

// removeScratch removes a scratch directory with what subordinate users own in
// it, which only they can: in the user namespace that mmdebstrap makes for its helper.
func (s *Store) removeScratch(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanTimeout)
	defer cancel()
	entries, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		// The directory itself is in ours, so that they can only empty it.
		argv := []string{"mmdebstrap", "--unshare-helper", "find", filepath.Join(path, e.Name()), "-mindepth", "1", "-delete"}
		if err := s.cfg.Runner.Run(ctx, hostexec.Cmd{Argv: argv, Env: s.programEnv(), Dir: "/"}); err != nil {
			return fmt.Errorf("remove %q: %w", path, err)
		}
	}
	return os.RemoveAll(path)
}

// programEnv is the environment of host programs: nothing of the user's but what reaches the network.
func (s *Store) programEnv(more ...string) []string {
	env := []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/nonexistent"}
	if path := s.cfg.Getenv("PATH"); path != "" {
		env[0] = "PATH=" + path + ":/usr/local/sbin:/usr/sbin:/sbin"
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v := s.cfg.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	return append(env, more...)
}

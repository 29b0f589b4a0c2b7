package tree

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
)

// lastWords is how long the pipes of a git that was killed are read.
const lastWords = time.Second

// nested is a repository below the root, by its path.
type nested struct {
	path  string
	depth int
}

// git lists the repository the root is in, and those in its work tree.
func (l *lister) git() error {
	seen := map[string]bool{}
	for todo := []nested{{}}; len(todo) > 0; todo = todo[1:] {
		r := todo[0]
		if seen[r.path] {
			continue
		}
		seen[r.path] = true
		if r.depth > maxDepth {
			return api.Errorf(api.KindInvalid, "list %q: repositories in repositories, more than %d deep", l.root+"/"+r.path, maxDepth)
		}
		inner, err := l.repository(r.path)
		if err != nil {
			return err
		}
		for _, p := range inner {
			todo = append(todo, nested{p, r.depth + 1})
		}
	}
	return nil
}

// repository lists one repository and returns those in its work tree.
func (l *lister) repository(at string) (inner []string, err error) {
	fd, prefix := l.fd, ""
	if at != "" {
		prefix = at + "/"
		if fd, err = openDir(l.fd, at, unix.O_RDONLY); absent(err) {
			return nil, nil
		}
		if err != nil {
			return nil, failure("list", l.root+"/"+at, err)
		}
		defer unix.Close(fd)
	}
	var st status
	own := st.stat(fd, dotGit) == nil
	cmd := l.command(fd, own)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	said := &head{}
	cmd.Stderr = said
	if err := cmd.Start(); err != nil {
		return nil, l.gitFailed(at, err, "")
	}
	if l.opt.Started != nil {
		l.opt.Started(cmd.Process.Pid)
	}
	inner, err = l.listed(out, fd, prefix)
	if err != nil {
		_ = cmd.Process.Kill() // it has not ended, or its pipe has nothing to say any more
		_ = cmd.Wait()
		return nil, err
	}
	if err = cmd.Wait(); err == nil {
		return inner, nil
	}
	if l.ctx.Err() != nil {
		return nil, context.Cause(l.ctx)
	}
	if at != "" && strings.Contains(said.String(), "not a git repository") {
		// A submodule without its repository, or what remains of one: nobody can say what git would ignore.
		return nil, l.plain(at, false)
	}
	return nil, l.gitFailed(at, err, said.String())
}

// dotGit is a name as the kernel takes it.
var dotGit = []byte(".git\x00")

// command is git in an open directory. own: it is the top of a work tree; that git is told so spares it the search, and the question whose
// it is. Only what the directory belongs to is looked at, so it asks neither a monitor, which is a program the repository names, nor a network.
func (l *lister) command(fd int, own bool) *exec.Cmd {
	cmd := exec.CommandContext(l.ctx, "git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-c", "core.quotePath=false",
		"ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = "/proc/self/fd/" + strconv.Itoa(fd)
	cmd.WaitDelay = lastWords
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	for _, kv := range os.Environ() {
		key, _, _ := strings.Cut(kv, "=")
		if strings.HasPrefix(key, "GIT_") || key == "LANGUAGE" || key == "PWD" || key == "SUDO_UID" || key == "HOME" && l.opt.Home != "" {
			continue
		}
		cmd.Env = append(cmd.Env, kv)
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none")
	if l.opt.Home != "" {
		cmd.Env = append(cmd.Env, "HOME="+l.opt.Home)
	}
	if own {
		cmd.Env = append(cmd.Env, "GIT_DIR=.git", "GIT_WORK_TREE=.")
		return cmd
	}
	// Git before 2.38 does not hear of safe.directory from the command line, but believes root who says it became so.
	var st unix.Stat_t
	if os.Geteuid() == 0 && unix.Fstat(fd, &st) == nil {
		cmd.Env = append(cmd.Env, "SUDO_UID="+strconv.FormatUint(uint64(st.Uid), 10))
	}
	return cmd
}

// listed reads what git lists: paths, one that has a conflict several times, and those of repositories with a slash.
func (l *lister) listed(out io.Reader, fd int, prefix string) (inner []string, err error) {
	err = inOrder(l.ctx, func(yield func(Paths) error) error {
		return l.gitPaths(out, yield)
	}, func() (func(context.Context, *job) error, func()) {
		d := &dirs{root: fd}
		return func(ctx context.Context, j *job) error {
			return j.each(ctx, func(name []byte) error { return l.known(d, j, prefix, name) })
		}, d.close
	}, func(j *job) error {
		inner = append(inner, j.inner...)
		return l.out.records(j.records, j.n)
	})
	return inner, err
}

// gitPaths yields the paths git writes, each once. How git ends says whether they are all.
func (l *lister) gitPaths(out io.Reader, yield func(Paths) error) error {
	in := bufio.NewReaderSize(out, buffer)
	var last []byte
	for {
		paths := make(Paths, 0, 48*chunk)
		for range chunk {
			name, err := in.ReadSlice(0)
			if errors.Is(err, io.EOF) {
				return yield(paths)
			}
			if err != nil {
				return fmt.Errorf("read what git lists: %w", err)
			}
			if bytes.Equal(name, last) {
				continue
			}
			last = append(last[:0], name...)
			bare := bytes.TrimSuffix(name[:len(name)-1], []byte{'/'})
			if valid(bare) && !hidden(bare) {
				paths = append(append(paths, bare...), 0)
			}
		}
		if err := yield(paths); err != nil {
			return err
		}
	}
}

// known adds what git knows of to a job, also where it is a repository.
func (l *lister) known(d *dirs, j *job, prefix string, name []byte) error {
	at, base, err := d.at(name)
	var st status
	if err == nil {
		err = st.stat(at, base)
	}
	bare := name[:len(name)-1]
	switch {
	case absent(err):
		return nil
	case err != nil:
		return failure("list", l.root+"/"+prefix+string(bare), err)
	case st.kind == kindDir: // of a submodule, or one that took the place of a file
		sub, err := openDir(at, string(base[:len(base)-1]), unix.O_PATH)
		if err != nil {
			return nil //nolint:nilerr // it has gone again
		}
		defer unix.Close(sub)
		if st.stat(sub, dotGit) == nil {
			j.inner = append(j.inner, prefix+string(bare))
		}
		return nil
	case st.kind == kindSpecial:
		return nil
	}
	j.n++
	j.records, err = appendEntry(j.records, &st, prefix, bare)
	return err
}

// gitFailed is why git could not be started, or what it said.
func (l *lister) gitFailed(at string, err error, said string) error {
	dir := path.Join(l.root, at)
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return api.Errorf(api.KindUnavailable, "list the git work tree %q: git is not installed in the guest", dir).WithHint("install git in the VM")
	case l.ctx.Err() != nil:
		return context.Cause(l.ctx)
	}
	if _, fatal, ok := strings.Cut(said, "fatal: "); ok { // what comes before are warnings
		said = fatal
	}
	said, _, _ = strings.Cut(strings.TrimSpace(said), "\n")
	if said == "" {
		return api.Errorf(api.KindInvalid, "list the git work tree %q: git: %w", dir, err)
	}
	return api.Errorf(api.KindInvalid, "list the git work tree %q: git: %s", dir, said)
}

// head keeps the beginning of what is written to it.
type head struct{ b []byte }

func (h *head) Write(p []byte) (int, error) {
	h.b = append(h.b, p[:min(len(p), maxSaid-len(h.b))]...)
	return len(p), nil
}

func (h *head) String() string { return string(h.b) }

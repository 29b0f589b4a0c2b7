package workspace

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// git runs the host's git.
type git struct {
	run  hostexec.Runner
	env  []string
	home string // the user's; may be empty
}

func newGit(cfg Config) git {
	var env []string
	for _, kv := range cfg.Environ {
		if !strings.HasPrefix(kv, "GIT_") && !strings.HasPrefix(kv, "LC_ALL=") && !strings.HasPrefix(kv, "LANGUAGE=") {
			env = append(env, kv)
		}
	}
	return git{run: cfg.Run, home: cfg.Home, env: append(env,
		"LC_ALL=C", // messages are looked at
		"GIT_OPTIONAL_LOCKS=0",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none", // a partial clone stays as partial as it is
	)}
}

// output runs git in dir and returns its stdout. extra are more variables of the environment.
func (g git) output(ctx context.Context, dir string, stdin io.Reader, extra []string, args ...string) ([]byte, error) {
	argv := append([]string{"git", "-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false",
		"-c", "core.splitIndex=false", "-c", "advice.graftFileDeprecated=false"}, args...)
	return g.run.Output(ctx, hostexec.Cmd{Argv: argv, Dir: dir, Stdin: stdin, Env: append(slices.Clip(g.env), extra...)})
}

// status returns the exit status in err's chain and what git said: -1 where git did not end by itself.
func status(err error) (int, string) {
	if ee, ok := errors.AsType[*hostexec.ExitError](err); ok {
		return ee.Status, ee.Stderr
	}
	return -1, ""
}

// line is one line of output without its end.
func line(out []byte) string { return strings.TrimSuffix(string(out), "\n") }

// findRoot returns the top of the work tree dir is in, or "" where dir is a plain directory.
func (g git) findRoot(ctx context.Context, dir string) (string, error) {
	marked := markedParent(dir)
	if marked == "" {
		return "", nil
	}
	out, err := g.output(ctx, dir, nil, nil, "rev-parse", "--show-toplevel")
	if err == nil {
		root, err := filepath.EvalSymlinks(line(out))
		if err != nil {
			return "", unreadable(line(out), err)
		}
		return root, g.notHome(ctx, &root, dir)
	}
	code, said := status(err)
	switch {
	case errors.Is(err, hostexec.ErrNotInstalled):
		return "", api.Errorf(api.KindUnavailable, "copy the git work tree %q: git is not installed on the host", marked).
			WithHint("install it: sudo apt install git")
	case code < 0:
		return "", err
	case strings.Contains(said, "dubious ownership"), strings.Contains(said, "unsafe repository"):
		return "", api.Errorf(api.KindInvalid, "copy the git work tree %q: git refuses it, because it belongs to another user", marked).
			WithHint("if you trust it: git config --global --add safe.directory %s", marked)
	case strings.Contains(said, "must be run in a work tree"):
		return "", nil // a bare repository, or a directory in .git: copied as it is
	case strings.Contains(said, "not a git repository"):
		if !looksLikeRepository(marked) {
			return "", nil
		}
	}
	return "", g.broken(marked, "HEAD", said)
}

// notHome makes a plain directory of dir where its work tree is the home directory and nothing in dir is
// tracked: somebody who keeps dotfiles in git does not mean all of it.
func (g git) notHome(ctx context.Context, root *string, dir string) error {
	if g.home == "" || *root == dir || !sameFile(*root, g.home) {
		return nil
	}
	out, err := g.output(ctx, dir, nil, nil, "ls-files", "-z", "--", ".")
	if err == nil && len(out) == 0 {
		*root = ""
	}
	return err
}

// markedParent is dir or the nearest directory above it that has a .git; "" where there is none.
func markedParent(dir string) string {
	for {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return dir
		}
		if dir == "/" {
			return ""
		}
		dir = filepath.Dir(dir)
	}
}

// looksLikeRepository tells a damaged repository from a directory that happens to be named .git.
func looksLikeRepository(root string) bool {
	st, err := os.Stat(filepath.Join(root, ".git"))
	if err != nil {
		return false
	}
	if !st.IsDir() {
		return true
	}
	_, errObjects := os.Stat(filepath.Join(root, ".git", "objects"))
	_, errRefs := os.Stat(filepath.Join(root, ".git", "refs"))
	return errObjects == nil && errRefs == nil
}

// broken is the error for a repository git cannot read.
func (g git) broken(root, ref, said string) error {
	for _, full := range []string{"No space left on device", "Out of diskspace", "Disk quota exceeded"} {
		if strings.Contains(said, full) {
			return diskFull(root)
		}
	}
	said = strings.TrimSpace(said)
	if _, fatal, ok := strings.Cut(said, "fatal: "); ok { // what comes before are warnings
		said = fatal
	}
	said, _, _ = strings.Cut(said, "\n")
	return api.Errorf(api.KindInvalid, "read %s of the git repository %q: %s", ref, root, said).
		WithHint("git -C %s fsck shows what is wrong; git -C %s symbolic-ref HEAD refs/heads/BRANCH sets HEAD to a branch", root, root)
}

// split cuts output at a separator that ends every part.
func split(out []byte, sep string) []string {
	if len(out) == 0 {
		return nil
	}
	return strings.Split(string(bytes.TrimSuffix(out, []byte(sep))), sep)
}

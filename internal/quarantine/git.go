package quarantine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// git runs git in one repository.
type git struct {
	run hostexec.Runner
	dir string
	env []string
}

// settings are those of every git that a pull runs. They are given in the environment, so that they come last and no
// name needs quoting (git 2.31 and later).
var settings = [][2]string{
	{"core.hooksPath", "/dev/null"}, {"core.fsmonitor", "false"}, {"protocol.allow", "never"},
	{"gc.auto", "0"}, {"maintenance.auto", "false"}, {"core.logAllRefUpdates", "false"}, {"core.warnAmbiguousRefs", "false"},
	// Larger blobs are streamed, not held in memory; one pack, whatever its size; one thread, for the memory it takes.
	{"core.bigFileThreshold", "64m"}, {"pack.packSizeLimit", "0"}, {"pack.threads", "1"},
	{"core.filesRefLockTimeout", "300"}, {"core.packedRefsTimeout", "1000"},
}

// configEnv gives settings to git.
func configEnv(settings [][2]string) []string {
	env := []string{"GIT_CONFIG_COUNT=" + strconv.Itoa(len(settings))}
	for i, kv := range settings {
		env = append(env, fmt.Sprintf("GIT_CONFIG_KEY_%d=%s", i, kv[0]), fmt.Sprintf("GIT_CONFIG_VALUE_%d=%s", i, kv[1]))
	}
	return env
}

// common is the environment of every git that a pull runs.
var common = []string{
	"LC_ALL=C", // messages are looked at
	"GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0",
	"GIT_NO_LAZY_FETCH=1", "GIT_ALLOW_PROTOCOL=none", // nothing comes over a network, not even what a partial clone lacks
	"GIT_NO_REPLACE_OBJECTS=1", // as git gc sees it
}

// inherited returns the variables that do not steer git.
func inherited(environ []string) []string {
	var env []string
	for _, kv := range environ {
		if !strings.HasPrefix(kv, "GIT_") && !strings.HasPrefix(kv, "LC_ALL=") && !strings.HasPrefix(kv, "LANGUAGE=") {
			env = append(env, kv)
		}
	}
	return env
}

func (g git) output(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	return g.run.Output(ctx, g.cmd(stdin, args))
}

func (g git) cmd(stdin io.Reader, args []string) hostexec.Cmd {
	return hostexec.Cmd{Argv: append([]string{"git", "--no-pager"}, args...), Dir: g.dir, Stdin: stdin, Env: slices.Clip(g.env)}
}

// lines runs git and gives take each line of its output, without its end, while it runs.
func (g git) lines(ctx context.Context, stdin io.Reader, take func([]byte) error, args ...string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &lineWriter{take: take, failed: cancel}
	c := g.cmd(stdin, args)
	c.Stdout = w
	err := g.run.Run(ctx, c)
	if w.err != nil {
		return w.err
	}
	return err
}

// lineWriter cuts what is written to it into lines.
type lineWriter struct {
	take   func([]byte) error
	failed context.CancelCauseFunc
	rest   []byte
	err    error
}

// maxLine bounds a line of git's output: a commit may have many parents.
const maxLine = 16 << 20

// Write takes more of the output.
func (w *lineWriter) Write(p []byte) (int, error) {
	n := len(p)
	for w.err == nil {
		line, rest, found := bytes.Cut(p, []byte("\n"))
		if !found {
			if len(w.rest)+len(p) > maxLine {
				w.err = errors.New("git writes a line without end")
				break
			}
			w.rest = append(w.rest, p...)
			return n, nil
		}
		if len(w.rest) > 0 {
			line = append(w.rest, line...)
			w.rest = w.rest[:0]
		}
		w.err, p = w.take(line), rest
	}
	w.failed(w.err)
	return n, w.err
}

// commits returns the commits that ids are, or are tags of.
func (g git) commits(ctx context.Context, ids []string) (map[string]string, error) {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	if len(ids) == 0 {
		return map[string]string{}, nil
	}
	in := strings.NewReader(strings.Join(ids, "^{commit}\n") + "^{commit}\n")
	out, err := g.output(ctx, in, "cat-file", "--batch-check=%(objectname)")
	if err != nil {
		return nil, err
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != len(ids) {
		return nil, fmt.Errorf("git cat-file answers %d lines to %d ids", len(lines), len(ids))
	}
	found := make(map[string]string, len(ids))
	for i, l := range lines {
		if len(l) == len(ids[i]) { // otherwise "… missing"
			found[ids[i]] = l
		}
	}
	return found, nil
}

// ancestor tells whether new is old or comes after it.
func (g git) ancestor(ctx context.Context, old, new string) (bool, error) {
	_, err := g.output(ctx, nil, "merge-base", "--is-ancestor", old, new)
	if ee, ok := errors.AsType[*hostexec.ExitError](err); ok && ee.Status == 1 {
		return false, nil
	}
	return err == nil, err
}

// exited tells whether err is that git ran and failed.
func exited(err error) bool {
	_, ok := errors.AsType[*hostexec.ExitError](err)
	return ok
}

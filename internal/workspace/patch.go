package workspace

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// neutral is a git that obeys nobody's configuration, in a directory of its own.
type neutral struct {
	git
	dir string
}

// neutralGit makes an empty bare repository in dir.
func neutralGit(ctx context.Context, cfg Config, dir, format string) (neutral, error) {
	g := newGit(cfg)
	g.env = append(g.env, "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=/dev/null", "GIT_ATTR_NOSYSTEM=1", "GIT_NO_REPLACE_OBJECTS=1",
		"HOME="+dir, "XDG_CONFIG_HOME="+dir, "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir), "GIT_EXTERNAL_DIFF=", "GIT_PAGER=cat")
	n := neutral{git: g, dir: dir}
	_, err := n.output(ctx, filepath.Dir(dir), nil, nil, "init", "--quiet", "--bare", "--template=", "--object-format="+format, dir)
	return n, err
}

// run runs git in the repository; index is a file, or empty.
func (n neutral) run(ctx context.Context, index string, stdin io.Reader, stdout io.Writer, args ...string) error {
	argv := append([]string{"git", "-c", "core.hooksPath=/dev/null", "-c", "protocol.allow=never", "-c", "core.looseCompression=0", "-c", "gc.auto=0",
		"-c", "core.protectHFS=true", "-c", "core.protectNTFS=true", "-c", "core.attributesFile=/dev/null", "-c", "core.quotePath=true"}, args...)
	env := append(slices.Clip(n.env), "GIT_DIR="+n.dir)
	if index != "" {
		env = append(env, "GIT_INDEX_FILE="+index)
	}
	return n.git.run.Run(ctx, hostexec.Cmd{Argv: argv, Dir: n.dir, Stdin: stdin, Stdout: stdout, Env: env})
}

// Patch writes all changes as a patch that git apply takes. What cannot be in it, because nobody knows any more what it was, is a line in
// Skipped. It returns how many files are in it.
func (w *Work) Patch(ctx context.Context, out io.Writer) (int, error) {
	if len(w.Changes) == 0 {
		return 0, nil
	}
	bases, err := w.baseContents(ctx, w.changedPaths(string(api.ChangeModified), string(api.ChangeRemoved)))
	if err != nil {
		return 0, err
	}
	var known []Change
	for _, c := range w.Changes {
		if c.Before.Mode.IsDir() {
			c.Kind = api.ChangeAdded // of a directory only what was in it counts
		}
		if _, ok := bases[c.Path]; !ok && c.Kind != api.ChangeAdded {
			w.Skipped = append(w.Skipped, printable(c.Path)+": the VM has changed it, and what it was is not known any more (banger vm cp brings it as it is)")
			continue
		}
		known = append(known, c)
	}
	n, err := neutralGit(ctx, w.cfg, filepath.Join(w.temp, "patch.git"), cmp.Or(w.base.Format, formatSHA1))
	if err != nil {
		return 0, fmt.Errorf("make a patch: %w", err)
	}
	before, after, err := w.trees(ctx, n, known, bases)
	if err != nil {
		return 0, fmt.Errorf("make a patch: %w", err)
	}
	err = n.run(ctx, "", nil, out, "diff-tree", "-p", "-r", "--binary", "--full-index", "-M", "--no-ext-diff", "--no-textconv", "--no-color",
		"--src-prefix=a/", "--dst-prefix=b/", before, after)
	if err != nil {
		return 0, fmt.Errorf("make a patch: %w", err)
	}
	return len(known), nil
}

// trees makes trees of what the changed files were and are.
func (w *Work) trees(ctx context.Context, n neutral, changes []Change, bases map[string]string) (before, after string, err error) {
	var files, old, now strings.Builder
	for _, c := range changes {
		if c.Kind != api.ChangeAdded {
			files.WriteString(bases[c.Path] + "\n")
			fmt.Fprintf(&old, "%s %s\t%s\x00", treeMode(c.Before.Mode), c.Before.ID, c.Path)
		}
		if c.Kind != api.ChangeRemoved {
			files.WriteString(w.files[c.Path] + "\n")
			fmt.Fprintf(&now, "%s %s\t%s\x00", treeMode(c.After.Mode), c.After.ID, c.Path)
		}
	}
	if err := n.run(ctx, "", strings.NewReader(files.String()), io.Discard, "hash-object", "-w", "--no-filters", "--stdin-paths"); err != nil {
		return "", "", err
	}
	if before, err = n.tree(ctx, "before", old.String()); err != nil {
		return "", "", err
	}
	after, err = n.tree(ctx, "after", now.String())
	return before, after, err
}

// tree makes a tree of entries as update-index --index-info takes them.
func (n neutral) tree(ctx context.Context, name, entries string) (string, error) {
	index := filepath.Join(n.dir, name)
	if err := n.run(ctx, index, strings.NewReader(entries), io.Discard, "update-index", "-z", "--index-info"); err != nil {
		return "", err
	}
	var out strings.Builder
	err := n.run(ctx, index, nil, &out, "write-tree")
	return strings.TrimSpace(out.String()), err
}

// treeMode is a mode as trees have it.
func treeMode(m fs.FileMode) string {
	switch {
	case m.Type() == fs.ModeSymlink:
		return "120000"
	case executable(m):
		return "100755"
	}
	return "100644"
}

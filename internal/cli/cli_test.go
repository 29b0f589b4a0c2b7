package cli

import (
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
)

func TestExitCode(t *testing.T) {
	noDaemon := fmt.Errorf("%w at x", client.ErrNoDaemon)
	for _, c := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("x"), 1},
		{api.Errorf(api.KindInternal, "x"), 1},
		{usagef("", "x"), 2},
		{inRun(usagef("", "x")), 2},
		{noDaemon, 3},
		{inRun(noDaemon), 3},
		{noDaemonError{noDaemon}, 3},
		{&startFailure{api.Errorf(api.KindUnavailable, "x")}, 3},
		{inRun(api.Errorf(api.KindNotFound, "x")), 125},
		{inRun(&runError{errors.New("x"), 127}), 127},
		{inRun(statusError{7}), 7},
		{inRun(statusError{255}), 255},
		{signalError{syscall.SIGINT}, 130},
		{inRun(signalError{syscall.SIGTERM}), 143},
		{api.Errorf(api.KindCancelled, "x"), 130},
		{inRun(nil), 0},
	} {
		if got := exitCode(c.err); got != c.want {
			t.Errorf("%v (%T): %d, want %d", c.err, c.err, got, c.want)
		}
	}
	for _, k := range api.Kinds() {
		if got := exitCode(api.Errorf(k, "x")); got != 1 && (k != api.KindCancelled || got != 130) {
			t.Errorf("an error of kind %s: %d", k, got)
		}
	}
}

// leaves calls fn for every command that does something.
func leaves(cmd *cobra.Command, fn func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		leaves(c, fn)
	}
	if !cmd.HasSubCommands() {
		fn(cmd)
	}
}

func TestEveryCommand(t *testing.T) {
	a := newTestApp(t)
	n := 0
	leaves(newRoot(a.App), func(cmd *cobra.Command) {
		n++
		path := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: the short text is %q", path, cmd.Short)
		}
		if cmd.ValidArgsFunction == nil {
			t.Errorf("%s completes no arguments", path)
		}
		if cmd.Example == "" {
			t.Errorf("%s has no example", path)
		}
		for line := range strings.Lines(cmd.Example) {
			checkExample(t, cmd, strings.TrimSpace(line))
		}
	})
	if n < 20 {
		t.Errorf("only %d commands were looked at", n)
	}
}

// checkExample parses a line of an example with a fresh command tree.
func checkExample(t *testing.T, cmd *cobra.Command, line string) {
	words := words(strings.TrimPrefix(line, "sudo "))
	if len(words) == 0 || words[0] != "banger" {
		t.Errorf("%s: the example %q does not start with banger", cmd.CommandPath(), line)
		return
	}
	root := newRoot(newTestApp(t).App)
	got, rest, err := root.Find(words[1:])
	if err != nil || got.CommandPath() != cmd.CommandPath() {
		t.Errorf("the example %q is of %s: %v", line, got.CommandPath(), err)
		return
	}
	got.RunE = func(cmd *cobra.Command, args []string) error { return nil }
	if cmd.Name() == "exec" || cmd.Name() == "run" {
		got.RunE = func(cmd *cobra.Command, args []string) error {
			if cmd.Name() == "run" {
				return new(vmRunOptions).parse(cmd.ArgsLenAtDash(), args)
			}
			return new(vmExecOptions).parse(cmd.ArgsLenAtDash(), args)
		}
	}
	_ = rest
	root.SetArgs(words[1:])
	root.SetOut(io.Discard)
	if err := root.Execute(); err != nil {
		t.Errorf("the example %q: %v", line, err)
	}
}

// words splits a line at blanks outside of single quotes.
func words(line string) []string {
	var out []string
	quote := false
	for i, part := range strings.Split(line, "'") {
		if quote = i%2 == 1; quote {
			out = append(out, part)
			continue
		}
		out = append(out, strings.Fields(part)...)
	}
	return out
}

func TestUnknownCommands(t *testing.T) {
	a := newTestApp(t)
	for _, c := range []struct{ args, err string }{
		{"nope", "banger: unknown command \"nope\"\nhint: banger --help\n"},
		{"run", "hint: did you mean banger vm run?"},
		{"ps", "hint: did you mean banger vm list?"},
		{"list", "hint: did you mean banger image list, banger kernel list, banger vm list?"},
		{"vm remove x", "hint: did you mean banger vm delete?"},
		{"daemon state", "hint: did you mean banger daemon start, banger daemon status?"},
		{"vm lst", "hint: did you mean banger vm list, banger vm ssh?"},
		{"vm list x", `banger: vm list takes no arguments, not "x"`},
		{"vm list --nope", "unknown flag: --nope"},
		{"vm show", "banger: vm show needs the name of one VM"},
		{"vm show a b", `not also "b"`},
		{"vm create --no-start --wait full", "banger: --no-start and --wait exclude each other\nhint: leave out all but one\n"},
	} {
		if code := a.run(strings.Fields(c.args)...); code != 2 || !strings.Contains(a.err.String(), c.err) {
			t.Errorf("banger %s: status %d, %q", c.args, code, a.err.String())
		}
	}
	if code := a.run("vm"); code != 0 || !strings.Contains(a.out.String(), "Available Commands:") {
		t.Errorf("banger vm: status %d, %q", code, a.out.String())
	}
}

// layers are the packages of banger that these packages import: the arrows of the architecture.
var layers = map[string][]string{
	"../../cmd/banger": {"internal/cli"},
	".": {"api", "client", "internal/buildinfo", "internal/config", "internal/doctor", "internal/network/bridge", "internal/guest/exec", "internal/guest/wire",
		"internal/disk", "internal/filestream", "internal/forward", "internal/guest/files", "internal/network/bridge", "internal/hostexec", "internal/hostfiles", "internal/hostproc", "internal/paths", "internal/sshkeys"},
	"../../client": {"api", "internal/filestream", "internal/buildinfo", "internal/paths"},
	"../../api":    nil,
}

func TestLayers(t *testing.T) {
	const module = "git.thaloco.com/thaloco/banger/"
	for dir, allowed := range layers {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", dir, len(files), err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
			if err != nil {
				t.Fatal(err)
			}
			for _, imp := range f.Imports {
				path, _ := strconv.Unquote(imp.Path.Value)
				ours, isOurs := strings.CutPrefix(path, module)
				if path == "os/exec" || isOurs && !slices.Contains(allowed, ours) {
					t.Errorf("%s imports %s", file, path)
				}
			}
		}
	}
}

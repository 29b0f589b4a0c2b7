package cli

import (
	"context"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/client"
	"git.thaloco.com/thaloco/banger/internal/filestream"
	"git.thaloco.com/thaloco/banger/internal/guest/files"
	"git.thaloco.com/thaloco/banger/internal/hostfiles"
)

type vmCpOptions struct {
	args            []string
	follow, archive bool
}

func newVMCp(a *App) *cobra.Command {
	o := &vmCpOptions{}
	cmd := &cobra.Command{
		Use:        "cp SOURCE... TARGET",
		Aliases:    []string{"copy"},
		SuggestFor: []string{"scp", "pull", "push", "sync"},
		Short:      "Copy files into a VM and out of it",
		Long: `Copy files and directories into a VM that runs, out of it, or from one to another. What is in a VM is
written NAME:PATH; a relative path counts from the home directory there. A file of the host whose name has a colon
is written ./NAME:PART.

As with docker cp: a TARGET that is a directory takes the copy in, any other path is the name of the copy, and its
directory must be there. Of SOURCE/. only what is in it is copied. A directory is never put in the place of a file, nor
the other way round. - is a tar stream, on stdin for a directory in a VM or on stdout.

Modes and times (to the second) are kept, links are copied as links. What goes into a VM belongs to its user there, what comes
out belongs to you, without setuid, setgid and sticky bits. Devices, pipes and sockets are left out. A
file that is replaced is replaced whole or not at all; of a directory what was copied before an error stays.`,
		Example: `  banger vm cp ./file testbox:/root/
  banger vm cp testbox:/var/log ./log
  banger vm cp ./site/. testbox:/var/www
  banger vm cp a.txt b.txt testbox:
  banger vm cp testbox:/etc - | tar t`,
		Args:              args(2, -1, "a source and a target"),
		ValidArgsFunction: a.completeCopy(),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.args = args
			return runVMCp(cmd.Context(), a, o)
		},
	}
	cmd.Flags().BoolVarP(&o.follow, "follow-link", "L", false, "copy what a SOURCE leads to that is a link")
	cmd.Flags().BoolVarP(&o.archive, "archive", "a", false, "into a VM: keep owners, and setuid, setgid and sticky bits")
	return cmd
}

// cpEnd is one end of a copy: a path in a VM, a path of the host where vm is empty, or a stream.
type cpEnd struct {
	vm, path string
	stream   bool
}

// parseCpEnd reads NAME:PATH, - or a path of the host.
func parseCpEnd(arg string) (cpEnd, error) {
	vm, rest, colon := strings.Cut(arg, ":")
	switch {
	case arg == "":
		return cpEnd{}, usagef("", "a path is empty")
	case arg == "-":
		return cpEnd{stream: true}, nil
	case !colon || strings.Contains(vm, "/"):
		return cpEnd{path: arg}, nil
	case vm == "":
		return cpEnd{}, usagef("NAME"+arg+" in a VM, ./"+arg+" on the host", "there is no name of a VM before the colon of %q", arg)
	}
	return cpEnd{vm: vm, path: rest}, nil
}

// contents tells whether what is in a directory is meant, and not the directory itself.
func (e cpEnd) contents() bool {
	return path.Base(e.path) == "." || (e.vm != "" && e.path == "")
}

// name is the name of a copy of e; empty where only the guest knows it.
func (e cpEnd) name() string {
	if e.vm == "" {
		abs, err := filepath.Abs(e.path)
		if err != nil {
			return ""
		}
		return filepath.Base(abs)
	}
	switch base := path.Base(e.path); base {
	case ".", "..", "/", "~":
		return ""
	default:
		return base
	}
}

// cpEnds are the ends of a copy.
type cpEnds struct {
	from []cpEnd
	to   cpEnd
}

// parse checks that the arguments are a copy that is possible.
func (o *vmCpOptions) parse() (ends cpEnds, err error) {
	last := len(o.args) - 1
	vms, streams := 0, 0
	for i, arg := range o.args {
		e, err := parseCpEnd(arg)
		if err != nil {
			return ends, err
		}
		if i == last {
			ends.to = e
			break
		}
		if e.vm != "" {
			vms++
		}
		if e.stream {
			streams++
		}
		ends.from = append(ends.from, e)
	}
	switch {
	case ends.to.vm == "" && vms == 0:
		return ends, usagef("write what is in a VM as NAME:PATH", "neither side of the copy is in a VM")
	case vms > 0 && vms < len(ends.from):
		return ends, usagef("", "the sources are on both sides")
	case streams > 0 && len(ends.from) > 1, ends.to.stream && len(ends.from) > 1:
		return ends, usagef("", "- stands for one tar stream, and goes with one other path")
	case o.archive && ends.to.vm == "":
		return ends, usagef("", "--archive is for what goes into a VM: what comes out belongs to you")
	}
	return ends, sameNames(o.args[:last], ends.from)
}

// vms are the names of the VMs that take part, each once.
func (ends cpEnds) vms() []string {
	var names []string
	for _, e := range append(slices.Clone(ends.from), ends.to) {
		if e.vm != "" && !slices.Contains(names, e.vm) {
			names = append(names, e.vm)
		}
	}
	return names
}

// sameNames refuses sources that would overwrite each other.
func sameNames(args []string, from []cpEnd) error {
	seen := map[string]string{}
	for i, e := range from {
		name := e.name()
		if name == "" || e.contents() {
			continue
		}
		if other, ok := seen[name]; ok {
			return usagef("", "%q and %q would both be copied to %q", other, args[i], name)
		}
		seen[name] = args[i]
	}
	return nil
}

func runVMCp(ctx context.Context, a *App, o *vmCpOptions) error {
	ends, err := o.parse()
	if err != nil {
		return err
	}
	switch {
	case ends.to.stream && a.Terminal.Out:
		return usagef("banger vm cp "+quoted(o.args...)+" | tar t", "a tar stream is nothing for a terminal")
	case ends.from[0].stream && a.Terminal.In:
		return usagef("tar c DIRECTORY | banger vm cp "+quoted(o.args...), "a tar stream is nothing to type")
	}
	for _, e := range ends.from {
		if e.vm != "" || e.stream {
			continue
		}
		if _, err := os.Lstat(e.path); err != nil {
			return api.Errorf(api.KindNotFound, "copy %q: %w", e.path, bareError(err))
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	for _, vm := range ends.vms() {
		if err := a.offerStart(ctx, c, vm); err != nil {
			return err
		}
	}
	p := &copier{app: a, client: c, opt: o, to: ends.to, into: len(ends.from) > 1}
	err = a.showCopy(p.step(ends.from), func() int64 { return measure(ctx, ends.from, o.follow) }, func(progress func(int64)) error {
		p.progress = progress
		for _, from := range ends.from {
			if err := p.copy(ctx, from); err != nil {
				return err
			}
		}
		return nil
	})
	p.say()
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	return err
}

// measure is how many bytes will be sent; 0 where that is not known.
func measure(ctx context.Context, from []cpEnd, follow bool) int64 {
	var sum int64
	for _, e := range from {
		if e.vm != "" || e.stream {
			return 0
		}
		sum += files.Measure(ctx, e.path, follow)
	}
	return sum
}

// copier is one run of vm cp.
type copier struct {
	app      *App
	client   *client.Client
	opt      *vmCpOptions
	to       cpEnd
	into     bool // there are several sources
	progress func(int64)

	mu      sync.Mutex // guards skipped
	skipped []string
}

// step is what is shown while it copies.
func (p *copier) step(from []cpEnd) string {
	if p.to.vm != "" {
		return "copy to " + p.to.vm
	}
	return "copy from " + from[0].vm
}

// copy copies one source.
func (p *copier) copy(ctx context.Context, from cpEnd) error {
	switch {
	case p.to.vm == "":
		return p.out(ctx, from)
	case from.vm != "":
		return p.across(ctx, from)
	case from.stream:
		return p.put(ctx, from, func(w io.Writer) error { return p.pass(w, p.app.In) })
	}
	return p.put(ctx, from, func(w io.Writer) error {
		res, err := files.Pack(ctx, w, from.path, files.PackOptions{Follow: p.opt.follow, Progress: p.progress})
		p.note(res.Skipped)
		return err
	})
}

// put sends what write writes to the target's VM.
func (p *copier) put(ctx context.Context, from cpEnd, write func(io.Writer) error) error {
	res, err := p.client.PutFiles(ctx, p.to.vm, api.PutFiles{
		Path: p.to.path, Contents: !from.stream && from.contents(), Into: p.into, Stream: from.stream, Archive: p.opt.archive,
	}, write)
	if err != nil {
		return err
	}
	p.note(res.Skipped)
	return nil
}

// across copies from one VM to another.
func (p *copier) across(ctx context.Context, from cpEnd) error {
	in, err := p.open(ctx, from)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := p.put(ctx, from, func(w io.Writer) error { return p.pass(w, in) }); err != nil {
		return err
	}
	p.note(in.Result().Skipped)
	return nil
}

// out copies from a VM to the host.
func (p *copier) out(ctx context.Context, from cpEnd) error {
	in, err := p.open(ctx, from)
	if err != nil {
		return err
	}
	defer in.Close()
	if p.to.stream {
		err = p.pass(p.app.Out, in)
	} else {
		var res api.FilesResult
		res, err = hostfiles.Receive(ctx, in, files.Target{Path: p.to.path, Name: from.name(), Contents: from.contents(), Into: p.into}, p.progress)
		p.note(res.Skipped)
	}
	if err != nil {
		return err
	}
	p.note(in.Result().Skipped)
	return nil
}

func (p *copier) open(ctx context.Context, from cpEnd) (*filestream.Stream, error) {
	return p.client.Files(ctx, from.vm, api.GetFiles{Path: from.path, Follow: p.opt.follow})
}

// pass copies a stream as it is.
func (p *copier) pass(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, &progressReader{r, p.progress}, make([]byte, copyBuffer))
	return err
}

func (p *copier) note(lines []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.skipped = append(p.skipped, lines...)
}

// say tells what was left out.
func (p *copier) say() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, line := range p.skipped {
		p.app.say("not copied: %s", line)
	}
}

package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// patchFile is a file that the daemon writes a patch to.
type patchFile struct{ dir, path string }

func newPatchFile() (*patchFile, error) {
	dir, err := os.MkdirTemp("", "banger-patch-")
	if err != nil {
		return nil, fmt.Errorf("make room for the patch: %w", err)
	}
	return &patchFile{dir, filepath.Join(dir, "patch")}, nil
}

func (p *patchFile) remove() { _ = os.RemoveAll(p.dir) } // it is where what is temporary is

// print writes the patch to stdout, and to a terminal so that it is harmless there. A patch that was not written is an empty one.
func (p *patchFile) print(a *App) error {
	f, err := os.Open(p.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	p.remove() // a reader of stdout that leaves ends the program
	if a.Terminal.Out {
		return showPatch(a.Out, f, a.colours())
	}
	_, err = io.Copy(a.Out, f)
	return err
}

// Colours of patches, as git has them.
const (
	colourHeader  = "\x1b[1m"
	colourHunk    = "\x1b[36m"
	colourAdded   = "\x1b[32m"
	colourRemoved = "\x1b[31m"
	colourNone    = "\x1b[m"
)

// showPatch writes a patch to a terminal: with colours where they are wanted, and control characters other than line ends and tabs
// escaped.
func showPatch(w io.Writer, patch io.Reader, colours bool) error {
	r, out := bufio.NewReaderSize(patch, 64<<10), bufio.NewWriter(w)
	var lines patchLines
	colour, within := "", false
	for {
		part, err := r.ReadSlice('\n')
		line, whole := strings.CutSuffix(string(part), "\n")
		if len(part) > 0 && !within { // else this is more of a line that is longer than the buffer
			colour = lines.next(line)
		}
		within = !whole
		text := escape(line, "\t")
		if colours && colour != "" && text != "" {
			text = colour + text + colourNone
		}
		if whole || errors.Is(err, io.EOF) && text != "" {
			text += "\n"
		}
		_, _ = out.WriteString(text) // Flush returns the error
		switch {
		case errors.Is(err, io.EOF):
			return out.Flush()
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return errors.Join(err, out.Flush())
		}
	}
}

// patchLines tells the lines of a patch apart.
type patchLines struct {
	header   bool // among the lines before the first hunk of a file
	old, new int  // how many lines the hunk still has of each side
}

// next is the colour of the next line, empty for none.
func (p *patchLines) next(line string) string {
	if p.old > 0 || p.new > 0 {
		switch {
		case strings.HasPrefix(line, "+"):
			p.new--
			return colourAdded
		case strings.HasPrefix(line, "-"):
			p.old--
			return colourRemoved
		case strings.HasPrefix(line, `\`): // "\ No newline at end of file"
			return ""
		}
		p.old--
		p.new--
		return ""
	}
	switch {
	case strings.HasPrefix(line, "diff --git "):
		p.header = true
	case strings.HasPrefix(line, "@@ "):
		p.header = false
		p.old, p.new = hunkLines(line)
		return colourHunk
	case strings.HasPrefix(line, "GIT binary patch"):
		p.header = false
	}
	if p.header {
		return colourHeader
	}
	return ""
}

// hunkLines is how many lines of both sides a hunk has by its first line, "@@ -1,3 +1,4 @@"; 0 where it does not say.
func hunkLines(line string) (old, new int) {
	count := func(field, sign string) int {
		field, ok := strings.CutPrefix(field, sign)
		if !ok {
			return 0
		}
		n := 1
		if _, text, found := strings.Cut(field, ","); found {
			if _, err := fmt.Sscanf(text, "%d", &n); err != nil {
				return 0
			}
		}
		return n
	}
	if fields := strings.Fields(line); len(fields) > 2 {
		return count(fields[1], "-"), count(fields[2], "+")
	}
	return 0, 0
}

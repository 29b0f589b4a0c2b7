package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// MaxParagraph is the longest paragraph of control data that is read, in bytes.
const MaxParagraph = 16 << 20

// ErrControl says that control data is malformed.
var ErrControl = errors.New("malformed control data")

// Paragraph is a block of fields as in Packages, InRelease and debian/control (deb822(5)). Keys are lower case.
// Lines of a folded field are joined by newlines, without their first blank.
type Paragraph map[string]string

// ControlReader reads paragraphs.
type ControlReader struct {
	r    *bufio.Reader
	line int
	// keep, where it is not nil, is given the value of the first field; a paragraph it refuses is skipped.
	keep func(value string) bool
}

// NewControlReader returns a reader of the paragraphs of r.
func NewControlReader(r io.Reader) *ControlReader {
	return &ControlReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// Next returns the next paragraph, io.EOF after the last. Lines that start with # are comments. An error of a malformed
// paragraph wraps ErrControl.
func (c *ControlReader) Next() (Paragraph, error) {
	var (
		p    Paragraph
		key  string
		skip bool
		size int
		text strings.Builder
	)
	flush := func() {
		if key != "" {
			p[key] = text.String()
			text.Reset()
		}
	}
	for {
		line, err := c.readLine()
		if err != nil && err != io.EOF {
			return nil, err
		}
		if strings.TrimSpace(line) == "" {
			flush()
			if p != nil {
				return p, nil
			}
			if err == io.EOF {
				return nil, io.EOF
			}
			key, skip, size = "", false, 0
			continue
		}
		if skip || line[0] == '#' {
			continue
		}
		if size += len(line); size > MaxParagraph {
			return nil, fmt.Errorf("line %d: paragraph longer than %d bytes: %w", c.line, MaxParagraph, ErrControl)
		}
		if line[0] == ' ' || line[0] == '\t' {
			if key == "" {
				return nil, fmt.Errorf("line %d: continues no field: %w", c.line, ErrControl)
			}
			text.WriteByte('\n')
			text.WriteString(strings.TrimRight(line[1:], " \t\r"))
			continue
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return nil, fmt.Errorf("line %d: no field: %w", c.line, ErrControl)
		}
		flush()
		value = strings.TrimSpace(value)
		if p == nil && c.keep != nil && !c.keep(value) {
			skip = true
			continue
		}
		if p == nil {
			p = Paragraph{}
		}
		key = strings.ToLower(name)
		if _, twice := p[key]; twice {
			return nil, fmt.Errorf("line %d: field %q comes twice: %w", c.line, name, ErrControl)
		}
		text.WriteString(value)
	}
}

// readLine returns a line without its newline; io.EOF together with the last, empty one.
func (c *ControlReader) readLine() (string, error) {
	c.line++
	var long []byte
	for {
		part, err := c.r.ReadSlice('\n')
		if err == nil && long == nil {
			return string(part[:len(part)-1]), nil
		}
		long = append(long, part...)
		switch {
		case err == nil:
			return string(long[:len(long)-1]), nil
		case err == io.EOF && len(long) > 0:
			return string(long), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return "", err
		case len(long) > MaxParagraph:
			return "", fmt.Errorf("line %d: longer than %d bytes: %w", c.line, MaxParagraph, ErrControl)
		}
	}
}

// Relation is one alternative of a dependency: a package, and a version condition such as ">=" "1.2" where there is one.
type Relation struct {
	Name, Op, Version string
}

// ParseRelations parses the value of Depends and its like: all of the outer list, one of each inner one.
func ParseRelations(s string) ([][]Relation, error) {
	var all [][]Relation
	for clause := range strings.SplitSeq(s, ",") {
		if strings.TrimSpace(clause) == "" {
			continue
		}
		var alternatives []Relation
		for alt := range strings.SplitSeq(clause, "|") {
			r, err := parseRelation(alt)
			if err != nil {
				return nil, err
			}
			alternatives = append(alternatives, r)
		}
		all = append(all, alternatives)
	}
	return all, nil
}

func parseRelation(s string) (Relation, error) {
	bad := fmt.Errorf("dependency %q: %w", strings.TrimSpace(s), ErrControl)
	s = strings.TrimSpace(s)
	end := strings.IndexAny(s, " \t\n([<")
	if end < 0 {
		end = len(s)
	}
	name, _, _ := strings.Cut(s[:end], ":") // an architecture qualifier such as ":any"
	if name == "" {
		return Relation{}, bad
	}
	r := Relation{Name: name}
	_, cond, ok := strings.Cut(s[end:], "(")
	if !ok {
		return r, nil
	}
	cond, _, ok = strings.Cut(cond, ")")
	if !ok {
		return Relation{}, bad
	}
	cond = strings.TrimSpace(cond)
	op := len(cond) - len(strings.TrimLeft(cond, "<>="))
	r.Op, r.Version = cond[:op], strings.TrimSpace(cond[op:])
	if r.Op == "" || r.Version == "" {
		return Relation{}, bad
	}
	return r, nil
}

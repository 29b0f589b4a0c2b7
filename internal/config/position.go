package config

import (
	"fmt"

	"github.com/pelletier/go-toml/v2/unstable"
)

// position is a place in the file; both count from 1, column in bytes.
type position struct{ line, column int }

// positions finds where the keys of a correct TOML document are. A path is such as "engine" or "file_sync[0].host"; the
// first place that names a key counts.
func positions(data []byte) map[string]position {
	f := finder{where: map[string]position{}, arrays: map[string]int{}}
	f.parser.Reset(data)
	table := ""
	for f.parser.NextExpression() {
		e := f.parser.Expression()
		switch e.Kind {
		case unstable.Table:
			table = f.key("", e.Key())
		case unstable.ArrayTable:
			name := f.key("", e.Key())
			table = fmt.Sprintf("%s[%d]", name, f.arrays[name])
			f.arrays[name]++
			f.note(table, f.last)
		case unstable.KeyValue:
			f.keyValue(table, e)
		}
	}
	return f.where
}

type finder struct {
	parser unstable.Parser
	where  map[string]position
	arrays map[string]int // how many [[name]] there were
	last   position       // of the part of a key that was read last
}

func (f *finder) note(path string, at position) {
	if _, ok := f.where[path]; !ok {
		f.where[path] = at
	}
}

// key notes every part of a dotted key below a prefix and returns its path.
func (f *finder) key(prefix string, it unstable.Iterator) string {
	for it.Next() {
		n := it.Node()
		if prefix != "" {
			prefix += "."
		}
		prefix += string(n.Data)
		at := f.parser.Shape(n.Raw).Start
		f.last = position{at.Line, at.Column}
		f.note(prefix, f.last)
	}
	return prefix
}

func (f *finder) keyValue(prefix string, n *unstable.Node) {
	f.value(f.key(prefix, n.Key()), n.Value())
}

// value notes the keys inside inline tables, also in arrays.
func (f *finder) value(path string, n *unstable.Node) {
	it := n.Children()
	switch n.Kind {
	case unstable.InlineTable:
		for it.Next() {
			f.keyValue(path, it.Node())
		}
	case unstable.Array:
		at := f.last
		for i := 0; it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			element := fmt.Sprintf("%s[%d]", path, i)
			f.note(element, at)
			f.value(element, it.Node())
			i++
		}
	}
}

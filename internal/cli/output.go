package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

// choice is a flag that takes one of a few values.
type choice struct {
	value string
	from  []string
}

func (c *choice) String() string { return c.value }
func (c *choice) Type() string   { return strings.Join(c.from, "|") }

func (c *choice) Set(s string) error {
	if !slices.Contains(c.from, s) {
		return fmt.Errorf("it is none of %s", strings.Join(c.from, ", "))
	}
	c.value = s
	return nil
}

// choiceFlag registers a flag that takes one of the values in from; def is the default, which need not
// be one of them.
func choiceFlag(cmd *cobra.Command, name, short, def, usage string, from ...string) *choice {
	c := &choice{value: def, from: from}
	cmd.Flags().VarP(c, name, short, usage)
	_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(from, cobra.ShellCompDirectiveNoFileComp)) // fails only for an unknown flag
	return c
}

// Formats of -o.
const (
	formatTable = "table"
	formatJSON  = "json"
	formatName  = "name"
)

func outputFlag(cmd *cobra.Command, formats ...string) *choice {
	if len(formats) == 0 {
		formats = []string{formatTable, formatJSON, formatName}
	}
	return choiceFlag(cmd, "output", "o", formatTable, "`format`: "+strings.Join(formats, ", "), formats...)
}

// writeJSON prints what the API answered, indented.
func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// list says how a kind of thing is listed.
type list[T any] struct {
	header []string
	row    func(T) []string
	name   func(T) string
}

// write prints items as the format says. Nothing but names, or nothing at all, comes out of an empty list
// unless it is a table, which keeps its header.
func (l list[T]) write(w io.Writer, format string, items []T) error {
	switch format {
	case formatJSON:
		if items == nil {
			items = []T{}
		}
		return writeJSON(w, items)
	case formatName:
		for _, it := range items {
			fmt.Fprintln(w, safeText(l.name(it)))
		}
		return nil
	}
	rows := make([][]string, len(items))
	for i, it := range items {
		rows[i] = l.row(it)
	}
	return writeTable(w, l.header, rows)
}

// writeTable prints aligned columns. Empty cells are "-"; cells are made safe for a terminal.
func writeTable(w io.Writer, header []string, rows [][]string) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cells []string) {
		for i, c := range cells {
			if i > 0 {
				io.WriteString(tw, "\t")
			}
			io.WriteString(tw, orDash(c))
		}
		io.WriteString(tw, "\n")
	}
	if header != nil {
		line(header)
	}
	for _, r := range rows {
		line(r)
	}
	return tw.Flush()
}

// field is a line of what show prints.
type field struct{ name, value string }

// writeFields prints fields one per line.
func writeFields(w io.Writer, fields []field) error {
	rows := make([][]string, len(fields))
	for i, f := range fields {
		rows[i] = []string{f.name + ":", f.value}
	}
	return writeTable(w, nil, rows)
}

package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// inCode finds what is written as code: between backticks, and in lines that are indented.
var inCode = regexp.MustCompile("`([^`]+)`|(?m)^ {4}(.*)$")

// TestDocumentsNameCommands: every banger command that a document names is there, and command lines in full have flags it knows.
func TestDocumentsNameCommands(t *testing.T) {
	documents, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(documents) == 0 {
		t.Fatalf("%q, %v", documents, err)
	}
	seen := 0
	for _, path := range append(documents, "../../README.md", "../../CHANGELOG.md") {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range inCode.FindAllStringSubmatch(string(text), -1) {
			line, _, _ := strings.Cut(m[1]+m[2], "  ") // comments stand behind two blanks
			line, _, _ = strings.Cut(line, " | ")
			line = strings.TrimSuffix(line, ")")
			if line = strings.TrimPrefix(line, "source <("); !strings.HasPrefix(line, "banger ") || strings.Contains(line, "──") {
				continue
			}
			seen++
			checkNamed(t, filepath.Base(path), line)
		}
	}
	if seen < 30 {
		t.Errorf("only %d commands were looked at", seen)
	}
}

// checkNamed looks at a command line of a document, which may be a synopsis: with [optional] parts and a\|list of words.
func checkNamed(t *testing.T, document, line string) {
	args := words(line)[1:]
	for _, part := range args {
		if strings.ContainsAny(part, "[]|…") {
			first, _, _ := strings.Cut(line, "[")
			first, _, _ = strings.Cut(first, `\|`)
			first, _, _ = strings.Cut(first, "|")
			args = words(first)[1:]
			break
		}
	}
	root := newRoot(newTestApp(t).App)
	cmd, rest, err := root.Find(args)
	if err != nil || cmd == root {
		t.Errorf("%s: there is no %q (%v)", document, line, err)
		return
	}
	if len(rest) > 0 && cmd.HasSubCommands() {
		t.Errorf("%s: %q: %q has no %q", document, line, cmd.CommandPath(), rest[0])
		return
	}
	if i := slices.Index(rest, "--"); i >= 0 {
		rest = rest[:i]
	}
	if err := cmd.ParseFlags(rest); err != nil && !cmd.DisableFlagParsing {
		t.Errorf("%s: %q: %v", document, line, err)
	}
}

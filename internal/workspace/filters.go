package workspace

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// noteFilters says which files look different to git in the guest: those that pass a filter of the host's git, such as git-lfs, on their way
// between the work tree and the index. They travel as they are on the disk; the guest's git does not have the filter.
func (l *lister) noteFilters(ctx context.Context, r *repo) error {
	if l.opts.Base != nil || !l.hasFilters(r) {
		return nil
	}
	configured, err := r.out(ctx, "config", "--name-only", "--get-regexp", `^filter\..*\.(clean|process)$`)
	if err != nil {
		return nil // there is none
	}
	var names bytes.Buffer
	for _, e := range r.listed {
		if _, name, ok := strings.Cut(e, "\t"); ok {
			names.WriteString(name + "\x00")
		}
	}
	out, err := r.indexed(ctx, &names, "check-attr", "-z", "--stdin", "filter")
	if err != nil {
		return fmt.Errorf("read the attributes of %q: %w", r.root, err)
	}
	counts := map[string]int{}
	for fields := range slices.Chunk(split(out, "\x00"), 3) { // path, "filter", value
		if len(fields) == 3 && !slices.Contains([]string{"unspecified", "unset", "set"}, fields[2]) {
			counts[fields[2]]++
		}
	}
	for _, filter := range slices.Sorted(maps.Keys(counts)) {
		if strings.Contains("\n"+string(configured), "\nfilter."+filter+".") {
			l.source.notes = append(l.source.notes, fmt.Sprintf("%s%d files pass the filter %s of git here: git in the VM shows them as changed until it has that, too",
				r.label, counts[filter], printable(filter)))
		}
	}
	return nil
}

// hasFilters tells whether an attributes file of the repository speaks of filters at all.
func (l *lister) hasFilters(r *repo) bool {
	if bytes.Contains(r.files["info/attributes"], []byte("filter=")) {
		return true
	}
	for _, e := range r.listed {
		_, name, _ := strings.Cut(e, "\t")
		if path.Base(name) != ".gitattributes" {
			continue
		}
		if content, err := os.ReadFile(filepath.Join(r.root, name)); err == nil && bytes.Contains(content, []byte("filter=")) {
			return true
		}
	}
	return false
}

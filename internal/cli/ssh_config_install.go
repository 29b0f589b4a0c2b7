package cli

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"git.thaloco.com/thaloco/banger/internal/sshkeys"
)

// Comments above the Include in the user's file. The second says that the file was not there before.
const (
	includeNote     = "# Added by banger ssh-config --install, with the next line; --uninstall takes both away."
	includeNoteMade = "# Added by banger ssh-config --install, which made this file; --uninstall takes it away again."
)

// inclusion is the way of banger's configuration of ssh, the file own, into that of the user.
type inclusion struct{ user, own string }

// pattern is own as the value of Include, which is a pattern of glob(7), and in which OpenSSH knows % as the beginning of a token from
// version 9.9 on and not before: a question mark stands for what either would take for something else.
func (in inclusion) pattern() (string, error) {
	return sshPath(strings.NewReplacer("%", "?", "*", "?", "[", "?", "]", "?", "{", "?", "}", "?").Replace(in.own))
}

// add writes own and includes it first thing in the user's file, where an Include cannot fall into somebody's Host block.
func (in inclusion) add(text string) error {
	include, err := in.pattern()
	if err != nil {
		return err
	}
	unlock, err := sshkeys.LockDir(filepath.Dir(in.own))
	if err != nil {
		return err
	}
	defer unlock()
	if err := sshkeys.WriteFile(in.own, []byte(text), 0o600); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(in.user), 0o700); err != nil {
		return err
	}
	f, err := readUserFile(in.user)
	if err != nil {
		return err
	}
	rest, made := withoutInclude(f.text, include)
	note := includeNote
	if made || !f.exists {
		note = includeNoteMade
	}
	return f.write(append([]byte(note+"\nInclude "+include+"\n"), rest...))
}

// remove undoes add, and reports whether there was anything to undo.
func (in inclusion) remove() (changed bool, err error) {
	include, err := in.pattern()
	if err != nil {
		return false, err
	}
	unlock, err := sshkeys.LockDir(filepath.Dir(in.own))
	if err != nil {
		return false, err
	}
	defer unlock()
	f, err := readUserFile(in.user)
	if err != nil {
		return false, err
	}
	rest, made := withoutInclude(f.text, include)
	changed = len(rest) != len(f.text)
	switch {
	case made && len(rest) == 0:
		err = os.Remove(f.path)
	case changed:
		err = f.write(rest)
	}
	if err != nil {
		return false, err
	}
	err = os.Remove(in.own) // last: an Include of a file that is not there is an error of nobody
	if errors.Is(err, fs.ErrNotExist) {
		return changed, nil
	}
	return true, err
}

// withoutInclude takes out of the text of a configuration what add put there: the comments with the Include below them, and an
// Include of include whose comment is gone. made tells that add had made the file.
func withoutInclude(text []byte, include string) (rest []byte, made bool) {
	below := false // the comment
	for line := range bytes.Lines(text) {
		plain := strings.TrimSpace(string(line))
		switch {
		case plain == includeNote || plain == includeNoteMade:
			below, made = true, made || plain == includeNoteMade
			continue
		case plain == "Include "+include, below && ourInclude(plain):
			below = false
			continue
		}
		below = false
		rest = append(rest, line...)
	}
	return rest, made
}

// ourInclude reports whether a line is an Include as add writes it, perhaps with another XDG_CONFIG_HOME.
func ourInclude(line string) bool {
	return strings.HasPrefix(line, `Include "/`) && strings.HasSuffix(line, `/banger/ssh/config"`)
}

// userFile is a file of the user: where it is behind all links, and what is in it.
type userFile struct {
	path   string
	exists bool
	info   fs.FileInfo // where it exists
	text   []byte
}

// maxLinks is how many symbolic links are followed, as the kernel does (path_resolution(7)).
const maxLinks = 40

func readUserFile(path string) (userFile, error) {
	f := userFile{path: path}
	for range maxLinks {
		info, err := os.Lstat(f.path)
		if errors.Is(err, fs.ErrNotExist) {
			return f, nil // also behind a link: it is made there
		}
		if err != nil {
			return f, err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			if !info.Mode().IsRegular() {
				return f, fmt.Errorf("%q is not a file", f.path)
			}
			f.exists, f.info = true, info
			f.text, err = os.ReadFile(f.path)
			return f, err
		}
		to, err := os.Readlink(f.path)
		if err != nil {
			return f, err
		}
		if !filepath.IsAbs(to) {
			// What the directory is behind its own links, for .. in to.
			dir, err := filepath.EvalSymlinks(filepath.Dir(f.path))
			if err != nil {
				return f, err
			}
			to = filepath.Join(dir, to)
		}
		f.path = to
	}
	return f, fmt.Errorf("%q: %w", path, syscall.ELOOP)
}

// write replaces the content, unless it is that already; mode and owner stay.
func (f userFile) write(text []byte) error {
	if !f.exists {
		return sshkeys.WriteFile(f.path, text, 0o600)
	}
	if bytes.Equal(text, f.text) {
		return nil
	}
	if err := sshkeys.WriteFile(f.path, text, f.info.Mode().Perm()); err != nil {
		return err
	}
	if st, ok := f.info.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return os.Chown(f.path, int(st.Uid), int(st.Gid))
	}
	return nil
}

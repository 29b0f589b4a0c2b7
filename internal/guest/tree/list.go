package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// ListOptions say what is listed.
type ListOptions struct {
	// Git lists what git knows or would add, in the root's repository and in those that are in its work tree. Otherwise it is all.
	Git bool
	// Home is the home directory whose configuration git reads; empty for that of this process.
	Home string
	// Started is called with the pid of every git; may be nil.
	Started func(pid int)
}

// List writes what is below a root: files, links, and without Git directories. What is named .git, in any case, is left out with all
// that is in it, and so are devices, pipes and sockets. The root is an absolute path.
func List(ctx context.Context, w *Writer, root string, opt ListOptions) error {
	dir, err := openRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	l := &lister{ctx: ctx, out: w, root: root, fd: int(dir.Fd()), opt: opt}
	if opt.Git {
		return l.git()
	}
	return l.plain("", true)
}

type lister struct {
	ctx  context.Context
	out  *Writer
	root string // for errors
	fd   int
	opt  ListOptions
	buf  []byte // of directories
}

// plain lists what is below dir, "" for the root.
func (l *lister) plain(dir string, withDirs bool) error {
	for todo := []string{dir}; len(todo) > 0; {
		dir := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if l.ctx.Err() != nil {
			return context.Cause(l.ctx)
		}
		err := l.directory(dir, withDirs, &todo)
		if err != nil {
			return err
		}
	}
	return nil
}

// directory lists what is in one directory and appends those in it to todo. One that has gone is empty.
func (l *lister) directory(dir string, withDirs bool, todo *[]string) error {
	name, prefix := ".", ""
	if dir != "" {
		name, prefix = dir, dir+"/"
	}
	fd, err := openDir(l.fd, name, unix.O_RDONLY)
	if absent(err) && len(dir) < MaxPath {
		return nil
	}
	if err != nil {
		return failure("list", l.root+"/"+dir, err)
	}
	defer unix.Close(fd)
	if l.buf == nil {
		l.buf = make([]byte, buffer)
	}
	for {
		n, err := unix.Getdents(fd, l.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return failure("list", l.root+"/"+dir, err)
		}
		for b := l.buf[:n]; len(b) > 0; {
			size := int(binary.NativeEndian.Uint16(b[direntSize:]))
			if err := l.child(fd, prefix, b[:size], withDirs, todo); err != nil {
				return err
			}
			b = b[size:]
		}
	}
}

// Offsets in struct linux_dirent64: getdents(2).
const (
	direntSize = 16
	direntType = 18
	direntName = 19
)

// child lists one entry of a directory.
func (l *lister) child(fd int, prefix string, entry []byte, withDirs bool, todo *[]string) error {
	name := entry[direntName:]
	name = name[:bytes.IndexByte(name, 0)+1]
	bare := name[:len(name)-1]
	switch entry[direntType] {
	case unix.DT_REG, unix.DT_LNK, unix.DT_DIR, unix.DT_UNKNOWN:
	default:
		return nil
	}
	if bare[0] == '.' && (len(bare) == 1 || len(bare) == 2 && bare[1] == '.' || isDotGit(bare)) {
		return nil
	}
	var st status
	if err := st.stat(fd, name); err != nil {
		if absent(err) {
			return nil
		}
		return failure("list", l.root+"/"+prefix+string(bare), err)
	}
	switch st.kind {
	case kindSpecial:
		return nil
	case kindDir:
		*todo = append(*todo, prefix+string(bare))
		if !withDirs {
			return nil
		}
	}
	return l.out.entry(&st, prefix, bare)
}

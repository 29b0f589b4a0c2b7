package tree

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"
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
}

// plain lists what is below dir, "" for the root, in no order.
func (l *lister) plain(dir string, withDirs bool) error {
	q := newQueue(dir, workers())
	group, ctx := errgroup.WithContext(l.ctx)
	defer context.AfterFunc(ctx, q.stop)()
	var writing sync.Mutex
	for range workers() {
		group.Go(func() error {
			w := &walker{lister: l, withDirs: withDirs, buf: make([]byte, buffer)}
			for {
				dir, ok := q.next()
				if !ok {
					break
				}
				if err := w.directory(dir); err != nil {
					return err
				}
				q.put(w.below)
				w.below = w.below[:0]
				if len(w.records) >= flushAt {
					if err := w.flush(&writing); err != nil {
						return err
					}
				}
			}
			return w.flush(&writing)
		})
	}
	return group.Wait()
}

// walker is one of several who list directories.
type walker struct {
	*lister
	withDirs bool
	buf      []byte   // of a directory's entries
	below    []string // directories that were found
	records  []byte
	n        int
}

func (w *walker) flush(writing *sync.Mutex) error {
	writing.Lock()
	defer writing.Unlock()
	err := w.out.records(w.records, w.n)
	w.records, w.n = w.records[:0], 0
	return err
}

// directory lists what is in one directory. One that has gone is empty.
func (w *walker) directory(dir string) error {
	name, prefix := ".", ""
	if dir != "" {
		name, prefix = dir, dir+"/"
	}
	fd, err := openDir(w.fd, name, unix.O_RDONLY)
	if absent(err) && len(dir) < MaxPath {
		return nil
	}
	if err != nil {
		return failure("list", w.root+"/"+dir, err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Getdents(fd, w.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return failure("list", w.root+"/"+dir, err)
		}
		for b := w.buf[:n]; len(b) > 0; {
			size := int(binary.NativeEndian.Uint16(b[direntSize:]))
			if err := w.child(fd, prefix, b[:size]); err != nil {
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
func (w *walker) child(fd int, prefix string, entry []byte) error {
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
		return failure("list", w.root+"/"+prefix+string(bare), err)
	}
	switch st.kind {
	case kindSpecial:
		return nil
	case kindDir:
		w.below = append(w.below, prefix+string(bare))
		if !w.withDirs {
			return nil
		}
	}
	var err error
	w.n++
	w.records, err = appendEntry(w.records, &st, prefix, bare)
	return err
}

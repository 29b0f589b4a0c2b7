package tree

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Remove removes paths below a root: files, links, and directories that are empty. Then it removes the directories above them that are empty
// now, but not the root. What is not there is fine, and so is a directory that is not empty.
func Remove(ctx context.Context, root string, paths Paths) error {
	dir, err := openRoot(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	d := &dirs{root: int(dir.Fd())}
	defer d.close()
	above := map[string]struct{}{}
	for len(paths) > 0 {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var name []byte
		name, paths = paths.next()
		if err := d.remove(name, 0); err != nil {
			return failure("remove", root+"/"+string(name[:len(name)-1]), err)
		}
		for up := string(name[:len(name)-1]); ; {
			i := strings.LastIndexByte(up, '/')
			if i < 0 {
				break
			}
			up = up[:i]
			if _, known := above[up]; known {
				break
			}
			above[up] = struct{}{}
		}
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(above))) { // what is in a directory before it
		if err := d.remove(append([]byte(name), 0), unix.AT_REMOVEDIR); err != nil {
			return failure("remove", root+"/"+name, err)
		}
	}
	return nil
}

// remove removes one path, with AT_REMOVEDIR only a directory.
func (d *dirs) remove(name []byte, flags int) error {
	at, base, err := d.at(name)
	if err == nil {
		last := string(base[:len(base)-1])
		err = unix.Unlinkat(at, last, flags)
		if flags == 0 && errors.Is(err, unix.EISDIR) {
			flags = unix.AT_REMOVEDIR
			err = unix.Unlinkat(at, last, flags)
		}
	}
	if absent(err) || flags != 0 && (errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)) {
		return nil
	}
	return err
}

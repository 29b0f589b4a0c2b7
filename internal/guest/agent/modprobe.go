package agent

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// modprobeMain is modprobe as the kernel calls it: modprobe -q -- NAME. Options are ignored, what
// follows a name are its parameters. The status is 1 where the module cannot be loaded.
func modprobeMain(args []string) int {
	var names []string
	for _, a := range args {
		if !strings.HasPrefix(a, "-") {
			names = append(names, a)
		}
	}
	if len(names) == 0 {
		return 1
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return 1
	}
	db := newModuleDB(path.Join("/lib/modules", unix.ByteSliceToString(u.Release[:])))
	if err := db.load(names[0], strings.Join(names[1:], " ")); err != nil {
		fmt.Fprintln(os.Stderr, "modprobe:", err)
		return 1
	}
	return 0
}

// load loads a module and what it depends on. A module with several aliases of the same name is loaded
// where any of them can be.
func (db moduleDB) load(name, params string) error {
	files, err := db.resolve(name)
	if err != nil {
		return err
	}
	var errs []error
	for i, file := range files {
		p := ""
		if i == len(files)-1 {
			p = params
		}
		f, err := os.Open(path.Join(db.dir, file))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, loadModule(f, file, p))
		f.Close()
	}
	return errors.Join(errs...)
}

package store

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
	sqlite3 "modernc.org/sqlite/lib"
)

const (
	// reserveBytes is held back on the file system of the database, so that on a full disk states can still be
	// recorded and VMs deleted, which is how people make room.
	reserveBytes = 4 << 20
	// reserveRoom is how much must be free, in bytes, for the reserve to be taken.
	reserveRoom = 16 * reserveBytes
)

// reserve is a file that takes room until the database needs it.
type reserve struct {
	path string
	mu   sync.Mutex // guards held
	held bool
}

// take allocates the reserve where there is room enough. That it cannot is no error: it is a precaution.
func (r *reserve) take() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held {
		return
	}
	f, err := os.OpenFile(r.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return
	}
	if info, err := f.Stat(); err == nil && info.Size() < reserveBytes && int64(st.Bavail)*st.Bsize < reserveRoom {
		return
	}
	r.held = unix.Fallocate(int(f.Fd()), 0, 0, reserveBytes) == nil
}

// release gives the room back, and reports whether there was any.
func (r *reserve) release() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.held {
		return false
	}
	r.held = false
	return os.Truncate(r.path, 0) == nil
}

// isFull tells whether err is SQLite's word for a full disk.
func isFull(err error) bool { return code(err)&0xff == sqlite3.SQLITE_FULL }

package supervise

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long after a boot's first call the supervisor gives back the memory it took to get there, and how often it
// then looks whether there is more to give back.
const (
	trimAfter = 5 * time.Second
	trimEvery = 30 * time.Second
)

// trim gives the kernel back what is not needed to wait: freed memory of the heap, and the pages of the program that ran
// only once. bangerd is a large program of which a supervisor uses little, but starting it touches
// much. What is needed again comes back from the page cache.
func trim() {
	debug.FreeOSMemory()
	if exe, err := os.Readlink("/proc/self/exe"); err == nil {
		drop(exe)
	}
}

// drop gives back the pages of the file that are mapped and hold nothing but what is in it.
func drop(file string) {
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return
	}
	defer f.Close()
	for _, r := range cleanMappings(f, file) {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, r.start, r.end-r.start, unix.MADV_DONTNEED)
	}
}

// mapping is a range of addresses.
type mapping struct{ start, end uintptr }

// cleanMappings returns the read-only mappings of the file exe, in the text of /proc/PID/smaps, that hold nothing but
// what is in the file: dropping pages of others would lose relocations.
func cleanMappings(smaps io.Reader, exe string) []mapping {
	var clean []mapping
	var current mapping
	ours := false
	sc := bufio.NewScanner(smaps)
	for sc.Scan() {
		fields := strings.Fields(sc.Text())
		switch {
		case len(fields) >= 5 && strings.Contains(fields[0], "-"):
			_, err := fmt.Sscanf(fields[0], "%x-%x", &current.start, &current.end)
			private := fields[1] == "r-xp" || fields[1] == "r--p"
			ours = err == nil && private && len(fields) == 6 && fields[5] == exe && current.start < current.end
		case ours && len(fields) == 3 && fields[0] == "Anonymous:" && fields[1] == "0":
			clean = append(clean, current)
			ours = false
		}
	}
	return clean
}

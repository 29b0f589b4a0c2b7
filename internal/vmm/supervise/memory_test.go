package supervise

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestCleanMappings(t *testing.T) {
	const smaps = `00400000-00a00000 r-xp 00000000 fe:00 7 /usr/bin/bangerd
Size:               6144 kB
Anonymous:             0 kB
00a00000-00c00000 r--p 00600000 fe:00 7 /usr/bin/bangerd
Anonymous:             0 kB
00c00000-00c10000 r--p 00800000 fe:00 7 /usr/bin/bangerd
Anonymous:             4 kB
00c10000-00c80000 rw-p 00810000 fe:00 7 /usr/bin/bangerd
Anonymous:             0 kB
c000000000-c000400000 rw-p 00000000 00:00 0
Anonymous:             0 kB
7f0000000000-7f0000010000 r-xp 00000000 fe:00 8 /lib/libc.so.6
Anonymous:             0 kB
7f0000020000-7f0000030000 r--p 00000000 fe:00 8 /usr/bin/bangerd (deleted)
Anonymous:             0 kB
`
	got := cleanMappings(strings.NewReader(smaps), "/usr/bin/bangerd")
	want := []mapping{{0x400000, 0xa00000}, {0xa00000, 0xc00000}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(mapping{})); diff != "" {
		t.Error(diff)
	}
}

// TestDrop: pages of a file that were read are given back, and read again where they are needed. Of the program itself it cannot be
// told how much comes back at once: a page that is needed brings the large folio it is part of.
func TestDrop(t *testing.T) {
	const size = 1 << 20
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mapped)
	before := resident(t, file, true)
	drop(file)
	if after := resident(t, file, false); before != size>>10 || after != 0 {
		t.Errorf("%d KiB of the file were in memory, and %d are after it", before, after)
	}
	if mapped[size-1] != 'x' {
		t.Error("what was given back does not come again")
	}
	trim() // of this program: it goes on
}

// resident returns how much of the clean mappings of exe is in memory, in KiB; with touch, after all of it was read.
func resident(t *testing.T, exe string, touch bool) int {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ranges := map[string]bool{}
	for _, m := range cleanMappings(bytes.NewReader(smaps), exe) {
		ranges[fmt.Sprintf("%08x-%08x", m.start, m.end)] = true
		if touch {
			// Populating, unlike reading page by page, needs no pointers made of numbers.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_POPULATE_READ)
		}
	}
	if smaps, err = os.ReadFile("/proc/self/smaps"); err != nil {
		t.Fatal(err)
	}
	total, in := 0, false
	for line := range strings.Lines(string(smaps)) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 5 && strings.Contains(f[0], "-"):
			in = ranges[f[0]]
		case in && f[0] == "Rss:":
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			total += n
		}
	}
	return total
}

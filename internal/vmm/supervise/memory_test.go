package supervise

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
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

func TestTrim(t *testing.T) {
	trim() // the test goes on, so nothing that was needed is lost
	if got := strings.Repeat("x", 3); got != "xxx" {
		t.Error(got)
	}
}

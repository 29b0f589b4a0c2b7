package image

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestStatus(t *testing.T) {
	rep := &recorder{}
	s := newStatus(rep)
	text := `I: automatically chosen mode: unshare
I: running apt-get update...
Get:1 http://mirror bookworm InRelease [151 kB]
Fetched 9000 kB in 1s (8000 kB/s)
I: downloading packages with apt...
Need to get 3,000 B of archives.
Get:1 http://mirror bookworm/main amd64 libc6 amd64 2.36-9 [2,000 B]
Get:2 http://mirror bookworm/main amd64 gcc-12-base amd64 12.2 [1.0 kB]
I: extracting archives...
I: installing essential packages...
Unpacking libc6:amd64 (2.36-9) ...
Unpacking libc6:amd64 (2.36-9) over (2.36-9) ...
Setting up libc6:amd64 (2.36-9) ...
Unpacking gcc-12-base:amd64 (12.2) ...
Setting up gcc-12-base:amd64 (12.2) ...
I: installing remaining packages inside the chroot...
Need to get 10.5 MB/12.0 MB of archives.
Get:1 http://mirror bookworm/main amd64 git amd64 1:2.39.5 [10.5 MB]
Unpacking git (1:2.39.5) ...
dpkg: error processing package git
E: Sub-process /usr/bin/dpkg returned an error code (1)
I: running --customize-hook in shell: sh -c 'set -eu
I: creating tarball...
I: done
`
	for chunk := range strings.SplitSeq(text, "e") { // pieces that end anywhere
		if _, err := s.Write([]byte(chunk + "e")); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"read Debian's package lists", "download Debian's essential packages", "unpack Debian's essential packages",
		"install Debian's essential packages", "download packages", "install packages", "adjust the file system", "write the base drive"}
	if diff := cmp.Diff(want, rep.steps); diff != "" {
		t.Error(diff)
	}
	most := map[string]int64{"download Debian's essential packages": 3000, "install Debian's essential packages": 3000,
		"download packages": 10500000, "install packages": 5250000}
	if diff := cmp.Diff(most, rep.most); diff != "" {
		t.Error(diff)
	}
	if rep.problem != "" {
		t.Error(rep.problem)
	}
	complaints := []string{"dpkg: error processing package git", "Sub-process /usr/bin/dpkg returned an error code (1)"}
	if diff := cmp.Diff(complaints, s.complaints); diff != "" {
		t.Error(diff)
	}
}

func FuzzStatus(f *testing.F) {
	f.Add("I: downloading packages with apt...\nNeed to get 3 kB of archives.\nGet:1 m s a p a v [1 kB]\nUnpacking p (v) ...\n")
	f.Add("Need to get 9e99 GB of archives.\nI: installing essential packages...\nE: x")
	f.Fuzz(func(t *testing.T, text string) {
		rep := &recorder{}
		s := newStatus(rep)
		if n, err := s.Write([]byte(text)); n != len(text) || err != nil {
			t.Fatal(n, err)
		}
		for step, n := range rep.most {
			if n < 0 {
				t.Errorf("step %q: %d bytes", step, n)
			}
		}
		if len(s.complaints) > maxComplaints || len(s.line) > maxLine {
			t.Errorf("%d complaints, a line of %d bytes", len(s.complaints), len(s.line))
		}
	})
}

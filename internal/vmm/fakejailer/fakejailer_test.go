package fakejailer

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestArgs: what the real one refuses is refused. That the rest works is for the tests of package jail to show.
func TestArgs(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	program, link := filepath.Join(dir, "firecracker-v1.17.0"), filepath.Join(dir, "firecracker")
	if err := os.WriteFile(program, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, link); err != nil {
		t.Fatal(err)
	}
	good := []string{"--id", "a-1", "--exec-file", link, "--uid", "5", "--gid", "6", "--chroot-base-dir", dir}
	with := func(more ...string) []string { return append(slices.Clip(good), more...) }
	without := func(name string) []string {
		for i := range good {
			if good[i] == name {
				return append(good[:i:i], good[i+2:]...)
			}
		}
		panic(name)
	}
	replace := func(name, value string) []string { return append(without(name), name, value) }
	want := config{id: "a-1", execFile: program, base: dir, uid: 5, gid: 6, files: 2048}
	for name, c := range map[string]struct {
		args []string
		want config
		err  string
	}{
		"all":             {args: good, want: want},
		"firecracker's":   {args: with("--", "--id", "--"), want: config{id: "a-1", execFile: program, base: dir, uid: 5, gid: 6, files: 2048, extra: []string{"--id", "--"}}},
		"a limit":         {args: with("--resource-limit", "no-file=64"), want: config{id: "a-1", execFile: program, base: dir, uid: 5, gid: 6, files: 64}},
		"an unknown one":  {args: with("--api-sock", "x"), err: "Found argument '--api-sock' which wasn't expected"},
		"a bare word":     {args: with("x"), err: "Found argument 'x' which wasn't expected"},
		"twice":           {args: with("--uid", "7"), err: "The argument '--uid' was provided more than once."},
		"no value":        {args: append(without("--gid"), "--gid"), err: "The argument '--gid' requires a value"},
		"-- for a value":  {args: append(without("--gid"), "--gid", "--"), err: "The argument '--gid' requires a value"},
		"no id":           {args: without("--id"), err: "The argument '--id' required"},
		"no user":         {args: without("--uid"), err: "The argument '--uid' required"},
		"no program":      {args: without("--exec-file"), err: "The argument '--exec-file' required"},
		"an id with _":    {args: replace("--id", "a_b"), err: "Invalid instance ID"},
		"a long id":       {args: replace("--id", strings.Repeat("a", 65)), err: "Invalid instance ID"},
		"a user's name":   {args: replace("--uid", "nobody"), err: "Failed to parse uid"},
		"a large user":    {args: replace("--uid", "4294967296"), err: "Failed to parse uid"},
		"base is a file":  {args: replace("--chroot-base-dir", program), err: "is not a directory"},
		"no base":         {args: replace("--chroot-base-dir", dir+"/no"), err: "No such file or directory (os error 2)"},
		"program is dir":  {args: replace("--exec-file", dir), err: "is not a file"},
		"not for banger":  {args: with("--daemonize"), err: "fakejailer has no --daemonize"},
		"an odd limit":    {args: with("--resource-limit", "fsize=1"), err: `fakejailer knows no limit "fsize=1"`},
		"limit, no value": {args: with("--resource-limit", "no-file"), err: "fakejailer knows no limit"},
	} {
		t.Run(name, func(t *testing.T) {
			values, extra, err := split(c.args)
			var got config
			if err == nil {
				got, err = newConfig(values, extra)
			}
			switch {
			case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
				t.Errorf("err = %v, want %s", err, c.err)
			case c.err == "" && err != nil:
				t.Error(err)
			case c.err == "":
				if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(config{})); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

func TestFailure(t *testing.T) {
	err := failure("Failed to mknod", &os.PathError{Op: "mknod", Path: "x", Err: syscall.EEXIST})
	if got, want := err.Error(), "Failed to mknod: File exists (os error 17)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// TestCopyExec: the copy does not go through links, nor into a file that has another name.
func TestCopyExec(t *testing.T) {
	dir := t.TempDir()
	c := config{execFile: filepath.Join(dir, "program"), uid: uint32(os.Getuid()), gid: uint32(os.Getgid())}
	if err := os.WriteFile(c.execFile, []byte("program"), 0o750); err != nil {
		t.Fatal(err)
	}
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	link, hard, fresh := filepath.Join(dir, "link"), filepath.Join(dir, "hard"), filepath.Join(dir, "fresh")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(victim, hard); err != nil {
		t.Fatal(err)
	}
	if err := c.copyExec(link); err == nil || !strings.Contains(err.Error(), "os error 40") {
		t.Errorf("through a link: %v", err)
	}
	if err := c.copyExec(hard); err == nil || err.Error() != "Detected hard link at: "+hard {
		t.Errorf("into a hard link: %v", err)
	}
	if err := c.copyExec(fresh); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(fresh); err != nil || string(b) != "program" {
		t.Errorf("the copy holds %q, %v", b, err)
	}
	if st, err := os.Stat(victim); err != nil || st.Size() != 0 {
		t.Errorf("the victim was written: %v", err)
	}
}

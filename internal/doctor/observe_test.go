package doctor

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/paths"
)

// write makes a file with its directories.
func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// TestObserve looks at this host with directories of the test's own, and leaves them as they were.
func TestObserve(t *testing.T) {
	home := t.TempDir()
	daemon := filepath.Join(home, "bin", "bangerd")
	write(t, daemon, "#!/bin/sh\necho bangerd v7\n", 0o700)
	write(t, filepath.Join(home, "lib/banger/banger-vsock-agent"), "agent", 0o700)
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodHead || r.URL.Path != "/debian/dists/stable/InRelease" {
			http.NotFound(w, r)
		}
	}))
	defer mirror.Close()
	t.Setenv("no_proxy", "127.0.0.1")
	write(t, filepath.Join(home, ".config/banger/config.toml"), "debian_mirror = \""+mirror.URL+"/debian\"\n", 0o600)
	write(t, filepath.Join(home, ".ssh/config"), "Include ~/.config/banger/ssh/config\n", 0o600)
	env := map[string]string{"HOME": home}
	getenv := func(k string) string { return env[k] }
	p, err := paths.FromEnv(getenv)
	if err != nil {
		t.Fatal(err)
	}
	src := Sources{Paths: p, Getenv: getenv, Version: "v7", Online: true,
		FindDaemon: func() (string, error) { return daemon, nil },
		AskDaemon: func(context.Context) (api.DaemonStatus, error) {
			return api.DaemonStatus{}, errors.New("nobody answers")
		},
	}
	o := Observe(t.Context(), src)
	if o.ConfigErr != nil || !o.ConfigExists || o.Daemon != (Program{daemon, "v7"}) || o.Agent != filepath.Join(home, "lib/banger/banger-vsock-agent") {
		t.Errorf("configuration %v, daemon %v, agent %q", o.ConfigErr, o.Daemon, o.Agent)
	}
	if o.Running != nil || o.RunningErr == nil || o.Socket.Exists || o.Socket.Locked || o.MirrorErr != nil {
		t.Errorf("running %v %v, socket %+v, mirror %v", o.Running, o.RunningErr, o.Socket, o.MirrorErr)
	}
	if o.ImageHere || !o.ImageKnown || o.KernelHere || !o.KernelKnown || o.Image == "" || o.Kernel == "" {
		t.Errorf("image %q %v %v, kernel %q %v %v", o.Image, o.ImageHere, o.ImageKnown, o.Kernel, o.KernelHere, o.KernelKnown)
	}
	for _, place := range o.Places {
		if place.Err != nil || !place.Writable || place.Free == 0 || place.Device == 0 || place.Owner != os.Geteuid() || place.Exists != (place.Use == "config") {
			t.Errorf("%+v", place)
		}
	}
	if !o.SSHConfig.Included || o.SSHConfig.Exists || o.MemoryTotal < o.MemoryAvailable || o.MemoryTotal == 0 || o.CPUs == 0 || o.Tuning.Kernel == "" {
		t.Errorf("ssh %+v, memory %d %d, cpus %d, kernel %q", o.SSHConfig, o.MemoryTotal, o.MemoryAvailable, o.CPUs, o.Tuning.Kernel)
	}
	for _, dir := range []string{".local", ".cache"} {
		if _, err := os.Lstat(filepath.Join(home, dir)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it made %s", dir)
		}
	}

	write(t, filepath.Join(home, ".config/banger/config.toml"), "nope = 1\ndebian_mirror = \""+mirror.URL+"/other\"\n", 0o600)
	src.AskDaemon = func(context.Context) (api.DaemonStatus, error) { return api.DaemonStatus{PID: 5}, nil }
	src.FindDaemon = func() (string, error) { return "", errors.New("no daemon") }
	src.Online = false
	o = Observe(t.Context(), src)
	if o.ConfigErr == nil || o.Settings.Engine != "auto" || o.Running == nil || o.Running.PID != 5 || o.DaemonErr == nil || o.Agent != "" || o.MirrorAsked {
		t.Errorf("configuration %v, daemon %v %v", o.ConfigErr, o.Running, o.DaemonErr)
	}
	if err := askMirror(t.Context(), mirror.URL+"/other"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a mirror without Debian: %v", err)
	}
}

func TestObservePlace(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "file"), "", 0o600)
	if p := observePlace("x", filepath.Join(dir, "file")); p.Err == nil || !strings.Contains(p.Err.Error(), "no directory") {
		t.Errorf("a file: %+v", p)
	}
	if p := observePlace("x", filepath.Join(dir, "a/b/c")); p.Err != nil || p.Exists || !p.Writable {
		t.Errorf("a directory to be made: %+v", p)
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if p := observePlace("x", dir); p.Err != nil || !p.Exists || p.Mode.Perm() != 0o500 || p.Writable != (os.Geteuid() == 0) {
		t.Errorf("one that is read only: %+v", p)
	}
}

func TestIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if isLocked(path) {
		t.Error("a lock that is not there is held")
	}
	write(t, path, "/run/sock\n", 0o600)
	if isLocked(path) {
		t.Error("a lock nobody holds is held")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(text("/proc/locks"), "FLOCK") {
		t.Skip("this kernel does not show locks")
	}
	if !isLocked(path) {
		t.Errorf("a lock that is held is not: %s", text("/proc/locks"))
	}
}

func TestParseKernelFiles(t *testing.T) {
	routes := "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		"eth0\t00000000\t0101A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
		"tun0\t000010AC\t00000000\t0001\t0\t0\t0\t0000F0FF\t0\t0\t0\n" +
		"eth0\t0501A8C0\t00000000\t0001\t0\t0\t0\tFFFFFFFF\t0\t0\t0\nbroken\nx\tzz\t0\t0\t0\t0\t0\tzz\n"
	want := []Route{{netip.MustParsePrefix("0.0.0.0/0"), "eth0"}, {netip.MustParsePrefix("172.16.0.0/12"), "tun0"}, {netip.MustParsePrefix("192.168.1.5/32"), "eth0"}}
	if diff := cmp.Diff(want, parseRoutes(routes), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if total, available := parseMeminfo("MemTotal:       16 kB\nMemFree: 1 kB\nMemAvailable:    8 kB\nHugePages_Total: 0\n"); total != 16<<10 || available != 8<<10 {
		t.Errorf("memory %d, %d", total, available)
	}
	if got := parseRange("0\t2147483647\n"); got != [2]int{0, 2147483647} {
		t.Errorf("range %v", got)
	}
	if got := parseRange(""); got != [2]int{1, 0} {
		t.Errorf("no range %v", got)
	}
	mounts := "proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,favordynmods 0 0\n"
	if where, favoured := parseMounts(mounts); where != "/sys/fs/cgroup" || !favoured {
		t.Errorf("mounts %q %v", where, favoured)
	}
	locks := "1: POSIX  ADVISORY  WRITE 10 08:01:55 0 EOF\n2: FLOCK  ADVISORY  WRITE 11 00:2b:77 0 EOF\n2: -> FLOCK  ADVISORY  WRITE 12 00:2b:78 0 EOF\n"
	for inode, want := range map[uint64]bool{77: true, 55: false, 7: false, 78: false} {
		if parseLocks(locks, inode) != want {
			t.Errorf("inode %d: locked is not %v", inode, want)
		}
	}
}

func TestIncludes(t *testing.T) {
	const ours, home = "/home/u/.config/banger/ssh/config", "/home/u"
	for text, want := range map[string]bool{
		"":                                     false,
		"Include " + ours:                      true,
		"include=\"" + ours + "\"\nHost x\n":   true,
		"# Include " + ours:                    false,
		"Include ~/.config/banger/ssh/config":  true,
		"Include ../.config/banger/ssh/config": true,
		"Include other ~/.config/*/ssh/config": true,
		"Include ~/.config/other\nUser x\n\n  Include " + ours: true,
		"Host x\n  Include " + ours:                            false,
		"Match all\nInclude " + ours:                           false,
		"Include [":                                            false,
	} {
		if got := includes(text, ours, home); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestVersions(t *testing.T) {
	dir := t.TempDir()
	for name, tt := range map[string]struct{ script, want string }{
		"stderr":  {"echo 'OpenSSH_9.2p1 Debian-2, OpenSSL 3' >&2", "9.2p1"},
		"windows": {"echo 'OpenSSH_for_Windows_8.6p1, LibreSSL' >&2", "8.6p1"},
		"other":   {"echo 'Dropbear v2022.83' >&2", ""},
		"failing": {"echo OpenSSH_9.2p1; exit 1", ""},
	} {
		path := filepath.Join(dir, name)
		write(t, path, "#!/bin/sh\n"+tt.script+"\n", 0o700)
		if got := observeProgram(t.Context(), path, sshVersion, "-V"); got != (Program{path, tt.want}) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if got := observeProgram(t.Context(), filepath.Join(dir, "nope"), sshVersion, "-V"); got != (Program{}) {
		t.Errorf("no program: %+v", got)
	}
}

func TestObserveWeb(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	if w := observeWeb(at); !errors.Is(w.Err, syscall.EADDRINUSE) || !strings.Contains(w.By, strconv.Itoa(os.Getpid())) {
		t.Errorf("taken: %+v", w)
	}
	_ = ln.Close()
	if w := observeWeb(at); w.Err != nil || w.By != "" {
		t.Errorf("free: %+v", w)
	}
	if w := observeWeb("192.0.2.1:7777"); !errors.Is(w.Err, syscall.EADDRNOTAVAIL) { // TEST-NET-1 is no host's
		t.Errorf("elsewhere: %+v", w)
	}
	if w := observeWeb(""); w != (WebPort{}) {
		t.Errorf("none: %+v", w)
	}
}

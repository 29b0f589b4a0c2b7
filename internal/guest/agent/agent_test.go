package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

func TestChooseRole(t *testing.T) {
	for _, c := range []struct {
		args []string
		pid  int
		want role
	}{
		{[]string{"/init"}, 1, roleInit},
		{[]string{"/shutdown", "reboot", "--timeout=90s"}, 1, roleHook},
		{[]string{"/shutdown"}, 1, roleInit}, // systemd always gives a verb
		{[]string{"@banger-agent"}, 128, roleAgent},
		{[]string{"/run/banger/modprobe", "-q", "--", "fs-xfs"}, 300, roleModprobe},
		{[]string{"banger-vsock-agent"}, 300, roleUsage},
		{nil, 300, roleUsage},
	} {
		if got := chooseRole(c.args, c.pid); got != c.want {
			t.Errorf("chooseRole(%q, %d) = %s, want %s", c.args, c.pid, got, c.want)
		}
	}
}

func TestPickDrives(t *testing.T) {
	for name, c := range map[string]struct {
		disks []block
		want  drives
		ok    bool
	}{
		"serials win over order": {[]block{{"vda", "modules"}, {"vdb", "base"}, {"vdc", "data"}}, drives{"/dev/vdb", "/dev/vdc", "/dev/vda"}, true},
		"order without serials":  {[]block{{"vdc", ""}, {"vda", ""}, {"vdb", ""}}, drives{"/dev/vda", "/dev/vdb", "/dev/vdc"}, true},
		"foreign serials":        {[]block{{"vda", "x"}, {"vdb", "y"}}, drives{"/dev/vda", "/dev/vdb", ""}, true},
		"no modules":             {[]block{{"vda", "base"}, {"vdb", "data"}}, drives{"/dev/vda", "/dev/vdb", ""}, true},
		"data is missing yet":    {[]block{{"vda", "base"}, {"vdb", "modules"}}, drives{"/dev/vda", "", "/dev/vdb"}, false},
		"the first of two":       {[]block{{"vda", "base"}, {"vdb", "data"}, {"vdc", "data"}}, drives{"/dev/vda", "/dev/vdb", ""}, true},
		"beyond z":               {[]block{{"vdaa", ""}, {"vdb", ""}}, drives{"/dev/vdb", "/dev/vdaa", ""}, true},
		"none":                   {nil, drives{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok := pickDrives(c.disks)
			if diff := cmp.Diff(c.want, got); diff != "" || ok != c.ok {
				t.Errorf("ok %v, %s", ok, diff)
			}
		})
	}
}

func TestListDisks(t *testing.T) {
	sys := t.TempDir()
	for name, serial := range map[string]string{"vda": "base\n", "vdb": "", "sda": "data"} {
		dir := filepath.Join(sys, "block", name)
		must(t, os.MkdirAll(dir, 0o755))
		if serial != "" {
			must(t, os.WriteFile(filepath.Join(dir, "serial"), []byte(serial), 0o644))
		}
	}
	got, err := listDisks(sys)
	must(t, err)
	if diff := cmp.Diff([]block{{"vda", "base"}, {"vdb", ""}}, got, cmp.AllowUnexported(block{})); diff != "" {
		t.Error(diff)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestModules(t *testing.T) {
	files := map[string]string{
		"modules.dep": "kernel/a/snd-pcm.ko.xz: kernel/b/snd.ko.xz kernel/c/core.ko.xz\nkernel/b/snd.ko.xz: kernel/c/core.ko.xz\n" +
			"kernel/c/core.ko.xz:\nkernel/d/crc.ko:\nkernel/e/btrfs.ko: kernel/c/core.ko.xz\n",
		"modules.softdep": "# comment\nsoftdep btrfs pre: crc post: snd\n",
		"modules.alias":   "# Aliases\nalias net-pf-10 snd_pcm\nalias virtio:d00000001v* crc\nalias fs-btrfs btrfs\nalias usb:v[0-9]* snd\n",
		"modules.builtin": "kernel/fs/ext4/ext4.ko\n",
	}
	db := moduleDB{dir: "/lib/modules/x", read: func(name string) ([]byte, error) {
		if s, ok := files[name]; ok {
			return []byte(s), nil
		}
		return nil, fs.ErrNotExist
	}}
	pcm := []string{"kernel/c/core.ko.xz", "kernel/b/snd.ko.xz", "kernel/a/snd-pcm.ko.xz"}
	for name, want := range map[string][]string{
		"snd_pcm":                  pcm,
		"snd-pcm":                  pcm,
		"net-pf-10":                pcm,
		"virtio:d00000001v00001af": {"kernel/d/crc.ko"},
		"btrfs":                    {"kernel/d/crc.ko", "kernel/c/core.ko.xz", "kernel/e/btrfs.ko"},
		"fs-btrfs":                 {"kernel/d/crc.ko", "kernel/c/core.ko.xz", "kernel/e/btrfs.ko"},
		"usb:v7":                   {"kernel/c/core.ko.xz", "kernel/b/snd.ko.xz"},
		"ext4":                     nil, // built in
	} {
		got, err := db.resolve(name)
		if err != nil {
			t.Errorf("resolve(%q): %v", name, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("resolve(%q): %s", name, diff)
		}
	}
	for _, name := range []string{"", "none", "usb:va", "../../etc/passwd"} {
		if got, err := db.resolve(name); err == nil {
			t.Errorf("resolve(%q) = %q", name, got)
		}
	}
}

func TestSplitOrder(t *testing.T) {
	order := parseOrder([]byte("virtio_mmio.ko\n\n# rest\n/modules/03-virtio-blk.ko\nfailover.ko\noverlay.ko.xz\nvsock.ko\n"))
	first, later := splitOrder(order, neededModules)
	if diff := cmp.Diff([]string{"virtio_mmio.ko", "03-virtio-blk.ko", "overlay.ko.xz"}, first); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"failover.ko", "vsock.ko"}, later); diff != "" {
		t.Error(diff)
	}
	if first, _ := splitOrder(order, neededModules, vsockModules); first[len(first)-1] != "vsock.ko" {
		t.Errorf("with vsock: %q", first)
	}
}

func TestHostsFile(t *testing.T) {
	const local = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
	for name, c := range map[string]struct{ old, want string }{
		"empty":            {"", local + "127.0.1.1\tdev\n"},
		"kept":             {"127.0.0.1 localhost x\n10.0.0.1 db", "127.0.0.1 localhost x\n10.0.0.1 db\n127.0.1.1\tdev\n"},
		"an older name":    {"127.0.0.1 localhost\n127.0.1.1 old\n", "127.0.0.1 localhost\n127.0.1.1\tdev\n"},
		"as it is already": {local + "127.0.1.1\tdev\n", local + "127.0.1.1\tdev\n"},
	} {
		if diff := cmp.Diff(c.want, hostsFile(c.old, "dev")); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestWriteChanged(t *testing.T) {
	dir := t.TempDir()
	p := filepath.Join(dir, "etc", "name")
	must(t, writeChanged(p, "a\n"))
	before, err := os.Stat(p)
	must(t, err)
	must(t, writeChanged(p, "a\n"))
	after, err := os.Stat(p)
	must(t, err)
	if !os.SameFile(before, after) {
		t.Error("a file that was right was written again")
	}
	// A link is replaced: what it led to stays.
	other := filepath.Join(dir, "other")
	must(t, os.WriteFile(other, []byte("keep"), 0o644))
	must(t, os.Remove(p))
	must(t, os.Symlink(other, p))
	must(t, writeChanged(p, "b\n"))
	if b, _ := os.ReadFile(other); string(b) != "keep" {
		t.Errorf("the target of a link is %q", b)
	}
	if b, _ := os.ReadFile(p); string(b) != "b\n" {
		t.Errorf("the file is %q", b)
	}
	// So is a pipe, without anybody waiting for its other end.
	must(t, os.Remove(p))
	must(t, unix.Mkfifo(p, 0o600))
	must(t, writeChanged(p, "c\n"))
}

func TestFindInit(t *testing.T) {
	for name, c := range map[string]struct {
		make func(root string) error
		kind initKind
		path string
	}{
		"nothing": {func(string) error { return nil }, initNone, ""},
		"systemd": {func(r string) error {
			return errors.Join(program(r, "/lib/systemd/systemd"), symlink(r, "../lib/systemd/systemd", "/sbin/init"))
		}, initSystemd, "/sbin/init"},
		"systemd without its link": {func(r string) error { return program(r, "/usr/lib/systemd/systemd") }, initSystemd, "/usr/lib/systemd/systemd"},
		"sysvinit":                 {func(r string) error { return program(r, "/sbin/init") }, initOther, "/sbin/init"},
		"busybox alone": {func(r string) error {
			return errors.Join(program(r, "/bin/busybox"), symlink(r, "../bin/busybox", "/sbin/init"))
		}, initNone, ""},
		"busybox as a hard link": {func(r string) error {
			return errors.Join(program(r, "/bin/sh"), os.Link(r+"/bin/sh", r+"/bin/init"))
		}, initNone, ""},
		"busybox with openrc": {func(r string) error {
			return errors.Join(program(r, "/bin/busybox"), program(r, "/sbin/openrc"), symlink(r, "../bin/busybox", "/sbin/init"))
		}, initOther, "/sbin/init"},
		"not executable": {func(r string) error {
			return errors.Join(program(r, "/sbin/init"), os.Chmod(r+"/sbin/init", 0o644))
		}, initNone, ""},
		"dangling": {func(r string) error { return symlink(r, "../lib/gone", "/sbin/init") }, initNone, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			must(t, c.make(root))
			if kind, path := findInit(root); kind != c.kind || path != c.path {
				t.Errorf("findInit = %s %q, want %s %q", kind, path, c.kind, c.path)
			}
		})
	}
}

func program(root, p string) error {
	if err := os.MkdirAll(filepath.Dir(root+p), 0o755); err != nil {
		return err
	}
	return os.WriteFile(root+p, []byte(p), 0o755)
}

func symlink(root, target, p string) error {
	if err := os.MkdirAll(filepath.Dir(root+p), 0o755); err != nil {
		return err
	}
	return os.Symlink(target, root+p)
}

func TestUnits(t *testing.T) {
	dir := t.TempDir()
	must(t, writeUnits(dir, units()))
	for p, want := range map[string]string{
		"system.control/serial-getty@ttyS0.service":      "/dev/null",
		"system/basic.target.wants/banger-ready.socket":  "../banger-ready.socket",
		"system/default.target.wants/banger-full.socket": "../banger-full.socket",
	} {
		if got, err := os.Readlink(filepath.Join(dir, p)); err != nil || got != want {
			t.Errorf("%s leads to %q, %v", p, got, err)
		}
	}
	b, err := os.ReadFile(filepath.Join(dir, "system/banger-ready.socket"))
	must(t, err)
	for _, want := range []string{"After=basic.target\n", "ListenFIFO=" + readyPipe + "\n", "SocketMode=0600\n", "DefaultDependencies=no\n"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("no %q in\n%s", want, b)
		}
	}
	// Every socket has the service without which systemd refuses it, and the image's /etc is not involved.
	for _, u := range units() {
		if strings.HasPrefix(u.path, "/") || strings.Contains(u.path, "..") {
			t.Errorf("%q is outside of /run", u.path)
		}
	}
}

func TestPrepareData(t *testing.T) {
	base, data := t.TempDir(), t.TempDir()
	must(t, os.MkdirAll(base+"/real/home/user", 0o755))
	must(t, os.Symlink("/real/home", base+"/home")) // absolute: it must not lead to the host's /real
	must(t, os.WriteFile(base+"/real/home/user/file", []byte("content"), 0o640))
	must(t, os.Link(base+"/real/home/user/file", base+"/real/home/user/again"))
	must(t, os.Symlink("/etc/passwd", base+"/real/home/user/link"))
	must(t, unix.Mkfifo(base+"/real/home/user/pipe", 0o620))
	must(t, unix.Chmod(base+"/real/home/user/file", 0o4751))
	must(t, unix.Chmod(base+"/real/home/user/pipe", 0o620))
	old := time.Unix(1_000_000_000, 0)
	must(t, os.Chtimes(base+"/real/home/user/file", old, old))
	must(t, os.Symlink("../../../../../../../../etc", base+"/escape"))
	must(t, os.WriteFile(base+"/plain", nil, 0o644))
	must(t, os.Chmod(base, 0o751))

	bound := []boundDir{{"/home", 0o755}, {"/var/tmp", 0o777 | fs.ModeSticky}, {"/escape/x", 0o700}, {"/plain", 0o711}}
	must(t, os.MkdirAll(filepath.Join(data, layoutDir+".new", "half"), 0o755)) // a first boot that was cut off
	must(t, prepareData(base, data, bound))

	home := filepath.Join(data, layoutDir, "bind/home/user")
	info, err := os.Stat(home + "/file")
	must(t, err)
	if info.Mode() != 0o751|fs.ModeSetuid || !info.ModTime().Equal(old) {
		t.Errorf("file is %v of %v", info.Mode(), info.ModTime())
	}
	again, err := os.Stat(home + "/again")
	must(t, err)
	if !os.SameFile(info, again) {
		t.Error("a hard link became a copy")
	}
	if l, err := os.Readlink(home + "/link"); err != nil || l != "/etc/passwd" {
		t.Errorf("link leads to %q, %v", l, err)
	}
	if fi, err := os.Lstat(home + "/pipe"); err != nil || fi.Mode() != 0o620|fs.ModeNamedPipe {
		t.Errorf("pipe is %v, %v", fi, err)
	}
	for name, mode := range map[string]fs.FileMode{
		"bind/var-tmp": 0o777 | fs.ModeSticky | fs.ModeDir, "bind/escape-x": 0o700 | fs.ModeDir, "bind/plain": 0o711 | fs.ModeDir, "upper": 0o751 | fs.ModeDir,
	} {
		if fi, err := os.Stat(filepath.Join(data, layoutDir, name)); err != nil || fi.Mode() != mode {
			t.Errorf("%s is %v, %v; want %v", name, fi.Mode(), err, mode)
		}
	}
	if left, _ := os.ReadDir(filepath.Join(data, layoutDir, "bind/escape-x")); len(left) != 0 {
		t.Error("a link of the image led out of it")
	}
	if _, err := os.Stat(filepath.Join(data, layoutDir+".new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the unfinished layout is still there: %v", err)
	}

	// A later boot changes nothing but adds what a newer agent binds.
	must(t, os.WriteFile(home+"/mine", nil, 0o600))
	must(t, prepareData(base, data, append(bound, boundDir{"/srv", 0o755})))
	for _, p := range []string{home + "/mine", filepath.Join(data, layoutDir, "bind/srv")} {
		if _, err := os.Stat(p); err != nil {
			t.Error(err)
		}
	}
}

func TestExt4Blocks(t *testing.T) {
	sb := make([]byte, 1024)
	if _, err := ext4Blocks(sb); err == nil {
		t.Error("zeros are a superblock")
	}
	copy(sb[0x38:], []byte{0x53, 0xef})
	copy(sb[4:], []byte{1, 0, 0, 0})
	copy(sb[0x150:], []byte{2})
	if n, err := ext4Blocks(sb); err != nil || n != 1 {
		t.Errorf("without 64bit: %d, %v", n, err)
	}
	sb[0x60] = 0x80
	if n, err := ext4Blocks(sb); err != nil || n != 2<<32+1 {
		t.Errorf("with 64bit: %d, %v", n, err)
	}
}

func TestReadBootOnce(t *testing.T) {
	p := filepath.Join(t.TempDir(), "boot.json")
	must(t, os.WriteFile(p, []byte(`{"version":1,"secret":"s","transport":"vsock"}`), 0o600))
	conf, err := readBoot(p)
	must(t, err)
	if conf.Secret != "s" || conf.Transport != wire.TransportVsock {
		t.Errorf("got %+v", conf)
	}
	if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the secret is still there")
	}
	must(t, os.WriteFile(p, []byte(`{"version":2}`), 0o600))
	if _, err := readBoot(p); err == nil || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("another version: %v", err)
	}
}

func TestLogbook(t *testing.T) {
	var sent []string
	path := filepath.Join(t.TempDir(), "log")
	l := newLogbook(path, func(s string) { sent = append(sent, s) })
	must2(l.Write([]byte("one\ntwo\n")))
	var b bytes.Buffer
	must(t, l.copyTo(t.Context(), &b, false))
	if b.String() != "one\ntwo\n" || len(sent) != 2 {
		t.Errorf("log %q, sent %q", b.String(), sent)
	}
	long := strings.Repeat("x", 10_000)
	for range 100 {
		l.add(long)
	}
	if l.size > logBytes {
		t.Errorf("%d bytes in memory", l.size)
	}
	for _, p := range []string{path, path + ".1"} {
		if fi, err := os.Stat(p); err != nil || fi.Size() > logBytes+20_000 || fi.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", p, fi, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	r, w := net.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- l.copyTo(ctx, w, true) }()
	go l.add("the last")
	got := make([]byte, 2*logBytes)
	n := 0
	for !strings.Contains(string(got[:n]), "the last\n") {
		m, err := r.Read(got[n:])
		must(t, err)
		n += m
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("follow ended with %v", err)
	}
}

func must2(_ int, err error) {
	if err != nil {
		panic(err)
	}
}

func TestControl(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root is heard")
	}
	name := "@banger-test-" + filepath.Base(t.TempDir()) + t.Name()
	l, err := listenControl(name)
	must(t, err)
	defer l.Close()
	verbs := make(chan string, 1)
	go func() {
		_ = serveControl(l, func(v string) error { verbs <- v; return errors.New("not here") })
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := tellAgent(ctx, name, verbReboot); err == nil || !strings.Contains(err.Error(), "not here") {
		t.Errorf("tellAgent: %v", err)
	}
	if v := <-verbs; v != verbReboot {
		t.Errorf("verb %q", v)
	}
	if err := tellAgent(ctx, name, "explode"); err == nil {
		t.Error("an unknown verb was taken")
	}
	select {
	case v := <-verbs:
		t.Errorf("verb %q was acted on", v)
	default:
	}
}

// TestFindPort also shows the transport's choice: an unknown one is an error, not a wait.
func TestFindPort(t *testing.T) {
	sys := t.TempDir()
	for dev, name := range map[string]string{"vport0p0": "org.other", "vport0p1": wire.PortName} {
		dir := filepath.Join(sys, "class/virtio-ports", dev)
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.WriteFile(dir+"/name", []byte(name+"\n"), 0o644))
	}
	if p, err := findPort(sys, wire.PortName); err != nil || p != "/dev/vport0p1" {
		t.Errorf("findPort = %q, %v", p, err)
	}
	if err := serveLinks(t.Context(), "carrier pigeon", nil); err == nil {
		t.Error("an unknown transport was taken")
	}
}

func TestAwaitFile(t *testing.T) {
	dir := t.TempDir()
	found := make(chan error, 1)
	go func() { found <- awaitFile(t.Context(), filepath.Join(dir, "ready")) }()
	must(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o600))
	must(t, unix.Mkfifo(filepath.Join(dir, "ready"), 0o600))
	must(t, <-found)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := awaitFile(ctx, filepath.Join(dir, "never")); err == nil {
		t.Error("it found what is not there")
	}
}

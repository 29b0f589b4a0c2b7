//go:build e2e && long

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLongTransfer moves SIZE MiB, 1024 of them unless told otherwise, into a guest and out again by every way there is.
func TestLongTransfer(t *testing.T) {
	u := newSSHUser(t)
	size := int64(envNumber(t, "SIZE", 1024)) << 20
	file := u.randomFile("transfer", size)
	back := filepath.Join(u.dir, "back")
	want := sum(t, file)
	for _, way := range []struct {
		name    string
		in, out []string
	}{
		{"vm cp", []string{"banger", "vm", "cp", file, "box:/root/transfer"}, []string{"banger", "vm", "cp", "box:/root/transfer", back}},
		{"scp", []string{"scp", "-q", file, "box.vm:transfer"}, []string{"scp", "-q", "box.vm:transfer", back}},
		{"ssh cat", []string{"sh", "-c", `ssh box.vm 'cat >transfer' <"$0"`, file}, []string{"sh", "-c", `ssh box.vm 'cat transfer' >"$0"`, back}},
		{"vm exec cat", []string{"sh", "-c", `banger vm exec box -- sh -c 'cat >/root/transfer' <"$0"`, file}, []string{"sh", "-c", `banger vm exec box -- cat /root/transfer >"$0"`, back}},
		{"rsync", []string{"rsync", "-W", file, "box.vm:transfer"}, []string{"rsync", "-W", "box.vm:transfer", back}},
	} {
		rate := func(argv []string) string {
			start := time.Now()
			u.gets(argv...)
			took := time.Since(start)
			return fmt.Sprintf("%s (%.1f MiB/s)", took.Round(100*time.Millisecond), float64(size>>20)/took.Seconds())
		}
		in := rate(way.in)
		if got := u.inGuest("box", "sha256sum </root/transfer"); !strings.HasPrefix(got, want) {
			t.Errorf("%s: in the guest it is another", way.name)
		}
		out := rate(way.out)
		if sum(t, back) != want {
			t.Errorf("%s: what came back is another", way.name)
		}
		t.Logf("%s: in %s, out %s", way.name, in, out)
		command(t, "rm", back)
		u.inGuest("box", "rm /root/transfer; fstrim /root || true")
	}
}

// TestLongSSH opens and ends COUNT connections of every kind; neither the guest nor the daemon keeps anything of them.
func TestLongSSH(t *testing.T) {
	u := newSSHUser(t)
	count := envNumber(t, "COUNT", 100)
	look := func() string {
		return u.inGuest("box", "ls /tmp | grep -c ^ssh- || true; who | wc -l; ls /dev/pts | wc -l") +
			command(t, "sh", "-c", "ls /proc/$0/fd | wc -l", fmt.Sprint(u.daemonPID()))
	}
	u.gets("ssh", "box.vm", "true")
	before := look()
	start := time.Now()
	for i := range count {
		status := i % 100
		argv := [][]string{{"ssh", "box.vm"}, {"ssh", "-tt", "box.vm"}, {"banger", "vm", "ssh", "box", "--"}, {"ssh", "-A", "-R", "0:127.0.0.1:1", "box.vm"}}[i%4]
		if r := u.does(nil, append(argv, fmt.Sprintf("exit %d", status))...); r.code != status {
			t.Fatalf("cycle %d: status %d, %s", i, r.code, r.stderr)
		}
	}
	t.Logf("%d connections in %s", count, time.Since(start).Round(time.Second))
	var after string
	if err := waitFor(waitShort, func() bool { after = look(); return after == before }); err != nil {
		t.Errorf("before %q, after %q", before, after)
	}
}

//go:build e2e

package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestFileSync: what the configuration names is in the home of a new VM before its first command, as it was on the host then.
func TestFileSync(t *testing.T) {
	h := newHost(t)
	home := filepath.Join(h.dir, "home")
	put := func(name, content string, mode os.FileMode) {
		t.Helper()
		p := filepath.Join(home, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(content), mode), os.Chmod(p, mode)); err != nil {
			t.Fatal(err)
		}
	}
	put(".netrc", "one\n", 0o644)
	put("conf/a", "A\n", 0o640)
	put("conf/run", "B\n", 0o755)
	if err := errors.Join(os.Symlink("run", filepath.Join(home, "conf/link")), os.Symlink("/etc/passwd", filepath.Join(home, "conf/out"))); err != nil {
		t.Fatal(err)
	}
	h.config(`
[[file_sync]]
host = "~/.netrc"
guest = "~/.netrc"
[[file_sync]]
host = "~/conf"
guest = "/root/.config/deep/conf"
[[file_sync]]
host = "~/.netrc"
guest = "~/.bashrc"
mode = "0444"
[[file_sync]]
host = "~/missing"
guest = "~/missing"
`)
	r := h.run("vm", "create", "--name", "later", "--no-start")
	for _, want := range []string{"missing is not on this host: not copied", "conf/out leads out of"} {
		if r.code != 0 || !strings.Contains(r.stderr, want) {
			t.Errorf("exit status %d, stderr lacks %q: %s", r.code, want, r.stderr)
		}
	}
	put(".netrc", "two\n", 0o644)
	const look = `cd; stat -c "%a %U %n" .netrc .bashrc .config/deep/conf/* | sort; cat .netrc .config/deep/conf/link; stat -c %a /root`
	const want = "444 root .bashrc\n600 root .netrc\n640 root .config/deep/conf/a\n755 root .config/deep/conf/run\n777 root .config/deep/conf/link\none\nB\n700\n"
	h.ok("vm", "start", "later")
	if out := h.ok("vm", "exec", "later", "--", "sh", "-c", look); out != want {
		t.Errorf("%q", out)
	}
	if left, _ := filepath.Glob(filepath.Join(h.dir, "state/banger/vms/*/first-boot.tar")); len(left) != 0 {
		t.Errorf("left are %q", left)
	}
	h.ok("vm", "delete", "--force", "later")
	if out := h.ok("vm", "run", "--rm", "--", "cat", "/root/.netrc"); out != "two\n" {
		t.Errorf("the next VM: %q", out)
	}

	h.ok("daemon", "stop")
	h.config("[[file_sync]]\nhost = \"/dev/null\"\nguest = \"~/x\"\n")
	h.fails(1, []string{"file_sync[0]", "neither a file nor a directory"}, "vm", "create", "--name", "never")
	if vms := h.vms(); len(vms) != 0 {
		t.Errorf("left are %v", vms)
	}
}

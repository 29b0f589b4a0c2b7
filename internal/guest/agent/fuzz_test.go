package agent

import (
	"io/fs"
	"strings"
	"testing"
)

// FuzzResolve: whatever the kernel's module lists hold and whatever is asked for, what is loaded comes from the
// list, and the module itself last.
func FuzzResolve(f *testing.F) {
	f.Add("snd", "a/snd.ko: b/core.ko\nb/core.ko:\n", "alias snd-* snd\n", "softdep snd pre: core\n")
	f.Add("fs-x", "x.ko.xz:\n", "alias fs-x x\nalias [ x\nalias fs-[ x\n", "softdep x pre:\nsoftdep\n")
	f.Add("net-pf-10", ":\n: :\n", "alias net-pf-10 \n", "")
	f.Fuzz(func(t *testing.T, name, dep, alias, soft string) {
		files := map[string]string{"modules.dep": dep, "modules.alias": alias, "modules.softdep": soft}
		db := moduleDB{read: func(n string) ([]byte, error) {
			if s, ok := files[n]; ok {
				return []byte(s), nil
			}
			return nil, fs.ErrNotExist
		}}
		got, err := db.resolve(name)
		if err == nil && len(got) == 0 {
			t.Fatalf("resolve(%q) gives nothing and no error, and nothing is built in", name)
		}
		for _, file := range got {
			if file != "" && !strings.Contains(dep, file) {
				t.Fatalf("resolve(%q) gives %q, which is not in the list", name, file)
			}
		}
	})
}

// FuzzHosts: an image's hosts file, whatever it is, ends with one line of this host's, and doing it
// twice changes nothing.
func FuzzHosts(f *testing.F) {
	f.Add("127.0.0.1 localhost\n")
	f.Add("\r\n\x00127.0.1.1 a b\n127.0.1.1")
	f.Fuzz(func(t *testing.T, old string) {
		once := hostsFile(old, "dev")
		if !strings.HasSuffix(once, "\n127.0.1.1\tdev\n") || strings.Count(once, "\n127.0.1.1\tdev\n") != 1 {
			t.Fatalf("%q", once)
		}
		if twice := hostsFile(once, "dev"); twice != once {
			t.Fatalf("%q, then %q", once, twice)
		}
	})
}

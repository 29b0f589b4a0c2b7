package image

import (
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

func hostWith(uid int, name string, files map[string]string) host {
	fs := fstest.MapFS{}
	for path, content := range files {
		fs[path] = &fstest.MapFile{Data: []byte(content)}
	}
	return host{files: fs, uid: uid, name: name}
}

func TestCheckHost(t *testing.T) {
	debian := "ID=debian\n"
	range1 := "other:100000:65536\nann:165536:65536\n"
	for name, c := range map[string]struct {
		host      host
		installed []string
		hint      string // empty: the host will do
	}{
		"all there":          {hostWith(1000, "ann", map[string]string{"etc/subuid": range1, "etc/subgid": range1}), []string{"mmdebstrap", "newuidmap", "newgidmap"}, ""},
		"root needs no ids":  {hostWith(0, "root", nil), []string{"mmdebstrap"}, ""},
		"nothing on Debian":  {hostWith(1000, "ann", map[string]string{"etc/os-release": debian}), nil, "sudo apt install mmdebstrap uidmap"},
		"nothing on Ubuntu":  {hostWith(1000, "ann", map[string]string{"etc/os-release": "ID=mint\nID_LIKE=\"ubuntu debian\"\n"}), nil, "sudo apt install mmdebstrap uidmap"},
		"root on Debian":     {hostWith(0, "root", map[string]string{"etc/os-release": debian}), nil, "apt install mmdebstrap"},
		"no uidmap":          {hostWith(1000, "ann", map[string]string{"etc/os-release": debian}), []string{"mmdebstrap"}, "sudo apt install uidmap"},
		"nothing on Fedora":  {hostWith(1000, "ann", map[string]string{"etc/os-release": "ID=fedora\n"}), nil, "sudo dnf install mmdebstrap shadow-utils"},
		"nothing on another": {hostWith(1000, "ann", nil), nil, "install mmdebstrap, newuidmap, newgidmap with the package manager of this host"},
		"no ids":             {hostWith(1000, "ann", map[string]string{"etc/subuid": "bob:200000:65536\n"}), []string{"mmdebstrap", "newuidmap", "newgidmap"}, "sudo usermod --add-subuids 265536-331071 --add-subgids 265536-331071 ann"},
		"too few ids":        {hostWith(1000, "ann", map[string]string{"etc/subuid": "ann:100000:1000\n", "etc/subgid": range1}), []string{"mmdebstrap", "newuidmap", "newgidmap"}, "--add-subuids 231072-296607"},
	} {
		t.Run(name, func(t *testing.T) {
			bin := t.TempDir()
			for _, p := range c.installed {
				writeScript(t, bin+"/"+p, "")
			}
			t.Setenv("PATH", bin)
			if p, err := (hostexec.Runner{}).LookPath("mmdebstrap"); err == nil && !strings.HasPrefix(p, bin) {
				t.Skip("mmdebstrap is in an sbin directory here")
			}
			err := c.host.check()
			if c.hint == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if api.KindOf(err) != api.KindUnavailable || !strings.Contains(api.AsError(err).Hint, c.hint) {
				t.Errorf("%v, hint %q, want %q", err, api.AsError(err).Hint, c.hint)
			}
		})
	}
}

func TestUserNS(t *testing.T) {
	ids := map[string]string{"etc/subuid": "root:5000:65536\n", "etc/subgid": "root:7000:65536\n"}
	if got := hostWith(1000, "ann", ids).userNS(); got != nil {
		t.Errorf("ann: %+v", got)
	}
	if diff := cmp.Diff(&hostexec.UserNS{FirstUID: 5000, FirstGID: 7000, Count: 65536}, hostWith(0, "root", ids).userNS()); diff != "" {
		t.Error("root with a range:", diff)
	}
	if diff := cmp.Diff(&hostexec.UserNS{FirstUID: rootFirstID, FirstGID: rootFirstID, Count: 65536}, hostWith(0, "root", nil).userNS()); diff != "" {
		t.Error("root without:", diff)
	}
}

func TestParseSubIDs(t *testing.T) {
	got := parseSubIDs("ann:100000:65536\n# comment\nbob:x:1\n:1:2\nann:1:0\nann:-1:5\n1000:4294967295:1\n carl:7:8 \nlast:1:1")
	want := []idRange{{"ann", 100000, 65536}, {"carl", 7, 8}, {"last", 1, 1}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(idRange{})); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseSubIDs(f *testing.F) {
	f.Add("ann:100000:65536\n")
	f.Add("a:b:c:d\n:::\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, r := range parseSubIDs(text) {
			if r.first < 0 || r.count <= 0 || r.owner == "" || r.first+r.count < r.first {
				t.Errorf("%+v", r)
			}
		}
	})
}

func TestNPMRegistry(t *testing.T) {
	for name, c := range map[string]struct {
		env   map[string]string
		files map[string]string
		want  string
	}{
		"nothing":        {nil, nil, publicRegistry},
		"environment":    {map[string]string{"npm_config_registry": "https://env.example/"}, map[string]string{"etc/npmrc": "registry=https://etc.example"}, "https://env.example/"},
		"user's file":    {map[string]string{"HOME": "/home/ann"}, map[string]string{"home/ann/.npmrc": "fund=false\nregistry = \"https://user.example/npm/\"\n", "etc/npmrc": "registry=https://etc.example"}, "https://user.example/npm/"},
		"host's file":    {map[string]string{"HOME": "/home/ann"}, map[string]string{"etc/npmrc": "# registry=https://no.example\nregistry=https://etc.example"}, "https://etc.example"},
		"scoped only":    {nil, map[string]string{"etc/npmrc": "@a:registry=https://scope.example\n"}, publicRegistry},
		"not an address": {map[string]string{"npm_config_registry": "file:///etc"}, map[string]string{"etc/npmrc": "registry=${X}"}, publicRegistry},
	} {
		h := hostWith(1000, "ann", c.files)
		if got := npmRegistry(func(n string) string { return c.env[n] }, h.files); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
	p := npmPackage{Package: "@jdxcode/mise-linux-x64", Version: "1.2.3"}
	if got := p.url("https://r.example/npm/"); got != "https://r.example/npm/@jdxcode/mise-linux-x64/-/mise-linux-x64-1.2.3.tgz" {
		t.Error(got)
	}
}

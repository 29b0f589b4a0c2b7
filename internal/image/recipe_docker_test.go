package image

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/deb/debtest"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func TestPackagesOf(t *testing.T) {
	for want, s := range map[string]source{
		"one docker.io":            {Release: "bookworm", Packages: []string{"one"}},
		"docker.io one":            {Release: "bookworm", Packages: []string{"docker.io", "one"}, Docker: dockerDebian},
		"one docker.io docker-cli": {Release: "trixie", Packages: []string{"one"}, Docker: dockerDebian},
		"one":                      {Release: "trixie", Packages: []string{"one"}, Docker: dockerNone},
		"one docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin": {Release: "trixie",
			Packages: []string{"docker.io", "one", "docker-cli"}, Docker: dockerCE},
	} {
		if got := strings.Join(s.packagesOf(), " "); got != want {
			t.Errorf("%+v: %s, want %s", s, got, want)
		}
	}
}

// armored is a key as it is published.
func armored(t *testing.T, key *openpgp.Entity) string {
	t.Helper()
	var out bytes.Buffer
	w, err := armor.Encode(&out, openpgp.PublicKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := key.Serialize(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String() + "\n"
}

// dockerWorld is a world with an archive of Docker's beside Debian's, in whose catalog the image comes with Docker's packages.
func dockerWorld(t *testing.T, key func(*debtest.Archive) string) (*world, *debtest.Archive) {
	t.Helper()
	w := newWorld(t, rootScript+`
for a; do printf '%s\n' "$a"; done >"$root/etc/args"
for a; do case $a in *keyrings/docker.gpg*) sh -c "${a#--customize-hook=}" sh "$root" ;; esac; done
`+tarScript)
	docker := debtest.New(t)
	docker.Publish(debtest.Suite{Codename: "bookworm", Date: testRelease.AddDate(0, 0, 1)})
	old := "docker = \"none\"\n"
	if !strings.Contains(string(w.cfg.Catalog), old) {
		t.Fatal("the catalog of the tests is not as it was")
	}
	w.cfg.Catalog = []byte(strings.Replace(string(w.cfg.Catalog), old,
		fmt.Sprintf("docker = \"ce\"\ndocker_mirror = \"%s/\"\ndocker_key = '''%s'''\n", docker.URL, key(docker)), 1))
	w.open(t)
	return w, docker
}

// TestDockerCE builds with Docker's archive, whose key is in the catalog or in a file of the host.
func TestDockerCE(t *testing.T) {
	dir := t.TempDir()
	for name, key := range map[string]func(*debtest.Archive) string{
		"in the catalog": func(a *debtest.Archive) string { return armored(t, a.Key) },
		"in a file": func(a *debtest.Archive) string {
			overwrite(t, filepath.Join(dir, "docker.asc"), []byte(armored(t, a.Key)))
			return filepath.Join(dir, "docker.asc")
		},
		"in a keyring": func(a *debtest.Archive) string {
			var b bytes.Buffer
			if err := a.Key.Serialize(&b); err != nil {
				t.Fatal(err)
			}
			overwrite(t, filepath.Join(dir, "docker.gpg"), b.Bytes())
			return filepath.Join(dir, "docker.gpg")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, docker := dockerWorld(t, key)
			img, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if want := "built on this host from Debian bookworm and Docker's archive"; img.Source != want {
				t.Errorf("source %q", img.Source)
			}
			f, err := w.store.Files(t.Context(), img.Digest)
			if err != nil {
				t.Fatal(err)
			}
			args := debugfs(t, f.Rootfs, "cat /etc/args")
			for _, want := range []string{"--include=one,two,docker-ce,docker-ce-cli,containerd.io,docker-buildx-plugin,docker-compose-plugin\n",
				"/docker.gpg] " + docker.URL + " bookworm stable\n", "/archive.gpg] " + w.archive.URL + " bookworm main\n",
				"\ndeb [signed-by=/etc/apt/keyrings/docker.gpg] https://download.docker.com/linux/debian bookworm stable\n"} {
				if !strings.Contains(args, want) {
					t.Errorf("no %q in\n%s", want, args)
				}
			}
			if got := debugfs(t, f.Rootfs, "stat /etc/apt/keyrings/docker.gpg"); !strings.Contains(got, "Mode:  0644") {
				t.Errorf("the key in the image: %s", got)
			}
			if diff := cmp.Diff([]string{"dists/bookworm/InRelease"}, docker.Requests()); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestDockerCEFails: nothing is built from an archive that is not the one of the catalog's key.
func TestDockerCEFails(t *testing.T) {
	own := func(a *debtest.Archive) string { return armored(t, a.Key) }
	for name, c := range map[string]struct {
		key    func(*debtest.Archive) string
		change func(*debtest.Archive)
		kind   api.ErrorKind
		text   string
	}{
		"another key": {func(*debtest.Archive) string { return armored(t, debtest.NewKey(t)) }, nil, api.KindUnavailable, "look up Docker's archive"},
		"not there":   {own, func(a *debtest.Archive) { a.Put("dists/bookworm/InRelease", nil) }, api.KindUnavailable, "404"},
		"another suite": {own, func(a *debtest.Archive) {
			a.Publish(debtest.Suite{Codename: "trixie", Date: testRelease})
			a.Put("dists/bookworm/InRelease", a.Get("dists/trixie/InRelease"))
		}, api.KindUnavailable, "trixie"},
		"no key":       {func(*debtest.Archive) string { return "/does/not/exist" }, nil, api.KindInvalid, "no such file"},
		"no key in it": {func(*debtest.Archive) string { return "/dev/null" }, nil, api.KindInvalid, "not a file of keys"},
	} {
		t.Run(name, func(t *testing.T) {
			w, docker := dockerWorld(t, c.key)
			if c.change != nil {
				c.change(docker)
			}
			_, err := w.store.Pull(t.Context(), "debian-test", PullOptions{}, progress.Discard)
			if api.KindOf(err) != c.kind || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("%v: %v", api.KindOf(err), err)
			}
			w.assertClean(t)
		})
	}
	bad := entryOf("a", "", testRecipe+"\ndocker='ce'\ndocker_mirror='http://x'\ndocker_key='-----BEGIN PGP PUBLIC KEY BLOCK-----'")
	if _, err := parseCatalog([]byte(bad)); err == nil || !strings.Contains(err.Error(), "docker_key: expected the armored key") {
		t.Errorf("a broken key: %v", err)
	}
}

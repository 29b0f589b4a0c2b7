package sshkeys

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh"

	"git.thaloco.com/thaloco/banger/api"
)

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func generate(t *testing.T, comment string) Pair {
	t.Helper()
	pair, err := Generate(comment)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

// TestOwnKeyIsMadeOnce: whoever asks at once gets the same key, and its files are as OpenSSH wants them.
func TestOwnKeyIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "banger", "ssh", "id_ed25519")
	keys := make([]UserKey, 16)
	var wg sync.WaitGroup
	for i := range keys {
		wg.Go(func() {
			key, err := User("", path)
			if err != nil {
				t.Error(err)
			}
			keys[i] = key
		})
	}
	wg.Wait()
	for _, k := range keys {
		if k != keys[0] {
			t.Errorf("%v and %v", keys[0], k)
		}
	}
	if keys[0].Identity != path || !strings.HasPrefix(keys[0].Public, "ssh-ed25519 ") || !strings.Contains(keys[0].Public, " banger@") {
		t.Errorf("key %+v", keys[0])
	}
	for name, want := range map[string]os.FileMode{path: 0o600, path + ".pub": 0o644, filepath.Dir(path): 0o700 | os.ModeDir} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
	pub, err := os.ReadFile(path + ".pub")
	if err != nil || string(pub) != keys[0].Public+"\n" {
		t.Errorf("public half %q, %v", pub, err)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 2 {
		t.Errorf("left %v, %v", entries, err)
	}
}

func TestOwnKeyIsKeptAndChecked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "id_ed25519")
	write(t, filepath.Join(filepath.Dir(path), tempPrefix+"1"), []byte("cut off"))
	first, err := User("", path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), tempPrefix+"1")); err == nil {
		t.Error("what a crash left is still there")
	}
	if err := os.Chmod(path, 0o644); err != nil { // OpenSSH would refuse it
		t.Fatal(err)
	}
	if again, err := User("", path); err != nil || again != first {
		t.Errorf("%v, %v", again, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	write(t, path, []byte("garbage"))
	if _, err := User("", path); err == nil || !strings.Contains(api.AsError(err).Hint, "remove it") {
		t.Errorf("a damaged key: %v", err)
	}
}

func TestConfiguredKey(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	pair := generate(t, "me@here")
	key, comment, _, _, err := ssh.ParseAuthorizedKey([]byte(pair.Public))
	if err != nil || comment != "me@here" {
		t.Fatal(comment, err)
	}
	bare := publicLine(key, "")
	locked, err := os.ReadFile("testdata/locked") // which takes seconds to make
	if err != nil {
		t.Fatal(err)
	}
	lockedPublic, err := os.ReadFile("testdata/locked.pub")
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curveBlock, err := ssh.MarshalPrivateKey(curve, "")
	if err != nil {
		t.Fatal(err)
	}
	curvePublic, err := ssh.NewPublicKey(curve.Public())
	if err != nil {
		t.Fatal(err)
	}
	oldLocked := []byte("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n")
	write(t, at("plain"), []byte(pair.Private))
	write(t, at("public"), []byte(pair.Public+"\n"))
	write(t, at("locked"), locked)
	write(t, at("curve"), pem.EncodeToMemory(curveBlock))
	write(t, at("old"), oldLocked)
	write(t, at("old.pub"), []byte(pair.Public))
	write(t, at("alone"), oldLocked)
	write(t, at("bad"), []byte("hello"))
	write(t, at("long"), make([]byte, maxKeyFile+1))
	for _, c := range []struct{ name, public, problem, hint string }{
		{name: "plain", public: bare},
		{name: "public", public: pair.Public},
		{name: "locked", public: strings.TrimSpace(string(lockedPublic))},
		{name: "curve", public: publicLine(curvePublic, "")},
		{name: "old", public: pair.Public},
		{name: "alone", problem: "passphrase", hint: "ssh-keygen -y"},
		{name: "bad", problem: "no ssh key", hint: "ssh_key_path"},
		{name: "long", problem: "too long", hint: "ssh_key_path"},
		{name: "missing", problem: "no such file", hint: "ssh_key_path"},
	} {
		got, err := User(at(c.name), at("own"))
		if c.problem == "" {
			if diff := cmp.Diff(UserKey{Identity: at(c.name), Public: c.public}, got); err != nil || diff != "" {
				t.Errorf("%s: %v %s", c.name, err, diff)
			}
			continue
		}
		if e := api.AsError(err); err == nil || e.Kind != api.KindInvalid || !strings.Contains(e.Message, c.problem) || !strings.Contains(e.Hint, c.hint) {
			t.Errorf("%s: %v, hint %q", c.name, err, e.Hint)
		}
	}
	if _, err := os.Stat(at("own")); err == nil {
		t.Error("banger made a key of its own though one is configured")
	}
}

func TestKnownHosts(t *testing.T) {
	a, b := generate(t, ""), generate(t, "a comment")
	vms := []Known{{"0a", "web", a.Public}, {"0b", "db", b.Public}, {"0c", "broken", ""}}
	path := filepath.Join(t.TempDir(), "known_hosts")
	want := knownHead + "0a,web.vm " + a.Public + "\n0b,db.vm " + strings.TrimSuffix(b.Public, " a comment") + "\n"
	check := func(when string) {
		t.Helper()
		if err := SyncKnownHosts(path, vms); err != nil {
			t.Fatal(when, err)
		}
		got, err := os.ReadFile(path)
		if diff := cmp.Diff(want, string(got)); err != nil || diff != "" {
			t.Errorf("%s: %v %s", when, err, diff)
		}
	}
	check("new")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	check("again")
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("it was written again for nothing: %v", err)
	}
	write(t, path, []byte(strings.Replace(want, "0a", "0x", 1)))
	check("changed, of the same length")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check("deleted")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	elsewhere := filepath.Join(t.TempDir(), "mine")
	write(t, elsewhere, []byte(want))
	if err := os.Symlink(elsewhere, path); err != nil {
		t.Fatal(err)
	}
	vms, want = vms[:1], knownHead+"0a,web.vm "+a.Public+"\n"
	check("a link")
	if kept, err := os.ReadFile(elsewhere); err != nil || !strings.Contains(string(kept), "0b,") {
		t.Errorf("it wrote through the link: %q, %v", kept, err)
	}
	for line := range strings.Lines(want[len(knownHead):]) {
		if _, hosts, _, _, _, err := ssh.ParseKnownHosts([]byte(line)); err != nil || cmp.Diff([]string{"0a", "web.vm"}, hosts) != "" {
			t.Errorf("%q: hosts %q, %v", line, hosts, err)
		}
	}
}

func TestWriteFileLeavesNothingBehind(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "taken"), nil, 0o600); err == nil {
		t.Error("it replaced a directory")
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("left %v, %v", entries, err)
	}
}

package quarantine

import (
	"bytes"
	"compress/zlib"
	"context"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// canary returns the path of a program that leaves a trace where it does not run in the guest.
func (w *world) canary(name string) string {
	w.Helper()
	path := filepath.Join(w.dir, "canary-"+name)
	w.write(w.dir, "canary-"+name, "#!/bin/sh\n[ -n \"$BANGER_TEST_GUEST\" ] || : >>'"+filepath.Join(w.dir, "fired-"+name)+"'\nexit 0\n")
	must(w, os.Chmod(path, 0o755))
	return path
}

// fired are the canaries that have run, which are set up again.
func (w *world) fired() []string {
	w.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "fired-*"))
	must(w, err)
	for i, f := range files {
		must(w, os.Remove(f))
		files[i] = strings.TrimPrefix(filepath.Base(f), "fired-")
	}
	return files
}

// asUser runs git as the user of the host would.
func (w *world) asUser(dir string, args ...string) {
	env := append(slices.Clone(w.env), "GIT_ALLOW_PROTOCOL=ext:file:ssh")
	_, _ = hostexec.Runner{}.Output(w.Context(), hostexec.Cmd{Argv: append([]string{"git"}, args...), Dir: dir, Env: env,
		Stdin: strings.NewReader("protocol=https\nhost=example.invalid\nusername=u\npassword=p\n\n")})
}

var hookNames = []string{"applypatch-msg", "commit-msg", "fsmonitor-watchman", "post-applypatch", "post-checkout", "post-commit", "post-index-change",
	"post-merge", "post-receive", "post-rewrite", "post-update", "pre-applypatch", "pre-auto-gc", "pre-commit", "pre-merge-commit", "pre-push",
	"pre-rebase", "pre-receive", "prepare-commit-msg", "proc-receive", "push-to-checkout", "reference-transaction", "sendemail-validate", "update"}

// hooks fills a directory with canaries.
func (w *world) hooks(dir string) {
	w.Helper()
	canary := w.canary("hook")
	must(w, os.MkdirAll(dir, 0o755))
	for _, name := range hookNames {
		must(w, os.Symlink(canary, filepath.Join(dir, name)))
	}
}

func newHostile(t testing.TB) *world {
	w := newWorld(t)
	w.guestEnv = append(w.guestEnv, "BANGER_TEST_GUEST=1")
	return w
}

// Whatever a guest has configured for its own git does nothing on the host.
func TestGuestConfigurationIsNotObeyed(t *testing.T) {
	config := func(keys ...string) func(w *world) {
		return func(w *world) {
			for i := 0; i < len(keys); i += 2 {
				canary := w.canary("config")
				w.git(w.guest, "config", strings.ReplaceAll(keys[i], "CANARY", canary), strings.ReplaceAll(keys[i+1], "CANARY", canary))
			}
		}
	}
	tests := map[string]struct {
		setup func(w *world)
		// control is what makes the canary fire when the user runs it in the guest's repository.
		control []string
	}{
		"hooks": {func(w *world) { w.hooks(filepath.Join(w.guest, ".git/myhooks")) }, nil},
		"hooks directory": {func(w *world) {
			w.hooks(filepath.Join(w.dir, "h"))
			w.git(w.guest, "config", "core.hooksPath", w.dir+"/h")
		}, []string{"commit", "--allow-empty", "-m", "x"}},
		"fsmonitor": {config("core.fsmonitor", "CANARY"), []string{"status"}},
		"filters": {func(w *world) {
			config("filter.x.clean", "CANARY", "filter.x.smudge", "CANARY", "diff.x.textconv", "CANARY", "diff.x.command", "CANARY", "merge.x.driver", "CANARY")(w)
			w.write(w.guest, ".gitattributes", "* filter=x diff=x merge=x\n")
			w.commit(w.guest, "attributes")
		}, []string{"diff", "HEAD~"}},
		"filter process": {func(w *world) {
			config("filter.x.process", "CANARY", "filter.x.required", "true")(w)
			w.write(w.guest, ".git/info/attributes", "* filter=x\n")
		}, []string{"add", "--renormalize", "."}},
		"external diff": {config("diff.external", "CANARY"), []string{"diff", "HEAD~"}},
		"ssh":           {config("core.sshCommand", "CANARY", "remote.origin.url", "ssh://example.invalid/x"), []string{"fetch", "origin"}},
		"ext":           {config("remote.origin.url", "ext::CANARY", "protocol.ext.allow", "always", "protocol.allow", "always"), []string{"fetch", "origin"}},
		"rewritten URL": {config("url.ext::CANARY .insteadOf", "https://example.invalid/", "remote.origin.url", "https://example.invalid/"), []string{"fetch", "origin"}},
		"credentials":   {config("credential.helper", "!CANARY"), []string{"credential", "reject"}},
		"aliases":       {config("alias.lg", "!CANARY", "alias.rev-list", "!CANARY", "alias.index-pack", "!CANARY"), []string{"lg"}},
		"include": {func(w *world) {
			w.write(w.guest, ".git/more", "[alias]\n\tlg = !"+w.canary("config")+"\n")
			config("include.path", "more")(w)
		}, []string{"lg"}},
		"pack-objects hook": {config("uploadpack.packObjectsHook", "CANARY"), nil},
		"alternate refs":    {config("core.alternateRefsCommand", "CANARY"), nil},
		"pager and editor":  {config("core.pager", "CANARY", "core.editor", "CANARY", "pager.rev-list", "CANARY"), []string{"var", "GIT_EDITOR"}},
		"proxy and askpass": {config("core.gitProxy", "CANARY", "core.askPass", "CANARY"), nil},
		"signatures":        {config("gpg.program", "CANARY", "log.showSignature", "true", "commit.gpgSign", "true"), []string{"commit", "--allow-empty", "-m", "x"}},
		"submodule update":  {config("submodule.s.update", "!CANARY", "submodule.s.url", "ext::CANARY", "submodule.recurse", "true"), nil},
		"lazy fetch":        {config("extensions.partialClone", "evil", "remote.evil.url", "ext::CANARY", "remote.evil.promisor", "true"), []string{"cat-file", "-p", strings.Repeat("1", 40)}},
		"hooks by name":     {config("hook.x.command", "CANARY", "hook.x.event", "reference-transaction"), nil},
		"alternates": {func(w *world) {
			w.write(w.guest, ".git/objects/info/alternates", "/nowhere\n"+w.dir+"/host/.git/objects\n")
		}, nil},
		"worktree config":     {config("extensions.worktreeConfig", "true", "core.worktree", "/"), nil},
		"replaced and grafts": {func(w *world) { w.git(w.guest, "replace", "-f", "HEAD", "HEAD~") }, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newHostile(t)
			w.commit(w.guest, "first of the guest's")
			w.commit(w.guest, "new")
			tt.setup(w)
			id, err := w.try(w.guest, nil, "--no-replace-objects", "rev-parse", "refs/heads/main")
			must(t, err)
			_ = w.fired() // of the guest's own doing
			w.mustPull()
			if got := w.pulled()["dev/main"]; got != strings.TrimSpace(id) {
				t.Errorf("refs/banger/dev/main is %q, want %q", got, id)
			}
			if f := w.fired(); len(f) > 0 {
				t.Errorf("ran on the host: %v", f)
			}
			if tt.control == nil {
				return
			}
			w.write(w.guest, "file", "changed\n")
			w.asUser(w.guest, tt.control...)
			if f := w.fired(); len(f) == 0 && name != "pager and editor" {
				t.Errorf("the canary is of no use: git %q did not run it", tt.control)
			}
		})
	}
}

// Neither do the user's own hooks, filters and settings act in a pull, nor GIT_ variables.
func TestUserConfigurationIsNotObeyed(t *testing.T) {
	w := newHostile(t)
	canary := w.canary("user")
	w.hooks(filepath.Join(w.dir, "userhooks"))
	w.git(w.host, "config", "--global", "core.hooksPath", w.dir+"/userhooks")
	for key, value := range map[string]string{"core.fsmonitor": canary, "filter.x.process": canary, "filter.x.clean": canary, "diff.external": canary,
		"uploadpack.packObjectsHook": canary, "core.alternateRefsCommand": canary, "core.pager": canary, "pager.for-each-ref": canary, "alias.rev-list": "!" + canary,
		"hook.x.command": canary, "hook.x.event": "reference-transaction", "core.logAllRefUpdates": "always", "transfer.fsckObjects": "true",
		"fetch.prune": "true", "fetch.recurseSubmodules": "true", "fetch.fsckObjects": "true", "gc.auto": "1", "maintenance.auto": "true", "gc.autoDetach": "false",
		"pack.packSizeLimit": "1", "pack.compression": "0", "core.sshCommand": canary, "protocol.allow": "always", "transfer.hideRefs": "refs/", "core.abbrev": "4",
		"remote.origin.url": "ext::" + canary, "remote.origin.tagOpt": "--tags", "column.ui": "always", "color.ui": "always", "log.decorate": "full", "init.templateDir": w.dir} {
		w.git(w.host, "config", "--global", key, value)
	}
	w.write(w.guest, ".gitattributes", "* filter=x diff=x\n")
	a := w.commit(w.guest, "a")
	w.git(w.guest, "branch", "b", "main")
	_ = w.fired()
	w.cfg.Environ = append(slices.Clone(w.env), "GIT_DIR=/nowhere", "GIT_WORK_TREE=/", "GIT_INDEX_FILE=/nowhere", "GIT_OBJECT_DIRECTORY=/nowhere",
		"GIT_EXTERNAL_DIFF="+canary, "GIT_SSH_COMMAND="+canary, "GIT_ASKPASS="+canary, "GIT_PAGER="+canary, "GIT_TRACE="+w.dir+"/fired-trace",
		"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=alias.x", "GIT_CONFIG_VALUE_0=!"+canary, "GIT_NAMESPACE=ns", "GIT_EXEC_PATH=/nowhere",
		"GIT_PROTOCOL=version=2", "GIT_ALTERNATE_OBJECT_DIRECTORIES=/nowhere", "GIT_CONFIG_PARAMETERS='alias.y=!"+canary+"'", "LC_ALL=xx")
	pull := func() {
		t.Helper()
		req := w.request()
		_ = w.fired()
		if _, err := w.pullReq(req); err != nil {
			t.Fatal(err)
		}
		if f := w.fired(); len(f) > 0 {
			t.Errorf("ran in a pull: %v", f)
		}
	}
	pull()
	w.git(w.guest, "branch", "-D", "b")
	w.git(w.guest, "branch", "b/c", w.commit(w.guest, "c"))
	w.git(w.guest, "commit", "-q", "--amend", "-m", "c'")
	pull()
	if got := w.pulled(); len(got) != 3 {
		t.Errorf("pulled %v", got)
	}
	w.git(w.host, "cat-file", "-e", a)
	if logs, _ := filepath.Glob(filepath.Join(w.host, ".git/logs/refs/banger/*")); len(logs) > 0 {
		t.Errorf("reflogs: %v", logs)
	}
	_ = w.fired()
	w.asUser(w.host, "update-ref", "refs/banger/dev/x", "HEAD") // what a pull does, without its care
	w.asUser(w.host, "status")
	if f := w.fired(); !slices.Equal(f, []string{"hook", "user"}) {
		t.Errorf("the canaries are of no use: %v", f)
	}
}

const gitlink = "160000 sub 1111111111111111111111111111111111111111"

// Objects that could act on a host that checks them out are refused, or lie where they are.
func TestMaliciousObjects(t *testing.T) {
	dotGit := func(name string) func(w *world) string {
		return func(w *world) string {
			return w.commitTree(w.object("tree", tree(w, "100644 "+name+" "+w.object("blob", "gitdir: /\n"))))
		}
	}
	modules := func(content string) func(w *world) string {
		return func(w *world) string {
			return w.commitTree(w.object("tree", tree(w, "100644 .gitmodules "+w.object("blob", content), gitlink)))
		}
	}
	raw := func(entries ...string) func(w *world) string {
		return func(w *world) string {
			blob := w.object("blob", "x\n")
			for i := range entries {
				entries[i] = strings.ReplaceAll(entries[i], "BLOB", blob)
			}
			return w.commitTree(w.object("tree", tree(w, entries...)))
		}
	}
	tests := map[string]struct {
		make func(w *world) string
		says string // why it is refused; empty where it is not
	}{
		".git as a file":       {dotGit(".git"), "hasDotgit"},
		".GIT":                 {dotGit(".GIT"), "hasDotgit"},
		"git~1":                {dotGit("git~1"), "hasDotgit"},
		"HFS":                  {dotGit(".g\u200cit"), "hasDotgit"},
		"NTFS stream":          {dotGit(".git::$INDEX_ALLOCATION"), "hasDotgit"},
		"dot dot":              {raw("100644 .. BLOB"), "hasDotdot"},
		"dot":                  {raw("100644 . BLOB"), "hasDot"},
		"path":                 {raw("100644 a/../../b BLOB"), "fullPathname"},
		"empty name":           {raw("100644  BLOB"), "empty filename"},
		"duplicates":           {raw("100644 a BLOB", "100755 a BLOB"), "duplicateEntries"},
		"unsorted":             {raw("100644 b BLOB", "100644 a BLOB"), "treeNotSorted"},
		"null id":              {raw("160000 a 0000000000000000000000000000000000000000"), "nullSha1"},
		"symlinked modules":    {raw("120000 .gitmodules BLOB"), "gitmodulesSymlink"},
		"module name":          {modules("[submodule \"../../.git/hooks\"]\n\tpath = sub\n\turl = https://example.org\n"), "gitmodulesName"},
		"module path":          {modules("[submodule \"s\"]\n\tpath = -sub\n\turl = https://example.org\n"), "gitmodulesPath"},
		"module URL":           {modules("[submodule \"s\"]\n\tpath = sub\n\turl = -u./canary\n"), "gitmodulesUrl"},
		"module URL with line": {modules("[submodule \"s\"]\n\tpath = sub\n\turl = \"https://example.org/%0ahost=x/\"\n"), "gitmodulesUrl"},
		"module update":        {modules("[submodule \"s\"]\n\tpath = sub\n\turl = https://example.org\n\tupdate = !touch fired-update\n"), "gitmodulesUpdate"},
		"module ext":           {modules("[submodule \"s\"]\n\tpath = sub\n\turl = ext::sh -c touch% fired-ext\n"), ""},
		"module file":          {modules("[submodule \"s\"]\n\tpath = sub\n\turl = file:///etc\n"), ""},
		"symbolic links":       {raw("120000 a BLOB", "40000 b 4b825dc642cb6eb9a060e54bf8d69288fbee4904"), ""},
		"case folding":         {raw("100644 File BLOB", "100644 file BLOB"), ""},
		"escapes in names":     {raw("100644 \x1b[31mred\x07 BLOB"), ""},
		"bad author": {func(w *world) string {
			return w.object("commit", "tree "+w.id(w.guest, "main^{tree}")+"\nauthor\n\nm\n")
		}, "missingAuthor"},
		"NUL in a commit": {func(w *world) string {
			return w.object("commit", "tree "+w.id(w.guest, "main^{tree}")+"\nauthor A <a@x> 1 +0000\ncommitter A <a@x> 1 +0000\n\nm\x00\x1b]0;m\n")
		}, "nulInCommit"},
		"escapes in a message": {func(w *world) string {
			w.git(w.guest, "commit", "--allow-empty", "-qm", "\x1b]0;owned\x07\x1b[2J")
			return w.id(w.guest, "HEAD")
		}, ""},
		"old warts": {func(w *world) string {
			return w.object("commit", "tree "+w.object("tree", tree(w, "040000 d 4b825dc642cb6eb9a060e54bf8d69288fbee4904"))+
				"\nauthor A <a@x> 1 +51800\ncommitter A <a@x>1 +0000\n\nm\n")
		}, ""},
		"a tree's object is missing": {raw("100644 a 1111111111111111111111111111111111111111"), "1111111111111111111111111111111111111111"},
		"a parent is missing":        {func(w *world) string { return w.commitTree(w.id(w.guest, "main^{tree}"), strings.Repeat("2", 40)) }, "22222222222"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newHostile(t)
			w.hooks(filepath.Join(w.host, ".git/hooks2"))
			w.git(w.host, "config", "core.hooksPath", ".git/hooks2")
			_ = w.object("tree", "")
			id := tt.make(w)
			w.write(w.guest, ".git/refs/heads/evil", id+"\n")
			_ = w.fired()
			req := w.request()
			req.Refs = []Ref{{"refs/heads/evil", id}} // for-each-ref may not like it
			req.Pack = w.packLoose
			res, err := w.pullReq(req)
			w.whole()
			if f := w.fired(); len(f) > 0 {
				t.Errorf("ran on the host: %v", f)
			}
			if tt.says == "" {
				if err != nil || w.pulled()["dev/evil"] != id {
					t.Errorf("it was not pulled: %+v, %v", res, err)
				}
				return
			}
			if e, ok := errors.AsType[*api.Error](err); !ok || e.Kind != api.KindGuest || !strings.Contains(e.Message, tt.says) || e.Hint == "" || strings.Contains(e.Message, "\n") {
				t.Errorf("the error is %v, want one with %q", err, tt.says)
			}
			if len(w.pulled()) > 0 {
				t.Errorf("it was pulled: %v", w.pulled())
			}
			if _, err := w.try(w.host, nil, "cat-file", "-e", id); err == nil {
				t.Error("the host has it")
			}
		})
	}
}

// packLoose sends all loose objects of the guest: what a guest's git refuses to walk goes, too.
func (w *world) packLoose(ctx context.Context, _, _ []string, to io.Writer) error {
	var ids strings.Builder
	files, err := filepath.Glob(filepath.Join(w.guest, ".git/objects/??/*"))
	must(w, err)
	for _, f := range files {
		ids.WriteString(filepath.Base(filepath.Dir(f)) + filepath.Base(f) + "\n")
	}
	return hostexec.Runner{}.Run(ctx, hostexec.Cmd{Argv: []string{"git", "pack-objects", "--stdout", "-q"},
		Dir: w.guest, Env: w.guestEnv, Stdin: strings.NewReader(ids.String()), Stdout: to})
}

// rawPack makes a pack of objects written as they are.
type rawPack struct {
	bytes.Buffer
	z *zlib.Writer
}

const (
	packCommit, packTree, packBlob, packRefDelta = 1, 2, 3, 7
)

func newPack(objects uint32) *rawPack {
	p := &rawPack{z: zlib.NewWriter(io.Discard)}
	p.WriteString("PACK")
	_ = binary.Write(p, binary.BigEndian, []uint32{2, objects})
	return p
}

func (p *rawPack) add(kind int, base string, content []byte) {
	n := len(content)
	b := byte(kind<<4 | n&15)
	for n >>= 4; n > 0; n >>= 7 {
		p.WriteByte(b | 0x80)
		b = byte(n & 0x7f)
	}
	p.WriteByte(b)
	id, _ := hex.DecodeString(base)
	p.Write(id)
	p.z.Reset(&p.Buffer)
	_, _ = p.z.Write(content)
	_ = p.z.Close()
}

func (p *rawPack) end() []byte {
	sum := sha1.Sum(p.Bytes())
	return append(slices.Clip(p.Bytes()), sum[:]...)
}

func varint(n uint64) []byte { return binary.AppendUvarint(nil, n) }

func gitID(kind string, content []byte) string {
	return fmt.Sprintf("%x", sha1.Sum(append(fmt.Appendf(nil, "%s %d\x00", kind, len(content)), content...)))
}

// Streams that are too much, or no pack at all, end in an error that says so, and leave nothing.
func TestMaliciousStreams(t *testing.T) {
	base := bytes.Repeat([]byte{'x'}, 0x10000)
	delta := func(size uint64, copies int) []byte {
		d := append(varint(uint64(len(base))), varint(size)...)
		for range copies {
			d = append(d, 0x80) // copy 64 KiB from the start
		}
		return d
	}
	bomb := newPack(2)
	bomb.add(packBlob, "", base)
	bomb.add(packRefDelta, gitID("blob", base), delta(2<<30, 0x8000))
	many := newPack(1 << 30)
	many.add(packBlob, "", base)
	write := func(b []byte) func(context.Context, *world, io.Writer) error {
		return func(_ context.Context, _ *world, to io.Writer) error { _, err := to.Write(b); return err }
	}
	cycle := newPack(2)
	cycle.add(packRefDelta, strings.Repeat("1", 40), delta(0x10000, 1))
	cycle.add(packRefDelta, strings.Repeat("2", 40), delta(0x10000, 1))
	zeros := newPack(1)
	zeros.add(packBlob, "", make([]byte, 8<<20))
	tests := map[string]struct {
		send func(ctx context.Context, w *world, to io.Writer) error
		cfg  func(*Config)
		kind api.ErrorKind
		says string
	}{
		"nothing":     {write(nil), nil, api.KindGuest, "early EOF"},
		"garbage":     {write([]byte(strings.Repeat("no pack at all \x1b[2J\n", 1000))), nil, api.KindGuest, "signature"},
		"delta bomb":  {write(bomb.end()), nil, api.KindGuest, "more than 768m of memory"},
		"many":        {write(many.end()), nil, api.KindGuest, "more than 768m of memory"},
		"truncated":   {write(bomb.Bytes()[:100]), nil, api.KindGuest, "EOF"},
		"no bases":    {write(cycle.end()), nil, api.KindGuest, "unresolved delta"},
		"without end": {endless, func(c *Config) { c.MaxBytes = 1 << 20 }, api.KindInvalid, "larger than 1 MiB"},
		"stalls": {func(ctx context.Context, w *world, to io.Writer) error {
			_, _ = to.Write(bomb.Bytes()[:100])
			<-ctx.Done()
			return ctx.Err()
		}, func(c *Config) { c.Stall = 1 }, api.KindGuest, "nothing for 1ns"},
		"slow": {func(ctx context.Context, w *world, to io.Writer) error { <-ctx.Done(); return ctx.Err() },
			func(c *Config) { c.Timeout = 1 }, api.KindGuest, "takes more than 1ns"},
		"guest fails": {func(context.Context, *world, io.Writer) error { return errors.New("agent: \x1b[2Jno such object") },
			nil, api.KindGuest, `agent: \x1b[2Jno such object`},
		"wrong sum": {write(append(zeros.Bytes(), make([]byte, 20)...)), nil, api.KindGuest, "corrupted"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newHostile(t)
			id := w.commit(w.guest, "new")
			if tt.cfg != nil {
				tt.cfg(&w.cfg)
			}
			req := w.request()
			req.Pack = func(ctx context.Context, _, _ []string, to io.Writer) error { return tt.send(ctx, w, to) }
			_, err := w.pullReq(req)
			e, ok := errors.AsType[*api.Error](err)
			if !ok || e.Kind != tt.kind || !strings.Contains(e.Message, tt.says) || strings.ContainsAny(e.Message, "\n\x1b") {
				t.Errorf("the error is %v, want one with %q", err, tt.says)
			}
			if tt.kind == api.KindInvalid && !strings.Contains(e.Hint, "--max-size") {
				t.Errorf("hint %q", e.Hint)
			}
			if _, err := w.try(w.host, nil, "cat-file", "-e", id); err == nil || len(w.pulled()) > 0 {
				t.Error("something was pulled")
			}
			w.cfg = Config{Environ: w.env, TempDir: w.cfg.TempDir}
			w.mustPull() // and the next one is as if nothing had been
			if w.pulled()["dev/main"] != id {
				t.Error("the next pull does not pull")
			}
		})
	}
}

// endless writes a pack with a blob that does not end.
func endless(_ context.Context, _ *world, to io.Writer) error {
	p := newPack(1)
	p.Write([]byte{0xbf, 0xff, 0xff, 0xff, 0x7f}) // a blob of 8 GiB
	if _, err := to.Write(p.Bytes()); err != nil {
		return err
	}
	z, _ := zlib.NewWriterLevel(to, zlib.NoCompression)
	for {
		if _, err := z.Write(make([]byte, 1<<16)); err != nil {
			return err
		}
	}
}

// A blob that is small as a pack and large as a file is not taken, and what else there is, is.
func TestLargeFile(t *testing.T) {
	w := newHostile(t)
	good := w.commit(w.guest, "good")
	w.git(w.guest, "checkout", "-q", "-b", "zeros")
	must(t, os.WriteFile(filepath.Join(w.guest, "zeros"), make([]byte, 8<<20), 0o644))
	bad := w.commit(w.guest, "bad")
	w.cfg.MaxBytes = 1 << 20
	res := w.mustPull()
	if len(res.Skipped) != 1 || !strings.Contains(res.Skipped[0], `"refs/heads/zeros" at `+bad) || !strings.Contains(res.Skipped[0], "larger than 1 MiB") {
		t.Errorf("skipped %q", res.Skipped)
	}
	if got := w.pulled(); len(got) != 1 || got["dev/main"] != good {
		t.Errorf("pulled %v", got)
	}
}

// Objects that no ref reaches do not come to the host with those that one does.
func TestNothingComesAlong(t *testing.T) {
	w := newHostile(t)
	id := w.commit(w.guest, "new")
	stowaway := w.object("blob", "stowaway\n")
	req := w.request()
	req.Pack = w.packLoose
	if _, err := w.pullReq(req); err != nil {
		t.Fatal(err)
	}
	w.git(w.host, "cat-file", "-e", id)
	if _, err := w.try(w.host, nil, "cat-file", "-e", stowaway); err == nil {
		t.Error("it came along")
	}
}

// Trees so deep that git's recursion over them may not end well are walked in the quarantine first.
func TestDeepTrees(t *testing.T) {
	w := newHostile(t)
	good := w.commit(w.guest, "good")
	const depth = 100_000
	p := newPack(depth + 2)
	blob := []byte("x\n")
	p.add(packBlob, "", blob)
	entry := "100644 a " + gitID("blob", blob)
	for range depth {
		content := []byte(tree(t, entry))
		p.add(packTree, "", content)
		entry = "40000 a " + gitID("tree", content)
	}
	commit := fmt.Appendf(nil, "tree %s\nauthor A <a@x> 1 +0000\ncommitter A <a@x> 1 +0000\n\nm\n", entry[len("40000 a "):])
	p.add(packCommit, "", commit)
	req := w.request()
	req.Refs = append(req.Refs, Ref{"refs/heads/deep", gitID("commit", commit)})
	req.Pack = func(_ context.Context, _, _ []string, to io.Writer) error { _, err := to.Write(p.end()); return err }
	res, err := w.pullReq(req)
	if err != nil || len(res.Skipped) != 2 || !strings.Contains(res.Skipped[0], "deep") { // and main, which the guest did not send
		t.Errorf("%+v, %v", res, err)
	}
	w.whole()
	if w.mustPull(); w.pulled()["dev/main"] != good || len(w.pulled()) != 1 {
		t.Errorf("pulled %v", w.pulled())
	}
}

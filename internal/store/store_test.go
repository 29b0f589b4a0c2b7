package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"git.thaloco.com/thaloco/banger/api"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// byValue compares addresses.
var byValue = cmpopts.EquateComparable(netip.Addr{})

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)

func open(t *testing.T, path string) *Store {
	t.Helper()
	s, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func newStore(t *testing.T) *Store {
	t.Helper()
	return open(t, filepath.Join(t.TempDir(), "banger.db"))
}

// withContent is a store with one image and one kernel.
func withContent(t *testing.T) *Store {
	t.Helper()
	s := newStore(t)
	must(t, s.PutImage(t.Context(), api.Image{Name: "debian", Digest: "sha256:i1", Arch: "amd64", CreatedAt: &t0}))
	must(t, s.PutKernel(t.Context(), api.Kernel{Name: "generic", Digest: "sha256:k1", Arch: "amd64", CreatedAt: &t0}))
	return s
}

func vm(name string) VM {
	return VM{ID: "id-" + name, Name: name, State: api.StateStopped, Image: "debian", ImageDigest: "sha256:i1",
		Kernel: "generic", KernelDigest: "sha256:k1", CPUs: 2, MemoryBytes: 1 << 30, DiskBytes: 20 << 30, Env: []string{"A=b"},
		MachineID: strings.Repeat("0", 32), CreatedAt: t0, Owner: &api.Owner{PID: 7, StartTime: 1 << 63, BootID: "b"}, RemoveOnExit: true}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantKind checks the kind of an error and that its message and hint contain the given texts.
func wantKind(t *testing.T, err error, kind api.ErrorKind, texts ...string) {
	t.Helper()
	if err == nil || api.KindOf(err) != kind {
		t.Fatalf("error %v of kind %q, want %q", err, api.KindOf(err), kind)
	}
	e := api.AsError(err)
	for _, text := range texts {
		if !strings.Contains(e.Message+"\n"+e.Hint, text) {
			t.Errorf("error %q (hint %q) does not say %q", e.Message, e.Hint, text)
		}
	}
}

func TestVMRoundTrip(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	want := vm("web")
	want.StartedAt = &t0
	must(t, s.InsertVM(ctx, want))
	for _, key := range []string{"web", "id-web"} {
		got, err := s.VM(ctx, key)
		must(t, err)
		if diff := cmp.Diff(want, got, byValue); diff != "" {
			t.Errorf("VM(%q): (-want +got)\n%s", key, diff)
		}
	}
	// What was written is there after a restart, in a file nobody else can read.
	again := open(t, s.path)
	got, err := again.VM(ctx, "web")
	must(t, err)
	if diff := cmp.Diff(want, got, byValue); diff != "" {
		t.Errorf("after a restart: (-want +got)\n%s", diff)
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if st, err := os.Stat(s.path + suffix); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", suffix, st, err)
		}
	}
}

func TestVMErrors(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	must(t, s.InsertVM(ctx, vm("web")))

	dup := vm("web")
	dup.ID = "other"
	wantKind(t, s.InsertVM(ctx, dup), api.KindConflict, `vm "web" already exists`, "banger vm delete --force web")
	sameID := vm("web2")
	sameID.ID = "id-web"
	wantKind(t, s.InsertVM(ctx, sameID), api.KindConflict)
	gone := vm("gone")
	gone.ImageDigest = "sha256:deleted"
	wantKind(t, s.InsertVM(ctx, gone), api.KindConflict, "deleted meanwhile")
	if err := s.InsertVM(ctx, VM{ID: "x", ImageDigest: "sha256:i1", KernelDigest: "sha256:k1", CreatedAt: t0}); err == nil {
		t.Error("a VM without name and state was accepted")
	}

	_, err := s.VM(ctx, "wbe")
	wantKind(t, err, api.KindNotFound, `no vm "wbe"`, "did you mean web", "banger vm list")
	_, err = s.VM(ctx, "unlike-anything")
	wantKind(t, err, api.KindNotFound, "banger vm list")
	_, err = s.UpdateVM(ctx, "nope", func(*VM) error { return nil })
	wantKind(t, err, api.KindNotFound, `no vm "nope"`)

	must(t, s.DeleteVM(ctx, "id-web"))
	must(t, s.DeleteVM(ctx, "id-web"))
	vms, err := s.VMs(ctx)
	if err != nil || len(vms) != 0 {
		t.Errorf("VMs = %v, %v after the only one was deleted", vms, err)
	}
}

func TestUpdateVM(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	must(t, s.InsertVM(ctx, vm("a")))
	must(t, s.InsertVM(ctx, vm("b")))
	got, err := s.UpdateVM(ctx, "id-a", func(v *VM) error {
		v.State, v.Reason, v.Name, v.Owner = api.StateFailed, "no room", "c", nil
		return nil
	})
	must(t, err)
	stored, err := s.VM(ctx, "c")
	must(t, err)
	if diff := cmp.Diff(got, stored, byValue); diff != "" || stored.State != api.StateFailed || stored.Owner != nil {
		t.Errorf("returned and stored differ:\n%s", diff)
	}

	refused := errors.New("refused")
	_, err = s.UpdateVM(ctx, "id-a", func(v *VM) error { v.Name = "z"; return refused })
	if !errors.Is(err, refused) {
		t.Errorf("error %v, want the one of change", err)
	}
	_, err = s.UpdateVM(ctx, "id-a", func(v *VM) error { v.Name = "b"; return nil })
	wantKind(t, err, api.KindConflict, `vm "b" already exists`)
	_, err = s.UpdateVM(ctx, "id-a", func(v *VM) error { v.ID = "z"; return nil })
	if err == nil {
		t.Error("the id could be changed")
	}
	if after, err := s.VM(ctx, "id-a"); err != nil || !cmp.Equal(after, stored, byValue) {
		t.Errorf("a failed update changed the record: %v, %v", after, err)
	}
}

// Concurrent read-modify-write of one record loses nothing, beside readers.
func TestUpdateVMConcurrently(t *testing.T) {
	s := withContent(t)
	ctx := t.Context()
	v := vm("n")
	v.CPUs = 0
	must(t, s.InsertVM(ctx, v))
	const writers, each = 8, 10
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for range each {
				if _, err := s.UpdateVM(ctx, "id-n", func(v *VM) error { v.CPUs++; return nil }); err != nil {
					t.Error(err)
				}
				if _, err := s.VMs(ctx); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	got, err := s.VM(ctx, "n")
	must(t, err)
	if got.CPUs != writers*each {
		t.Errorf("%d of %d updates survived", got.CPUs, writers*each)
	}
}

// One of many creators of a name wins; the others are told.
func TestInsertVMRace(t *testing.T) {
	s := withContent(t)
	errs := make(chan error, 10)
	for i := range cap(errs) {
		go func() {
			v := vm("same")
			v.ID = fmt.Sprint(i)
			errs <- s.InsertVM(context.WithoutCancel(t.Context()), v)
		}()
	}
	won := 0
	for range cap(errs) {
		if err := <-errs; err == nil {
			won++
		} else {
			wantKind(t, err, api.KindConflict)
		}
	}
	if won != 1 {
		t.Errorf("%d inserts of one name succeeded", won)
	}
}

func TestVMsSorted(t *testing.T) {
	s := withContent(t)
	for i, name := range []string{"late", "early", "middle"} {
		v := vm(name)
		v.CreatedAt = t0.Add([]time.Duration{3, 1, 2}[i])
		must(t, s.InsertVM(t.Context(), v))
	}
	vms, err := s.VMs(t.Context())
	must(t, err)
	var names []string
	for _, v := range vms {
		names = append(names, v.Name)
	}
	if diff := cmp.Diff([]string{"early", "middle", "late"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	script := func(name, sqlText string) string {
		path := filepath.Join(dir, name)
		db, err := sql.Open("sqlite", path)
		must(t, err)
		_, err = db.Exec(sqlText)
		must(t, err)
		must(t, db.Close())
		return path
	}
	damaged := filepath.Join(dir, "damaged.db")
	func() {
		s, err := Open(t.Context(), damaged)
		must(t, err)
		for range 200 {
			_, err := s.AddEvent(t.Context(), api.Event{Kind: "k", Text: strings.Repeat("x", 200)})
			must(t, err)
		}
		must(t, s.Close())
		b, err := os.ReadFile(damaged)
		must(t, err)
		for i := 8192; i < len(b); i++ {
			b[i] = 0xa5
		}
		must(t, os.WriteFile(damaged, b, 0o600))
	}()
	for _, tc := range []struct {
		path string
		kind api.ErrorKind
		text string
	}{
		{write("text.db", strings.Repeat("not a database\n", 100)), api.KindUnavailable, "damaged"},
		{write("short.db", "SQLite format 3\x00"), api.KindUnavailable, "damaged"},
		{damaged, api.KindUnavailable, "damaged"},
		{script("other.db", "CREATE TABLE x (y)"), api.KindInvalid, "not banger's"},
		{script("other2.db", "PRAGMA application_id=77"), api.KindInvalid, "not banger's"},
		{script("newer.db", fmt.Sprintf("PRAGMA application_id=%d; PRAGMA user_version=9999", applicationID)), api.KindInvalid, "newer banger"},
	} {
		s, err := Open(t.Context(), tc.path)
		if err == nil {
			s.Close()
		}
		t.Run(filepath.Base(tc.path), func(t *testing.T) {
			wantKind(t, err, tc.kind, tc.text, tc.path)
			if !strings.HasPrefix(filepath.Base(tc.path), "newer") {
				wantKind(t, err, tc.kind, "their disks are kept in "+filepath.Join(filepath.Dir(tc.path), "lost"))
			}
		})
	}
	if _, err := Open(t.Context(), filepath.Join(write("file", ""), "x.db")); err == nil {
		t.Error("opened below a file")
	}
}

func TestPathWithSpecialCharacters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b%20?mode=ro#ü&x", "banger.db")
	open(t, path)
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestRecordOfOtherVersion(t *testing.T) {
	s := withContent(t)
	must(t, s.InsertVM(t.Context(), vm("a")))
	_, err := s.write.Exec("UPDATE vms SET record_version = 99")
	must(t, err)
	if _, err := s.VM(t.Context(), "a"); err == nil || !strings.Contains(err.Error(), "version 99") {
		t.Errorf("error %v", err)
	}
}

// dump is the schema and rows of a database as a script.
func dump(t *testing.T, db *sql.DB, rows bool) string {
	t.Helper()
	var b strings.Builder
	q := func(query string) [][]string {
		r, err := db.Query(query)
		must(t, err)
		defer r.Close()
		cols, err := r.Columns()
		must(t, err)
		var out [][]string
		for r.Next() {
			vals, ptrs := make([]string, len(cols)), make([]any, len(cols))
			for i := range vals {
				ptrs[i] = &vals[i]
			}
			must(t, r.Scan(ptrs...))
			out = append(out, vals)
		}
		must(t, r.Err())
		return out
	}
	space := regexp.MustCompile(`\s+`)
	for _, p := range []string{"application_id", "user_version"} {
		fmt.Fprintf(&b, "PRAGMA %s = %s;\n", p, q("PRAGMA " + p)[0][0])
	}
	order := []string{"images", "kernels", "image_names", "kernel_names", "vms", "operations", "events"}
	for _, r := range q("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE 'sqlite_%' ORDER BY type DESC, name") {
		fmt.Fprintf(&b, "%s;\n", space.ReplaceAllString(r[0], " "))
	}
	if rows {
		for _, table := range order {
			var cols []string
			for _, c := range q("SELECT name FROM pragma_table_info('" + table + "')") {
				cols = append(cols, "quote("+c[0]+")")
			}
			for _, r := range q("SELECT " + strings.Join(cols, ", ") + " FROM " + table + " ORDER BY 1") {
				fmt.Fprintf(&b, "INSERT INTO %s VALUES (%s);\n", table, strings.Join(r, ", "))
			}
		}
	}
	return b.String()
}

// fill puts one of everything into a store.
func fill(t *testing.T, s *Store) {
	t.Helper()
	ctx := t.Context()
	must(t, s.PutImage(ctx, api.Image{Name: "debian", Digest: "sha256:i1", Arch: "amd64", Env: []string{"A=b"}, CreatedAt: &t0}))
	must(t, s.PutKernel(ctx, api.Kernel{Name: "generic", Digest: "sha256:k1", Arch: "amd64", CreatedAt: &t0}))
	must(t, s.InsertVM(ctx, vm("web")))
	must(t, s.PutOperation(ctx, api.Operation{ID: "op", Kind: "vm.create", Target: "web", State: api.OperationDone, CreatedAt: t0, EndedAt: &t0}))
	_, err := s.AddEvent(ctx, api.Event{Kind: "vm.state", VM: "web", Text: "stopped", Time: t0})
	must(t, err)
}

// testdata/schema holds, for every version of the schema there ever was, a database of it as a script. Each migrates to
// today's schema with its content; a released migration that is edited makes its script differ. UPDATE=1 writes the script of
// the newest version.
func TestMigrateFromEveryVersion(t *testing.T) {
	ms, err := migrations()
	must(t, err)
	s := newStore(t)
	fill(t, s)
	fresh := dump(t, s.write, true)
	golden := func(n int) string { return filepath.Join("testdata", "schema", fmt.Sprintf("%04d.sql", n)) }
	if os.Getenv("UPDATE") != "" {
		must(t, os.WriteFile(golden(len(ms)), []byte(fresh), 0o644))
	}
	for n := 1; n <= len(ms); n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			script, err := os.ReadFile(golden(n))
			must(t, err)
			path := filepath.Join(t.TempDir(), "old.db")
			db, err := sql.Open("sqlite", path)
			must(t, err)
			_, err = db.Exec(string(script))
			must(t, err)
			must(t, db.Close())
			old := open(t, path)
			if diff := cmp.Diff(dump(t, s.write, false), dump(t, old.write, false)); diff != "" {
				t.Errorf("schema after migration from version %d: (-fresh +migrated)\n%s", n, diff)
			}
			got, err := old.VM(t.Context(), "web")
			must(t, err)
			if diff := cmp.Diff(vm("web"), got, byValue); diff != "" {
				t.Errorf("the VM after migration from version %d: (-want +got)\n%s", n, diff)
			}
			if _, err := old.Image(t.Context(), "debian"); err != nil {
				t.Error(err)
			}
			if ops, err := old.Operations(t.Context(), 0); err != nil || len(ops) != 1 {
				t.Errorf("operations %v, %v", ops, err)
			}
			if n == len(ms) {
				if diff := cmp.Diff(string(script), fresh); diff != "" {
					t.Errorf("testdata is not of today's schema (UPDATE=1 writes it): (-testdata +fresh)\n%s", diff)
				}
			}
		})
	}
}

// A migration that fails leaves the database at the version before it.
func TestMigrationIsAtomic(t *testing.T) {
	s := newStore(t)
	before := dump(t, s.write, true)
	if err := s.migrate(t.Context(), 99, "CREATE TABLE extra (x); INSERT INTO nowhere VALUES (1)"); err == nil {
		t.Fatal("no error")
	}
	if diff := cmp.Diff(before, dump(t, s.write, true)); diff != "" {
		t.Error(diff)
	}
}

func TestMigrationsAreSorted(t *testing.T) {
	entries, err := migrationFiles.ReadDir("migrations")
	must(t, err)
	if !slices.IsSortedFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) }) {
		t.Error("not sorted")
	}
	ms, err := migrations()
	if err != nil || len(ms) != len(entries) {
		t.Errorf("%d of %d, %v", len(ms), len(entries), err)
	}
}

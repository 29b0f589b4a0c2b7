package guestapi_test

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/guest/guestapi"
)

// listTree collects the paths of a listing.
func listTree(ctx context.Context, c *guestapi.Client, root string, git bool) (all []string, err error) {
	err = c.ListTree(ctx, root, git, func(e guestapi.TreeEntry) error {
		all = append(all, e.Path)
		return nil
	})
	slices.Sort(all)
	return all, err
}

func hashTree(ctx context.Context, c *guestapi.Client, root, format string, paths ...string) (all []guestapi.TreeState, err error) {
	err = c.HashTree(ctx, root, format, paths, func(s guestapi.TreeState) error {
		all = append(all, s)
		return nil
	})
	return all, err
}

// TestTree: what a host does with the tree of a guest.
func TestTree(t *testing.T) {
	g := newGuest(t)
	ctx, root := t.Context(), t.TempDir()
	for _, name := range []string{"a", "\xff\n/b", "ignored"} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte("hello\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := listTree(ctx, g.client, root, false); err != nil || !slices.Equal(all, []string{"a", "ignored", "\xff\n", "\xff\n/b"}) {
		t.Errorf("%q, %v", all, err)
	}
	if err := exec.Command("git", "init", "-q", root).Run(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, ".git/info/exclude"), []byte("ignored\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if all, err := listTree(ctx, g.client, root, true); err != nil || !slices.Equal(all, []string{"a", "\xff\n/b"}) {
		t.Errorf("%q, %v", all, err)
	}
	const id = "ce013625030ba8dba906f756967f9e9ca394464a" // echo hello | git hash-object --stdin
	if all, err := hashTree(ctx, g.client, root, "sha1", "\xff\n/b", "none", "a"); err != nil || len(all) != 3 ||
		all[0].ID != id || all[0].Path != "\xff\n/b" || all[0].Size != 6 || !all[1].Missing || all[2].ID != id || all[2].Mode != 0o644 {
		t.Errorf("%+v, %v", all, err)
	}
	s, err := g.client.PackTree(ctx, root, []string{"\xff\n/b", "none", "a"})
	if err != nil {
		t.Fatal(err)
	}
	var packed []string
	in := tar.NewReader(s)
	for h, err := in.Next(); !errors.Is(err, io.EOF); h, err = in.Next() {
		if err != nil {
			t.Fatal(err)
		}
		packed = append(packed, h.Name)
	}
	if _, err := io.Copy(io.Discard, s); err != nil {
		t.Error(err)
	}
	if res := s.Result(); !slices.Equal(packed, []string{"\xff\n/b", "a"}) || res.Entries != 2 || res.Bytes != 12 {
		t.Errorf("%q, %+v", packed, res)
	}
	_ = s.Close()
	if err := g.client.RemoveTree(ctx, root, []string{"\xff\n/b", "none", "a"}); err != nil {
		t.Error(err)
	}
	if left, err := listTree(ctx, g.client, root, false); err != nil || !slices.Equal(left, []string{"ignored"}) {
		t.Errorf("%q, %v", left, err)
	}
	if left, err := listTree(ctx, g.client, root, true); err != nil || len(left) != 0 {
		t.Errorf("%q, %v", left, err)
	}
}

// TestTreeFails: what goes wrong, in kinds.
func TestTreeFails(t *testing.T) {
	g := newGuest(t)
	ctx, root := t.Context(), t.TempDir()
	file := filepath.Join(root, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for what, tc := range map[string]struct {
		kind  api.ErrorKind
		root  string
		paths []string
	}{
		"no root": {api.KindNotFound, root + "/none", []string{"x"}}, "a file": {api.KindInvalid, file, []string{"x"}}, "relative": {api.KindInvalid, "x", []string{"x"}},
		"a path out of it": {api.KindInvalid, root, []string{"../x"}}, "NUL": {api.KindInvalid, root + "/\x00", nil},
	} {
		errs := map[string]error{
			"hash": second(hashTree(ctx, g.client, tc.root, "sha256", tc.paths...)), "pack": second(g.client.PackTree(ctx, tc.root, tc.paths)),
			"remove": g.client.RemoveTree(ctx, tc.root, tc.paths),
		}
		if tc.root != root {
			errs["list"], errs["git"] = second(listTree(ctx, g.client, tc.root, false)), second(listTree(ctx, g.client, tc.root, true))
		}
		for call, err := range errs {
			if api.KindOf(err) != tc.kind {
				t.Errorf("%s, %s: %s %v", what, call, api.KindOf(err), err)
			}
		}
	}
	for what, err := range map[string]error{"format": second(hashTree(ctx, g.client, root, "md5")), "no repository": second(listTree(ctx, g.client, root, true))} {
		if api.KindOf(err) != api.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	enough := errors.New("enough")
	if err := g.client.ListTree(ctx, root, false, func(guestapi.TreeEntry) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	if err := g.client.HashTree(ctx, root, "sha1", []string{"x"}, func(guestapi.TreeState) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	gone, cancel := context.WithCancelCause(ctx)
	cancel(enough)
	if _, err := listTree(gone, g.client, root, false); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// TestTreeLies: whatever a guest answers, the host gets an error of the guest or what can be.
func TestTreeLies(t *testing.T) {
	for what, answer := range map[string]string{
		"nothing": "", "garbage": "<html>", "cut": "f644 1 2 a\x00", "a wrong count": "f644 1 2 a\x00.2\x00", "leads out": "f644 1 2 ../a\x00.1\x00",
		"absolute": "f644 1 2 /a\x00.1\x00", "a repository's": "f644 1 2 .GiT/config\x00.1\x00", "a state": "f644 1 2 da39a3ee5e6b4b0d3255bfef95601890afd80709\x00-\x00.2\x00x",
		"the host's kind": "!{\"kind\":\"version\",\"message\":\"upgrade at evil.example\"}\x00", "one more": "-\x00-\x00.2\x00",
	} {
		c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, answer) }))
		for call, err := range map[string]error{
			"list": second(listTree(t.Context(), c, "/x", true)), "hash": second(hashTree(t.Context(), c, "/x", "sha1", "a")),
		} {
			if api.KindOf(err) != api.KindGuest {
				t.Errorf("%s, %s: %s %v", what, call, api.KindOf(err), err)
			}
		}
		s, err := c.PackTree(t.Context(), "/x", []string{"a"})
		if err == nil {
			_, err = io.Copy(io.Discard, s)
			_ = s.Close()
		}
		if err == nil {
			t.Errorf("%s: packed", what)
		}
	}
	endless := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(w, "f644 1 2 a\x00%s", strings.Repeat("f644 1 2 a\x00", 1000)); err != nil {
				return
			}
		}
	}))
	if all, err := listTree(t.Context(), endless, "/x", false); api.KindOf(err) != api.KindGuest || len(all) != 1 {
		t.Errorf("%d entries, %v", len(all), err)
	}
	cut := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "f644 1 2 a\x00")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	if _, err := listTree(t.Context(), cut, "/x", false); api.KindOf(err) != api.KindGuest {
		t.Errorf("cut: %v", err)
	}
}

// TestTreeFailsLate: what goes wrong after the first records is told like what goes wrong before.
func TestTreeFailsLate(t *testing.T) {
	c := serve(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "f644 1 2 a\x00!{\"kind\":\"unavailable\",\"message\":\"the disk\\nis broken\",\"hint\":\"buy one\"}\x00")
	}))
	all, err := listTree(t.Context(), c, "/x", false)
	var e *api.Error
	if !errors.As(err, &e) || e.Kind != api.KindUnavailable || e.Message != "the disk is broken" || e.Hint != "buy one" || len(all) != 1 {
		t.Errorf("%q, %+v", all, err)
	}
}

package release

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

const testVersion = "9.8.7"

// entry is a file of an archive.
type entry struct {
	name, data string
	kind       byte
}

// programs are what a good archive has, among other things.
func programs() []entry {
	const dir, suffix = "release-v9.8.7-test/", "-v9.8.7-test"
	return []entry{
		{dir, "", tar.TypeDir},
		{dir + "firecracker" + suffix + ".debug", "symbols", tar.TypeReg},
		{dir + "jailer" + suffix, "#!/bin/sh\necho Jailer v9.8.7\n", tar.TypeReg},
		{dir + "../../evil", "x", tar.TypeReg},
		{dir + "firecracker" + suffix, "#!/bin/sh\necho Firecracker v9.8.7\n", tar.TypeReg},
		{dir + "LICENSE", strings.Repeat("no warranty\n", 50000), tar.TypeReg},
	}
}

func archiveOf(t testing.TB, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	for _, e := range entries {
		h := &tar.Header{Name: e.name, Typeflag: e.kind, Mode: 0o644, Size: int64(len(e.data))}
		if e.kind == tar.TypeSymlink || e.kind == tar.TypeLink {
			h.Linkname, h.Size = e.data, 0
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(tw, e.data); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(tw.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// site serves an archive, and what a test makes of it.
type site struct {
	*httptest.Server
	asked  atomic.Int32
	ranges sync.Map // of requests with one, by their number
	handle atomic.Value
}

func newSite(t *testing.T, data []byte) *site {
	t.Helper()
	s := &site{}
	s.serve(func(w http.ResponseWriter, r *http.Request, _ int) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := int(s.asked.Add(1))
		if rg := r.Header.Get("Range"); rg != "" {
			s.ranges.Store(n, rg)
		}
		s.handle.Load().(func(http.ResponseWriter, *http.Request, int))(w, r, n)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *site) serve(h func(w http.ResponseWriter, r *http.Request, n int)) { s.handle.Store(h) }

// config is a fetch of data from s.
func (s *site) config(dir string, data []byte) Config {
	sum := sha256.Sum256(data)
	return Config{Dir: dir, HTTP: s.Client(), Idle: 5 * time.Second, RetryDelay: time.Millisecond,
		Pin: Pin{Version: testVersion, Arch: "test", URL: s.URL + "/firecracker.tgz", SHA256: hex.EncodeToString(sum[:]), MaxBytes: 1 << 20}}
}

// told is a Reporter that remembers.
type told struct {
	mu    sync.Mutex // guards what follows
	steps []string
	done  int64
	step  func(string)
	bytes func(done int64)
}

func (r *told) Step(s string) {
	r.mu.Lock()
	r.steps = append(r.steps, s)
	r.mu.Unlock()
	if r.step != nil {
		r.step(s)
	}
}

func (r *told) Bytes(done, _ int64) {
	r.mu.Lock()
	r.done = max(r.done, done)
	r.mu.Unlock()
	if r.bytes != nil {
		r.bytes(done)
	}
}

func (r *told) Note(string) {}

// holds checks what is in a directory.
func holds(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, want) {
		t.Errorf("there are %q, want %q", names, want)
	}
}

const archiveName, fcName, jailerName = "firecracker-v9.8.7-test.tgz", "firecracker-v9.8.7", "jailer-v9.8.7"

func TestFetch(t *testing.T) {
	data := archiveOf(t, programs())
	s := newSite(t, data)
	dir := filepath.Join(t.TempDir(), "new", "bin")
	cfg := s.config(dir, data)
	rep := &told{}
	p, err := Fetch(t.Context(), cfg, rep)
	if err != nil {
		t.Fatal(err)
	}
	fc, jailer := cfg.Pin.Own(dir)
	if want := (Program{Path: fc, Jailer: jailer, Source: Own, Version: testVersion}); p != want {
		t.Errorf("it is %+v", p)
	}
	if rep.done != int64(len(data)) || !slices.Equal(rep.steps, []string{"fetch firecracker 9.8.7", "unpack firecracker 9.8.7"}) {
		t.Errorf("told %q, %d bytes of %d", rep.steps, rep.done, len(data))
	}
	holds(t, dir, fcName, jailerName)
	for _, path := range []string{fc, jailer} {
		if st, err := os.Stat(path); err != nil || st.Mode() != 0o755 {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
	if again, err := Fetch(t.Context(), cfg, rep); err != nil || again != p || s.asked.Load() != 1 {
		t.Errorf("again: %+v, %v after %d requests", again, err, s.asked.Load())
	}
	// One that does not work any more is replaced.
	if err := os.WriteFile(fc, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if again, err := Fetch(t.Context(), cfg, rep); err != nil || again != p || s.asked.Load() != 2 {
		t.Errorf("damaged: %+v, %v after %d requests", again, err, s.asked.Load())
	}
	holds(t, dir, fcName, jailerName)
}

// TestFetchOffline: the archive may be brought.
func TestFetchOffline(t *testing.T) {
	data := archiveOf(t, programs())
	s := newSite(t, data)
	s.Close()
	dir := t.TempDir()
	cfg := s.config(dir, data)
	_, err := Fetch(t.Context(), cfg, progress.Discard)
	e := api.AsError(err)
	archive := filepath.Join(dir, archiveName)
	if e.Kind != api.KindUnavailable || !strings.Contains(e.Message, cfg.Pin.URL) || !strings.Contains(e.Message, "refused") {
		t.Errorf("without a server: %v", err)
	}
	for _, part := range []string{"curl -LO " + cfg.Pin.URL + "\n", archive + ",", "firecracker_bin"} {
		if !strings.Contains(e.Hint, part) {
			t.Errorf("the hint %q lacks %q", e.Hint, part)
		}
	}
	if err := os.WriteFile(archive, data[:100], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Fetch(t.Context(), cfg, progress.Discard); api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), cfg.Pin.SHA256) ||
		!strings.Contains(api.AsError(err).Hint, "replace it") {
		t.Errorf("a broken archive: %v", err)
	}
	if err := os.WriteFile(archive, data, 0o600); err != nil {
		t.Fatal(err)
	}
	rep := &told{}
	if p, err := Fetch(t.Context(), cfg, rep); err != nil || p.Version != testVersion || rep.steps[0] != "verify "+archiveName {
		t.Errorf("%+v, %v, told %q", p, err, rep.steps)
	}
	holds(t, dir, fcName, archiveName, jailerName)
}

func TestFetchFails(t *testing.T) {
	good := archiveOf(t, programs())
	status := func(code int) func(http.ResponseWriter, *http.Request, int) {
		return func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code) }
	}
	without := func(name string) []byte {
		return archiveOf(t, slices.DeleteFunc(programs(), func(e entry) bool {
			return strings.HasPrefix(filepath.Base(e.name), name+"-v9.8.7-test") && !strings.Contains(e.name, "debug")
		}))
	}
	instead := func(name string, by entry) []byte {
		all := programs()
		for i, e := range all {
			if strings.HasSuffix(e.name, "/"+name+"-v9.8.7-test") {
				by.name = e.name
				all[i] = by
			}
		}
		return archiveOf(t, all)
	}
	twice := programs()
	twice = slices.Insert(twice, 3, twice[2])
	tests := map[string]struct {
		pinned []byte // the archive that the pin is of
		handle func(http.ResponseWriter, *http.Request, int)
		text   string
		asked  int32
		left   []string
	}{
		"not found":    {good, status(404), "HTTP status 404", 1, []string{archiveName + ".part"}},
		"broken":       {good, status(503), "HTTP status 503", attempts, []string{archiveName + ".part"}},
		"another file": {append(slices.Clone(good), 0), nil, "digest mismatch", 1, nil},
		"empty":        {good, status(200), "digest mismatch", 1, nil},
		"portal":       {good, func(w http.ResponseWriter, _ *http.Request, _ int) { fmt.Fprint(w, "<html>log in</html>") }, "digest mismatch", 1, nil},
		"too long, told": {good, func(w http.ResponseWriter, _ *http.Request, _ int) {
			w.Header().Set("Content-Length", "9999999")
		}, "more than 1048576", 1, []string{archiveName + ".part"}},
		"too long": {good, func(w http.ResponseWriter, _ *http.Request, _ int) {
			for range 64 {
				_, _ = w.Write(make([]byte, 32<<10))
				w.(http.Flusher).Flush()
			}
		}, "sends more than 1048576", 1, []string{archiveName + ".part"}},
		"redirected without end": {good, func(w http.ResponseWriter, r *http.Request, _ int) {
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		}, "redirect", 10 * attempts, []string{archiveName + ".part"}},

		"no archive":        {[]byte("hello, this is no archive"), nil, "gzip", 1, []string{archiveName + ".part"}},
		"cut off":           {good[:50], nil, "unexpected EOF", 1, []string{archiveName + ".part"}},
		"no firecracker":    {without("firecracker"), nil, "1 of the 2 programs", 1, []string{archiveName + ".part"}},
		"no jailer":         {without("jailer"), nil, "1 of the 2 programs", 1, []string{archiveName + ".part"}},
		"a link":            {instead("firecracker", entry{"", "/bin/sh", tar.TypeSymlink}), nil, "no plain file", 1, []string{archiveName + ".part"}},
		"a hard link":       {instead("jailer", entry{"", "release-v9.8.7-test/LICENSE", tar.TypeLink}), nil, "no plain file", 1, []string{archiveName + ".part"}},
		"a directory":       {instead("firecracker", entry{"", "", tar.TypeDir}), nil, "no plain file", 1, []string{archiveName + ".part"}},
		"twice":             {archiveOf(t, twice), nil, "twice", 1, []string{archiveName + ".part"}},
		"another version":   {instead("firecracker", entry{"", "#!/bin/sh\necho Firecracker v9.8.6\n", tar.TypeReg}), nil, "9.8.6", 1, []string{archiveName + ".part"}},
		"it does not run":   {instead("firecracker", entry{"", "#!/bin/nosuchshell\n", tar.TypeReg}), nil, "version", 1, []string{archiveName + ".part"}},
		"it answers not so": {instead("firecracker", entry{"", "#!/bin/sh\necho Jailer v9.8.7\n", tar.TypeReg}), nil, "does not answer", 1, []string{archiveName + ".part"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			served := tt.pinned
			if name == "another file" {
				served = good
			}
			s := newSite(t, served)
			if tt.handle != nil {
				s.serve(tt.handle)
			}
			dir := t.TempDir()
			_, err := Fetch(t.Context(), s.config(dir, tt.pinned), progress.Discard)
			if api.KindOf(err) != api.KindUnavailable || !strings.Contains(err.Error(), tt.text) || api.AsError(err).Hint == "" {
				t.Errorf("%v (%s)", err, api.KindOf(err))
			}
			if n := s.asked.Load(); n != tt.asked {
				t.Errorf("it asked %d times, want %d", n, tt.asked)
			}
			holds(t, dir, tt.left...)
			// A server that has come to its senses: nothing that is left is in the way.
			s = newSite(t, good)
			if _, err := Fetch(t.Context(), s.config(dir, good), progress.Discard); err != nil {
				t.Errorf("afterwards: %v", err)
			}
			holds(t, dir, fcName, jailerName)
		})
	}
}

// TestFetchGoesOn: a transfer that breaks goes on where it stopped, in the same call and in the next.
func TestFetchGoesOn(t *testing.T) {
	data := archiveOf(t, programs())
	half := len(data) / 2
	s := newSite(t, data)
	cutFirst := func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			w.Header().Set("Content-Length", fmt.Sprint(len(data)))
			_, _ = w.Write(data[:half])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
	s.serve(cutFirst)
	if _, err := Fetch(t.Context(), s.config(t.TempDir(), data), progress.Discard); err != nil {
		t.Fatal(err)
	}
	if r, _ := s.ranges.Load(2); r != fmt.Sprintf("bytes=%d-", half) {
		t.Errorf("the second request was for %v", r)
	}

	part := func(t *testing.T, content []byte) string {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, archiveName+".part"), content, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	for name, tt := range map[string]struct {
		part  []byte
		asked int32
		plain bool // a server that knows no ranges
	}{
		"half of it":           {data[:half], 1, false},
		"all of it":            {data, 1, false},
		"damaged":              {bytes.Repeat([]byte{1}, half), 2, false},
		"too long":             {append(slices.Clone(data), 1), 2, false},
		"longer than may be":   {make([]byte, 2<<20), 1, false},
		"a server of no parts": {data[:half], 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, data)
			if tt.plain {
				s.serve(func(w http.ResponseWriter, _ *http.Request, _ int) { _, _ = w.Write(data) })
			}
			dir := part(t, tt.part)
			if _, err := Fetch(t.Context(), s.config(dir, data), progress.Discard); err != nil || s.asked.Load() != tt.asked {
				t.Errorf("%v after %d requests", err, s.asked.Load())
			}
			holds(t, dir, fcName, jailerName)
		})
	}
}

func TestFetchFollowsRedirects(t *testing.T) {
	data := archiveOf(t, programs())
	s := newSite(t, data)
	s.serve(func(w http.ResponseWriter, r *http.Request, n int) {
		if r.URL.Path != "/elsewhere" {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
			return
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
	if _, err := Fetch(t.Context(), s.config(t.TempDir(), data), progress.Discard); err != nil {
		t.Error(err)
	}
}

// TestFetchStalls: a server that sends nothing any more is given up, and asked again.
func TestFetchStalls(t *testing.T) {
	data := archiveOf(t, programs())
	s := newSite(t, data)
	s.serve(func(w http.ResponseWriter, r *http.Request, n int) {
		if n > 1 {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:10])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	cfg := s.config(t.TempDir(), data)
	cfg.Idle = 500 * time.Millisecond
	if _, err := Fetch(t.Context(), cfg, progress.Discard); err != nil || s.asked.Load() < 2 {
		t.Errorf("%v after %d requests", err, s.asked.Load())
	}
}

// TestFetchIsCancelled at each step: what is left is what the next fetch cleans, and nothing is half there.
func TestFetchIsCancelled(t *testing.T) {
	data := archiveOf(t, programs())
	stop := errors.New("the user has had enough")
	check := func(t *testing.T, dir string, err error) {
		t.Helper()
		if !errors.Is(err, stop) {
			t.Errorf("err = %v", err)
		}
		for _, name := range []string{fcName, jailerName} {
			if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
				t.Errorf("%s is there", name)
			}
		}
		s := newSite(t, data)
		if _, err := Fetch(t.Context(), s.config(dir, data), progress.Discard); err != nil {
			t.Errorf("afterwards: %v", err)
		}
		holds(t, dir, fcName, jailerName)
	}
	for _, step := range []string{"fetch firecracker 9.8.7", "unpack firecracker 9.8.7"} {
		t.Run(step, func(t *testing.T) {
			s := newSite(t, data)
			ctx, cancel := context.WithCancelCause(t.Context())
			dir := t.TempDir()
			_, err := Fetch(ctx, s.config(dir, data), &told{step: func(name string) {
				if name == step {
					cancel(stop)
				}
			}})
			check(t, dir, err)
		})
	}
	t.Run("while it comes", func(t *testing.T) {
		s := newSite(t, data)
		s.serve(func(w http.ResponseWriter, r *http.Request, _ int) {
			_, _ = w.Write(data[:10])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		})
		ctx, cancel := context.WithCancelCause(t.Context())
		dir := t.TempDir()
		_, err := Fetch(ctx, s.config(dir, data), &told{bytes: func(n int64) {
			if n == 10 {
				cancel(stop)
			}
		}})
		check(t, dir, err)
	})
	t.Run("while another fetches", func(t *testing.T) {
		dir := t.TempDir()
		d, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Flock(int(d.Fd()), unix.LOCK_EX); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		_, err = Fetch(ctx, newSite(t, data).config(dir, data), &told{step: func(string) { cancel(stop) }})
		d.Close()
		check(t, dir, err)
	})
}

// TestFetchTwoAtOnce: one of them fetches.
func TestFetchTwoAtOnce(t *testing.T) {
	data := archiveOf(t, programs())
	s := newSite(t, data)
	dir := t.TempDir()
	// What somebody who was killed left.
	for _, name := range []string{".tmp-1/firecracker", "firecracker-v9.8.6-test.tgz.part"} {
		script(t, filepath.Join(dir, name), "")
	}
	script(t, filepath.Join(dir, jailerName), "exit 7")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if p, err := Fetch(t.Context(), s.config(dir, data), progress.Discard); err != nil || p.Version != testVersion {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	wg.Wait()
	if n := s.asked.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
	holds(t, dir, fcName, jailerName)
	if b, err := os.ReadFile(filepath.Join(dir, jailerName)); err != nil || !strings.Contains(string(b), "Jailer v9.8.7") {
		t.Errorf("the jailer is %q, %v", b, err)
	}
}

// TestFetchFullDisk has a file system of 64 KiB.
func TestFetchFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("no file system of the test's own: %v", err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	noise := make([]byte, 200<<10)
	for i, x := 0, uint32(1); i < len(noise); i++ {
		x = x*1664525 + 1013904223
		noise[i] = byte(x >> 24)
	}
	for name, entries := range map[string][]entry{
		"archive": append([]entry{{"noise", string(noise), tar.TypeReg}}, programs()...),
		"programs": {programs()[2], {"release-v9.8.7-test/firecracker-v9.8.7-test",
			"#!/bin/sh\necho Firecracker v9.8.7\nexit 0\n" + strings.Repeat("#", 200<<10), tar.TypeReg}},
	} {
		data := archiveOf(t, entries)
		_, err := Fetch(t.Context(), newSite(t, data).config(dir, data), progress.Discard)
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(api.AsError(err).Hint, "make room") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(dir, fcName)); err == nil {
			t.Errorf("%s: it is there", name)
		}
	}
}

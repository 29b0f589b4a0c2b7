package oci

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/progress"
)

func resolve(t testing.TB, c *Client, ref string) *Image {
	t.Helper()
	img, err := c.Resolve(t.Context(), ref, "")
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// flat pulls an image, and returns its tree.
func flat(t testing.TB, c *Client, img *Image) map[string]string {
	t.Helper()
	var out bytes.Buffer
	if err := c.Fetch(t.Context(), img, progress.Discard); err != nil {
		t.Fatal(err)
	}
	if err := c.Flatten(t.Context(), img, &out); err != nil {
		t.Fatal(err)
	}
	tree := treeOfTar(t, out.Bytes())
	delete(tree, "/")
	return tree
}

// cached are the files of a cache, with their sizes.
func cached(t testing.TB, c *Client) map[string]int {
	t.Helper()
	files, err := os.ReadDir(c.cfg.Cache)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]int{}
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[f.Name()] = int(info.Size())
	}
	return out
}

func assertCached(t testing.TB, c *Client, want map[string]int) {
	t.Helper()
	if diff := cmp.Diff(want, cached(t, c)); diff != "" {
		t.Errorf("the cache (- wanted, + found): %s", diff)
	}
}

func nameOf(b []byte) string { return strings.Replace(digestOf(b).String(), ":", "-", 1) }

func TestPull(t *testing.T) {
	r := newRegistry(t)
	one, two := layer(t, file("a", "1"), file("b", "1")), layer(t, file("a", "2"))
	ref := r.pushLayers("some/image:tag", one, two, one)
	c := newClient(t)
	img := resolve(t, c, ref)
	want := &Image{Platform: "linux/amd64", Env: []string{"PATH=/bin"}, WorkDir: "/srv", User: "1:2", Entrypoint: []string{"/init"}, Cmd: []string{"-x"},
		Layers: []Layer{{digestOf(one), int64(len(one))}, {digestOf(two), int64(len(two))}, {digestOf(one), int64(len(one))}}}
	shown := *img
	shown.ref, shown.rt, shown.index, shown.Reference = reference{}, nil, nil, ""
	if diff := cmp.Diff(want, &shown, cmp.AllowUnexported(Image{}, reference{})); diff != "" {
		t.Error(diff)
	}
	if tag, digest, ok := strings.Cut(img.Reference, "@"); !ok || tag != ref || !strings.HasPrefix(digest, "sha256:") {
		t.Errorf("reference %q", img.Reference)
	}
	if img.Bytes() != int64(len(one)+len(two)) {
		t.Errorf("%d bytes", img.Bytes())
	}
	wantTree := map[string]string{"/a": f("1"), "/b": f("1")}
	assertTree(t, wantTree, flat(t, c, img))
	assertCached(t, c, map[string]int{nameOf(one): len(one), nameOf(two): len(two)})
	// Once more, from the cache, by the digest.
	if tree := flat(t, c, resolve(t, c, img.Reference)); !cmp.Equal(wantTree, tree) {
		t.Error(tree)
	}
	for _, l := range [][]byte{one, two} {
		if asked, served := r.counts(l); asked != 1 || served != int64(len(l)) {
			t.Errorf("a layer was asked for %d times, and %d of %d bytes served", asked, served, len(l))
		}
	}
}

// progressLog is a Reporter that fails the test where progress is made wrongly.
type progressLog struct {
	t    *testing.T
	busy atomic.Int32
	last int64
}

func (*progressLog) Step(string) {}
func (*progressLog) Note(string) {}

func (p *progressLog) Bytes(done, total int64) {
	if p.busy.Add(1) != 1 {
		p.t.Error("two goroutines report at the same time")
	}
	if done > total || done < 0 {
		p.t.Errorf("%d of %d bytes", done, total)
	}
	p.last = done
	p.busy.Add(-1)
}

// TestCutConnections cuts the download of a layer at every tenth of it.
func TestCutConnections(t *testing.T) {
	r := newRegistry(t)
	big := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("i:1", big)
	r.set(func(w http.ResponseWriter, req *http.Request, blob []byte, nth int) bool {
		if nth < 10 {
			cutAt(w, req, blob, nth*len(blob)/10)
		}
		return false
	})
	c := newClient(t)
	rep := &progressLog{t: t}
	img := resolve(t, c, ref)
	if err := c.Fetch(t.Context(), img, rep); err != nil {
		t.Fatal(err)
	}
	if rep.last != int64(len(big)) {
		t.Errorf("%d of %d bytes reported", rep.last, len(big))
	}
	if asked, served := r.counts(big); asked != 10 || served >= 2*int64(len(big)) {
		t.Errorf("asked %d times, %d of %d bytes served", asked, served, len(big))
	}
	flat(t, c, img)
}

// answers serves the nth request of a blob by the nth function, and those after the last as the last; nil is for an answer as it should be.
func answers(fs ...func(w http.ResponseWriter, req *http.Request, blob []byte)) func(http.ResponseWriter, *http.Request, []byte, int) bool {
	return func(w http.ResponseWriter, req *http.Request, blob []byte, nth int) bool {
		f := fs[min(nth, len(fs))-1]
		if f != nil {
			f(w, req, blob)
		}
		return f != nil
	}
}

func says(status int, header ...string) func(http.ResponseWriter, *http.Request, []byte) {
	return func(w http.ResponseWriter, _ *http.Request, _ []byte) {
		for k := 0; k < len(header); k += 2 {
			w.Header().Set(header[k], header[k+1])
		}
		w.WriteHeader(status)
	}
}

func cutHalf(w http.ResponseWriter, req *http.Request, blob []byte) { cutAt(w, req, blob, len(blob)/2) }

// rangeless ignores where it is to begin.
func rangeless(w http.ResponseWriter, req *http.Request, blob []byte) {
	req.Header.Del("Range")
	serveBlob(w, req, blob)
}

func other(w http.ResponseWriter, req *http.Request, blob []byte) {
	b := bytes.Clone(blob)
	b[len(b)-1]++
	serveBlob(w, req, b)
}

func shorter(w http.ResponseWriter, req *http.Request, blob []byte) {
	serveBlob(w, req, blob[:len(blob)-9])
}

func longer(w http.ResponseWriter, req *http.Request, blob []byte) {
	serveBlob(w, req, append(bytes.Clone(blob), "more"...))
}

// longerUntold says nothing of how long it is.
func longerUntold(w http.ResponseWriter, _ *http.Request, blob []byte) {
	w.(http.Flusher).Flush()
	_, _ = w.Write(append(bytes.Clone(blob), "more"...))
}

func shorterUntold(w http.ResponseWriter, _ *http.Request, blob []byte) {
	w.(http.Flusher).Flush()
	_, _ = w.Write(blob[:len(blob)-9])
}

func elsewhere(w http.ResponseWriter, _ *http.Request, blob []byte) {
	w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(blob)-1, len(blob)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(blob)
}

// encoded says of a gzip layer that it is gzip of something else.
func encoded(w http.ResponseWriter, req *http.Request, blob []byte) {
	w.Header().Set("Content-Encoding", "gzip")
	serveBlob(w, req, blob)
}

// TestFaults has registries that serve badly, whose layers are fetched all the same.
func TestFaults(t *testing.T) {
	big := layer(t, file("a", random(1, 1<<18)))
	type answer = func(http.ResponseWriter, *http.Request, []byte)
	for name, c := range map[string]struct {
		answers []answer
		most    int // how often the layer may be asked for
	}{
		"no ranges":                    {[]answer{cutHalf, rangeless}, 2},
		"a range that is none":         {[]answer{cutHalf, elsewhere, nil}, 3},
		"416":                          {[]answer{cutHalf, says(416), nil}, 3},
		"damaged once":                 {[]answer{other, nil}, 2},
		"damaged once, and cut":        {[]answer{cutHalf, other, cutHalf, nil}, 4},
		"shorter once":                 {[]answer{shorter, nil}, 2},
		"shorter once, without a word": {[]answer{shorterUntold, nil}, 2},
		"longer once":                  {[]answer{longer, nil}, 2},
		"longer once, without a word":  {[]answer{longerUntold, nil}, 2},
		"500 a few times":              {[]answer{says(500), says(502), says(503), nil}, 4},
		"429":                          {[]answer{says(429, "Retry-After", "1"), nil}, 2},
		"a date to come back at":       {[]answer{says(429, "Retry-After", "Mon, 02 Jan 2096 15:04:05 GMT"), nil}, 2},
		"408":                          {[]answer{says(408), nil}, 2},
		"gzip that is not":             {[]answer{encoded}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			ref := r.pushLayers("i:1", big)
			r.set(answers(c.answers...))
			client := newClient(t)
			tree := flat(t, client, resolve(t, client, ref))
			if len(tree) != 1 {
				t.Error(tree)
			}
			if asked, _ := r.counts(big); asked > c.most {
				t.Errorf("asked %d times", asked)
			}
			assertCached(t, client, map[string]int{nameOf(big): len(big)})
		})
	}
}

// TestRetryAfter waits as long as it is told to, and no longer than it wants.
func TestRetryAfter(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", ""))
	ref := r.pushLayers("i:1", l)
	var asked []time.Time
	r.set(func(w http.ResponseWriter, _ *http.Request, _ []byte, nth int) bool {
		asked = append(asked, time.Now())
		if nth <= 2 {
			says(429, "Retry-After", []string{"1", "3600"}[nth-1])(w, nil, nil)
		}
		return nth <= 2
	})
	c := newClient(t)
	c.pace.longest = 1100 * time.Millisecond
	flat(t, c, resolve(t, c, ref))
	if len(asked) != 3 || asked[1].Sub(asked[0]) < time.Second || asked[2].Sub(asked[1]) < time.Second {
		t.Errorf("asked at %v", asked)
	}
}

// TestHopeless has registries that never serve what they should: that is said, and soon.
func TestHopeless(t *testing.T) {
	big := layer(t, file("a", random(1, 1<<18)))
	part := nameOf(big) + ".part"
	type answer = func(http.ResponseWriter, *http.Request, []byte)
	half := map[string]int{part: len(big) / 2}
	for name, c := range map[string]struct {
		answers []answer
		asked   int
		want    string // in the error
		hint    string
		left    map[string]int
	}{
		"500":             {[]answer{cutHalf, says(500)}, 7, "500", "try again later", half},
		"429":             {[]answer{cutHalf, says(429)}, 7, "429", "docker login", half},
		"404":             {[]answer{cutHalf, says(404)}, 2, "has no", "look at the name", half},
		"403":             {[]answer{cutHalf, says(403)}, 2, "does not give", "docker login", half},
		"401":             {[]answer{cutHalf, says(401)}, 3, "does not give", "docker login", half},
		"cut every time":  {[]answer{cutHalf}, 7, "EOF", "reachable", half},
		"no more ranges":  {[]answer{cutHalf, says(416)}, 3, "416", "try again later", map[string]int{part: 0}},
		"ever damaged":    {[]answer{other}, 2, "not what its digest says", "serves it damaged", map[string]int{}},
		"damaged and cut": {[]answer{cutHalf, other, cutHalf, other}, 4, "not what its digest says", "serves it damaged", map[string]int{}},
		"ever shorter":    {[]answer{shorter}, 2, "instead of", "serves it damaged", map[string]int{}},
		"ever longer":     {[]answer{longer}, 2, "instead of", "serves it damaged", map[string]int{}},
		"longer untold":   {[]answer{longerUntold}, 2, "more than", "serves it damaged", map[string]int{}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry(t)
			ref := r.pushLayers("i:1", big)
			r.set(answers(c.answers...))
			client := newClient(t)
			img := resolve(t, client, ref)
			err := client.Fetch(t.Context(), img, progress.Discard)
			var e *api.Error
			if !errors.As(err, &e) || e.Kind == api.KindInternal || !strings.Contains(e.Message, c.want) || !strings.Contains(e.Hint, c.hint) {
				t.Errorf("error %#v", err)
			}
			if asked, _ := r.counts(big); asked != c.asked {
				t.Errorf("asked %d times instead of %d", asked, c.asked)
			}
			assertCached(t, client, c.left)
			if len(client.fetches) != 0 {
				t.Error("a fetch is left")
			}
			// And when it serves again, the rest is enough.
			r.set(nil)
			_, before := r.counts(big)
			flat(t, client, img)
			// Of what it began to serve before, it may still write.
			if _, served := r.counts(big); c.left[part] > 0 && served-before != int64(len(big)-c.left[part]) {
				t.Errorf("%d bytes were served after all, with %d of %d there", served-before, c.left[part], len(big))
			}
		})
	}
}

// TestStall has a registry that goes silent.
func TestStall(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("i:1", l)
	r.set(answers(func(w http.ResponseWriter, req *http.Request, blob []byte) {
		begin(w, req, blob)
		_, _ = w.Write(blob[:1000])
		w.(http.Flusher).Flush()
		<-req.Context().Done()
	}, func(_ http.ResponseWriter, req *http.Request, _ []byte) { <-req.Context().Done() }))
	c := newClient(t)
	c.pace.stall = 50 * time.Millisecond
	err := c.Fetch(t.Context(), resolve(t, c, ref), progress.Discard)
	if err == nil || !strings.Contains(err.Error(), errStalled.Error()) {
		t.Errorf("error %v", err)
	}
}

// TestRedirect has a registry that keeps its layers elsewhere: who the user is is none of that one's business.
func TestRedirect(t *testing.T) {
	r := newRegistry(t)
	l := layer(t, file("a", random(1, 1<<18)))
	ref := r.pushLayers("i:1", l)
	var seen []http.Header
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		seen = append(seen, req.Header.Clone())
		if len(seen) == 1 {
			cutHalf(w, req, l)
		}
		serveBlob(w, req, l)
	}))
	defer store.Close()
	r.set(func(w http.ResponseWriter, req *http.Request, _ []byte, _ int) bool {
		http.Redirect(w, req, store.URL+"/elsewhere", http.StatusTemporaryRedirect)
		return true
	})
	r.setDoor(basicDoor)
	c := newClient(t, func(cfg *Config) { cfg.Keychain = keychain{r.host: user} })
	flat(t, c, resolve(t, c, ref))
	if len(seen) != 2 {
		t.Errorf("the store was asked %d times", len(seen))
	}
	for _, h := range seen {
		if h.Get("Authorization") != "" {
			t.Errorf("the store was told %q", h.Get("Authorization"))
		}
	}
	if seen[1].Get("Range") == "" {
		t.Error("the store was not asked for the rest alone")
	}
}

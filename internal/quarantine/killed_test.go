package quarantine

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/hostexec"
)

// childEnv holds the childWork of a child of the test, as JSON.
const childEnv = "BANGER_QUARANTINE_CHILD"

// childWork is a pull in a process of its own, which the test kills at a step.
type childWork struct {
	Dir     string
	Refs    []Ref
	Have    []string
	Environ []string
	// Until is the step to be killed at.
	Until string
}

// steps says on stdout that it is at the step where it waits to be killed.
type steps struct{ until string }

// Step waits for ever at one of them.
func (s steps) Step(name string) {
	if name == s.until {
		fmt.Fprintln(os.Stdout, name)
		forever := make(chan os.Signal, 1)
		signal.Notify(forever, syscall.SIGUSR1)
		<-forever
	}
}

// Bytes does nothing.
func (steps) Bytes(int64, int64) {}

// Note does nothing.
func (steps) Note(string) {}

func child() int {
	var c childWork
	if err := json.Unmarshal([]byte(os.Getenv(childEnv)), &c); err != nil {
		fmt.Fprintln(os.Stdout, err)
		return 3
	}
	w := &world{dir: c.Dir, guest: filepath.Join(c.Dir, "guest"), env: c.Environ, guestEnv: c.Environ}
	s := steps{c.Until}
	req := Request{Repo: filepath.Join(c.Dir, "host"), VM: "dev", Refs: c.Refs, Have: c.Have, Report: s, Pack: w.pack}
	_, err := Pull(context.Background(), Config{Environ: c.Environ, TempDir: filepath.Join(c.Dir, "temp")}, req)
	fmt.Fprintln(os.Stdout, "ended: ", err)
	return 1
}

// A pull that is killed at any of its steps loses nothing, and the next one removes what it left.
func TestKilled(t *testing.T) {
	for _, step := range []string{"receive commits", "check commits", "store commits", "move refs"} {
		t.Run(step, func(t *testing.T) {
			w := newWorld(t)
			w.commit(w.guest, "old")
			w.mustPull()
			w.git(w.guest, "commit", "-q", "--amend", "-m", "new")
			id, before := w.id(w.guest, "main"), w.listing()
			self, err := os.Executable()
			must(t, err)
			work, err := json.Marshal(childWork{w.dir, w.refs(), w.have, w.env, step})
			must(t, err)
			r, out, err := os.Pipe()
			must(t, err)
			c, err := hostexec.Runner{}.StartChild([]string{self}, "", append(slices.Clone(w.env), childEnv+"="+string(work)), out, nil)
			must(t, err)
			must(t, out.Close())
			if line, err := bufio.NewReader(r).ReadString('\n'); line != step+"\n" {
				t.Errorf("the child says %q, %v", line, err)
			}
			c.Kill()
			if _, _, err := c.Wait(); err != nil {
				t.Error(err)
			}
			if diff := slices.Compare(before, w.listing()); diff != 0 {
				t.Error("the host's files have changed")
			}
			w.whole()
			left, err := os.ReadDir(w.cfg.TempDir)
			must(t, err)
			if len(left) != 1 {
				t.Errorf("left: %v", left)
			}
			must(t, RemoveStale(w.cfg.TempDir))
			w.mustPull() // which looks for what is left
			if got := w.pulled()["dev/main"]; got != id {
				t.Errorf("refs/banger/dev/main is %s, want %s", got, id)
			}
		})
	}
}

// Pulls of the same guest at once, with the user at work, end well, and each brings what it is to bring.
func TestAtOnce(t *testing.T) {
	w := newWorld(t)
	const n = 6
	var reqs []Request
	for i := range n {
		w.git(w.guest, "checkout", "-q", "-B", "main", "HEAD~0")
		w.commit(w.guest, fmt.Sprint("main ", i))
		if i%2 == 0 {
			w.git(w.guest, "commit", "-q", "--amend", "-m", "amended")
		}
		req := w.request()
		req.Repo = w.host
		reqs = append(reqs, req)
	}
	w.git(w.guest, "config", "gc.auto", "0")
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		wg.Go(func() {
			for range 20 { // as the user is told to where the refs do not hold still
				if _, errs[i] = Pull(t.Context(), w.cfg, reqs[i]); errs[i] == nil || !strings.Contains(errs[i].Error(), "something else is at work") {
					return
				}
			}
		})
	}
	for i := range 5 {
		w.commit(w.host, fmt.Sprint("host ", i))
		w.git(w.host, "gc", "-q", "--prune=now")
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("pull %d: %v", i, err)
		}
	}
	w.whole()
	var ids []string
	for _, req := range reqs {
		for _, r := range req.Refs {
			ids = append(ids, r.ID)
		}
	}
	all := w.git(w.host, "for-each-ref", "--format=^%(objectname)")
	if lost := w.gitIn(w.host, strings.Join(ids, "\n")+"\n"+all+"\n", "rev-list", "--stdin"); lost != "" {
		t.Errorf("lost: %s", lost)
	}
	if left, _ := os.ReadDir(w.cfg.TempDir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if keep, _ := filepath.Glob(filepath.Join(w.host, ".git/objects/pack/*.keep")); len(keep) > 0 {
		t.Errorf("left: %v", keep)
	}
}

// A pull that is cancelled while the guest sends ends, and leaves nothing.
func TestCancelled(t *testing.T) {
	w := newWorld(t)
	id := w.commit(w.guest, "new")
	req := w.request()
	ctx, cancel := context.WithCancel(t.Context())
	req.Pack = func(ctx context.Context, _, _ []string, to io.Writer) error {
		_, err := to.Write([]byte("PACK"))
		cancel()
		<-ctx.Done()
		return err
	}
	if _, err := Pull(ctx, w.cfg, req); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("err = %v", err)
	}
	if left, _ := os.ReadDir(w.cfg.TempDir); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := w.try(w.host, nil, "cat-file", "-e", id); err == nil {
		t.Error("the host has it")
	}
}

// Where a pull ends after it has removed a ref that was in the way of another, nothing is lost, and the next one goes on.
func TestKilledBetweenTransactions(t *testing.T) {
	w := newWorld(t)
	old := w.commit(w.guest, "old")
	w.git(w.guest, "branch", "-M", "topic")
	w.mustPull()
	w.git(w.guest, "branch", "-M", "topic/x")
	w.git(w.guest, "commit", "-q", "--amend", "-m", "amended")
	p, err := newPull(t.Context(), w.cfg, w.request())
	must(t, err)
	defer p.close()
	v, err := p.first(t.Context())
	must(t, err)
	must(t, p.receive(t.Context(), p.wants(v), p.haves(v)))
	v, err = p.look(t.Context(), p.bare.git)
	must(t, err)
	must(t, v.loadWithoutHave(t.Context()))
	todo, err := v.plan(t.Context(), nil)
	must(t, err)
	must(t, p.host.update(t.Context(), todo.removals))
	if got := w.pulled(); len(got) != 1 || got["dev/@/kept/"+old] != old {
		t.Errorf("after the removals: %v", got)
	}
	p.close()
	w.mustPull()
	if got := w.pulled(); len(got) != 2 || got["dev/topic/x"] != w.id(w.guest, "HEAD") {
		t.Errorf("after the next pull: %v", got)
	}
}

package session

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"git.thaloco.com/thaloco/banger/internal/guest/exec"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// full is an output that takes some bytes, and then no more.
type full struct {
	room int
	got  []byte
}

func (f *full) Write(p []byte) (int, error) {
	n := min(len(p), f.room-len(f.got))
	f.got = append(f.got, p[:n]...)
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// TestBrokenOutput: what an output did not take is sent to who attaches next.
func TestBrokenOutput(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "sh", "-c", "echo 0123456789; read l")
	first := &full{room: 4}
	_, err := exec.Run(t.Context(), exec.Options{Dial: dial(w.m), Session: &exec.Session{Name: "s", Write: true, Tail: wire.TailUnread, KeepOpen: true}, Stdout: first})
	if !errors.Is(err, io.ErrShortWrite) || string(first.got) != "0123" {
		t.Fatalf("the first has %q, %v", first.got, err)
	}
	b := w.attach(exec.Session{Name: "s", Write: true, Tail: wire.TailUnread, KeepOpen: true})
	b.say(t, "bye\n")
	if err := <-b.done; err != nil || b.out.String() != "456789\n" {
		t.Errorf("the next has %q, %v", b.out.String(), err)
	}
}

// TestAnotherWrote: a writer that comes back after another one has written reads only, and is told.
func TestAnotherWrote(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "cat")
	a := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: true})
	a.say(t, "one\n")
	a.out.until("one\n")
	back := make(chan struct{})
	a.mu.Lock() // so that it does not come back yet
	_ = a.conn.Close()
	go func() {
		defer close(back)
		defer a.mu.Unlock()
		b := w.attach(exec.Session{Name: "s", Write: true, KeepOpen: true, SendOnly: true})
		b.say(t, "two\n")
		_ = b.in.Close()
		if err := <-b.done; err != nil {
			t.Error(err)
		}
	}()
	<-back
	<-a.readOnly
	a.out.until("two\n")
	a.say(t, "three\n")
	c := w.attach(exec.Session{Name: "s", Write: true})
	c.say(t, "four\n")
	_ = c.in.Close()
	if err := <-a.done; err != nil || a.out.String() != "one\ntwo\nfour\n" {
		t.Errorf("%q, %v", a.out.String(), err)
	}
}

// TestNoStdin: what is said to a session that takes nothing is read all the same, and goes nowhere.
func TestNoStdin(t *testing.T) {
	w := newWorld(t)
	w.start("none", wire.SessionNone, "sh", "-c", "echo begun; exec sleep 1000")
	w.start("over", wire.SessionPipe, "sh", "-c", "cat; echo begun; exec sleep 1000")
	send := w.attach(exec.Session{Name: "over", Write: true, SendOnly: true})
	_ = send.in.Close()
	if err := <-send.done; err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"none", "over"} {
		a := w.attach(exec.Session{Name: name, Write: true, Tail: wire.TailAll})
		a.out.until("begun\n")
		a.say(t, strings.Repeat("not heard\n", wire.StdinWindow/5))
		a.breakConn()
		a.say(t, strings.Repeat("not heard\n", wire.StdinWindow/5))
		_ = a.in.Close()
		if err := w.all.Signal(name, "TERM"); err != nil {
			t.Fatal(err)
		}
		if err := <-a.done; err != nil || a.exit.Signal != "TERM" || a.out.String() != "begun\n" {
			t.Errorf("%s: %v, %+v, %q", name, err, a.exit, a.out.String())
		}
	}
}

// TestEndOfTerminal: the end of input of a session with a terminal is typed, and does not end its input for good.
func TestEndOfTerminal(t *testing.T) {
	w := newWorld(t)
	w.start("tty", wire.SessionPTY, "sh", "-c", "stty -echo; echo up; cat; echo again; cat; read l; exit 3")
	a := w.attach(exec.Session{Name: "tty", Tail: wire.TailAll})
	a.out.until("up")
	for _, text := range []string{"one\n", "begun"} {
		s := w.attach(exec.Session{Name: "tty", Write: true, SendOnly: true})
		s.say(t, text)
		_ = s.in.Close()
		if err := <-s.done; err != nil {
			t.Fatal(err)
		}
		if text == "one\n" {
			a.out.until("again")
		}
	}
	a.out.until("begun")
	b := w.attach(exec.Session{Name: "tty", Write: true, KeepOpen: true})
	b.say(t, "bye\n")
	if err := <-b.done; err != nil || b.exit.Status != 3 {
		t.Errorf("%v, %+v", err, b.exit)
	}
}

// TestInputLeft: who only sends is told where the session ended before it had all of it.
func TestInputLeft(t *testing.T) {
	w := newWorld(t)
	w.start("s", wire.SessionPipe, "sh", "-c", "head -c 1; exit 3")
	_, err := exec.Run(t.Context(), exec.Options{Dial: dial(w.m), Session: &exec.Session{Name: "s", Write: true, SendOnly: true, KeepOpen: true},
		Stdin: io.LimitReader(zeros{}, 64<<20)})
	if !errors.Is(err, exec.ErrInputLeft) {
		t.Errorf("error %v", err)
	}
	w.start("all", wire.SessionPipe, "sh", "-c", "cat; exit 3")
	if _, err := exec.Run(t.Context(), exec.Options{Dial: dial(w.m), Session: &exec.Session{Name: "all", Write: true, SendOnly: true},
		Stdin: io.LimitReader(zeros{}, 4<<20)}); err != nil {
		t.Error(err)
	}
}

// zeros is a stdin that has no end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// TestRemoveAndStart: a session keeps what it prints where one of its name is being removed.
func TestRemoveAndStart(t *testing.T) {
	w := newWorld(t)
	for i := range 20 {
		w.start("s", wire.SessionNone, "echo", fmt.Sprint(i))
		w.ended("s")
		if got := w.log("s"); got != fmt.Sprintln(i) {
			t.Fatalf("log %d: %q", i, got)
		}
		go func() { _ = w.all.Remove("s") }()
		for list := w.all.List(); len(list.Sessions) > 0; {
			list = w.all.Wait(t.Context(), list.Seq)
		}
	}
}

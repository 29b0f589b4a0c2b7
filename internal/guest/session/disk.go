package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"git.thaloco.com/thaloco/banger/internal/guest/journal"
	"git.thaloco.com/thaloco/banger/internal/guest/wire"
)

// Files of a session beside its journal: what it was started with, and how it ended.
const (
	metaFile = "session.json"
	endFile  = "end.json"
)

// maxMeta bounds such a file in bytes.
const maxMeta = 256 << 10

// meta is what a session was started with.
type meta struct {
	Version   int       `json:"version"`
	ID        string    `json:"id"`
	Argv      []string  `json:"argv,omitempty"`
	Dir       string    `json:"dir,omitempty"`
	User      string    `json:"user,omitempty"`
	Stdin     string    `json:"stdin"`
	StartedAt time.Time `json:"started_at"`
}

// end is how a session ended.
type end struct {
	At time.Time `json:"at"`
	// Exit is nil where the guest ended first.
	Exit *wire.ExecExit `json:"exit,omitempty"`
	// Stdout, Stderr and Dropped are as in wire.SessionStatus.
	Stdout  uint64 `json:"stdout"`
	Stderr  uint64 `json:"stderr"`
	Dropped uint64 `json:"dropped"`
}

// load finds the sessions of earlier boots. One that was being made then is removed.
func (s *Sessions) load() error {
	dir, err := s.cfg.Dir.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		e, err := s.loadOne(name)
		if err == nil {
			s.all[name] = e
			continue
		}
		s.cfg.Log.Warn("a session of an earlier boot cannot be read", "session", name, "error", err)
		if !errors.Is(err, errNoSession) {
			continue // the next boot may read it
		}
		if err := s.cfg.Dir.RemoveAll(name); err != nil {
			s.cfg.Log.Warn("remove it", "session", name, "error", err)
		}
	}
	return nil
}

// errNoSession is what has no session, and never will.
var errNoSession = errors.New("no session")

func (s *Sessions) loadOne(name string) (*session, error) {
	if !wire.ValidSessionName(name) {
		return nil, fmt.Errorf("%w: that is not the name of one", errNoSession)
	}
	dir, err := s.cfg.Dir.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	e := newSession(s, wire.SessionStart{Name: name})
	if err := readJSON(dir, metaFile, &e.meta); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNoJSON) {
			err = fmt.Errorf("%w: %w", errNoSession, err)
		}
		return nil, err
	}
	var last end
	if err := readJSON(dir, endFile, &last); err != nil {
		last = s.cutOff(e, dir)
	}
	e.end = &last
	close(e.up)
	close(e.done)
	return e, nil
}

// cutOff ends a session that has no end. What cannot be written, as on a full disk, the next boot finds out again.
func (s *Sessions) cutOff(e *session, dir *os.Root) end {
	last := end{At: e.meta.StartedAt}
	if j, release, err := e.openJournal(); err != nil {
		s.cfg.Log.Warn("read the log of a session that was cut off", "session", e.name, "error", err)
	} else {
		out, dropped := j.End()
		last.Stdout, last.Stderr, last.Dropped = out[0], out[1], dropped
		release()
	}
	if st, err := dir.Stat(metaFile); err == nil {
		last.At = st.ModTime()
	}
	for slot := range journal.MaxSegments {
		if st, err := dir.Stat(journal.File(slot)); err == nil && st.ModTime().After(last.At) {
			last.At = st.ModTime()
		}
	}
	if err := writeJSON(dir, endFile, last); err != nil {
		s.cfg.Log.Warn("record the end of a session that was cut off", "session", e.name, "error", err)
	}
	return last
}

// readJSON reads a small file.
func readJSON(dir *os.Root, name string, v any) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxMeta))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("%w: read %s: %w", errNoJSON, name, err)
	}
	return nil
}

// errNoJSON is a file that is damaged.
var errNoJSON = errors.New("not JSON")

// writeJSON writes a file that is there as a whole or not at all, whatever happens.
func writeJSON(dir *os.Root, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := dir.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := dir.Rename(name+".new", name); err != nil {
		return err
	}
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

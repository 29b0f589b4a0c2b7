package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
)

// Session is the record of a session.
type Session struct {
	VM    string           `json:"-"` // its id
	Name  string           `json:"name"`
	State api.SessionState `json:"state"`
	// ID is what the agent knows it by, 32 hex digits.
	ID      string   `json:"id"`
	Command []string `json:"command,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	User    string   `json:"user,omitempty"`
	// Stdin is "none", "pipe" or "pty".
	Stdin     string     `json:"stdin"`
	PID       int        `json:"pid,omitempty"`
	CreatedAt time.Time  `json:"created_at"`
	EndedAt   *time.Time `json:"ended_at,omitempty"`
	// LogBytes and LogFiles bound its log: so many files of so many bytes each. They are 0 where that is not known.
	LogBytes int64 `json:"log_bytes,omitempty"`
	LogFiles int   `json:"log_files,omitempty"`
	// Status is nil where it is not known.
	Status *int   `json:"status,omitempty"`
	Signal string `json:"signal,omitempty"`
	Reason string `json:"reason,omitempty"`
	// Asked tells that somebody asked for its end.
	Asked        bool   `json:"asked,omitempty"`
	StdoutBytes  uint64 `json:"stdout_bytes,omitempty"`
	StderrBytes  uint64 `json:"stderr_bytes,omitempty"`
	DroppedBytes uint64 `json:"dropped_bytes,omitempty"`
}

const sessionColumns = "vm, name, state, created_at, record_version, record"

func scanSession(row scanner) (Session, error) {
	var s Session
	var vm, name, state, record string
	var created int64
	var version int
	if err := row.Scan(&vm, &name, &state, &created, &version, &record); err != nil {
		return Session{}, err
	}
	if err := decodeRecord(version, record, &s); err != nil {
		return Session{}, fmt.Errorf("read session %q: %w", name, err)
	}
	s.VM, s.Name, s.State, s.CreatedAt = vm, name, api.SessionState(state), time.Unix(0, created).UTC()
	return s, nil
}

// InsertSession adds a session. A name the VM has is a KindConflict, a VM that is not there a KindNotFound.
func (s *Store) InsertSession(ctx context.Context, v Session) error {
	record, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("add session %q: %w", v.Name, err)
	}
	return s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "INSERT INTO sessions ("+sessionColumns+") VALUES (?,?,?,?,?,?)",
			v.VM, v.Name, string(v.State), v.CreatedAt.UnixNano(), recordVersion, string(record))
		switch {
		case isUnique(err):
			return api.Errorf(api.KindConflict, "there is a session %q already", v.Name)
		case isForeignKey(err):
			return noVM(v.VM, nil)
		}
		return err
	})
}

// UpdateSession changes the record of a VM's session in one transaction, and returns it as it is then. Where change returns an error
// nothing is changed, and UpdateSession returns that error. The VM, the name and the time of creation are not its to change.
func (s *Store) UpdateSession(ctx context.Context, vm, name string, change func(*Session) error) (Session, error) {
	var v Session
	err := s.tx(ctx, func(tx *sql.Tx) error {
		var err error
		v, err = scanSession(tx.QueryRowContext(ctx, "SELECT "+sessionColumns+" FROM sessions WHERE vm = ? AND name = ?", vm, name))
		if errors.Is(err, sql.ErrNoRows) {
			return noSession(name, nil)
		}
		if err != nil {
			return err
		}
		if err := change(&v); err != nil {
			return err
		}
		record, err := json.Marshal(v)
		if err != nil {
			return fmt.Errorf("update session %q: %w", name, err)
		}
		_, err = tx.ExecContext(ctx, "UPDATE sessions SET state = ?, record_version = ?, record = ? WHERE vm = ? AND name = ?",
			string(v.State), recordVersion, string(record), vm, name)
		return err
	})
	return v, err
}

// Session returns a session of the VM with that id; KindNotFound, with near names in the hint, where there is none.
func (s *Store) Session(ctx context.Context, vm, name string) (Session, error) {
	v, err := scanSession(s.read.QueryRowContext(ctx, "SELECT "+sessionColumns+" FROM sessions WHERE vm = ? AND name = ?", vm, name))
	if !errors.Is(err, sql.ErrNoRows) {
		return v, s.explain(err)
	}
	names, err := collect(ctx, s.read, scanString, "SELECT name FROM sessions WHERE vm = ? ORDER BY name", vm)
	if err != nil {
		return v, s.explain(err)
	}
	return v, noSession(name, names)
}

func noSession(name string, names []string) error {
	err := api.Errorf(api.KindNotFound, "no session %q", name)
	if near := suggest.Near(name, names); len(near) > 0 {
		return err.WithHint("did you mean %s?", near[0])
	}
	return err
}

// Sessions returns the sessions of the VM with that id in order of creation.
func (s *Store) Sessions(ctx context.Context, vm string) ([]Session, error) {
	all, err := collect(ctx, s.read, scanSession, "SELECT "+sessionColumns+" FROM sessions WHERE vm = ? ORDER BY created_at, name", vm)
	return all, s.explain(err)
}

// DeleteSession removes the record of a session; nil where there is none.
func (s *Store) DeleteSession(ctx context.Context, vm, name string) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM sessions WHERE vm = ? AND name = ?", vm, name)
		return err
	})
}

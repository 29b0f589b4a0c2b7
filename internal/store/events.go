package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// keepEvents is how many events are kept.
const keepEvents = 10_000

// AddEvent adds an event and returns it with its Seq, which only ever grows, and its Time where it had none. Of all
// events the last 10,000 are kept.
func (s *Store) AddEvent(ctx context.Context, e api.Event) (api.Event, error) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	e.Time = time.Unix(0, e.Time.UnixNano()).UTC()
	err := s.tx(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, "INSERT INTO events (time, kind, vm, text) VALUES (?,?,?,?)", e.Time.UnixNano(), e.Kind, e.VM, e.Text)
		if err != nil {
			return fmt.Errorf("record event %q: %w", e.Kind, err)
		}
		if e.Seq, err = res.LastInsertId(); err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM events WHERE seq <= ?", e.Seq-keepEvents)
		return err
	})
	return e, err
}

// Events returns, in order, the first limit events whose Seq is greater than after; all of them where limit is 0.
func (s *Store) Events(ctx context.Context, after int64, limit int) ([]api.Event, error) {
	es, err := collect(ctx, s.read, scanEvent,
		"SELECT seq, time, kind, vm, text FROM events WHERE seq > ? ORDER BY seq LIMIT ?", after, sqlLimit(limit))
	return es, s.explain(err)
}

func scanEvent(row scanner) (api.Event, error) {
	var e api.Event
	var at int64
	if err := row.Scan(&e.Seq, &at, &e.Kind, &e.VM, &e.Text); err != nil {
		return e, err
	}
	e.Time = time.Unix(0, at).UTC()
	return e, nil
}

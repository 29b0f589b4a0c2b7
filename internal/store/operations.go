package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"git.thaloco.com/thaloco/banger/api"
)

// keepOperations is how many ended operations are kept.
const keepOperations = 200

func scanOperation(row scanner) (api.Operation, error) {
	var op api.Operation
	var version int
	var record string
	if err := row.Scan(&version, &record); err != nil {
		return op, err
	}
	if err := decodeRecord(version, record, &op); err != nil {
		return op, fmt.Errorf("read operation: %w", err)
	}
	return op, nil
}

// PutOperation adds or replaces an operation. Of those that have ended the last 200 made are kept.
func (s *Store) PutOperation(ctx context.Context, op api.Operation) error {
	return s.tx(ctx, func(tx *sql.Tx) error { return putOperation(ctx, tx, op) })
}

func putOperation(ctx context.Context, tx *sql.Tx, op api.Operation) error {
	record, err := json.Marshal(op)
	if err != nil {
		return fmt.Errorf("record operation %q: %w", op.ID, err)
	}
	var ended any
	if op.EndedAt != nil {
		ended = op.EndedAt.UnixNano()
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO operations (id, kind, target, state, created_at, ended_at, record_version, record)
		VALUES (?,?,?,?,?,?,?,?) ON CONFLICT (id) DO UPDATE SET state = excluded.state, ended_at = excluded.ended_at,
		record_version = excluded.record_version, record = excluded.record`,
		op.ID, op.Kind, op.Target, string(op.State), op.CreatedAt.UnixNano(), ended, recordVersion, string(record))
	if err != nil {
		return fmt.Errorf("record operation %q: %w", op.ID, err)
	}
	if !op.Ended() {
		return nil
	}
	_, err = tx.ExecContext(ctx, `DELETE FROM operations WHERE id IN (SELECT id FROM operations WHERE state <> ?
		ORDER BY created_at DESC, rowid DESC LIMIT -1 OFFSET ?)`, string(api.OperationRunning), keepOperations)
	return err
}

// Operation returns an operation as it was last put; KindNotFound where there is none.
func (s *Store) Operation(ctx context.Context, id string) (api.Operation, error) {
	op, err := scanOperation(s.read.QueryRowContext(ctx, "SELECT record_version, record FROM operations WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return op, api.Errorf(api.KindNotFound, "no operation %q", id).
			WithHint("the last %d are remembered", keepOperations)
	}
	return op, s.explain(err)
}

// Operations returns the limit newest operations, newest first; all where limit is 0.
func (s *Store) Operations(ctx context.Context, limit int) ([]api.Operation, error) {
	ops, err := collect(ctx, s.read, scanOperation,
		"SELECT record_version, record FROM operations ORDER BY created_at DESC, rowid DESC LIMIT ?", sqlLimit(limit))
	return ops, s.explain(err)
}

// sqlLimit is limit as SQLite has it: negative for none.
func sqlLimit(limit int) int {
	if limit <= 0 {
		return -1
	}
	return limit
}

// FailRunningOperations ends every operation recorded as running as failed with a message, and returns how many these were. A
// daemon calls it once, before it starts its own.
func (s *Store) FailRunningOperations(ctx context.Context, message string) (int, error) {
	n := 0
	err := s.tx(ctx, func(tx *sql.Tx) error {
		ops, err := collect(ctx, tx, scanOperation,
			"SELECT record_version, record FROM operations WHERE state = ? ORDER BY created_at", string(api.OperationRunning))
		if err != nil {
			return err
		}
		now := time.Now().UTC()
		for _, op := range ops {
			op.State, op.EndedAt = api.OperationFailed, &now
			op.Error = api.Errorf(api.KindUnavailable, "%s", message)
			if err := putOperation(ctx, tx, op); err != nil {
				return err
			}
		}
		n = len(ops)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

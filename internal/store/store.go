// Package store keeps what banger must remember in one SQLite database: VMs,
// images, kernels, operations and events. Unique names and "what is in use
// cannot be deleted" are constraints of its schema, not checks of its code.
//
// The files divide it by noun: vms.go, sessions.go, content.go (what images and kernels
// have in common) with images.go and kernels.go, operations.go, events.go;
// store.go opens, checks and migrates the database.
//
// Every write is one transaction. synchronous is FULL: what a call has
// returned survives a power failure as well, because a VM that is forgotten by one would
// take its data drive with it when the daemon clears what no record names. Errors that a user
// can act on are api.Errors; all others mean a broken host or a defect.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"

	"git.thaloco.com/thaloco/banger/api"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// applicationID marks a SQLite file as banger's ("bngr").
const applicationID = 0x626e6772

// recordVersion is the version of the JSON in record columns. Fields are only ever added; a change that is more than that
// comes with a migration that rewrites the records.
const recordVersion = 1

//go:embed migrations/*.sql
var migrationFiles embed.FS

// Store is an open database. Its methods may be called from several goroutines.
type Store struct {
	path string
	// write has one connection, so that writers queue here instead of failing as busy.
	write, read *sql.DB
	reserve     reserve
	// leasesVersion counts changes of the VMs' names and addresses.
	leasesVersion atomic.Uint64
}

// Open opens the database at path, makes it (0600, its directory 0700) where there is none, and migrates
// an older one. A damaged file, one that is not banger's and one of a newer banger are api.Errors that name it.
func Open(ctx context.Context, path string) (*Store, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	// SQLite would make the file with the umask's mode; its -wal and -shm files take the mode of this one.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("open database %q: %w", path, err)
	}
	s := &Store{path: path, reserve: reserve{path: path + "-reserve"}}
	if s.write, err = openPool(path, 1, "_txlock=immediate&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)"); err != nil {
		return nil, err
	}
	if s.read, err = openPool(path, 4, "_pragma=query_only(1)"); err != nil {
		return nil, errors.Join(err, s.write.Close())
	}
	if err := s.prepare(ctx); err != nil {
		return nil, errors.Join(s.explain(err), s.Close())
	}
	s.reserve.take()
	return s, nil
}

func openPool(path string, conns int, params string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open database %q: %w", path, err)
	}
	name := url.URL{Scheme: "file", Path: abs,
		RawQuery: "_pragma=busy_timeout(10000)&_pragma=foreign_keys(1)&" + params}
	db, err := sql.Open("sqlite", name.String())
	if err != nil {
		return nil, fmt.Errorf("open database %q: %w", path, err)
	}
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

// Close closes the database. Calls that are running end with an error.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// prepare checks that the file is a sound database of ours and migrates it.
func (s *Store) prepare(ctx context.Context) error {
	var app, version int
	if err := s.write.QueryRowContext(ctx, "PRAGMA application_id").Scan(&app); err != nil {
		return err
	}
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	var tables int
	if err := s.write.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_schema").Scan(&tables); err != nil {
		return err
	}
	if app != applicationID && (app != 0 || version != 0 || tables != 0) {
		return api.Errorf(api.KindInvalid, "open database %q: it is a database, but not banger's", s.path).
			WithHint("%s", s.startEmpty())
	}
	var check string
	if err := s.write.QueryRowContext(ctx, "PRAGMA quick_check(1)").Scan(&check); err != nil {
		return err
	}
	if check != "ok" {
		return s.damaged(errors.New(check))
	}
	ms, err := migrations()
	if err != nil {
		return err
	}
	if version > len(ms) {
		return api.Errorf(api.KindInvalid, "open database %q: its schema is version %d, this banger knows versions up to %d",
			s.path, version, len(ms)).WithHint("it was written by a newer banger: upgrade this one")
	}
	for n := version; n < len(ms); n++ {
		if err := s.migrate(ctx, n+1, ms[n]); err != nil {
			return err
		}
	}
	return nil
}

// migrate takes the schema from version to-1 to version to, or leaves it as it was.
func (s *Store) migrate(ctx context.Context, to int, script string) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, script); err != nil {
			return fmt.Errorf("migrate database %q to version %d: %w", s.path, to, err)
		}
		_, err := tx.ExecContext(ctx, fmt.Sprintf("PRAGMA user_version = %d; PRAGMA application_id = %d", to, applicationID))
		return err
	})
}

var migrationName = regexp.MustCompile(`^(\d{4})_[a-z0-9_]+\.sql$`)

// migrations returns the scripts; number n is at index n-1.
func migrations() ([]string, error) {
	entries, err := migrationFiles.ReadDir("migrations") // sorted
	if err != nil {
		return nil, err
	}
	var out []string
	for i, e := range entries {
		m := migrationName.FindStringSubmatch(e.Name())
		if m == nil {
			return nil, fmt.Errorf("migration %q: the name is not NNNN_what.sql", e.Name())
		}
		if n, err := strconv.Atoi(m[1]); err != nil || n != i+1 {
			return nil, fmt.Errorf("migration %q: expected number %04d", e.Name(), i+1)
		}
		b, err := migrationFiles.ReadFile("migrations/" + e.Name())
		if err != nil {
			return nil, err
		}
		out = append(out, string(b))
	}
	return out, nil
}

// tx runs do in a write transaction: committed where do returns nil, else as if it never was. On a full disk it
// gives up the reserve and runs do once more.
func (s *Store) tx(ctx context.Context, do func(*sql.Tx) error) error {
	err := s.once(ctx, do)
	if isFull(err) && s.reserve.release() {
		return s.explain(s.once(ctx, do))
	}
	if err == nil {
		s.reserve.take()
	}
	return s.explain(err)
}

func (s *Store) once(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // no effect after Commit
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// queryer is what sql.DB and sql.Tx have in common.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// collect runs a query and scans every row of it.
func collect[T any](ctx context.Context, q queryer, scan func(row scanner) (T, error), query string, args ...any) ([]T, error) {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []T{}
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, rows.Err()
}

// scanner is a row.
type scanner interface{ Scan(dest ...any) error }

// scanString scans a row of one text column.
func scanString(row scanner) (string, error) {
	var s string
	err := row.Scan(&s)
	return s, err
}

// code returns the extended result code of SQLite in err's chain, 0 where there is none.
func code(err error) int {
	if e, ok := errors.AsType[*sqlite.Error](err); ok {
		return e.Code()
	}
	return 0
}

// isUnique tells whether err is a violated UNIQUE or PRIMARY KEY constraint.
func isUnique(err error) bool {
	c := code(err)
	return c == sqlite3.SQLITE_CONSTRAINT_UNIQUE || c == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY
}

// isForeignKey tells whether err is a violated FOREIGN KEY constraint.
func isForeignKey(err error) bool { return code(err) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY }

// explain makes api.Errors of the failures of a host, and names the database in them.
func (s *Store) explain(err error) error {
	if err == nil {
		return nil
	}
	switch code(err) & 0xff {
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		return s.damaged(err)
	case sqlite3.SQLITE_FULL:
		return api.Errorf(api.KindUnavailable, "write database %q: the disk is full: %w", s.path, err).
			WithHint("make room on the file system of %s", filepath.Dir(s.path))
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR:
		return api.Errorf(api.KindUnavailable, "use database %q: %w", s.path, err)
	}
	return err
}

func (s *Store) damaged(cause error) error {
	return api.Errorf(api.KindUnavailable, "open database %q: the file is damaged: %w", s.path, cause).
		WithHint("restore it from a backup, or %s", s.startEmpty())
}

// startEmpty says how to go on without the database. VMs that run then end, and what had data is set aside (vm.Recover).
func (s *Store) startEmpty() string {
	return fmt.Sprintf("to start with an empty one move it (and its -wal and -shm files) away; "+
		"the VMs it knew then end, and their disks are kept in %s", filepath.Join(filepath.Dir(s.path), "lost"))
}

package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"git.thaloco.com/thaloco/banger/api"
	"git.thaloco.com/thaloco/banger/internal/suggest"
)

// content is what images and kernels have in common: a row per digest (immutable content on disk), names
// that point to digests and move, and VMs that are pinned to digests.
type content[T any] struct {
	noun         string // in messages and commands: "image"
	table, names string
	vmColumn     string // of vms
	fields       func(*T) fields
}

// fields are the parts of a T that content knows.
type fields struct {
	name, digest *string
	created      **time.Time
	vms          *[]string
	local, deflt *bool
}

// put adds or replaces the content of v's digest and lets v's name point to it.
func (c content[T]) put(ctx context.Context, s *Store, v T) error {
	f := c.fields(&v)
	name, digest := *f.name, *f.digest
	if name == "" || digest == "" {
		return fmt.Errorf("record %s %q: it needs a name and a digest", c.noun, name)
	}
	created := time.Now()
	if *f.created != nil {
		created = **f.created
	}
	*f.name, *f.digest, *f.vms, *f.created, *f.local, *f.deflt = "", "", nil, nil, false, false // not the content's own
	record, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("record %s %q: %w", c.noun, name, err)
	}
	return s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO `+c.table+` (digest, created_at, record_version, record) VALUES (?,?,?,?)
			ON CONFLICT (digest) DO UPDATE SET record_version = excluded.record_version, record = excluded.record`,
			digest, created.UnixNano(), recordVersion, string(record))
		if err != nil {
			return fmt.Errorf("record %s %q: %w", c.noun, name, err)
		}
		_, err = tx.ExecContext(ctx, `INSERT INTO `+c.names+` (name, digest) VALUES (?,?)
			ON CONFLICT (name) DO UPDATE SET digest = excluded.digest`, name, digest)
		if err != nil {
			return fmt.Errorf("record %s %q: %w", c.noun, name, err)
		}
		return nil
	})
}

// scan reads a row of name, digest, created_at, record_version, record, and the JSON array of the names of its VMs.
func (c content[T]) scan(row scanner) (T, error) {
	var v T
	var name, digest, record, vms string
	var created int64
	var version int
	if err := row.Scan(&name, &digest, &created, &version, &record, &vms); err != nil {
		return v, err
	}
	if err := decodeRecord(version, record, &v); err != nil {
		return v, fmt.Errorf("read %s %q: %w", c.noun, name, err)
	}
	f := c.fields(&v)
	if err := json.Unmarshal([]byte(vms), f.vms); err != nil {
		return v, fmt.Errorf("read %s %q: %w", c.noun, name, err)
	}
	if slices.Sort(*f.vms); len(*f.vms) == 0 {
		*f.vms = nil
	}
	at := time.Unix(0, created).UTC()
	*f.name, *f.digest, *f.created, *f.local = name, digest, &at, true
	return v, nil
}

func (c content[T]) query(name string) string {
	return `SELECT ` + name + `, c.digest, c.created_at, c.record_version, c.record,
		(SELECT json_group_array(v.name) FROM (SELECT name FROM vms WHERE ` + c.vmColumn + ` = c.digest) v)
		FROM ` + c.table + ` c `
}

// all returns every name's content, sorted by name.
func (c content[T]) all(ctx context.Context, s *Store) ([]T, error) {
	vs, err := collect(ctx, s.read, c.scan,
		c.query("n.name")+`JOIN `+c.names+` n ON n.digest = c.digest ORDER BY n.name`)
	return vs, s.explain(err)
}

// byName returns the content name points to; KindNotFound, with near names in the hint, where there is none.
func (c content[T]) byName(ctx context.Context, s *Store, name string) (T, error) {
	v, err := c.scan(s.read.QueryRowContext(ctx,
		c.query("n.name")+`JOIN `+c.names+` n ON n.digest = c.digest WHERE n.name = ?`, name))
	if !errors.Is(err, sql.ErrNoRows) {
		return v, s.explain(err)
	}
	return v, c.missing(ctx, s.read, name)
}

// byDigest returns the content of a digest, with the first of its names or none; KindNotFound where there is none.
func (c content[T]) byDigest(ctx context.Context, s *Store, digest string) (T, error) {
	v, err := c.scan(s.read.QueryRowContext(ctx,
		c.query(`coalesce((SELECT min(name) FROM `+c.names+` WHERE digest = c.digest), '')`)+`WHERE c.digest = ?`, digest))
	if errors.Is(err, sql.ErrNoRows) {
		return v, api.Errorf(api.KindNotFound, "no %s with digest %s", c.noun, digest)
	}
	return v, s.explain(err)
}

func (c content[T]) missing(ctx context.Context, q queryer, name string) error {
	names, err := collect(ctx, q, scanString, "SELECT name FROM "+c.names+" ORDER BY name")
	if err != nil {
		return err
	}
	out := api.Errorf(api.KindNotFound, "no %s %q", c.noun, name)
	if near := suggest.Near(name, names); len(near) > 0 {
		return out.WithHint("did you mean %s? banger %s list shows all", strings.Join(near, " or "), c.noun)
	}
	return out.WithHint("banger %s list shows what there is", c.noun)
}

// remove takes a name away. The last name of a digest that VMs are pinned to cannot go: KindConflict, naming the VMs.
func (c content[T]) remove(ctx context.Context, s *Store, name string) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		var digest string
		err := tx.QueryRowContext(ctx, "SELECT digest FROM "+c.names+" WHERE name = ?", name).Scan(&digest)
		if errors.Is(err, sql.ErrNoRows) {
			return c.missing(ctx, tx, name)
		}
		if err != nil {
			return err
		}
		var others int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM "+c.names+" WHERE digest = ? AND name <> ?", digest, name).Scan(&others); err != nil {
			return err
		}
		vms, err := vmNames(ctx, tx, c.vmColumn+" = ?", digest)
		if err != nil {
			return err
		}
		if len(vms) > 0 && others == 0 {
			return api.Errorf(api.KindConflict, "delete %s %q: in use by %s", c.noun, name, vmList(vms)).
				WithHint("remove what uses it first: banger vm delete --force %s", strings.Join(vms, " "))
		}
		_, err = tx.ExecContext(ctx, "DELETE FROM "+c.names+" WHERE name = ?", name)
		return err
	})
}

// vmList is `vm "a"` or `vms "a", "b"`.
func vmList(names []string) string {
	word := "vm"
	if len(names) > 1 {
		word = "vms"
	}
	return fmt.Sprintf(`%s "%s"`, word, strings.Join(names, `", "`))
}

// unused returns the digests that no name points to and no VM is pinned to.
func (c content[T]) unused(ctx context.Context, s *Store) ([]string, error) {
	digests, err := collect(ctx, s.read, scanString, `SELECT digest FROM `+c.table+` c
		WHERE NOT EXISTS (SELECT 1 FROM `+c.names+` WHERE digest = c.digest)
		AND NOT EXISTS (SELECT 1 FROM vms WHERE `+c.vmColumn+` = c.digest) ORDER BY digest`)
	return digests, s.explain(err)
}

// forget removes the row of a digest; nil where there is none, KindConflict where a name or a VM holds it.
func (c content[T]) forget(ctx context.Context, s *Store, digest string) error {
	return s.tx(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, "DELETE FROM "+c.table+" WHERE digest = ?", digest)
		if isForeignKey(err) {
			return api.Errorf(api.KindConflict, "delete %s %s: it is in use", c.noun, digest)
		}
		return err
	})
}

package store

import (
	"cmp"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"
)

//go:embed schema/*.sql
var schema embed.FS

// ErrNewer says that the database was written by a newer program, with which
// this one doesn't agree.
var ErrNewer = errors.New("the database is of a newer version")

// migrations are the texts by which a schema grows, schema/NNN.sql each, and the
// number of the last.
//
// Brokers of two releases share a database while they are replaced one by one.
// So a text begins with "-- oldest: N": programs that know the schema up to N may
// go on, and start. What only adds keeps the number of the text before it: tables,
// and columns that are nullable or have a default. Without that line it is the
// text's own number, and older programs are refused. A released text never changes.
type migrations struct {
	files  fs.FS
	newest int
}

// ours are this program's.
func ours() *migrations { return &migrations{schema, schemaVersion} }

// How long a migration waits for other brokers' work, which waits behind it
// meanwhile, and how often it gives way before it gives up.
const (
	pgLockTimeout = "500ms"
	giveWay       = 250 * time.Millisecond
	givesWay      = 240
)

// migrate brings the schema to what this program knows, one numbered text at a
// time, each in one transaction: whoever is interrupted, another goes on.
func (s *Store) migrate(ctx context.Context, m migrations) error {
	if version, oldest, err := standing(ctx, s.write.now.Load()); err == nil && version >= m.newest {
		return m.check(version, oldest) // and nothing is locked
	}
	for tries := 0; ; tries++ {
		more, err := true, error(nil)
		for more && err == nil {
			more, err = s.step(ctx, m)
		}
		if err == nil || !s.busy(err) {
			return err
		}
		if tries == givesWay {
			return fmt.Errorf("%w: somebody holds what the new schema changes; see pg_stat_activity for a transaction that doesn't end", err)
		}
		select {
		case <-time.After(giveWay):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// step takes the schema on by one text, and says whether there are more.
func (s *Store) step(ctx context.Context, m migrations) (more bool, err error) {
	err = s.inTx(ctx, func(tx *sql.Tx) error {
		version, oldest, err := lockHead(ctx, tx)
		if err != nil {
			return err
		}
		if more = version < m.newest; !more {
			return m.check(version, oldest)
		}
		if _, err := tx.ExecContext(ctx, s.hurry); err != nil {
			return err
		}
		return m.apply(ctx, tx, version+1, oldest, s.now())
	})
	return more, err
}

// lockHead locks the one row of head, made where it is absent, so that one broker
// alone does what follows. See standing.
func lockHead(ctx context.Context, tx *sql.Tx) (version, oldest int, err error) {
	for _, text := range []string{
		`CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), schema_version BIGINT NOT NULL, revision BIGINT NOT NULL)`,
		`CREATE TABLE IF NOT EXISTS migration (version BIGINT PRIMARY KEY, oldest BIGINT NOT NULL, applied_at BIGINT NOT NULL)`,
		`INSERT INTO head (one, schema_version, revision) VALUES (1, 0, 0) ON CONFLICT (one) DO NOTHING`,
		`UPDATE head SET revision = revision`,
	} {
		if _, err := tx.ExecContext(ctx, text); err != nil {
			return 0, 0, err
		}
	}
	return standing(ctx, tx)
}

// standing is the schema's version, and that of the oldest program which agrees
// with it.
func standing(ctx context.Context, from interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
}) (version, oldest int, err error) {
	var known sql.NullInt64 // not by programs that kept no such table
	err = from.QueryRowContext(ctx, `SELECT h.schema_version, m.oldest FROM head h LEFT JOIN migration m ON m.version = h.schema_version`).Scan(&version, &known)
	if oldest = version; known.Valid {
		oldest = int(known.Int64)
	}
	return version, oldest, err
}

func (m migrations) check(version, oldest int) error {
	if oldest <= m.newest {
		return nil
	}
	return fmt.Errorf("%w: its schema is %d, for programs that know %d, this program knows up to %d; run the newer program, or restore a backup from before it", ErrNewer, version, oldest, m.newest)
}

// apply brings the schema to a version from the one before.
func (m migrations) apply(ctx context.Context, tx *sql.Tx, version, oldest int, now time.Time) error {
	text, err := fs.ReadFile(m.files, fmt.Sprintf("schema/%03d.sql", version))
	if err != nil {
		return err
	}
	declared, err := oldestOf(string(text), version)
	if err == nil {
		_, err = tx.ExecContext(ctx, string(text))
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, `INSERT INTO migration (version, oldest, applied_at) VALUES ($1, $2, $3)`, version, max(oldest, declared), millis(now))
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, `UPDATE head SET schema_version = $1`, version)
	}
	if err != nil {
		return fmt.Errorf("schema %d: %w", version, err)
	}
	return nil
}

// raise brings the schema from a version to another in one transaction.
func (m migrations) raise(ctx context.Context, tx *sql.Tx, from, to int, now time.Time) error {
	for v := from + 1; v <= to; v++ {
		_, oldest, err := standing(ctx, tx)
		if err == nil {
			err = m.apply(ctx, tx, v, oldest, now)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// oldestOf is what a text says of older programs.
func oldestOf(text string, version int) (int, error) {
	line, _, _ := strings.Cut(text, "\n")
	said, found := strings.CutPrefix(line, "-- oldest:")
	if !found {
		return version, nil
	}
	oldest, err := strconv.Atoi(strings.TrimSpace(said))
	if err != nil || oldest < 1 || oldest > version {
		return 0, cmp.Or(err, fmt.Errorf("oldest: %d is none of 1 to %d", oldest, version))
	}
	return oldest, nil
}

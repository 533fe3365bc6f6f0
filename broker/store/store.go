// Package store keeps what must survive: resources with their revisions,
// nodes and bans, join tokens, the records of authorities, peers' bundles,
// revocations, and the issuance index, which can be made anew from the audit
// records.
//
// It trusts its database and the directory that it lies in. Private keys are
// kept elsewhere (broker/keys), the record of what was done too
// (broker/audit). What a resource means is left to broker/resource: here it is
// a kind, a name and a text.
//
// One revision row, locked and incremented first thing in every writing
// transaction, orders all changes: whoever has seen revision n has seen every
// change up to n. The SQL is one text that PostgreSQL takes too.
package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"modernc.org/sqlite" // the embedded engine
	sqlite3 "modernc.org/sqlite/lib"
)

// schemaVersion is what this program writes and reads.
const schemaVersion = 9

//go:embed schema/*.sql
var schema embed.FS

// ErrNewer says that the database was written by a newer program.
var ErrNewer = errors.New("the database is of a newer version")

// ErrLocked says that another broker has the directory.
var ErrLocked = errors.New("the directory is in use by another broker")

// Config says where the database is.
type Config struct {
	Dir string           // data directory, required; made with mode 0700 where it is absent
	Now func() time.Time // nil means time.Now
}

// A Store is an open database. Its methods may be called concurrently; each
// writing one is a single transaction, durable when it returns.
type Store struct {
	write *sql.DB // one connection: SQLite has one writer
	read  *sql.DB
	lock  *os.File
	now   func() time.Time
	keep  kept
}

// Open opens the database in a directory, making it where it is absent. It
// refuses a directory that others may write or own, one that another broker has
// (ErrLocked), and a database of a newer version (ErrNewer), and changes
// nothing then. What others may read of the directory is its owner's choice:
// its files have mode 0600 whatever they had before.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Dir == "" {
		return nil, errors.New("opening the store: no directory is named")
	}
	if err := makeDir(cfg.Dir); err != nil {
		return nil, fmt.Errorf("opening the store in %s: %w", cfg.Dir, err)
	}
	lock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening the store in %s: %w", cfg.Dir, err)
	}
	s := &Store{lock: lock, now: cfg.Now, keep: keepPolicy()}
	if err := s.open(ctx, filepath.Join(cfg.Dir, "credence.db")); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store in %s: %w", cfg.Dir, err), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context, path string) (err error) {
	if err := makeFiles(path); err != nil {
		return err
	}
	// fullfsync: without it darwin's disks keep in their caches what they said
	// they wrote.
	const pragmas = "?_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" +
		"&_pragma=fullfsync(1)&_pragma=checkpoint_fullfsync(1)&_pragma=foreign_keys(1)"
	name := "file:" + escape.Replace(path) + pragmas
	if s.write, err = sql.Open("sqlite", name+"&_txlock=immediate"); err != nil {
		return err
	}
	s.write.SetMaxOpenConns(1)
	if s.read, err = sql.Open("sqlite", name+"&_pragma=query_only(1)"); err != nil {
		return err
	}
	s.read.SetMaxOpenConns(4)
	return s.migrate(ctx)
}

// escape keeps a path whole in a URI.
var escape = strings.NewReplacer("%", "%25", "?", "%3f", "#", "%23")

// makeFiles makes the database before the engine does, so that it is never
// readable by others, not for a moment; the engine gives the files beside it
// the same mode. A backup that was copied back may have any.
func makeFiles(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Chmod(0o600), f.Close()); err != nil {
		return err
	}
	for _, beside := range []string{"-wal", "-shm"} {
		if err := os.Chmod(path+beside, 0o600); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDir(filepath.Dir(path)) // else a power cut could take the file, commits and all
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// migrate brings the schema to schemaVersion, one numbered text at a time, all
// in one transaction.
func (s *Store) migrate(ctx context.Context) error {
	const head = `CREATE TABLE IF NOT EXISTS head (one INTEGER PRIMARY KEY CHECK (one = 1), schema_version BIGINT NOT NULL, revision BIGINT NOT NULL)`
	return s.inTx(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, head); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO head (one, schema_version, revision) VALUES (1, 0, 0) ON CONFLICT (one) DO NOTHING`); err != nil {
			return err
		}
		var version int
		if err := tx.QueryRowContext(ctx, `SELECT schema_version FROM head`).Scan(&version); err != nil {
			return err
		}
		if version > schemaVersion {
			return fmt.Errorf("%w: its schema is %d, this program knows up to %d; run the newer program, or restore a backup from before it", ErrNewer, version, schemaVersion)
		}
		if version == schemaVersion {
			return nil
		}
		for v := version + 1; v <= schemaVersion; v++ {
			text, err := schema.ReadFile(fmt.Sprintf("schema/%03d.sql", v))
			if err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, string(text)); err != nil {
				return fmt.Errorf("schema %d: %w", v, err)
			}
		}
		_, err := tx.ExecContext(ctx, `UPDATE head SET schema_version = $1`, schemaVersion)
		return err
	})
}

// Close lets the database and its directory go.
func (s *Store) Close() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Revision returns the revision of the last change.
func (s *Store) Revision(ctx context.Context) (uint64, error) {
	var r int64
	if err := s.read.QueryRowContext(ctx, `SELECT revision FROM head`).Scan(&r); err != nil {
		return 0, fmt.Errorf("reading the revision: %w", err)
	}
	return uint64(r), nil
}

// inTx runs do in one transaction and commits if it returns nil.
func (s *Store) inTx(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return wayOut(err)
	}
	defer tx.Rollback() // after Commit it does nothing
	if err := do(tx); err != nil {
		return wayOut(err)
	}
	return wayOut(tx.Commit())
}

// wayOut says what an operator can do about the engine's error.
func wayOut(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff { // the rest tells kinds of a kind
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR:
		return fmt.Errorf("%w: nothing was written; is there room on the disk, and is it sound?", err)
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: the file is damaged or no database of ours; restore a backup", err)
	}
	return err
}

// revise runs do in one transaction under a new revision: the row lock, taken
// first thing, makes revisions commit in order.
func (s *Store) revise(ctx context.Context, do func(tx *sql.Tx, revision int64) error) error {
	return s.inTx(ctx, func(tx *sql.Tx) error {
		revision, err := next(ctx, tx)
		if err != nil {
			return err
		}
		return do(tx, revision)
	})
}

func next(ctx context.Context, tx *sql.Tx) (revision int64, err error) {
	err = tx.QueryRowContext(ctx, `UPDATE head SET revision = revision + 1 RETURNING revision`).Scan(&revision)
	return revision, err
}

// millis is a time as the database holds it; 0 is the zero time.
func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

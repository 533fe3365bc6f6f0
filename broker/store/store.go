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
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// schemaVersion is what this program writes and reads.
const schemaVersion = 12

// ErrLocked says that another broker has the directory.
var ErrLocked = errors.New("the directory is in use by another broker")

// Config says where the database is.
type Config struct {
	// Dir is the broker's own data directory, made with mode 0700 where it is
	// absent, with SQLite's file unless URL is given. Required without URL.
	Dir string
	// URL is a PostgreSQL database that brokers share: postgres://... or a libpq
	// connection string. See CheckURL.
	URL string
	// Snapshot stands in for a database at a URL that is away when it is opened. Nil:
	// then it is not opened.
	Snapshot *Snapshot
	Now      func() time.Time // nil means time.Now
	// Clock is what brokers agree by whose own clocks differ. Nil: the clock of the
	// server at URL; without URL, Now.
	Clock func() time.Time

	memory   bool                 // in place of Dir and URL
	patience time.Duration        // with a server; 0: LookTime
	schema   *migrations          // nil: this program's
	trace    func(string, ...any) // is told each statement to PostgreSQL; nil: nobody is
}

// A Store is an open database. Its methods may be called concurrently; each
// writing one is a single transaction, durable when it returns.
type Store struct {
	asked atomic.Uint64 // of the pools
	write *pool
	read  *pool
	lock  io.Closer // nil: others may write too
	now   func() time.Time
	clock func() time.Time // nil: the server's
	// clockText is how that is told in SQL.
	clockText string
	keep      kept
	// atOnce is for reads that belong together; nil where all do.
	atOnce *sql.TxOptions
	// wayOut says what an operator can do about the engine's error, and acts on
	// those after which connections are no good.
	wayOut func(error) error
	// again says of an error whether the same transaction may succeed.
	again func(error) bool
	// unhurried lets the statements of a transaction take their time; empty where
	// all may.
	unhurried string
	// busy says of an error whether others hold what a migration must lock, for
	// which it waits no longer than hurry has the engine wait.
	busy  func(error) bool
	hurry string

	primary  *primary // nil: the database is in this process, and never away
	lookTime time.Duration
	live     *pool      // to read, for when a snapshot need not stand in any more; nil: none does
	going    sync.Mutex // held while that is so decided
	seen     atomic.Uint64
	bell     *pgx.ConnConfig // by which changes are told; nil: nobody else is there
	silent   atomic.Bool     // the engine has no such thing
}

// Open opens the database in a directory, making it where it is absent, or at a
// URL. It refuses a database of a newer version (ErrNewer) that doesn't let this
// program go on, and changes nothing then.
//
// It refuses a directory that others may write or own, and one that another
// broker has (ErrLocked). What others may read of the directory is its owner's
// choice: its files have mode 0600 whatever they had before.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s, where, err := connect(ctx, cfg)
	if err == nil {
		err = s.migrate(ctx, *cmp.Or(cfg.schema, ours()))
	}
	if errors.Is(err, ErrAway) && cfg.Snapshot != nil {
		err = s.standIn(ctx, *cfg.Snapshot, err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the store %s: %w", where, err), s.Close())
	}
	return s, nil
}

// Check says whether the database can be reached and has our time, and changes
// nothing. One of a newer program is found when it is opened.
func Check(ctx context.Context, url string, now func() time.Time) error {
	s, _, err := connect(ctx, Config{URL: url, Now: now})
	if err == nil {
		err = s.checkTime(ctx)
	}
	return errors.Join(err, s.Close())
}

// connect opens the database as it is. The Store is to be closed on an error too.
func connect(ctx context.Context, cfg Config) (s *Store, where string, err error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Clock == nil && cfg.URL == "" {
		cfg.Clock = cfg.Now
	}
	s = &Store{now: cfg.Now, clock: cfg.Clock, clockText: sqliteClock, keep: keepPolicy()}
	open, where := s.openSQLite, "in "+cfg.Dir
	switch {
	case cfg.memory:
		return s, "in memory", s.openMemory(ctx)
	case cfg.Dir == "" && cfg.URL == "":
		return s, "", errors.New("no directory is named")
	case cfg.URL != "":
		open, where = s.openPostgres, "at its URL" // which may hold a password
	}
	if err := s.takeDir(cfg.Dir); err != nil {
		return s, where, err
	}
	return s, where, open(ctx, cfg)
}

// takeDir makes the directory, if one is named, and keeps other brokers out of it.
func (s *Store) takeDir(dir string) error {
	if dir == "" {
		return nil
	}
	if err := makeDir(dir); err != nil {
		return err
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	s.lock = lock
	return nil
}

// Close lets the database and its directory go.
func (s *Store) Close() error {
	var errs []error
	for _, p := range []*pool{s.read, s.write, s.live} {
		errs = append(errs, p.close())
	}
	if s.lock != nil {
		errs = append(errs, s.lock.Close())
	}
	return errors.Join(errs...)
}

// Revision returns the revision of the last change. It is a look (LookTime): by it
// the database is found to be away, and to be back.
func (s *Store) Revision(ctx context.Context) (uint64, error) {
	var r int64
	err := s.look(ctx, func(ctx context.Context) error {
		// Of the database, also where a snapshot stands in for it.
		from := s.read
		if s.primary != nil {
			from = s.write
		}
		return from.QueryRowContext(ctx, `SELECT revision FROM head`).Scan(&r)
	})
	if err != nil {
		return 0, fmt.Errorf("reading the revision: %w", err)
	}
	s.saw(uint64(r))
	return uint64(r), nil
}

// inTx runs do in one transaction and commits if it returns nil. Where several
// brokers write and the engine could not do it beside what others did, do runs
// again.
func (s *Store) inTx(ctx context.Context, do func(*sql.Tx) error) error {
	const tries = 5
	for try := 1; ; try++ {
		err := s.tryTx(ctx, do)
		if err == nil {
			return nil
		}
		if try == tries || !s.again(err) {
			return s.wayOut(err)
		}
	}
}

func (s *Store) tryTx(ctx context.Context, do func(*sql.Tx) error) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback() // after Commit it does nothing
	if err := do(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		if s.primary != nil && pgCode(err) == "" {
			err = fmt.Errorf("whether it was written is not known, so look before you try again: %w", err)
		}
		return err
	}
	return nil
}

// revise runs do in one transaction under a new revision: the row lock, taken
// first thing, makes revisions commit in order.
func (s *Store) revise(ctx context.Context, do func(tx *sql.Tx, revision int64) error) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		revision, err := next(ctx, tx)
		if err != nil {
			return err
		}
		return do(tx, revision)
	})
	if err == nil {
		s.ring(ctx)
	}
	return err
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

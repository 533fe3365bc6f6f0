package store

import (
	"cmp"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// What a connection to PostgreSQL may take.
const (
	pgStatement  = "30s" // a statement, and a transaction that nobody goes on with
	pgConnMax    = 10
	pgConnIdle   = 4
	pgConnMaxAge = time.Hour
	pgPingAfter  = 10 * time.Second // idle
	pgKeepAlive  = 15 * time.Second
)

// CheckURL says why a PostgreSQL database may not be used. What it tells us
// decides who gets which identity: a server on another machine must prove who it
// is (sslmode=verify-full).
func CheckURL(url string) error {
	_, err := parseURL(url)
	return err
}

func parseURL(url string) (*pgx.ConnConfig, error) {
	c, err := pgx.ParseConfig(url)
	if err != nil { // which may repeat a password
		return nil, errors.New("this is no PostgreSQL database: want postgres://USER@HOST/DATABASE?sslmode=verify-full, and files that are there")
	}
	for _, s := range append([]*pgconn.FallbackConfig{{Host: c.Host, TLSConfig: c.TLSConfig}}, c.Fallbacks...) {
		if !here(s.Host) && (s.TLSConfig == nil || s.TLSConfig.InsecureSkipVerify || s.TLSConfig.ServerName == "") {
			return nil, fmt.Errorf("the database server %s must prove who it is: say sslmode=verify-full, and sslrootcert=FILE where its CA is your own", s.Host)
		}
	}
	c.DefaultQueryExecMode = pgx.QueryExecModeExec // nothing is kept in the server: poolers, fail-over and schema changes do no harm
	for name, value := range map[string]string{
		"application_name": "credence", "statement_timeout": pgStatement, "idle_in_transaction_session_timeout": pgStatement,
		"default_transaction_isolation": "read committed",
	} {
		if c.RuntimeParams[name] == "" {
			c.RuntimeParams[name] = value
		}
	}
	return c, nil
}

// here says whether a server is on this machine: at a socket in a directory, or
// on loopback.
func here(host string) bool {
	if strings.HasPrefix(host, "/") || host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func (s *Store) openPostgres(ctx context.Context, cfg Config) error {
	c, err := parseURL(cfg.URL)
	if err != nil {
		return err
	}
	var generation atomic.Int64 // of connections: those of an older one are no good
	s.again, s.clockText = pgAgain, pgClock
	s.busy = func(err error) bool { return pgCode(err) == "55P03" } // lock_not_available
	s.hurry = "SET LOCAL lock_timeout = '" + pgLockTimeout + "'"
	if cfg.trace != nil {
		c.Tracer = tracer(cfg.trace)
	}
	s.wayOut = func(err error) error {
		if pgDemoted(err) {
			generation.Add(1)
		}
		if !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded) {
			err = s.primary.judge(context.Background(), err)
		}
		return pgWayOut(err)
	}
	s.primary = newPrimary(s.now)
	c.ConnectTimeout = cmp.Or(cfg.patience, LookTime)
	s.lookTime = c.ConnectTimeout * time.Duration(1+len(c.Fallbacks)) // each may take that long to connect to
	c.DialFunc = s.primary.dial
	s.unhurried = "SET LOCAL statement_timeout = 0"
	s.atOnce = &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}
	// Whoever became the primary meanwhile is found, among those of the URL; to read
	// too: others may not know yet of a Deny or an eviction.
	c.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	s.bell = c.Copy()
	s.read = s.pool(openPool(c.Copy(), &generation))
	s.write = s.pool(openPool(c, &generation))
	return pgWayOut(s.look(ctx, s.write.ping))
}

func openPool(c *pgx.ConnConfig, generation *atomic.Int64) *sql.DB {
	const born = "credence.generation"
	pool := stdlib.OpenDB(*c,
		stdlib.OptionAfterConnect(func(_ context.Context, conn *pgx.Conn) error {
			conn.PgConn().CustomData()[born] = generation.Load()
			return nil
		}),
		stdlib.OptionResetSession(func(_ context.Context, conn *pgx.Conn) error {
			if conn.PgConn().CustomData()[born] != generation.Load() {
				return driver.ErrBadConn
			}
			return nil
		}),
		// The look that comes each second would be two questions.
		stdlib.OptionShouldPing(func(_ context.Context, p stdlib.ShouldPingParams) bool { return p.IdleDuration > pgPingAfter }))
	pool.SetMaxOpenConns(pgConnMax)
	pool.SetMaxIdleConns(pgConnIdle)
	pool.SetConnMaxLifetime(pgConnMaxAge)
	return pool
}

// A tracer is told statements.
type tracer func(string, ...any)

func (f tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, q pgx.TraceQueryStartData) context.Context {
	f(q.SQL, q.Args...)
	return ctx
}

func (f tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func pgCode(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// pgDemoted says whether the server is the primary no more, or stops: other
// connections to it are as bad.
func pgDemoted(err error) bool {
	switch pgCode(err) {
	case "25006", // read_only_sql_transaction
		"57P01", "57P02", "57P03": // admin_shutdown, crash_shutdown, cannot_connect_now
		return true
	}
	return false
}

// pgAgain says whether a transaction failed for what others did beside it.
func pgAgain(err error) bool {
	switch pgCode(err) {
	case "40001", "40P01", // serialization_failure, deadlock_detected
		"23505", "42P07": // two make the first table at one time
		return true
	}
	return false
}

// pgWayOut says what an operator can do.
func pgWayOut(err error) error {
	switch code := pgCode(err); {
	case code == "":
		return err
	case pgDemoted(err):
		return fmt.Errorf("%w: this server takes no writes now; try again, and the primary that the URL names by then is asked", err)
	case strings.HasPrefix(code, "28"):
		return fmt.Errorf("%w: the database does not let this user in", err)
	case code == "42501":
		return fmt.Errorf("%w: the user needs the right to make and change tables in its schema", err)
	case strings.HasPrefix(code, "53"):
		return fmt.Errorf("%w: the database server is out of room or of connections", err)
	}
	return err
}

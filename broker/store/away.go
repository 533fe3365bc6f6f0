package store

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrAway says that the database is not there, or takes no writes now. The same
// may be asked again once it is back: what was to be written was not, unless the
// error says that this is not known.
var ErrAway = errors.New("the database is away: try again when it is back")

// How a database that is away is found, and that it is back. Revision and Beat
// are the looks: who calls one of them each second hears of both within
// LookTime and that second.
const (
	// LookTime bounds a look at one server of the URL, and connecting to it.
	LookTime = 3 * time.Second
	// looking is how long after a look others wait for the next: who keeps looking
	// needs no help.
	looking = 5 * time.Second
)

// An Absence is a time without the database.
type Absence struct {
	Since  time.Time
	Reason error
	// What is read meanwhile: a snapshot of the database of that time. Zero: nothing.
	Snapshot time.Time
}

// Away says whether the database is away, as it was found last.
func (s *Store) Away() (Absence, bool) {
	if s.primary == nil {
		return Absence{}, false
	}
	s.primary.mu.Lock()
	defer s.primary.mu.Unlock()
	return s.primary.absence, s.primary.absence.Reason != nil
}

// Asked is how many queries and transactions there were since Open.
func (s *Store) Asked() uint64 { return s.asked.Load() }

// Writable returns an error that wraps ErrAway while the database is away, as it
// was found last: without asking.
func (s *Store) Writable() error {
	if s.primary == nil {
		return nil
	}
	return s.primary.away()
}

// A primary is the server that takes writes, and whether it is there. While it is
// away nobody waits for it: what is under way ends, what comes is refused at once,
// and only looks reach out for it.
type primary struct {
	now    func() time.Time
	looked atomic.Int64 // Unix nanoseconds of the machine's clock, of the last look

	mu      sync.Mutex // guards what follows
	absence Absence    // its Reason is nil while the primary is there
	conns   map[*primaryConn]struct{}
	dials   map[*context.CancelFunc]struct{}
}

func newPrimary(now func() time.Time) *primary {
	return &primary{now: now, conns: make(map[*primaryConn]struct{}), dials: make(map[*context.CancelFunc]struct{})}
}

// away returns why nobody may reach out.
func (p *primary) away() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.absence.Reason == nil {
		return nil
	}
	return fmt.Errorf("%w (since %s)", ErrAway, p.absence.Since.UTC().Format(time.RFC3339))
}

// lose notes that the primary is away, and ends what waits for it.
func (p *primary) lose(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.absence.Reason == nil {
		p.absence.Since = p.now()
	}
	p.absence.Reason = why
	for c := range p.conns {
		_ = c.Conn.Close() // whoever uses it is told
	}
	for cancel := range p.dials {
		(*cancel)()
	}
	clear(p.conns)
}

// found notes that the primary is there.
func (p *primary) found() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.absence = Absence{}
}

type lookKey struct{}

// dial connects to a server, for a look alone while the primary is away.
func (p *primary) dial(ctx context.Context, network, address string) (net.Conn, error) {
	looks := ctx.Value(lookKey{}) != nil
	if err := p.away(); err != nil && !looks {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if !looks {
		p.mu.Lock()
		p.dials[&cancel] = struct{}{}
		p.mu.Unlock()
		defer func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			delete(p.dials, &cancel)
		}()
	}
	c, err := (&net.Dialer{KeepAlive: pgKeepAlive}).DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	tracked := &primaryConn{Conn: c, of: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns[tracked] = struct{}{}
	return tracked, nil
}

type primaryConn struct {
	net.Conn
	of *primary
}

func (c *primaryConn) Close() error {
	c.of.mu.Lock()
	delete(c.of.conns, c)
	c.of.mu.Unlock()
	return c.Conn.Close()
}

// judge returns err as it is for callers, and notes what it says about the
// primary; where the call had ended, that is nothing.
func (p *primary) judge(ctx context.Context, err error) error {
	if p == nil || err == nil || errors.Is(err, ErrAway) || ctx.Err() != nil {
		return err
	}
	if pgconn.SafeToRetry(err) && p.away() != nil { // on a connection that was closed
		return awayError(err)
	}
	if !pgAway(err) {
		return err
	}
	p.lose(err)
	return awayError(err)
}

func awayError(err error) error { return fmt.Errorf("%w: %w", ErrAway, err) }

// look asks the primary something, and notes whether it is there.
func (s *Store) look(ctx context.Context, ask func(context.Context) error) error {
	if s.primary == nil {
		return ask(ctx)
	}
	s.primary.looked.Store(time.Now().UnixNano())
	looking, cancel := context.WithTimeout(context.WithValue(ctx, lookKey{}, true), s.lookTime)
	defer cancel()
	err := ask(looking)
	if err == nil {
		err = s.goOn(looking)
	}
	switch {
	case err == nil:
		s.primary.found()
	case ctx.Err() != nil: // who looked gave up
	case pgAway(err), looking.Err() != nil, errors.Is(err, net.ErrClosed):
		s.primary.lose(err)
		return awayError(err)
	}
	return err
}

// ready says whether the primary may be asked: not while it is away and somebody
// looks for it. Where nobody does, this looks.
func (s *Store) ready(ctx context.Context) error {
	if s.primary == nil || ctx.Value(lookKey{}) != nil {
		return nil
	}
	err := s.primary.away()
	if err == nil || time.Since(time.Unix(0, s.primary.looked.Load())) < looking {
		return err
	}
	return s.look(ctx, s.write.ping)
}

// pgAway says whether an error means that the server is not there, or is no
// primary; not, that it refuses us.
func pgAway(err error) bool {
	if code := pgCode(err); code != "" {
		return pgDemoted(err) || code[:2] == "08"
	}
	if errors.As(err, new(*tls.CertificateVerificationError)) || errors.As(err, new(x509.UnknownAuthorityError)) {
		return false
	}
	return errors.As(err, new(*pgconn.ConnectError)) || errors.As(err, new(*net.OpError)) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, os.ErrDeadlineExceeded)
}

// An engine is a database that is asked.
type engine struct {
	*sql.DB
	made time.Time // of the snapshot that it is; zero: it is the database
	pin  *sql.Conn // keeps what is in memory alone
}

// A pool is connections to an engine, which is another one for as long as a
// snapshot stands in.
type pool struct {
	store *Store
	now   atomic.Pointer[engine]
}

func (s *Store) pool(db *sql.DB) *pool {
	p := &pool{store: s}
	p.now.Store(&engine{DB: db})
	return p
}

// begin returns the engine to ask.
func (p *pool) begin(ctx context.Context) (*engine, error) {
	p.store.asked.Add(1)
	e := p.now.Load()
	if !e.made.IsZero() {
		return e, nil
	}
	return e, p.store.ready(ctx)
}

// judge is primary.judge, but of a snapshot: what that cannot tell it has not.
func (p *pool) judge(ctx context.Context, e *engine, err error) error {
	if err != nil && !e.made.IsZero() && ctx.Err() == nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%w: the snapshot that stands in for it does not tell this: %w", ErrAway, err)
	}
	return p.store.primary.judge(ctx, err)
}

func (p *pool) ping(ctx context.Context) error {
	return p.now.Load().PingContext(ctx)
}

// QueryContext is as sql.DB's.
func (p *pool) QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error) {
	e, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := e.DB.QueryContext(ctx, query, args...)
	return rows, p.judge(ctx, e, err)
}

// QueryRowContext is as sql.DB's.
func (p *pool) QueryRowContext(ctx context.Context, query string, args ...any) row {
	e, err := p.begin(ctx)
	if err != nil {
		return row{err: err}
	}
	found := e.DB.QueryRowContext(ctx, query, args...)
	return row{found, p.judge(ctx, e, found.Err())}
}

// BeginTx is as sql.DB's.
func (p *pool) BeginTx(ctx context.Context, opts *sql.TxOptions) (*sql.Tx, error) {
	e, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	tx, err := e.DB.BeginTx(ctx, opts)
	return tx, p.judge(ctx, e, err)
}

func (p *pool) close() error {
	if p == nil {
		return nil
	}
	e := p.now.Load()
	if e.pin != nil {
		_ = e.pin.Close()
	}
	return e.DB.Close()
}

// row is as sql.Row.
type row struct {
	row *sql.Row
	err error
}

func (r row) Scan(into ...any) error {
	if r.err != nil {
		return r.err
	}
	return r.row.Scan(into...)
}

// one is a row of either.
type one interface{ Scan(...any) error }

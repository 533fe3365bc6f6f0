package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
)

const issuedColumns = `serial, kind, spiffe_id, identity, revision, node, authority, target, audiences, issued_at, expires_at, record`

// IndexedUpTo returns the last place of a broker's audit record that is in the
// issuance index; zero: none is.
func (s *Store) IndexedUpTo(ctx context.Context, origin string) (audit.Ref, error) {
	var sequence int64
	var hash []byte
	err := s.read.QueryRowContext(ctx, `SELECT sequence, hash FROM issued_mark WHERE origin = $1`, origin).Scan(&sequence, &hash)
	if errors.Is(err, sql.ErrNoRows) {
		return audit.Ref{}, nil
	}
	ref := audit.Ref{Sequence: uint64(sequence)}
	if err == nil && copy(ref.Hash[:], hash) != len(ref.Hash) {
		err = fmt.Errorf("a hash of %d bytes", len(hash))
	}
	if err != nil {
		return audit.Ref{}, fmt.Errorf("reading how far %s is indexed: %w", origin, err)
	}
	return ref, nil
}

// AddIssued adds rows to the index and notes how far the record of their
// broker is in it, in one transaction: a crash loses nothing, and nothing
// doubles. A row that is there already stays. It is no change in the sense of
// Revision: nobody watches it.
func (s *Store) AddIssued(ctx context.Context, origin string, upTo audit.Ref, rows []broker.Issued) error {
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		if err := addIssued(ctx, tx, origin, rows); err != nil {
			return err
		}
		const mark = `INSERT INTO issued_mark (origin, sequence, hash) VALUES ($1, $2, $3) ON CONFLICT (origin) DO UPDATE SET sequence = $2, hash = $3`
		_, err := tx.ExecContext(ctx, mark, origin, int64(upTo.Sequence), upTo.Hash[:])
		return err
	})
	if err != nil {
		return fmt.Errorf("indexing what %s issued: %w", origin, err)
	}
	return nil
}

func addIssued(ctx context.Context, tx *sql.Tx, origin string, rows []broker.Issued) error {
	if len(rows) == 0 {
		return nil
	}
	const insert = `INSERT INTO issued (` + issuedColumns + `, origin) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (serial) DO NOTHING`
	stmt, err := tx.PrepareContext(ctx, insert)
	if err != nil {
		return err
	}
	defer stmt.Close()
	for _, i := range rows {
		audiences, err := json.Marshal(i.Audiences)
		if err != nil {
			return err
		}
		if len(i.Audiences) == 0 {
			audiences = []byte{}
		}
		_, err = stmt.ExecContext(ctx, i.Serial, i.Kind, i.SPIFFEID, i.Identity, int64(i.Revision), i.Node, i.Authority, i.Target, audiences,
			millis(i.IssuedAt), millis(i.ExpiresAt), int64(i.Record), origin)
		if err != nil {
			return fmt.Errorf("record %d: %w", i.Record, err)
		}
	}
	return nil
}

// Issued answers a query, newest first, and says how many SVIDs there are
// without its limit. The error wraps broker.ErrRequest if it asks for too much,
// or for everything.
func (s *Store) Issued(ctx context.Context, q broker.IssuedQuery) (rows []broker.Issued, total int, err error) {
	q, err = q.Complete()
	if err != nil {
		return nil, 0, err
	}
	where, args := conditions(q)
	fail := func(err error) ([]broker.Issued, int, error) {
		return nil, 0, fmt.Errorf("asking what was issued: %w", err)
	}
	if err := s.read.QueryRowContext(ctx, `SELECT COUNT(*) FROM issued WHERE `+where, args...).Scan(&total); err != nil {
		return fail(err)
	}
	query := fmt.Sprintf(`SELECT `+issuedColumns+` FROM issued WHERE %s ORDER BY issued_at DESC, serial LIMIT $%d`, where, len(args)+1)
	found, err := s.read.QueryContext(ctx, query, append(args, q.Limit)...)
	if err != nil {
		return fail(err)
	}
	defer found.Close()
	for found.Next() {
		i, err := scanIssued(found)
		if err != nil {
			return fail(err)
		}
		rows = append(rows, i)
	}
	if err := found.Err(); err != nil {
		return fail(err)
	}
	return rows, total, nil
}

// Unreplaced says how many X509-SVIDs live at now that none of some authorities
// signed, and of which none of these signed a successor: one to the same ID, by
// the same Identity, on the same node. The last of them ends at until. The error
// wraps broker.ErrRequest without authorities.
func (s *Store) Unreplaced(ctx context.Context, authorities []string, now time.Time) (count int, until time.Time, err error) {
	if len(authorities) == 0 {
		return 0, time.Time{}, fmt.Errorf("counting SVIDs that are not replaced: %w: by which authorities?", broker.ErrRequest)
	}
	args := []any{millis(now)}
	var in []string
	for _, a := range authorities {
		args = append(args, a)
		in = append(in, fmt.Sprintf("$%d", len(args)))
	}
	these := "(" + strings.Join(in, ", ") + ")" // names of ours are not in the text
	query := `SELECT COUNT(*), COALESCE(MAX(expires_at), 0) FROM issued i WHERE kind = 'x509' AND expires_at > $1 AND authority NOT IN ` + these + `
		AND NOT EXISTS (SELECT 1 FROM issued j WHERE j.kind = 'x509' AND j.spiffe_id = i.spiffe_id AND j.authority IN ` + these + ` AND j.node = i.node AND j.identity = i.identity)`
	var end int64
	if err := s.read.QueryRowContext(ctx, query, args...).Scan(&count, &end); err != nil {
		return 0, time.Time{}, fmt.Errorf("counting SVIDs that are not replaced: %w", err)
	}
	return count, fromMillis(end), nil
}

// conditions are the query's, as SQL. Only names of ours are in the text.
func conditions(q broker.IssuedQuery) (where string, args []any) {
	var all []string
	add := func(condition string, value any) {
		args = append(args, value)
		all = append(all, fmt.Sprintf("%s $%d", condition, len(args)))
	}
	for _, by := range []struct{ column, value string }{
		{"serial", q.Serial}, {"spiffe_id", q.SPIFFEID}, {"identity", q.Identity}, {"node", q.Node}, {"authority", q.Authority},
	} {
		if by.value != "" {
			add(by.column+" =", by.value)
		}
	}
	if q.Kind != "" {
		add("kind =", q.Kind)
	}
	if !q.From.IsZero() {
		add("issued_at >=", millis(q.From))
	}
	if !q.Before.IsZero() {
		add("issued_at <", millis(q.Before))
	}
	if !q.LiveAt.IsZero() {
		add("expires_at >", millis(q.LiveAt))
	}
	if q.After != nil {
		args = append(args, millis(q.After.IssuedAt), q.After.Serial)
		all = append(all, fmt.Sprintf("(issued_at < $%d OR issued_at = $%d AND serial > $%d)", len(args)-1, len(args)-1, len(args)))
	}
	return strings.Join(all, " AND "), args
}

func scanIssued(row interface{ Scan(...any) error }) (broker.Issued, error) {
	var i broker.Issued
	var revision, issued, expires, record int64
	var audiences []byte
	err := row.Scan(&i.Serial, &i.Kind, &i.SPIFFEID, &i.Identity, &revision, &i.Node, &i.Authority, &i.Target, &audiences, &issued, &expires, &record)
	if err == nil && len(audiences) > 0 {
		err = json.Unmarshal(audiences, &i.Audiences)
	}
	i.Revision, i.Record = uint64(revision), uint64(record)
	i.IssuedAt, i.ExpiresAt = fromMillis(issued), fromMillis(expires)
	return i, err
}

// Outstanding counts, by authority, the SVIDs that have not ended at a time.
func (s *Store) Outstanding(ctx context.Context, at time.Time) (map[string]int, error) {
	rows, err := s.read.QueryContext(ctx, `SELECT authority, COUNT(*) FROM issued WHERE expires_at > $1 GROUP BY authority`, millis(at))
	if err != nil {
		return nil, fmt.Errorf("counting what is outstanding: %w", err)
	}
	defer rows.Close()
	counts := make(map[string]int)
	for rows.Next() {
		var authority string
		var n int
		if err := rows.Scan(&authority, &n); err != nil {
			return nil, fmt.Errorf("counting what is outstanding: %w", err)
		}
		counts[authority] = n
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("counting what is outstanding: %w", err)
	}
	return counts, nil
}

// ForgetIssued removes up to so many SVIDs that ended before a time, and
// returns how many it removed.
func (s *Store) ForgetIssued(ctx context.Context, endedBefore time.Time, most int) (int, error) {
	at, age, now := s.ago(endedBefore)
	forget := `DELETE FROM issued WHERE serial IN (SELECT serial FROM issued WHERE ` + s.before("expires_at", "$1", "$2", "$3") + ` ORDER BY expires_at LIMIT $4)`
	var removed int64
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		r, err := tx.ExecContext(ctx, forget, at, age, now, most)
		if err != nil {
			return err
		}
		removed, err = r.RowsAffected()
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("forgetting what has ended: %w", err)
	}
	return int(removed), nil
}

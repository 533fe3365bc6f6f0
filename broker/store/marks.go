package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/credence-id/credence/broker"
)

// Mark returns how far a node's reports stand in the record; zero: none do.
func (s *Store) Mark(ctx context.Context, node string) (broker.Mark, error) {
	m := broker.Mark{Node: node}
	var number int64
	err := s.read.QueryRowContext(ctx, `SELECT spool, number FROM report_mark WHERE node = $1`, node).Scan(&m.Spool, &number)
	if errors.Is(err, sql.ErrNoRows) {
		return broker.Mark{}, nil
	}
	if err != nil {
		return broker.Mark{}, fmt.Errorf("reading how far %s has reported: %w", node, err)
	}
	m.Number = uint64(number)
	return m, nil
}

// SaveMarks moves marks on, in one transaction, and never back within a spool.
// It is no change in the sense of Revision: nobody watches it.
func (s *Store) SaveMarks(ctx context.Context, marks []broker.Mark) error {
	const save = `INSERT INTO report_mark (node, spool, number) VALUES ($1, $2, $3)
		ON CONFLICT (node) DO UPDATE SET spool = $2, number = $3 WHERE report_mark.spool <> $2 OR report_mark.number < $3`
	err := s.inTx(ctx, func(tx *sql.Tx) error {
		for _, m := range marks {
			if _, err := tx.ExecContext(ctx, save, m.Node, m.Spool, int64(m.Number)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("noting how far nodes have reported: %w", err)
	}
	return nil
}

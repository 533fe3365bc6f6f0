package store

import (
	"context"
	"fmt"
	"time"
)

// Brokers whose clocks differ agree by the clock of the database on who has a
// lease or a name, who is there, and what ended so long ago that it is forgotten.

// What the time in milliseconds is in SQL, where a parameter may hold it: NULL is
// for the server's own.
const (
	pgClock     = `COALESCE(CAST(%[1]s AS BIGINT), CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT))`
	sqliteClock = `CAST(%[1]s AS BIGINT)`
)

// time is the database's time, in SQL. The parameter that it takes is timeArg's.
func (s *Store) time(param string) string { return fmt.Sprintf(s.clockText, param) }

func (s *Store) timeArg() any {
	if s.clock == nil {
		return nil
	}
	return millis(s.clock())
}

// before says in SQL that a column lies before a time that is at[0], by the
// database's clock as by ours: what only one of them says is past stays. The three
// parameters are at's.
func (s *Store) before(column, at, age, now string) string {
	return column + ` < ` + at + ` AND ` + column + ` < ` + s.time(now) + ` - CAST(` + age + ` AS BIGINT)`
}

// ago are the parameters for before.
func (s *Store) ago(t time.Time) (at, age int64, now any) {
	return millis(t), millis(s.now()) - millis(t), s.timeArg()
}

// clocksDiffer is by how much clocks may.
const clocksDiffer = time.Minute

func (s *Store) checkTime(ctx context.Context) error {
	var there int64
	if err := s.read.QueryRowContext(ctx, `SELECT `+s.time("$1"), s.timeArg()).Scan(&there); err != nil {
		return s.wayOut(err)
	}
	now := s.now()
	if off := now.Sub(fromMillis(there)); off.Abs() > clocksDiffer {
		return fmt.Errorf("this machine's clock says %s, the database's %s: set both (NTP)", now.UTC().Format(time.RFC3339), fromMillis(there).Format(time.RFC3339))
	}
	return nil
}

package store

import "context"

// Pragma asks the connections that write and read what is in force.
func (s *Store) Pragma(ctx context.Context, name string) (write, read string, err error) {
	if err = s.write.QueryRowContext(ctx, "PRAGMA "+name).Scan(&write); err == nil {
		err = s.read.QueryRowContext(ctx, "PRAGMA "+name).Scan(&read)
	}
	return write, read, err
}

// SchemaVersion is the newest schema that this program knows.
const SchemaVersion = schemaVersion

// Keep changes how far back policy is kept.
func (s *Store) Keep(revisions, resources, anyway int64) { s.keep = kept{revisions, resources, anyway} }

// FailOnce has the next write to a table fail, after which it is tried again.
func (s *Store) FailOnce(ctx context.Context, table string) error {
	const name = "fail_once"
	_, err := s.write.ExecContext(ctx, "CREATE TRIGGER "+name+" BEFORE INSERT ON "+table+" BEGIN SELECT RAISE(ABORT, 'not now'); END")
	s.again = func(error) bool {
		_, gone := s.write.ExecContext(ctx, "DROP TRIGGER "+name)
		return gone == nil
	}
	return err
}

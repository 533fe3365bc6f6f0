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

package store

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"io/fs"
	"time"
)

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
	_, err := s.write.now.Load().ExecContext(ctx, "CREATE TRIGGER "+name+" BEFORE INSERT ON "+table+" BEGIN SELECT RAISE(ABORT, 'not now'); END")
	s.again = func(error) bool {
		_, gone := s.write.now.Load().ExecContext(ctx, "DROP TRIGGER "+name)
		return gone == nil
	}
	return err
}

// DumpRecords are a dump's, as text.
func DumpRecords(r io.Reader) (all []string, err error) {
	d := &dumpReader{r: bufio.NewReader(r)}
	head, err := d.head()
	if err != nil {
		return nil, err
	}
	all = append(all, fmt.Sprint(head))
	var table any
	for {
		kind, values, err := d.record()
		if err != nil {
			return nil, err
		}
		switch kind {
		case dumpTable:
			table = values[0]
			all = append(all, fmt.Sprint(table, " has ", values[1:]))
		case dumpRow:
			all = append(all, fmt.Sprintf("%s %#v", table, values))
		default:
			return append(all, fmt.Sprint("end ", values)), nil
		}
	}
}

// OpenAs opens the database as the program does whose newest schema this is.
func OpenAs(ctx context.Context, cfg Config, files fs.FS, newest int) (*Store, error) {
	cfg.schema = &migrations{files, newest}
	return Open(ctx, cfg)
}

// Traced has each statement to PostgreSQL told.
func Traced(cfg Config, tell func(string, ...any)) Config {
	cfg.trace = tell
	return cfg
}

// Schema are the texts of this program.
var Schema fs.FS = schema

// Oldest is what a text says of older programs.
var Oldest = oldestOf

// Run executes a statement and undoes it.
func (s *Store) Run(ctx context.Context, text string, args ...any) error {
	tx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	_, err = tx.ExecContext(ctx, text, args...)
	return err
}

// LookedLongAgo is as if nobody had looked for long.
func (s *Store) LookedLongAgo() { s.primary.looked.Store(0) }

// Seal seals a text.
func (s Snapshot) Seal(w io.Writer, made time.Time, text []byte) error {
	return s.write(w, made, func(w io.Writer) error {
		for len(text) > 0 { // in pieces of all sizes
			n := min(len(text), 1+len(text)/3)
			if _, err := w.Write(text[:n]); err != nil {
				return err
			}
			text = text[n:]
		}
		return nil
	})
}

// Unseal opens what Seal made.
func (s Snapshot) Unseal(r io.Reader, now time.Time) (time.Time, []byte, error) {
	made, plain, err := s.open(r, now)
	if err != nil {
		return made, nil, err
	}
	text, err := io.ReadAll(plain)
	return made, text, err
}

// Patience is a configuration with which a server is waited for that long.
func Patience(cfg Config, most time.Duration) Config {
	cfg.patience = most
	return cfg
}

package store

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Tables are those that a dump may have. All others are in Undumped, with why.
func Tables() []string {
	return []string{
		"authority", "banned", "bundle", "confirmation", "crl", "cutoff", "issued", "issued_mark", "join_state", "join_token",
		"node", "policy_revision", "publication", "removed", "report_mark", "resource", "revoked", "spent_evidence",
	}
}

// Undumped are the tables that no dump has.
func Undumped() map[string]string {
	return map[string]string{
		"head":      "what it says stands at the beginning of a dump",
		"migration": "Load makes the schema by the same texts",
		"broker":    "each broker says itself that it is there",
		"lease":     "brokers that run hold them",
	}
}

// A Selection says which part of a database is dumped. The zero one is all of
// it.
type Selection struct {
	Without  []string // tables that are left empty
	Standing bool     // of resources only what stands, and nothing of how that came
}

// ToStart is what a broker reads that starts and gives no answers about the
// past.
func ToStart() Selection {
	return Selection{Without: []string{"issued", "join_token", "policy_revision", "spent_evidence"}, Standing: true}
}

// A DumpHead stands at the beginning of a dump.
type DumpHead struct {
	Schema   int    // version of the tables
	Revision uint64 // of the last change that is in it
}

// A dump is dumpMagic, and records: a number of bytes and these. The first is
// the head. Each table is one record that names its columns, then one for each
// row; the last record counts them, so that a dump that was cut short is none.
const (
	dumpMagic   = "credence dump 1\n"
	dumpHead    = 'h'
	dumpTable   = 't'
	dumpRow     = 'r'
	dumpEnd     = 'e'
	maxDumpLine = 64 << 20
)

// Dump writes what the database holds at one moment, with which Load makes it
// anew on either engine. Others read and write meanwhile. What it holds tells who
// gets which identity, and of join tokens digests; private keys are kept
// elsewhere, but those that authorities' records wrap. To seal it is the caller's.
func (s *Store) Dump(ctx context.Context, w io.Writer, part Selection) (DumpHead, error) {
	head, err := s.dump(ctx, &dumpWriter{w: bufio.NewWriterSize(w, 64<<10)}, part)
	if err != nil {
		return DumpHead{}, fmt.Errorf("dumping the database: %w", s.wayOut(err))
	}
	return head, nil
}

func (s *Store) dump(ctx context.Context, w *dumpWriter, part Selection) (DumpHead, error) {
	for _, name := range part.Without {
		if !slices.Contains(Tables(), name) {
			return DumpHead{}, fmt.Errorf("there is no table %q", name)
		}
	}
	tx, err := s.read.BeginTx(ctx, s.atOnce)
	if err != nil {
		return DumpHead{}, err
	}
	defer tx.Rollback() // it only reads
	if !s.read.now.Load().made.IsZero() {
		return DumpHead{}, fmt.Errorf("%w: a snapshot stands in for it", ErrAway)
	}
	if s.unhurried != "" {
		if _, err := tx.ExecContext(ctx, s.unhurried); err != nil {
			return DumpHead{}, err
		}
	}
	var schema, revision int64
	if err := tx.QueryRowContext(ctx, `SELECT schema_version, revision FROM head`).Scan(&schema, &revision); err != nil {
		return DumpHead{}, err
	}
	if schema != schemaVersion {
		return DumpHead{}, fmt.Errorf("%w: its schema is %d, this program's %d", ErrNewer, schema, schemaVersion)
	}
	w.text(dumpMagic)
	w.record(dumpHead, schema, revision)
	for _, name := range Tables() {
		if slices.Contains(part.Without, name) {
			continue
		}
		if err := w.table(ctx, tx, name, part); err != nil {
			return DumpHead{}, fmt.Errorf("table %s: %w", name, err)
		}
	}
	w.record(dumpEnd, w.rows)
	return DumpHead{int(schema), uint64(revision)}, w.flush()
}

// A dumpWriter keeps its first error.
type dumpWriter struct {
	w    *bufio.Writer
	line []byte
	rows int64
	err  error
}

func (w *dumpWriter) text(text string) {
	if w.err == nil {
		_, w.err = w.w.WriteString(text)
	}
}

func (w *dumpWriter) flush() error {
	if w.err == nil {
		w.err = w.w.Flush()
	}
	return w.err
}

// record writes values: int64, string, []byte or nil.
func (w *dumpWriter) record(kind byte, values ...any) {
	w.line = append(w.line[:0], kind)
	for _, v := range values {
		switch v := v.(type) {
		case nil:
			w.line = append(w.line, 0)
		case int64:
			w.line = binary.AppendVarint(append(w.line, 'i'), v)
		case string:
			w.line = append(binary.AppendUvarint(append(w.line, 's'), uint64(len(v))), v...)
		case []byte:
			w.line = append(binary.AppendUvarint(append(w.line, 'b'), uint64(len(v))), v...)
		default:
			w.err = errors.Join(w.err, fmt.Errorf("a value is a %T", v))
		}
	}
	if len(w.line) > maxDumpLine {
		w.err = errors.Join(w.err, fmt.Errorf("a row has %d bytes, at most %d are taken", len(w.line), maxDumpLine))
	}
	if w.err == nil {
		_, w.err = w.w.Write(binary.AppendUvarint(nil, uint64(len(w.line))))
	}
	w.text(string(w.line))
}

func (w *dumpWriter) table(ctx context.Context, tx *sql.Tx, name string, part Selection) error {
	columns, err := columnsOf(ctx, tx, name)
	if err != nil {
		return err
	}
	named := []any{name}
	for _, c := range columns {
		named = append(named, c.name)
	}
	w.record(dumpTable, named...)
	query := "SELECT " + columnNames(columns) + " FROM " + name // names that the schema has
	if name == "resource" && part.Standing {
		// The last deletion says at which revision resources are.
		query += ` r WHERE r.revision = (SELECT MAX(x.revision) FROM resource x WHERE x.kind = r.kind AND x.name = r.name)
			AND (r.body IS NOT NULL OR r.revision = (SELECT MAX(revision) FROM resource))`
	}
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return err
	}
	defer rows.Close()
	values, into := make([]any, len(columns)), make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() && w.err == nil {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		for i, c := range columns {
			if values[i], err = c.value(values[i]); err != nil {
				return err
			}
		}
		w.record(dumpRow, values...)
		w.rows++
	}
	return errors.Join(rows.Err(), w.err)
}

// A column is one of a table, of type 'i', 's' or 'b' (a number, text, bytes).
type column struct {
	name string
	kind byte
}

// columnsOf reads what columns a table has, in the order that is the same in
// both engines.
func columnsOf(ctx context.Context, tx *sql.Tx, table string) ([]column, error) {
	rows, err := tx.QueryContext(ctx, "SELECT * FROM "+table+" WHERE 1 = 0")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	types, err := rows.ColumnTypes()
	if err != nil {
		return nil, err
	}
	var all []column
	for _, t := range types {
		c := column{name: t.Name()}
		switch t.DatabaseTypeName() {
		case "BIGINT", "INTEGER", "INT8", "INT4":
			c.kind = 'i'
		case "TEXT":
			c.kind = 's'
		case "BYTEA":
			c.kind = 'b'
		default:
			return nil, fmt.Errorf("column %s is of type %q, which no dump has", c.name, t.DatabaseTypeName())
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

func columnNames(columns []column) string {
	var names []string
	for _, c := range columns {
		names = append(names, c.name)
	}
	return strings.Join(names, ", ")
}

// value is a value as the column holds it: SQLite's default of bytes is text.
func (c column) value(v any) (any, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case int64:
		if c.kind == 'i' {
			return v, nil
		}
	case string:
		switch c.kind {
		case 's':
			return v, nil
		case 'b':
			return []byte(v), nil
		}
	case []byte:
		switch c.kind {
		case 's':
			return string(v), nil
		case 'b':
			return v, nil
		}
	}
	return nil, fmt.Errorf("column %s holds a %T", c.name, v)
}

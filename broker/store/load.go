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
	"time"
)

// ErrNotEmpty says that there is a database already where one is to be loaded.
var ErrNotEmpty = errors.New("there is a database already")

// Load opens a new database with what Dump wrote, on whichever engine, this
// program or an older one: all of it, or nothing where it returns an error. One
// that is in use is refused with ErrNotEmpty, a dump of a newer program with
// ErrNewer. Who wrote the dump is the caller's to know: whatever is in it will
// be believed.
func Load(ctx context.Context, cfg Config, r io.Reader) (*Store, DumpHead, error) {
	return load(ctx, cfg, r, func(*sql.Tx, time.Time) error { return nil })
}

// load is Load that does something more in the same transaction.
func load(ctx context.Context, cfg Config, r io.Reader, then func(*sql.Tx, time.Time) error) (*Store, DumpHead, error) {
	s, where, err := connect(ctx, cfg)
	var head DumpHead
	if err == nil {
		err = s.tryTx(ctx, func(tx *sql.Tx) (err error) {
			head, err = s.load(ctx, tx, &dumpReader{r: bufio.NewReaderSize(r, 64<<10)})
			if err == nil {
				err = then(tx, s.now())
			}
			return err
		})
	}
	if err != nil {
		if s.wayOut != nil {
			err = s.wayOut(err)
		}
		return nil, head, errors.Join(fmt.Errorf("loading a database %s: %w", where, err), s.Close())
	}
	return s, head, nil
}

func (s *Store) load(ctx context.Context, tx *sql.Tx, r *dumpReader) (DumpHead, error) {
	if s.unhurried != "" {
		if _, err := tx.ExecContext(ctx, s.unhurried); err != nil {
			return DumpHead{}, err
		}
	}
	head, err := r.head()
	if err != nil {
		return head, err
	}
	version, _, err := lockHead(ctx, tx)
	switch {
	case err != nil:
		return head, err
	case version != 0:
		return head, fmt.Errorf("%w: load into an empty one", ErrNotEmpty)
	}
	if err := ours().raise(ctx, tx, 0, head.Schema, s.now()); err != nil {
		return head, err
	}
	if err := r.tables(ctx, tx); err != nil {
		return head, err
	}
	if _, err := tx.ExecContext(ctx, `UPDATE head SET revision = $1`, int64(head.Revision)); err != nil {
		return head, err
	}
	return head, ours().raise(ctx, tx, head.Schema, schemaVersion, s.now())
}

// A dumpReader reads a dump. What it returns is good until the next call.
type dumpReader struct {
	r    *bufio.Reader
	line []byte
	rows int64
}

var errDump = errors.New("this is no whole dump of a database")

func (r *dumpReader) head() (DumpHead, error) {
	magic := make([]byte, len(dumpMagic))
	if _, err := io.ReadFull(r.r, magic); err != nil || string(magic) != dumpMagic {
		return DumpHead{}, errors.Join(errDump, notEnd(err))
	}
	kind, values, err := r.record()
	if err != nil {
		return DumpHead{}, err
	}
	numbers := []column{{"schema", 'i'}, {"revision", 'i'}}
	if kind != dumpHead || !are(values, numbers) {
		return DumpHead{}, errDump
	}
	schema, _ := values[0].(int64)
	revision, _ := values[1].(int64)
	if schema < 1 || revision < 0 {
		return DumpHead{}, errDump
	}
	head := DumpHead{int(min(schema, schemaVersion+1)), uint64(revision)}
	if head.Schema > schemaVersion {
		return head, fmt.Errorf("%w: its schema is %d, this program knows up to %d; run the newer program", ErrNewer, head.Schema, schemaVersion)
	}
	return head, nil
}

// notEnd is err, if it says more than that there is no more to read.
func notEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// record reads one, into memory that grows with what is there and not with what
// the record says of itself.
func (r *dumpReader) record() (kind byte, values []any, err error) {
	n, err := binary.ReadUvarint(r.r)
	if err != nil || n == 0 || n > maxDumpLine {
		return 0, nil, errors.Join(errDump, notEnd(err))
	}
	r.line = r.line[:0]
	for left := int(n); left > 0; {
		some := min(left, 1<<20)
		at := len(r.line)
		r.line = slices.Grow(r.line, some)[:at+some]
		if _, err := io.ReadFull(r.r, r.line[at:]); err != nil {
			return 0, nil, errors.Join(errDump, notEnd(err))
		}
		left -= some
	}
	values, err = parseValues(r.line[1:])
	return r.line[0], values, err
}

func parseValues(text []byte) (values []any, err error) {
	for len(text) > 0 {
		kind := text[0]
		text = text[1:]
		var used int
		switch kind {
		case 0:
			values = append(values, nil)
		case 'i':
			var v int64
			if v, used = binary.Varint(text); used <= 0 {
				return nil, errDump
			}
			values = append(values, v)
		case 's', 'b':
			size, at := binary.Uvarint(text)
			if at <= 0 || size > uint64(len(text)-at) {
				return nil, errDump
			}
			used = at + int(size)
			if kind == 's' {
				values = append(values, string(text[at:used]))
			} else {
				values = append(values, slices.Clone(text[at:used]))
			}
		default:
			return nil, errDump
		}
		text = text[used:]
	}
	return values, nil
}

// are says whether values are a row of these columns. Where there may be NULL the
// schema says.
func are(values []any, columns []column) bool {
	if len(values) != len(columns) {
		return false
	}
	for i, v := range values {
		var kind byte
		switch v.(type) {
		case int64:
			kind = 'i'
		case string:
			kind = 's'
		case []byte:
			kind = 'b'
		}
		if v != nil && kind != columns[i].kind {
			return false
		}
	}
	return true
}

// tables loads all that follow, up to the dump's end.
func (r *dumpReader) tables(ctx context.Context, tx *sql.Tx) error {
	var into *inserter
	seen := make(map[string]bool)
	for {
		kind, values, err := r.record()
		if err != nil {
			return err
		}
		switch {
		case kind == dumpTable:
			if err := into.flush(ctx); err != nil {
				return err
			}
			if into, err = newInserter(ctx, tx, values); err != nil {
				return err
			}
			if seen[into.table] {
				return fmt.Errorf("%w: table %s is in it twice", errDump, into.table)
			}
			seen[into.table] = true
		case kind == dumpRow && into != nil && are(values, into.columns):
			if err := into.add(ctx, values); err != nil {
				return err
			}
			r.rows++
		case kind == dumpEnd && len(values) == 1 && values[0] == r.rows:
			if _, err := r.r.ReadByte(); err != io.EOF {
				return fmt.Errorf("%w: more follows its end", errDump)
			}
			return into.flush(ctx)
		default:
			return errDump
		}
	}
}

// An inserter writes the rows of one table, many in a statement.
type inserter struct {
	tx      *sql.Tx
	table   string
	columns []column
	rows    int
	values  []any
	bytes   int
}

// Bounds of one statement: PostgreSQL takes 65535 values, SQLite 32766.
const (
	maxInsertRows  = 256
	maxInsertBytes = 4 << 20
)

// newInserter takes a table's name and those of its columns, which must be all
// that it has here: what is left out would be made up.
func newInserter(ctx context.Context, tx *sql.Tx, named []any) (*inserter, error) {
	var names []string
	for _, v := range named {
		name, ok := v.(string)
		if !ok {
			return nil, errDump
		}
		names = append(names, name)
	}
	if len(names) == 0 || !slices.Contains(Tables(), names[0]) {
		return nil, fmt.Errorf("%w: it has a table that this program doesn't know", errDump)
	}
	i := &inserter{tx: tx, table: names[0]}
	columns, err := columnsOf(ctx, tx, i.table)
	if err != nil {
		return nil, fmt.Errorf("table %s: %w", i.table, err)
	}
	for _, name := range names[1:] { // in the dump's order
		at := slices.IndexFunc(columns, func(c column) bool { return c.name == name })
		if at < 0 {
			return nil, fmt.Errorf("%w: table %s has no column %.40q", errDump, i.table, name)
		}
		i.columns = append(i.columns, columns[at])
		columns = slices.Delete(columns, at, at+1)
	}
	if len(columns) > 0 {
		return nil, fmt.Errorf("%w: column %s of table %s is not in it", errDump, columns[0].name, i.table)
	}
	return i, nil
}

func (i *inserter) add(ctx context.Context, values []any) error {
	i.rows++
	i.values = append(i.values, values...)
	for _, v := range values {
		switch v := v.(type) {
		case string:
			i.bytes += len(v)
		case []byte:
			i.bytes += len(v)
		}
	}
	if i.rows < maxInsertRows && i.bytes < maxInsertBytes {
		return nil
	}
	return i.flush(ctx)
}

func (i *inserter) flush(ctx context.Context) error {
	if i == nil || i.rows == 0 {
		return nil
	}
	var text strings.Builder
	fmt.Fprintf(&text, "INSERT INTO %s (%s) VALUES ", i.table, columnNames(i.columns)) // names that the schema has
	n := 0
	for row := range i.rows {
		if row > 0 {
			text.WriteString(", ")
		}
		for c := range i.columns {
			n++
			fmt.Fprintf(&text, "%c$%d", "(,"[min(c, 1)], n)
		}
		text.WriteString(")")
	}
	_, err := i.tx.ExecContext(ctx, text.String(), i.values...)
	if err != nil {
		return fmt.Errorf("table %s: %w", i.table, err)
	}
	i.rows, i.values, i.bytes = 0, i.values[:0], 0
	return nil
}

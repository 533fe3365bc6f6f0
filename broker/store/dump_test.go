package store_test

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/store"
)

// schemaColumns are those of SQLite's tables: name, type, and whether NULL may be
// there.
func schemaColumns(t *testing.T, db *sql.DB) map[string][][3]string {
	t.Helper()
	rows, err := db.QueryContext(t.Context(), `SELECT m.name, c.name, c.type, c."notnull" OR c.pk FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table' ORDER BY m.name, c.cid`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	all := make(map[string][][3]string)
	for rows.Next() {
		var table string
		var c [3]string
		if err := rows.Scan(&table, &c[0], &c[1], &c[2]); err != nil {
			t.Fatal(err)
		}
		all[table] = append(all[table], c)
	}
	if err := rows.Err(); err != nil || len(all) < 10 {
		t.Fatalf("%d tables (%v)", len(all), err)
	}
	return all
}

// checked is what columns hold that may not hold anything.
var checked = map[string][]any{
	"authority.purpose": {"root", "jwt"}, "authority.state": {"active", "old"}, "cutoff.kind": {"id", "node"}, "issued.kind": {"x509", "jwt"},
}

// filled is a database with rows in every table, and what no test wrote through
// the store: extremes, and NULL wherever it may be.
func filled(t *testing.T) *store.Store {
	t.Helper()
	dir := t.TempDir()
	s := open(t, dir)
	apply(t, s, "a")
	db, err := sql.Open("sqlite", filepath.Join(dir, "credence.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for table, columns := range schemaColumns(t, db) {
		for row := range 2 {
			var names, marks []string
			var values []any
			for i, c := range columns {
				var v any
				switch c[1] {
				case "TEXT":
					v = []any{"", "it's \"ü\""}[row]
				case "BYTEA":
					v = []any{[]byte{}, []byte{0, 255, '\n'}}[row]
				default:
					v = []any{int64(math.MinInt64), int64(math.MaxInt64)}[row]
				}
				if only := checked[table+"."+c[0]]; only != nil {
					v = only[row]
				}
				if c[2] == "0" && row == 0 {
					v = nil
				}
				if c[0] == "one" {
					v = int64(1)
				}
				names, marks, values = append(names, c[0]), append(marks, fmt.Sprintf("$%d", i+1)), append(values, v)
			}
			if names[0] == "one" && (row == 1 || table == "head") {
				continue
			}
			if _, err := db.ExecContext(t.Context(), "INSERT INTO "+table+" ("+strings.Join(names, ",")+") VALUES ("+strings.Join(marks, ",")+")", values...); err != nil {
				t.Fatalf("table %s: %v", table, err)
			}
		}
	}
	return s
}

func dump(t *testing.T, s *store.Store, part store.Selection) []byte {
	t.Helper()
	var text bytes.Buffer
	if _, err := s.Dump(t.Context(), &text, part); err != nil {
		t.Fatal(err)
	}
	return text.Bytes()
}

func load(t *testing.T, cfg store.Config, text []byte) *store.Store {
	t.Helper()
	s, _, err := store.Load(t.Context(), cfg, bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// records are a dump's, in an order that is the same on each engine.
func records(t *testing.T, text []byte) []string {
	t.Helper()
	all, err := store.DumpRecords(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

func same(t *testing.T, what string, want, got []byte) {
	t.Helper()
	if d := cmp.Diff(records(t, want), records(t, got)); d != "" {
		t.Errorf("%s: want -, got +:\n%s", what, d)
	}
}

// TestDumpHasAllTables fails when a table is added that nobody has said of
// whether a backup has it.
func TestDumpHasAllTables(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	db, err := sql.Open("sqlite", filepath.Join(dir, "credence.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	got := slices.Sorted(maps.Keys(schemaColumns(t, db)))
	want := slices.Sorted(slices.Values(slices.AppendSeq(store.Tables(), maps.Keys(store.Undumped()))))
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("a new table is to be named in Tables, or in Undumped with why; want -, got +:\n%s", d)
	}
	for _, name := range store.ToStart().Without {
		if !slices.Contains(store.Tables(), name) {
			t.Errorf("%s is no table", name)
		}
	}
}

func TestDumpComesBack(t *testing.T) {
	first := filled(t)
	text := dump(t, first, store.Selection{})
	for _, table := range store.Tables() {
		if !slices.ContainsFunc(records(t, text), func(r string) bool { return strings.HasPrefix(r, table+" []") }) {
			t.Errorf("there is nothing of table %s", table)
		}
	}
	again := load(t, store.Config{Dir: t.TempDir()}, text)
	same(t, "loaded", text, dump(t, again, store.Selection{}))
	if r, err := again.Revision(t.Context()); err != nil || r != 1 {
		t.Errorf("it is at revision %d (%v)", r, err)
	}
	if err := again.ConfirmAnchor(t.Context(), "root", "cloud", "uid:0"); err != nil {
		t.Errorf("it takes no writes: %v", err)
	}
}

// TestDumpOfAnOlderProgram loads one of a program that knew no revisions of
// policy: what a later one makes of the tables is made of it.
func TestDumpOfAnOlderProgram(t *testing.T) {
	s := open(t, t.TempDir())
	write(t, s, [2]string{"a", "1"})
	others := slices.DeleteFunc(store.Tables(), func(name string) bool { return name == "resource" })
	text := dump(t, s, store.Selection{Without: others})
	old := bytes.Replace(text, []byte{'h', 'i', 2 * store.SchemaVersion}, []byte{'h', 'i', 2 * 8}, 1)
	again := load(t, store.Config{Dir: t.TempDir()}, old)
	all, oldest, err := again.Revisions(t.Context(), 0, "", "", 10)
	if err != nil || oldest != 1 || len(all) != 1 || all[0].What != "apply" {
		t.Errorf("%v from %d on (%v)", all, oldest, err)
	}
	apply(t, again, "c")
}

func TestDumpBetweenEngines(t *testing.T) {
	text := dump(t, filled(t), store.Selection{})
	url := postgres(t).Database(t)
	shared := load(t, store.Config{URL: url}, text)
	there := dump(t, shared, store.Selection{})
	same(t, "in PostgreSQL", text, there)
	back := load(t, store.Config{Dir: t.TempDir()}, there)
	same(t, "back in SQLite", text, dump(t, back, store.Selection{}))
	if _, _, err := store.Load(t.Context(), store.Config{URL: url}, bytes.NewReader(text)); !errors.Is(err, store.ErrNotEmpty) {
		t.Errorf("over what is there: %v", err)
	}
}

// TestDumpToStart holds that what a start doesn't read is left out, and that
// resources stand at the revision at which they stood.
func TestDumpToStart(t *testing.T) {
	s := open(t, t.TempDir())
	write(t, s, [2]string{"a", "1"}, [2]string{"b", "1"}, [2]string{"c", "1"})
	write(t, s, [2]string{"b", "2"})
	write(t, s, [2]string{"a"})
	last := write(t, s, [2]string{"c"})
	again := load(t, store.Config{Dir: t.TempDir()}, dump(t, s, store.ToStart()))
	all, at, err := again.Resources(t.Context())
	if d := cmp.Diff([]string{"b=2"}, texts(all)); err != nil || d != "" || at != last {
		t.Errorf("at %d, want %d (%v); want -, got +:\n%s", at, last, err, d)
	}
	var got []string
	for _, r := range records(t, dump(t, again, store.Selection{})) {
		if strings.HasPrefix(r, "resource []") || strings.HasPrefix(r, "policy_revision []") {
			got = append(got, r)
		}
	}
	if len(got) != 2 {
		t.Errorf("resources are %q", got)
	}
	for _, r := range records(t, dump(t, filled(t), store.ToStart())) {
		for _, table := range store.ToStart().Without {
			if strings.HasPrefix(r, table+" ") {
				t.Errorf("it holds %s", r)
			}
		}
	}
	if _, err := s.Dump(t.Context(), io.Discard, store.Selection{Without: []string{"nodes"}}); err == nil {
		t.Error("a table that there is not is left out")
	}
}

// TestDumpCutShort holds that nothing is loaded of what isn't whole.
func TestDumpCutShort(t *testing.T) {
	text := dump(t, filled(t), store.Selection{})
	dir := t.TempDir()
	for at := 0; at < len(text); at += 1 + at/20 {
		if _, _, err := store.Load(t.Context(), store.Config{Dir: dir}, bytes.NewReader(text[:at])); err == nil {
			t.Fatalf("%d of %d bytes are loaded", at, len(text))
		}
	}
	newer := bytes.Replace(bytes.Clone(text), []byte{'h', 'i', 2 * store.SchemaVersion}, []byte{'h', 'i', 2 * (store.SchemaVersion + 1)}, 1)
	if _, _, err := store.Load(t.Context(), store.Config{Dir: dir}, bytes.NewReader(newer)); !errors.Is(err, store.ErrNewer) {
		t.Errorf("of a newer program: %v", err)
	}
	for what, bad := range map[string][]byte{
		"more after its end":     append(bytes.Clone(text), 0),
		"another table's name":   bytes.Replace(text, []byte("s\x06banned"), []byte("s\x06sqlite"), 1),
		"a column that is not":   bytes.Replace(text, []byte("s\x09banned_at"), []byte("s\x09banned_by"), 1),
		"a number for text":      bytes.Replace(text, []byte("s\x06banned"), []byte("i\x06s\x04ned"), 1),
		"a row without a number": bytes.Replace(text, []byte("banned_at"), []byte("banned_at\x01r"), 1),
	} {
		if bytes.Equal(bad, text) {
			t.Errorf("%s: the dump is as it was", what)
		}
		if _, _, err := store.Load(t.Context(), store.Config{Dir: dir}, bytes.NewReader(bad)); err == nil {
			t.Errorf("%s: it is loaded", what)
		}
	}
	same(t, "into the same directory, then", text, dump(t, load(t, store.Config{Dir: dir}, text), store.Selection{}))
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte("credence dump 1\n\x05hi\x14i\x00\x03ei\x00"))
	f.Add([]byte("credence dump 1\n\x05hi\x14i\x00\x10ts\x06banneds\x04node\x03ei\x00"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if all, err := store.DumpRecords(bytes.NewReader(text)); err == nil && len(all) < 2 {
			t.Errorf("a dump of %d records", len(all))
		}
	})
}

package store_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/postgrestest"
	"github.com/credence-id/credence/broker/store/storetest"
)

// Brokers of a release work on the schema of the next. What each release says to
// its database, and its schema, are kept in testdata when it is made:
//
//	go test ./broker/store -run TestFrozen -freeze
//
// and the files are committed with the release. Those of releases that the newest
// schema doesn't let go on (see migrations) may be deleted.
var freeze = flag.Bool("freeze", false, "keep this program's statements and schema as a release's")

const schemaSums = "testdata/schema.sha256"

// A said is one statement of a release, with the arguments that it had once.
type said struct {
	SQL  string
	Args []argument `json:",omitempty"`
}

// An argument has one field, or is NULL.
type argument struct {
	Int   *int64  `json:",omitempty"`
	Text  *string `json:",omitempty"`
	Bytes *[]byte `json:",omitempty"`
}

func (a argument) value() any {
	switch {
	case a.Int != nil:
		return *a.Int
	case a.Text != nil:
		return *a.Text
	case a.Bytes != nil:
		return *a.Bytes
	}
	return nil
}

func argumentOf(t *testing.T, v any) (a argument) {
	switch v := v.(type) {
	case nil:
	case string:
		a.Text = &v
	case []byte:
		if v != nil {
			a.Bytes = &v
		}
	default:
		r := reflect.ValueOf(v)
		if !r.CanInt() {
			t.Errorf("an argument of type %T", v)
			return a
		}
		a.Int = new(r.Int())
	}
	return a
}

// TestFrozenStatements has the newest schema do whatever a release that may go on
// says to it: each statement once, with the arguments that it had then.
func TestFrozenStatements(t *testing.T) {
	server := postgres(t)
	if *freeze {
		keepStatements(t, server)
	}
	newest := 0 // the program that the newest schema wants at least
	for v := 1; v <= store.SchemaVersion; v++ {
		text, err := fs.ReadFile(store.Schema, fmt.Sprintf("schema/%03d.sql", v))
		if err != nil {
			t.Fatal(err)
		}
		oldest, err := store.Oldest(string(text), v)
		if err != nil {
			t.Fatal(err)
		}
		newest = max(newest, oldest)
	}
	files, err := filepath.Glob("testdata/statements-*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d releases are kept (%v)", len(files), err)
	}
	for engine, cfg := range map[string]store.Config{"SQLite": {Dir: t.TempDir()}, "PostgreSQL": {URL: server.Database(t)}} {
		s, err := store.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer closeStore(t, s)
		for _, path := range files {
			var release int
			if _, err := fmt.Sscanf(filepath.Base(path), "statements-%d.json", &release); err != nil {
				t.Fatal(err)
			}
			if release < newest {
				continue
			}
			for _, one := range statements(t, path) {
				var args []any
				for _, a := range one.Args {
					args = append(args, a.value())
				}
				if err := s.Run(t.Context(), one.SQL, args...); err != nil {
					t.Errorf("%s: a broker of schema %d, which may go on, cannot say %s: %v", engine, release, one.SQL, err)
				}
			}
		}
	}
}

func statements(t *testing.T, path string) (all []said) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &all)
	}
	if err != nil || len(all) < 50 {
		t.Fatalf("%s: %d statements (%v)", path, len(all), err)
	}
	return all
}

// keepStatements runs the contract suite and writes down what is said.
func keepStatements(t *testing.T, server *postgrestest.Server) {
	var mu sync.Mutex
	all, databases := map[string]said{}, map[string]string{}
	tell := func(text string, args ...any) {
		if !statement.MatchString(text) || strings.Contains(text, "migration") || strings.Contains(text, "schema_version") || strings.Contains(text, "INTO head") || strings.HasPrefix(text, "CREATE") || strings.HasPrefix(text, "begin") {
			return
		}
		one := said{SQL: text}
		for _, a := range args {
			if !strings.HasPrefix(fmt.Sprintf("%T", a), "pgx.") {
				one.Args = append(one.Args, argumentOf(t, a))
			}
		}
		mu.Lock()
		defer mu.Unlock()
		if _, known := all[text]; !known {
			all[text] = one
		}
	}
	t.Run("contract", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T, dir string, now func() time.Time) (*store.Store, error) {
			mu.Lock()
			url := databases[dir]
			if url == "" {
				url = server.Database(t)
				databases[dir] = url
			}
			mu.Unlock()
			return store.Open(t.Context(), store.Traced(store.Config{URL: url, Now: now, Clock: now}, tell))
		})
	})
	var sorted []said
	for _, text := range slices.Sorted(maps.Keys(all)) {
		sorted = append(sorted, all[text])
	}
	data, err := json.MarshalIndent(sorted, "", "\t")
	if err == nil {
		err = os.WriteFile(fmt.Sprintf("testdata/statements-%03d.json", store.SchemaVersion), append(data, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFrozenSchema holds that a released text never changes: who has applied it
// would never apply the change.
func TestFrozenSchema(t *testing.T) {
	var sums bytes.Buffer
	for v := 1; v <= store.SchemaVersion; v++ {
		name := fmt.Sprintf("schema/%03d.sql", v)
		text, err := fs.ReadFile(store.Schema, name)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(text)
		fmt.Fprintf(&sums, "%s  %s\n", hex.EncodeToString(sum[:]), name)
	}
	if *freeze {
		if err := os.WriteFile(schemaSums, sums.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	released, err := os.ReadFile(schemaSums)
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(released, []byte("\n")); n < baseline || !bytes.HasPrefix(sums.Bytes(), released) {
		t.Errorf("a released schema text has changed: write another\nreleased:\n%snow:\n%s", released, sums.Bytes())
	}
}

package store_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/store"
)

// later is the schema of a later program: ours, and these texts.
func later(t *testing.T, more ...string) (fs.FS, int) {
	t.Helper()
	files := fstest.MapFS{}
	for v := range store.SchemaVersion {
		name := fmt.Sprintf("schema/%03d.sql", v+1)
		text, err := fs.ReadFile(store.Schema, name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = &fstest.MapFile{Data: text}
	}
	for i, text := range more {
		files[fmt.Sprintf("schema/%03d.sql", store.SchemaVersion+1+i)] = &fstest.MapFile{Data: []byte(text)}
	}
	return files, store.SchemaVersion + len(more)
}

// compatible is a schema text that lets this program go on.
var compatible = fmt.Sprintf("-- oldest: %d\nALTER TABLE node ADD COLUMN colour TEXT NOT NULL DEFAULT 'red';", store.SchemaVersion)

// TestRollingUpgrade has the next release bring the schema on while this one
// runs: it goes on, and starts again, as long as the schema says so.
func TestRollingUpgrade(t *testing.T) {
	server := postgres(t)
	cfg := store.Config{URL: server.Database(t)}
	running, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, running)
	apply(t, running, "a")

	upgrade := func(more ...string) {
		t.Helper()
		files, newest := later(t, more...)
		s, err := store.OpenAs(t.Context(), cfg, files, newest)
		if err != nil {
			t.Fatal(err)
		}
		defer closeStore(t, s)
		apply(t, s, fmt.Sprint("by-", newest))
		apply(t, running, fmt.Sprint("beside-", newest))
	}
	upgrade(compatible)
	again, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatalf("a restart of this release: %v", err)
	}
	apply(t, again, "again")
	closeStore(t, again)
	_, err = store.OpenAs(t.Context(), cfg, store.Schema, store.SchemaVersion-1)
	if !errors.Is(err, store.ErrNewer) {
		t.Errorf("the release before: %v", err)
	}

	upgrade(compatible, "CREATE TABLE breaking (one BIGINT)")
	if _, err := store.Open(t.Context(), cfg); !errors.Is(err, store.ErrNewer) {
		t.Errorf("with a schema that says nothing of this release: %v", err)
	}
	upgrade(compatible, "CREATE TABLE breaking (one BIGINT)", compatible[:strings.Index(compatible, "\n")])
	if _, err := store.Open(t.Context(), cfg); !errors.Is(err, store.ErrNewer) {
		t.Errorf("what one text broke, the next cannot mend: %v", err)
	}
	n := store.SchemaVersion
	want := []string{"a", "again", fmt.Sprint("beside-", n+1), fmt.Sprint("beside-", n+2), fmt.Sprint("beside-", n+3), fmt.Sprint("by-", n+1), fmt.Sprint("by-", n+2), fmt.Sprint("by-", n+3)}
	if d := cmp.Diff(want, names(t, running)); d != "" {
		t.Errorf("want -, got +:\n%s", d)
	}
}

// TestOlderProgram is the same on SQLite, one after the other.
func TestOlderProgram(t *testing.T) {
	cfg := store.Config{Dir: t.TempDir()}
	for _, row := range []struct {
		name string
		more []string
		want error
	}{{"a schema that goes with this program", []string{compatible}, nil}, {"one that doesn't", []string{compatible, "CREATE TABLE breaking (one BIGINT)"}, store.ErrNewer}} {
		files, newest := later(t, row.more...)
		s, err := store.OpenAs(t.Context(), cfg, files, newest)
		if err != nil {
			t.Fatal(err)
		}
		closeStore(t, s)
		s, err = store.Open(t.Context(), cfg)
		if !errors.Is(err, row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
		if err == nil {
			apply(t, s, "a")
			closeStore(t, s)
		}
	}
}

// TestMigrationIsWhole has a text fail: what stood before it stands.
func TestMigrationIsWhole(t *testing.T) {
	cfg := store.Config{Dir: t.TempDir()}
	files, newest := later(t, compatible, "CREATE TABLE half (one BIGINT); INSERT INTO nowhere VALUES (1)")
	if _, err := store.OpenAs(t.Context(), cfg, files, newest); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("schema %d", newest)) {
		t.Fatalf("the error is %v", err)
	}
	files, newest = later(t, compatible, "CREATE TABLE half (one BIGINT)")
	s, err := store.OpenAs(t.Context(), cfg, files, newest)
	if err != nil {
		t.Fatal(err)
	}
	closeStore(t, s)
}

// TestMigrationGivesWay has somebody read for long what a migration changes:
// brokers' work, which would queue up behind the migration, goes on.
func TestMigrationGivesWay(t *testing.T) {
	server := postgres(t)
	cfg := store.Config{URL: server.Database(t)}
	running, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, running)
	db, err := sql.Open("pgx", cfg.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	reader, err := db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Rollback()
	if _, err := reader.ExecContext(t.Context(), "SELECT count(*) FROM node"); err != nil {
		t.Fatal(err)
	}
	migrated := make(chan error, 1)
	go func() {
		files, newest := later(t, compatible)
		s, err := store.OpenAs(t.Context(), cfg, files, newest)
		if err == nil {
			err = s.Close()
		}
		migrated <- err
	}()
	for range 2 { // the second time it tries again
		awaitQueue(t, db)
		if _, err := running.Nodes(t.Context()); err != nil {
			t.Fatal(err)
		}
		apply(t, running, fmt.Sprint("a", time.Now().UnixNano()))
	}
	select {
	case err := <-migrated:
		t.Fatalf("it changed what is being read: %v", err)
	default:
	}
	if err := reader.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := <-migrated; err != nil {
		t.Fatal(err)
	}
}

// awaitQueue waits until somebody waits for a table.
func awaitQueue(t *testing.T, db *sql.DB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for waiting := 0; waiting == 0; {
		if err := db.QueryRowContext(ctx, "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted").Scan(&waiting); err != nil {
			t.Fatalf("no migration waits: %v", err)
		}
	}
}

// baseline is the last schema whose text says nothing of older programs.
const baseline = 10

var (
	adds = regexp.MustCompile(`(?i)^(create table \w+|alter table \w+ add column)\b`)
	// On a table that is made in the same text, which nobody waits for.
	addsTo = regexp.MustCompile(`(?i)^(?:create (?:unique )?index \w+ on|insert into) (\w+)\b`)
	needs  = regexp.MustCompile(`(?i)^alter .*\bnot null\b`)
)

// breaks is why a program that doesn't know a text, or one that works while it
// runs, could fail by it; empty: it couldn't.
func breaks(text string) string {
	for _, one := range strings.Split(regexp.MustCompile(`(?m)--.*$`).ReplaceAllString(text, ""), ";") {
		one = strings.Join(strings.Fields(one), " ")
		on := addsTo.FindStringSubmatch(one)
		switch {
		case one == "":
		case on != nil && regexp.MustCompile(`(?i)create table `+on[1]+`\b`).MatchString(text):
		case !adds.MatchString(one):
			return one
		case needs.MatchString(one) && !strings.Contains(strings.ToLower(one), " default "):
			return one
		}
	}
	return ""
}

// TestSchemasSayWhoMayGoOn holds texts to what they say of older programs.
func TestSchemasSayWhoMayGoOn(t *testing.T) {
	for v := baseline + 1; v <= store.SchemaVersion; v++ {
		data, err := fs.ReadFile(store.Schema, fmt.Sprintf("schema/%03d.sql", v))
		if err != nil {
			t.Fatal(err)
		}
		text := string(data)
		oldest, err := store.Oldest(text, v)
		if err != nil || !strings.HasPrefix(text, "-- oldest:") {
			t.Errorf("schema %d: the first line is not -- oldest: N (%v), see migrations", v, err)
		}
		if why := breaks(text); oldest < v && why != "" {
			t.Errorf("schema %d lets programs of %d go on, but: %s", v, oldest, why)
		}
	}
	for text, want := range map[string]bool{
		"CREATE TABLE a (b BIGINT NOT NULL); CREATE INDEX a_b ON a (b); INSERT INTO a VALUES (1);": false,
		"ALTER TABLE a ADD COLUMN b TEXT": false, "ALTER TABLE a ADD COLUMN b TEXT NOT NULL DEFAULT ''": false,
		"ALTER TABLE a ADD COLUMN b TEXT NOT NULL": true, "ALTER TABLE a DROP COLUMN b": true, "ALTER TABLE a RENAME TO b": true,
		"DROP TABLE a": true, "CREATE INDEX a_b ON a (b)": true, "CREATE UNIQUE INDEX a_b ON a (b)": true, "UPDATE a SET b = 1": true, "DELETE FROM a": true,
	} {
		if why := breaks(text); (why != "") != want {
			t.Errorf("%s breaks: %q", text, why)
		}
	}
}

package store_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/storetest"
)

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T, dir string, now func() time.Time) (*store.Store, error) {
		return store.Open(t.Context(), store.Config{Dir: dir, Now: now})
	})
}

func open(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func closeStore(t *testing.T, s *store.Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, s *store.Store, name string) {
	t.Helper()
	_, last, err := s.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Apply(t.Context(), last, store.Act{Actor: "uid:0", What: "apply"}, []store.Change{{Kind: "Identity", Name: name, Owner: "team", Body: []byte("text of " + name)}}); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, s *store.Store) (names []string) {
	t.Helper()
	all, _, err := s.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		names = append(names, r.Name)
	}
	return names
}

func TestPragmas(t *testing.T) {
	s := open(t, t.TempDir())
	for name, want := range map[string]string{
		"journal_mode": "wal", "synchronous": "2", "fullfsync": "1", "checkpoint_fullfsync": "1", "foreign_keys": "1", "busy_timeout": "5000",
	} {
		write, read, err := s.Pragma(t.Context(), name)
		if err != nil || write != want || read != want {
			t.Errorf("%s is %q and %q (%v), want %q", name, write, read, err, want)
		}
	}
	if write, read, err := s.Pragma(t.Context(), "query_only"); err != nil || write != "0" || read != "1" {
		t.Errorf("query_only is %q and %q (%v)", write, read, err)
	}
}

// modes are those of everything in a directory, and its own under ".".
func modes(t *testing.T, dir string) map[string]fs.FileMode {
	t.Helper()
	got := map[string]fs.FileMode{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		got[name] = fi.Mode().Perm()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

var filesOnly = map[string]fs.FileMode{"credence.db": 0o600, "credence.db-wal": 0o600, "credence.db-shm": 0o600, "lock": 0o600}

func TestNobodyElseReads(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0)) // no test here is parallel
	dir := filepath.Join(t.TempDir(), "above", "data")
	s := open(t, dir)
	apply(t, s, "a")
	want := map[string]fs.FileMode{".": 0o700}
	for name, mode := range filesOnly {
		want[name] = mode
	}
	if d := cmp.Diff(want, modes(t, dir)); d != "" {
		t.Error(d)
	}
	if got := modes(t, filepath.Dir(dir))["."]; got != 0o700 {
		t.Errorf("the directory above is %v", got)
	}
}

// TestFilesOfABackup opens files that were copied back for all to read.
func TestFilesOfABackup(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	s := open(t, from)
	apply(t, s, "a")
	for name := range filesOnly { // with a log that is not yet in the database
		text, err := os.ReadFile(filepath.Join(from, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(to, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	back := open(t, to)
	if got := names(t, back); !cmp.Equal(got, []string{"a"}) {
		t.Errorf("resources %v", got)
	}
	got := modes(t, to)
	delete(got, ".")
	if d := cmp.Diff(filesOnly, got); d != "" {
		t.Error(d)
	}
}

func TestDirectory(t *testing.T) {
	for _, row := range []struct {
		name string
		make func(dir string) error
		want string // part of the error; empty: taken
	}{
		{"absent", func(string) error { return nil }, ""},
		{"our own", func(dir string) error { return os.Mkdir(dir, 0o700) }, ""},
		{"others may read", func(dir string) error { return os.Mkdir(dir, 0o755) }, ""},
		{"its group may write", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o770)) }, "chmod go-w"},
		{"others may write", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o702)) }, "chmod go-w"},
		{"even if it is sticky", func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777|fs.ModeSticky)) }, "chmod go-w"},
		{"a file", func(dir string) error { return os.WriteFile(dir, nil, 0o600) }, "not a directory"},
		{"another's", func(dir string) error {
			if os.Geteuid() != 0 {
				t.Skip("only root makes a directory of another's")
			}
			return errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, 12345, 12345))
		}, "another user"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "a?b=c#d %41&e") // and a name that means much in a URI
			if err := row.make(dir); err != nil {
				t.Fatal(err)
			}
			s, err := store.Open(t.Context(), store.Config{Dir: dir})
			if row.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				if _, err := os.Stat(filepath.Join(dir, "credence.db-wal")); err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), row.want) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("the error is %v", err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) > 0 {
				t.Errorf("it holds %v", entries)
			}
		})
	}
	if _, err := store.Open(t.Context(), store.Config{}); err == nil {
		t.Error("no directory is taken")
	}
}

// Regression: CVE-2025-62513
func TestTokensAreHashed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	text, hash := token.New()
	if err := s.CreateToken(t.Context(), store.Token{Hash: hash, Node: "n1", ExpiresAt: time.Now().Add(time.Minute), CreatedBy: "uid:0"}); err != nil {
		t.Fatal(err)
	}
	look := func(when string) {
		found := 0
		for name := range modes(t, dir) {
			data, err := os.ReadFile(filepath.Join(dir, name))
			if err != nil && name != "." && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if bytes.Contains(data, []byte(strings.TrimPrefix(text, token.Prefix))) {
				t.Errorf("%s: %s holds the token", when, name)
			}
			if bytes.Contains(data, hash) {
				found++
			}
		}
		if found == 0 {
			t.Errorf("%s: no file holds even the hash", when)
		}
	}
	look("made")
	if _, _, err := s.SpendToken(t.Context(), hash, "token", time.Now()); err != nil {
		t.Fatal(err)
	}
	look("spent")
	closeStore(t, s)
	look("closed")
}

// bytesOf reads the files that may not change.
func bytesOf(t *testing.T, dir string) map[string]string {
	t.Helper()
	got := map[string]string{}
	for name := range modes(t, dir) {
		if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
			got[name] = string(data)
		}
	}
	return got
}

func TestNewerSchema(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	apply(t, s, "a")
	closeStore(t, s)
	alter(t, dir, `UPDATE head SET schema_version = 1000`)
	before := bytesOf(t, dir)
	_, err := store.Open(t.Context(), store.Config{Dir: dir})
	if !errors.Is(err, store.ErrNewer) || !strings.Contains(err.Error(), "1000") {
		t.Fatalf("the error is %v", err)
	}
	if d := cmp.Diff(before, bytesOf(t, dir)); d != "" {
		t.Error("the files changed: ", d)
	}
	alter(t, dir, fmt.Sprintf(`UPDATE head SET schema_version = %d`, store.SchemaVersion)) // and it let the directory go
	if got := names(t, open(t, dir)); !cmp.Equal(got, []string{"a"}) {
		t.Errorf("resources %v", got)
	}
}

// alter changes the database past the store.
func alter(t *testing.T, dir, text string) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "credence.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), text); err != nil {
		t.Fatal(err)
	}
}

func TestNoDatabase(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "credence.db")
	text := strings.Repeat("this is a letter to my aunt\n", 100)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), "restore a backup") {
		t.Errorf("the error is %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != text {
		t.Errorf("it is changed (%v)", err)
	}
}

func TestLocked(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	if _, err := store.Open(t.Context(), store.Config{Dir: dir}); !errors.Is(err, store.ErrLocked) {
		t.Fatalf("a second one: %v", err)
	}
	apply(t, s, "a") // the first goes on
	closeStore(t, s)
	if got := names(t, open(t, dir)); !cmp.Equal(got, []string{"a"}) {
		t.Errorf("resources %v", got)
	}
}

func TestOpenEnds(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Open(ctx, store.Config{Dir: dir}); !errors.Is(err, context.Canceled) {
		t.Fatalf("the error is %v", err)
	}
	open(t, dir)
}

// TestOldSchema brings a database of the first schema up: what it did not know
// of a node's SVIDs stays unknown.
func TestOldSchema(t *testing.T) {
	dir := t.TempDir()
	first, err := os.ReadFile("schema/001.sql")
	if err != nil {
		t.Fatal(err)
	}
	alter(t, dir, `CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), schema_version BIGINT NOT NULL, revision BIGINT NOT NULL);
		INSERT INTO head VALUES (1, 1, 5);`+string(first)+`
		INSERT INTO node VALUES ('spiffe://example.org/credence/node/n1', 5, 'n1', 'token', '', 'token:n1', '{"node.name":["n1"]}', 1, x'01', x'', 2, NULL);`)
	nodes, err := open(t, dir).Nodes(t.Context())
	if err != nil || len(nodes) != 1 || nodes[0].Name != "n1" || !nodes[0].IssuedAt.IsZero() || nodes[0].Authority != "" {
		t.Errorf("nodes %v (%v)", nodes, err)
	}
}

// BenchmarkIndex is what one SVID costs in the issuance index, in batches as
// the indexer writes them, beside rows that are there already.
func BenchmarkIndex(b *testing.B) {
	for _, row := range []struct {
		name           string
		standing, size int
	}{{"empty, 256 a batch", 0, 256}, {"100k rows, 256 a batch", 100_000, 256}, {"100k rows, 16 a batch", 100_000, 16}} {
		b.Run(row.name, func(b *testing.B) {
			s, err := store.Open(b.Context(), store.Config{Dir: b.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer s.Close()
			next := 0
			add := func(n int) {
				rows := make([]broker.Issued, n)
				for i := range rows {
					next++
					sum := sha256.Sum256([]byte(fmt.Sprint(next)))
					rows[i] = broker.Issued{
						Kind: broker.KindX509, Serial: hex.EncodeToString(sum[:16]), SPIFFEID: fmt.Sprintf("spiffe://example.org/ns/shop/w%d", next%5000),
						Identity: fmt.Sprintf("w%d", next%5000), Revision: 7, Node: fmt.Sprintf("spiffe://example.org/credence/node/n%d", next%1000),
						Authority: "0123456789abcdef0123456789abcdef", IssuedAt: time.UnixMilli(int64(next)), ExpiresAt: time.UnixMilli(int64(next) + 3_600_000), Record: uint64(next),
					}
				}
				if err := s.AddIssued(b.Context(), "b1", audit.Ref{Sequence: uint64(next)}, rows); err != nil {
					b.Fatal(err)
				}
			}
			for next < row.standing {
				add(5000)
			}
			b.ResetTimer()
			before := cpu(b)
			for n := 0; n < b.N; n += row.size {
				add(row.size)
			}
			b.ReportMetric(float64(cpu(b)-before)/float64(b.N)/1e3, "cpu-µs/row")
		})
	}
}

// cpu is what this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// TestTriedAgain holds that a write which the engine could not do beside others
// is the same when it is tried again.
func TestTriedAgain(t *testing.T) {
	s := open(t, t.TempDir())
	facts, err := identity.NewFacts("node", map[string][]string{"node.name": {"n1"}})
	if err != nil {
		t.Fatal(err)
	}
	n := broker.Node{ID: "spiffe://example.org/credence/node/n1", Name: "n1", Method: "token", DurableKey: "token:n1", Facts: facts}
	for _, what := range []string{"joins", "renews"} {
		if err := s.FailOnce(t.Context(), "node"); err != nil {
			t.Fatal(err)
		}
		before := n.Revision
		if n, err = s.SaveNode(t.Context(), n); err != nil || n.Revision <= before {
			t.Fatalf("it %s: revision %d, %v", what, n.Revision, err)
		}
	}
}

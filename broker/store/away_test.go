package store_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/postgrestest"
)

func TestWithoutDatabase(t *testing.T) {
	server := postgres(t)
	for name, test := range map[string]func(*testing.T, *postgrestest.Server){
		"what waits ends and nobody waits again": awayFailsAtOnce, "it comes back though nobody looks": nobodyLooks,
		"a start from the snapshot": startWithoutDatabase, "no start from a snapshot": noStartFromASnapshot, "another database": anotherDatabase,
	} {
		t.Run(name, func(t *testing.T) { test(t, server) })
	}
}

func openShared(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// back looks until the database is there.
func back(t *testing.T, s *store.Store) {
	t.Helper()
	for late := time.Now().Add(time.Minute); ; {
		_, err := s.Revision(t.Context())
		if err == nil {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("the database does not come back: %v", err)
		}
	}
}

// awayFailsAtOnce freezes the server under an open store: what waits for it
// ends at the next look, and whoever comes then waits for nothing.
func awayFailsAtOnce(t *testing.T, server *postgrestest.Server) {
	s := openShared(t, store.Patience(store.Config{URL: server.Database(t)}, time.Second))
	apply(t, s, "a")
	server.Freeze(t)
	var waiting sync.WaitGroup
	for i := range 20 { // more than there are connections
		waiting.Go(func() {
			var err error
			if i%2 == 0 {
				err = s.ConfirmAnchor(t.Context(), fmt.Sprint("root", i), "cloud", "uid:0")
			} else {
				_, _, err = s.Resources(t.Context())
			}
			if !errors.Is(err, store.ErrAway) {
				t.Errorf("under way: %v", err)
			}
		})
	}
	if _, err := s.Revision(t.Context()); !errors.Is(err, store.ErrAway) {
		t.Errorf("the look: %v", err)
	}
	waiting.Wait()
	if away, is := s.Away(); !is || away.Since.IsZero() || away.Reason == nil || !away.Snapshot.IsZero() {
		t.Errorf("away: %v, %v", away, is)
	}
	brief, cancel := context.WithTimeout(t.Context(), time.Second) // for all of them
	defer cancel()
	for range 100 {
		_, issued, err := s.Issued(brief, broker.IssuedQuery{Serial: "1"})
		if !errors.Is(err, store.ErrAway) || issued != 0 {
			t.Fatalf("a read: %v", err)
		}
		if err := s.SpendEvidence(brief, [32]byte{1}, time.Now().Add(time.Hour), time.Now()); !errors.Is(err, store.ErrAway) {
			t.Fatalf("a write: %v", err)
		}
	}
	server.Thaw(t)
	back(t, s)
	if _, is := s.Away(); is {
		t.Error("it is still away")
	}
	apply(t, s, "b")
}

// nobodyLooks has a store find by itself that the database is back.
func nobodyLooks(t *testing.T, server *postgrestest.Server) {
	s := openShared(t, store.Patience(store.Config{URL: server.Database(t)}, time.Minute))
	server.Stop()
	write := func() error { return s.ConfirmAnchor(t.Context(), "root", "cloud", "uid:0") }
	if err := write(); !errors.Is(err, store.ErrAway) {
		t.Errorf("stopped: %v", err)
	}
	server.Run(t)
	s.LookedLongAgo()
	if err := write(); err != nil {
		t.Error(err)
	}
}

var secret = []byte("a key of thirty-two bytes or so.")

func snapshotOf(t *testing.T, s *store.Store) store.Snapshot {
	t.Helper()
	kept := store.Snapshot{Path: filepath.Join(t.TempDir(), "snapshot.sealed"), TrustDomain: "example.org", Keys: [][]byte{secret}}
	if _, err := (&store.Keeper{Store: s, Snapshot: kept}).Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	return kept
}

// startWithoutDatabase starts from a snapshot while the server is down: what
// was known is read, nothing is written or made up, and the store goes on with the
// database once that is there, as it is by then.
func startWithoutDatabase(t *testing.T, server *postgrestest.Server) {
	url := server.Database(t)
	first := openShared(t, store.Config{URL: url})
	apply(t, first, "a")
	kept := snapshotOf(t, first)
	apply(t, first, "unknown")
	closeStore(t, first)
	server.Stop()

	s := openShared(t, store.Config{URL: url, Snapshot: &kept})
	away, is := s.Away()
	if !is || away.Since.IsZero() || away.Snapshot.IsZero() {
		t.Errorf("away: %v, %v", away, is)
	}
	if d := cmp.Diff([]string{"a"}, names(t, s)); d != "" {
		t.Error(d)
	}
	if _, err := s.Nodes(t.Context()); err != nil {
		t.Error(err)
	}
	_, standing := s.Replicas(t.Context(), time.Hour)
	_, joined := s.Node(t.Context(), "spiffe://example.org/credence/node/since")
	_, reading := s.Revision(t.Context())
	_, _, asking := s.Issued(t.Context(), broker.IssuedQuery{Serial: "1"})
	_, holding := s.HoldsEvidence(t.Context(), [32]byte{}, "n", time.Now())
	_, _, listing := s.Revisions(t.Context(), 0, "", "", 1)
	_, again := (&store.Keeper{Store: s, Snapshot: kept}).Make(t.Context())
	for what, err := range map[string]error{
		"a write": s.ConfirmAnchor(t.Context(), "root", "cloud", "uid:0"), "the revision": reading, "who joined since": joined,
		"who is there": standing, "what was issued": asking, "what is spent": holding, "what changed": listing, "a snapshot of a snapshot": again,
	} {
		if !errors.Is(err, store.ErrAway) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if standing != nil && strings.Contains(standing.Error(), "SQL") {
		t.Errorf("operators are told of it as %v", standing)
	}

	server.Run(t)
	other := openShared(t, store.Config{URL: url})
	apply(t, other, "later")
	back(t, s)
	if _, is := s.Away(); is {
		t.Error("it is still away")
	}
	if d := cmp.Diff([]string{"a", "later", "unknown"}, names(t, s)); d != "" {
		t.Error(d)
	}
	apply(t, s, "here")
	server.Stop() // it never goes back to the snapshot
	if _, err := s.Revision(t.Context()); !errors.Is(err, store.ErrAway) {
		t.Error(err)
	}
	if _, _, err := s.Resources(t.Context()); !errors.Is(err, store.ErrAway) {
		t.Errorf("read from the snapshot again: %v", err)
	}
	server.Run(t)
}

// noStartFromASnapshot holds that a database that is there and will not have
// us, or is another, is no database that is away.
func noStartFromASnapshot(t *testing.T, server *postgrestest.Server) {
	url := server.Database(t)
	first := openShared(t, store.Config{URL: url})
	apply(t, first, "a")
	kept := snapshotOf(t, first)
	patience := time.Minute
	refused := func(what string, cfg store.Config, want string) {
		t.Helper()
		s, err := store.Open(t.Context(), store.Patience(cfg, patience))
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("an unknown database", store.Config{URL: strings.Replace(url, "/postgres?", "/nobody?", 1), Snapshot: &kept}, "does not exist")
	refused("an unknown user", store.Config{URL: strings.Replace(url, "credence@", "mallory@", 1), Snapshot: &kept}, "let this user in")
	server.Exec(t, "UPDATE "+schemaOf(url)+".head SET schema_version = 1000")
	refused("a newer schema", store.Config{URL: url, Snapshot: &kept}, "newer version")
	server.Exec(t, fmt.Sprintf("UPDATE %s.head SET schema_version = %d", schemaOf(url), store.SchemaVersion))

	mute, err := net.Listen("tcp", "127.0.0.1:0") // who takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	patience = 300 * time.Millisecond
	silent := "postgres://credence@" + mute.Addr().String() + "/postgres?sslmode=disable"
	none := kept
	none.Path += "?"
	other, key := kept, kept
	other.TrustDomain, key.Keys = "other.example", [][]byte{[]byte("another key of sixteen or more")}
	old := func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
	refused("no snapshot is named", store.Config{URL: silent}, "away")
	refused("there is no snapshot", store.Config{URL: silent, Snapshot: &none}, "no snapshot")
	refused("another trust domain's", store.Config{URL: silent, Snapshot: &other}, "another trust domain")
	refused("another key's", store.Config{URL: silent, Snapshot: &key}, "another key")
	refused("an old one", store.Config{URL: silent, Snapshot: &kept, Now: old}, "older than 7 days; start when")
	keys := kept
	keys.Keys = [][]byte{key.Keys[0], secret}
	s := openShared(t, store.Patience(store.Config{URL: silent, Snapshot: &keys}, patience))
	if d := cmp.Diff([]string{"a"}, names(t, s)); d != "" {
		t.Error(d)
	}
}

func schemaOf(url string) string { return url[strings.LastIndex(url, "=")+1:] }

// anotherDatabase refuses to go on with one that stands before the snapshot.
func anotherDatabase(t *testing.T, server *postgrestest.Server) {
	url := server.Database(t)
	first := openShared(t, store.Config{URL: url})
	apply(t, first, "a")
	kept := snapshotOf(t, first)
	closeStore(t, first)
	server.Stop()
	s := openShared(t, store.Patience(store.Config{URL: url, Snapshot: &kept}, time.Minute))
	server.Run(t)
	server.Exec(t, "UPDATE "+schemaOf(url)+".head SET revision = 0")
	if _, err := s.Revision(t.Context()); err == nil || !strings.Contains(err.Error(), "old backup") {
		t.Errorf("an older database: %v", err)
	}
	if err := s.ConfirmAnchor(t.Context(), "root", "cloud", "uid:0"); !errors.Is(err, store.ErrAway) {
		t.Errorf("it is written to: %v", err)
	}
	if d := cmp.Diff([]string{"a"}, names(t, s)); d != "" {
		t.Error(d)
	}
}

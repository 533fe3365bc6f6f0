package store_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/store"
)

// TestRestore loads a dump as what takes a lost database's place, in both engines.
func TestRestore(t *testing.T) {
	from := open(t, t.TempDir())
	now := time.Now().Truncate(time.Second)
	nodeID := func(name string) string { return "spiffe://example.org/credence/node/" + name }
	for _, name := range []string{"renews", "out", "stays"} {
		facts, err := identity.NewFacts("node", map[string][]string{"node.name": {name}})
		if err != nil {
			t.Fatal(err)
		}
		_, err = from.SaveNode(t.Context(), broker.Node{ID: nodeID(name), Name: name, Method: "token", DurableKey: "token:" + name, Facts: facts,
			Serial: []byte{1}, PreviousSerial: []byte{9}, Key: []byte("key"), IssuedAt: now.Add(-30 * time.Second), Authority: "ca1", ExpiresAt: now.Add(time.Hour)})
		if err != nil {
			t.Fatal(err)
		}
	}
	apply(t, from, "web")
	var hashes [][]byte
	for _, name := range []string{"spent", "open"} {
		_, hash := token.New()
		hashes = append(hashes, hash)
		if err := from.CreateToken(t.Context(), store.Token{Hash: hash, Node: name, ExpiresAt: now.Add(time.Hour), CreatedBy: "uid:0"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := from.SpendToken(t.Context(), hashes[0], "token", now); err != nil {
		t.Fatal(err)
	}
	var keys []authority.Record
	for _, alg := range []string{"RS256", "ES256"} {
		for _, state := range []authority.State{authority.Active, authority.Published, authority.Old} {
			if alg == "RS256" && state == authority.Old {
				continue
			}
			keys = append(keys, authority.Record{ID: alg + " " + string(state), Use: authority.JWTKey, Alg: alg, State: state, KeyRef: "k", PublishedAt: now, NotAfter: now.Add(time.Hour)})
		}
	}
	if _, err := from.SaveAuthorities(t.Context(), authority.Change{Records: keys, Publication: authority.Publication{Sequence: 7, Digest: []byte("digest")}, All: true}); err != nil {
		t.Fatal(err)
	}
	var dump bytes.Buffer
	if _, err := from.Dump(t.Context(), &dump, store.Selection{}); err != nil {
		t.Fatal(err)
	}
	before, err := from.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	since := store.Since{
		Evicted: []string{nodeID("out"), nodeID("unknown")},
		SVIDs: []broker.Issued{
			{Node: nodeID("renews"), Serial: hex.EncodeToString([]byte{2}), Authority: "ca1", IssuedAt: now.Add(-time.Minute), ExpiresAt: now.Add(2 * time.Hour)},
			{Node: nodeID("renews"), Serial: hex.EncodeToString([]byte{3}), Authority: "ca2", IssuedAt: now, ExpiresAt: now.Add(3 * time.Hour)},
			{Node: nodeID("unknown"), Serial: "05", IssuedAt: now},
		},
	}
	cfgs := map[string]store.Config{"SQLite": {Dir: t.TempDir()}}
	if server := postgres(t); server != nil {
		cfgs["PostgreSQL"] = store.Config{URL: server.Database(t)}
		if empty, err := store.Empty(t.Context(), cfgs["PostgreSQL"]); err != nil || !empty {
			t.Errorf("a new database is empty: %v (%v)", empty, err)
		}
	}
	for engine, cfg := range cfgs {
		t.Run(engine, func(t *testing.T) {
			cut := dump.Bytes()[:dump.Len()-3]
			if _, _, err := store.Restore(t.Context(), cfg, bytes.NewReader(cut), since); err == nil {
				t.Fatal("a dump that was cut short is loaded")
			}
			s, got, err := store.Restore(t.Context(), cfg, bytes.NewReader(dump.Bytes()), since)
			if err != nil {
				t.Fatal(err)
			}
			defer closeStore(t, s)
			want := store.Restored{
				Head: store.DumpHead{Schema: store.SchemaVersion, Revision: before}, Revision: before + store.Ahead, Tokens: 1,
				Known: []string{nodeID("out"), nodeID("renews"), nodeID("stays")}, Evicted: []string{nodeID("out")}, Strange: []string{nodeID("unknown")},
				Renewed: map[string]bool{nodeID("renews"): true},
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("want -, got +:\n%s", d)
			}
			if r, err := s.Revision(t.Context()); err != nil || r != got.Revision {
				t.Errorf("revision %d (%v)", r, err)
			}
			if _, _, err := s.SpendToken(t.Context(), hashes[1], "token", now); !errors.Is(err, broker.ErrNotFound) {
				t.Errorf("an open token: %v", err)
			}
			nodes, err := s.Nodes(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, n := range nodes {
				switch n.Name {
				case "renews":
					if !bytes.Equal(n.Serial, []byte{3}) || !bytes.Equal(n.PreviousSerial, []byte{2}) || len(n.Key) > 0 || n.Authority != "ca2" || n.PreviousAuthority != "ca1" || !n.IssuedAt.Equal(now) || !n.ExpiresAt.Equal(now.Add(3*time.Hour)) {
						t.Errorf("%+v", n)
					}
				case "stays":
					if !bytes.Equal(n.Serial, []byte{1}) || string(n.Key) != "key" || !n.EvictedAt.IsZero() {
						t.Errorf("%+v", n)
					}
				case "out":
					if n.EvictedAt.IsZero() {
						t.Error("it is back")
					}
					n.Revision, n.EvictedAt = 0, time.Time{}
					if _, err := s.SaveNode(t.Context(), n); !errors.Is(err, broker.ErrConflict) {
						t.Errorf("its key joins again: %v", err)
					}
				}
			}
			all, p, err := s.Authorities(t.Context())
			if err != nil || p.Sequence < uint64(now.UnixMilli()) || len(p.Digest) > 0 {
				t.Errorf("publication %+v (%v)", p, err)
			}
			var states []string
			for _, a := range all {
				states = append(states, fmt.Sprint(a.ID, " is ", a.State))
			}
			slices.Sort(states)
			// Three at most are published: ES256's standby leaves, RS256's stays to be verified.
			if d := cmp.Diff([]string{"ES256 active is active", "ES256 old is old", "ES256 published is revoked", "RS256 active is active", "RS256 published is old"}, states); d != "" {
				t.Errorf("want -, got +:\n%s", d)
			}
			if cfg.URL != "" {
				if empty, err := store.Empty(t.Context(), cfg); err != nil || empty {
					t.Errorf("it is empty: %v (%v)", empty, err)
				}
				if _, _, err := store.Restore(t.Context(), cfg, bytes.NewReader(dump.Bytes()), since); !errors.Is(err, store.ErrNotEmpty) {
					t.Errorf("a second time: %v", err)
				}
			}
		})
	}
}

package server_test

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/server"
)

// TestEvictionBound measures how late what one broker wrote holds on another that
// follows the same store: as broker check promises, whenever in the pause between
// two looks it is written.
func TestEvictionBound(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	empty, err := identity.NewSet(identity.Config{TrustDomain: td}, identity.Resources{})
	if err != nil {
		t.Fatal(err)
	}
	other, err := broker.New(t.Context(), broker.Config{
		TrustDomain: td, Method: e.methodOf, Issuer: e.authority, Store: e.store, Audit: e.audit, Policy: &broker.Policy{Set: empty}, Now: e.now,
		Record: e.audit, Index: e.store, CRLs: server.Lists{Authority: e.authority}, Origin: "other", DenyFile: filepath.Join(t.TempDir(), "revoked.jsonl"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.Close() })
	config := e.config
	config.Broker, config.Log = other, slog.New(slog.DiscardHandler)
	if config.Since, err = e.store.Revision(t.Context()); err != nil {
		t.Fatal(err)
	}
	follower, err := server.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- follower.CatchUp(ctx) }()
		for _, row := range []struct {
			what  string
			after time.Duration
			write func() error
			holds func() bool
		}{
			{"a revocation just after a look", server.LookEvery + time.Millisecond, func() error {
				return e.store.SaveCutoff(t.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: "web", Before: e.now(), MadeAt: e.now()})
			}, func() bool { all, _ := other.Cutoffs(t.Context()); return len(all) == 1 }},
			{"an eviction just before one", server.LookEvery - 2*time.Millisecond, func() error {
				_, err := e.store.EvictNode(t.Context(), n.id, e.now())
				return err
			}, func() bool { all := other.Nodes(); return len(all) == 1 && !all[0].EvictedAt.IsZero() }},
		} {
			time.Sleep(row.after)
			synctest.Wait()
			if err := row.write(); err != nil {
				t.Fatal(err)
			}
			wrote := time.Now()
			for !row.holds() && time.Since(wrote) < 10*server.EvictionBound {
				time.Sleep(time.Millisecond)
				synctest.Wait()
			}
			if late := time.Since(wrote); late > server.LookEvery || late > server.EvictionBound {
				t.Errorf("%s: it holds after %v", row.what, late)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

package store_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/storetest"
)

func TestPostgreSQL(t *testing.T) {
	server := postgres(t)
	var mu sync.Mutex
	databases := map[string]string{}
	storetest.Run(t, func(t *testing.T, dir string, now func() time.Time) (*store.Store, error) {
		mu.Lock()
		defer mu.Unlock() // also where no database can be made
		url := databases[dir]
		if url == "" {
			url = server.Database(t)
			databases[dir] = url
		}
		return store.Open(t.Context(), store.Config{URL: url, Now: now, Clock: now})
	})
}

// TestPostgreSQLAgain stops the server under an open store: the first write that
// comes after it is back succeeds, and one that a standby refuses is the last
// that is sent there.
func TestPostgreSQLAgain(t *testing.T) {
	server := postgres(t)
	s, err := store.Open(t.Context(), store.Config{URL: server.Database(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	var names atomic.Int64
	write := func() error { return s.ConfirmAnchor(t.Context(), fmt.Sprint("root", names.Add(1)), "cloud", "uid:0") }
	must := func(what string) {
		t.Helper()
		back(t, s) // as who keeps looking finds
		if err := write(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	must("at first")
	for what, end := range map[string]func(){"stopped": server.Stop, "killed": server.Kill} {
		end()
		if err := write(); err == nil {
			t.Errorf("%s: it writes to nobody", what)
		}
		if _, err := s.Revision(t.Context()); err == nil {
			t.Errorf("%s: it reads from nobody", what)
		}
		server.Run(t)
		must(what)
	}
	var idle sync.WaitGroup // several connections that are open when it is demoted
	for range 4 {
		idle.Go(func() { must("at a time") })
	}
	idle.Wait()
	server.Exec(t, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")
	err = nil
	for late := time.Now().Add(time.Minute); err == nil && time.Now().Before(late); { // a session hears of it between two statements
		err = write()
	}
	if err == nil || !strings.Contains(err.Error(), "this server takes no writes now") {
		t.Errorf("refused as read-only: %v", err)
	}
	if _, err := s.Revision(t.Context()); err == nil {
		t.Error("it reads from a server that is no primary")
	}
	server.Exec(t, "ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()")
	must("promoted")
}

// A broker whose clock is days off has no lease sooner nor longer than others, takes
// nobody's name, holds nobody for gone, and forgets nothing that others still need.
func TestPostgreSQLClock(t *testing.T) {
	ctx, url := t.Context(), postgres(t).Database(t)
	right := openShared(t, store.Config{URL: url})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(store.Check(ctx, url, time.Now))
	lease, _, err := right.Acquire(ctx, "l", "b1", time.Hour, false)
	must(err)
	if lease.Ahead.Abs() > time.Minute {
		t.Errorf("a clock that is right is %s ahead", lease.Ahead)
	}
	must(right.Claim(ctx, store.Replica{Name: "b1", Instance: "i1"}))
	for _, c := range []string{"a", "b"} {
		must(right.SaveCutoff(ctx, broker.Cutoff{Kind: broker.CutIdentity, Value: c, Before: time.Now()}))
	}
	digest := [32]byte{1}
	must(right.SpendEvidence(ctx, digest, time.Now().Add(time.Hour), time.Now()))
	for what, by := range map[string]time.Duration{"ahead": 10 * 24 * time.Hour, "behind": -10 * 24 * time.Hour} {
		now := func() time.Time { return time.Now().Add(by) }
		wrong := openShared(t, store.Config{URL: url, Now: now})
		if err := store.Check(ctx, url, now); err == nil || !strings.Contains(err.Error(), "NTP") {
			t.Errorf("%s: Check: %v", what, err)
		}
		held, ok, err := wrong.Acquire(ctx, "l", "b2", time.Hour, false)
		must(err)
		if left := held.Until.Sub(now()); ok || held.Holder != "b1" || left > time.Hour || left < 30*time.Minute {
			t.Errorf("%s: it has what b1 holds (%v), which it thinks lasts for %s", what, ok, left)
		}
		mine, _, err := wrong.Acquire(ctx, "m", "b2", time.Hour, true)
		must(err)
		if off := (mine.Ahead - by).Abs(); off > time.Minute {
			t.Errorf("%s: it is told that it is %s ahead", what, mine.Ahead)
		}
		if _, ok, err := right.Acquire(ctx, "m", "b1", time.Hour, false); err != nil || ok {
			t.Errorf("%s: what it holds is over for b1 (%v)", what, err)
		}
		if err := wrong.Claim(ctx, store.Replica{Name: "b1", Instance: "i2"}); !errors.Is(err, store.ErrNamed) {
			t.Errorf("%s: it takes b1's name: %v", what, err)
		}
		must(wrong.Claim(ctx, store.Replica{Name: "b2" + what, Instance: "i2"}))
		for _, s := range []*store.Store{right, wrong} {
			all, err := s.Replicas(ctx, store.GoneAfter)
			must(err)
			if !slices.ContainsFunc(all, func(r store.Replica) bool { return r.Name == "b1" }) || !slices.ContainsFunc(all, func(r store.Replica) bool { return r.Name == "b2"+what }) {
				t.Errorf("%s: one is thought gone: %v", what, all)
			}
		}
		must(wrong.ForgetCutoffs(ctx, now().Add(-time.Hour)))
		if cuts, _, err := right.Cutoffs(ctx, 0); err != nil || len(cuts) != 2 {
			t.Errorf("%s: it forgets %d cut-offs of 2 (%v)", what, 2-len(cuts), err)
		}
		must(wrong.SpendEvidence(ctx, [32]byte{2, byte(by >> 60)}, now().Add(time.Hour), now()))
		if err := right.SpendEvidence(ctx, digest, time.Now().Add(time.Hour), time.Now()); !errors.Is(err, broker.ErrSpent) {
			t.Errorf("%s: it forgets spent evidence: %v", what, err)
		}
	}
}

// TestPostgreSQLAtOneTime starts many brokers on an empty database.
func TestPostgreSQLAtOneTime(t *testing.T) {
	url := postgres(t).Database(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			s, err := store.Open(t.Context(), store.Config{URL: url})
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.ConfirmAnchor(t.Context(), "root", "cloud", "uid:0"); err != nil {
				t.Error(err)
			}
			closeStore(t, s)
		})
	}
	all.Wait()
}

func TestCheckURL(t *testing.T) {
	for url, want := range map[string]string{
		"postgres://credence@/credence?host=/run/postgresql":              "",
		"postgres://credence@localhost/credence":                          "",
		"postgres://credence@127.0.0.1:5433/credence?sslmode=disable":     "",
		"postgres://credence@[::1]/credence":                              "",
		"postgres://credence@db.example.org/credence?sslmode=verify-full": "",
		"host=db.example.org user=credence sslmode=verify-full":           "",
		"postgres://credence@db.example.org/credence":                     "db.example.org must prove who it is",
		"postgres://credence@db.example.org/credence?sslmode=disable":     "must prove who it is",
		"postgres://credence@db.example.org/credence?sslmode=require":     "must prove who it is",
		"postgres://credence@db.example.org/credence?sslmode=verify-ca":   "must prove who it is",
		"postgres://credence@localhost,db.example.org/credence":           "db.example.org must prove who it is",
		"postgres://credence@192.0.2.1/credence":                          "192.0.2.1 must prove who it is",
		"postgres://credence@localhost.example.org/credence":              "must prove who it is",
		"postgres://credence:hunter2@db:port/credence":                    "no PostgreSQL database",
		"mysql://credence:hunter2@db/credence":                            "no PostgreSQL database",
	} {
		err := store.CheckURL(url)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v", url, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error holds the password: %v", url, err)
		}
	}
}

// TestBell holds that whoever listens hears of a change, and of one after the
// server was away.
func TestBell(t *testing.T) {
	server := postgres(t)
	url := server.Database(t)
	open := func() *store.Store {
		s, err := store.Open(t.Context(), store.Config{URL: url})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeStore(t, s) })
		return s
	}
	a, b := open(), open()
	rung := make(chan struct{}, 100)
	var listening sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(func() { cancel(); listening.Wait() })
	listening.Go(func() { b.Bell(ctx, func() { rung <- struct{}{} }) })
	heard := func() {
		t.Helper()
		for n := range 600 { // until it listens
			if err := a.SaveCutoff(t.Context(), broker.Cutoff{Kind: broker.CutIdentity, Value: fmt.Sprint("i", n), Before: time.Now()}); err != nil {
				t.Log(err)
			}
			select {
			case <-rung:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
		t.Fatal("nothing is heard")
	}
	heard()
	server.Kill()
	server.Run(t)
	for len(rung) > 0 {
		<-rung
	}
	heard()
}

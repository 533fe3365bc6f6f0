package audit_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

// A memory is an Appender that keeps events, and can be made to fail or wait.
type memory struct {
	before func(context.Context, []audit.Event) error

	mu     sync.Mutex
	events []audit.Event
}

func (m *memory) Append(ctx context.Context, events ...audit.Event) ([]audit.Ref, error) {
	if m.before != nil {
		if err := m.before(ctx, events); err != nil {
			return nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var refs []audit.Ref
	for _, e := range events {
		m.events = append(m.events, e)
		refs = append(refs, audit.Ref{Sequence: uint64(len(m.events))})
	}
	return refs, nil
}

var errBroken = errors.New("broken")

// failing returns a memory that fails while the flag is set.
func failing() (*memory, *atomic.Bool) {
	var fail atomic.Bool
	return &memory{before: func(context.Context, []audit.Event) error {
		if fail.Load() {
			return errBroken
		}
		return nil
	}}, &fail
}

// counts says what was recorded, as "code×count" and what the record repeats.
func (m *memory) counts() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for _, e := range m.events {
		out = append(out, fmt.Sprintf("%s×%d%s", e.Code, max(e.Count, 1), e.Detail["repeats"]))
	}
	return out
}

func denial(node, fact, code string) audit.Event {
	return audit.Event{Kind: "deny", Node: node, Code: code, Facts: map[string][]string{"workload.unix.uid": {fact, "9"}}}
}

func newFolder(t *testing.T, c audit.FolderConfig) *audit.Folder {
	t.Helper()
	f, err := audit.NewFolder(c)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func fold(t *testing.T, f *audit.Folder, e audit.Event) string {
	t.Helper()
	ref, err := f.Append(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return ref.ID()
}

func TestFold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &memory{}
		f := newFolder(t, audit.FolderConfig{Log: log, Every: time.Minute})
		for range 5 {
			if got := fold(t, f, denial("a", "33", "no-identity")); got != "r-000001" {
				t.Errorf("ID %s", got)
			}
		}
		reordered := denial("a", "33", "no-identity")
		slices.Reverse(reordered.Facts["workload.unix.uid"])
		fold(t, f, reordered)
		want := []string{"no-identity×1"}
		if diff := cmp.Diff(want, log.counts()); diff != "" {
			t.Errorf("at once (-want +got):\n%s", diff)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		want = append(want, "no-identity×5r-000001")
		if diff := cmp.Diff(want, log.counts()); diff != "" {
			t.Errorf("after a minute (-want +got):\n%s", diff)
		}
		if got := fold(t, f, denial("a", "33", "no-identity")); got != "r-000003" {
			t.Errorf("ID %s after the interval", got)
		}
		time.Sleep(time.Hour)
		fold(t, f, denial("a", "33", "no-identity"))
		fold(t, f, denial("a", "33", "no-identity"))
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		want = append(want, "no-identity×1", "no-identity×1", "no-identity×1r-000004")
		if diff := cmp.Diff(want, log.counts()); diff != "" {
			t.Errorf("at close (-want +got):\n%s", diff)
		}
		if _, err := f.Append(t.Context(), denial("a", "33", "c")); !errors.Is(err, audit.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	})
}

func TestFoldTellsDenialsApart(t *testing.T) {
	log := &memory{}
	f := newFolder(t, audit.FolderConfig{Log: log})
	other, split, name := denial("a", "33", "c"), denial("a", "33", "c"), denial("a", "33", "c")
	other.Kind = "refusal"
	split.Facts = map[string][]string{"workload.unix.uid": {"3", "39"}}
	name.Facts = map[string][]string{"workload.unix.uid": {"33"}, "workload.unix.gid": {"9"}}
	for i, e := range []audit.Event{
		denial("a", "33", "c"), denial("b", "33", "c"), denial("a", "34", "c"), denial("a", "33", "d"), other, split, name,
	} {
		for range 2 {
			if got, want := fold(t, f, e), fmt.Sprintf("r-%06d", i+1); got != want {
				t.Errorf("row %d: ID %s, want %s", i, got, want)
			}
		}
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestFoldWaitsForTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		log := &memory{}
		log.before = func(ctx context.Context, _ []audit.Event) error {
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		f := newFolder(t, audit.FolderConfig{Log: log})
		var wg sync.WaitGroup
		ask := func(ctx context.Context, want error) {
			wg.Go(func() {
				if _, err := f.Append(ctx, denial("a", "33", "c")); !errors.Is(err, want) {
					t.Errorf("got %v, want %v", err, want)
				}
			})
			synctest.Wait()
		}
		first, giveUp := context.WithCancel(t.Context())
		ask(first, context.Canceled)
		ask(t.Context(), nil)
		ask(t.Context(), nil)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		ask(short, context.DeadlineExceeded)
		time.Sleep(time.Second)
		synctest.Wait()
		giveUp() // another takes the lead
		synctest.Wait()
		close(gate)
		wg.Wait()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"c×1", "c×1r-000001"}, log.counts()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestFoldIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &memory{}
		f := newFolder(t, audit.FolderConfig{Log: log, Keys: 2})
		fold(t, f, denial("a", "1", "one"))
		fold(t, f, denial("a", "2", "two"))
		fold(t, f, denial("a", "1", "one")) // now two is the least recently used
		fold(t, f, denial("a", "3", "three"))
		fold(t, f, denial("a", "4", "four")) // pushes out one, which has a repeat
		want := []string{"one×1", "two×1", "three×1", "four×1", "one×1r-000001"}
		if diff := cmp.Diff(want, log.counts()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

// What is OK is folded where it is the same actor's, with the same SVID; the count
// says whose, and waits for room as they do.
func TestFoldTellsActorsApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &memory{}
		f := newFolder(t, audit.FolderConfig{Log: log, Every: time.Minute})
		read := audit.Event{Kind: "admin", OK: true, Actor: "uid:0", Code: "Get", Spare: true, Detail: map[string]string{"name": "web"}}
		other, svid, refused, thing := read, read, read, read
		other.Actor, svid.Serial, refused.OK, thing.Detail = "uid:1", "07", false, map[string]string{"name": "db"}
		for range 3 {
			for i, e := range []audit.Event{read, other, svid, refused, thing} {
				if got, want := fold(t, f, e), fmt.Sprintf("r-%06d", i+1); got != want {
					t.Errorf("%+v is %s, not %s", e, got, want)
				}
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		var counts []audit.Event
		for i, e := range []audit.Event{read, other, svid, refused, thing} {
			e.Count, e.Detail = 2, map[string]string{"repeats": fmt.Sprintf("r-%06d", i+1)}
			counts = append(counts, e)
		}
		if diff := cmp.Diff(counts, log.events[5:]); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestFoldLosesNoCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, fail := failing()
		f := newFolder(t, audit.FolderConfig{Log: log, Every: time.Minute, Keys: 1})
		fold(t, f, denial("a", "1", "one"))
		fold(t, f, denial("a", "1", "one"))
		fail.Store(true)
		if _, got := f.Append(t.Context(), denial("a", "2", "two")); !errors.Is(got, errBroken) {
			t.Errorf("got %v", got)
		}
		if got := fold(t, f, denial("a", "1", "one")); got != "r-000001" {
			t.Errorf("the one that had to go is %s", got)
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		fail.Store(false)
		time.Sleep(time.Minute)
		synctest.Wait()
		if diff := cmp.Diff([]string{"one×1", "one×2r-000001"}, log.counts()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
}

func newCounter(t *testing.T, c audit.CounterConfig) *audit.Counter {
	t.Helper()
	n, err := audit.NewCounter(c)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestStrangersAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &memory{}
		n := newCounter(t, audit.CounterConfig{Log: log, Every: time.Minute})
		n.Add("bad token")
		synctest.Wait()
		for range 10 {
			n.Add("bad token")
			n.Add("expired")
		}
		synctest.Wait()
		if got := len(log.counts()); got != 1 {
			t.Fatalf("%d records within the interval", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		n.Add("expired")
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		n.Add("too late")
		var got []map[string]string
		for _, e := range log.events {
			if e.Kind != "join.refused" || e.OK {
				t.Errorf("%+v", e)
			}
			got = append(got, e.Detail)
		}
		want := []map[string]string{{"bad token": "1"}, {"bad token": "10", "expired": "10"}, {"expired": "1"}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if log.events[1].Count != 20 {
			t.Errorf("count is %d", log.events[1].Count)
		}
	})
}

func TestStrangersReasonsAreBounded(t *testing.T) {
	log := &memory{}
	n := newCounter(t, audit.CounterConfig{Log: log, Reasons: 4})
	for i := range 10_000 {
		n.Add(fmt.Sprint("made up ", i))
		n.Add(string(make([]byte, 1000)))
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	total := uint64(0)
	for _, e := range log.events {
		total += e.Count
		if len(e.Detail) > 5 {
			t.Errorf("reasons %v", slices.Collect(maps.Keys(e.Detail)))
		}
	}
	if total != 20_000 {
		t.Errorf("%d counted", total)
	}
}

func TestStrangersAreKeptWhileTheDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log, fail := failing()
		fail.Store(true)
		n := newCounter(t, audit.CounterConfig{Log: log, Every: time.Second})
		n.Add("bad token")
		n.Add("bad token")
		time.Sleep(10 * time.Second)
		fail.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if len(log.events) != 1 || log.events[0].Count != 2 {
			t.Errorf("events %+v", log.events)
		}
		fail.Store(true)
		n.Add("bad token")
		if err := n.Close(); err == nil {
			t.Error("close says nothing of what is lost")
		}
	})
}

// TestStrangersTakeLittle: 100,000 failed joins, all at once or over days,
// take under a mebibyte, and nobody else's record waits for them.
func TestStrangersTakeLittle(t *testing.T) {
	for name, pause := range map[string]time.Duration{"at once": 0, "over three hours": 100 * time.Millisecond, "over a day": time.Second} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			synctest.Test(t, func(t *testing.T) {
				l, err := audit.OpenOn(newDisk(nil), audit.Config{Dir: dir})
				if err != nil {
					t.Fatal(err)
				}
				n := newCounter(t, audit.CounterConfig{Log: l})
				issued := 0
				for i := range 100_000 {
					n.Add([]string{"no such token", "token spent", "token expired", "bad evidence"}[i%4])
					if i%10_000 == 0 {
						add(t, l, event(i))
						issued++
					}
					if pause > 0 {
						time.Sleep(pause)
					}
				}
				if err := errors.Join(n.Close(), l.Close()); err != nil {
					t.Fatal(err)
				}
			})
			info, err := os.Stat(filepath.Join(dir, one))
			if err != nil {
				t.Fatal(err)
			}
			if info.Size() > 1<<20 {
				t.Errorf("%d bytes", info.Size())
			}
			total := uint64(0)
			for r, err := range audit.Read(t.Context(), dir, 0) {
				if err != nil {
					t.Fatal(err)
				}
				if r.Kind == "join.refused" {
					total += r.Count
				}
			}
			if total != 100_000 {
				t.Errorf("%d counted", total)
			}
			t.Logf("%d bytes", info.Size())
		})
	}
}

// TestFoldWithoutRoom: when all that is remembered is still being written,
// a denial gets a record of its own.
func TestFoldWithoutRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		log := &memory{before: func(_ context.Context, events []audit.Event) error {
			if events[0].Code == "slow" {
				<-gate
			}
			return nil
		}}
		f := newFolder(t, audit.FolderConfig{Log: log, Keys: 1})
		var wg sync.WaitGroup
		wg.Go(func() { fold(t, f, denial("a", "1", "slow")) })
		synctest.Wait()
		fold(t, f, denial("a", "2", "other"))
		fold(t, f, denial("a", "2", "other"))
		close(gate)
		wg.Wait()
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff([]string{"other×1", "other×1", "slow×1"}, log.counts()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

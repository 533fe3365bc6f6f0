package audit_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

var day0 = time.Date(2026, 1, 1, 0, 0, 0, 123456789, time.UTC)

// days opens a record of n, one a day from day0, in files of three.
func days(t *testing.T, n int) (*audit.Log, string, []audit.Ref) {
	t.Helper()
	dir, now := newDir(t), day0
	l := open(t, audit.Config{Dir: dir, MaxBytes: 1500, Now: func() time.Time { return now }})
	var refs []audit.Ref
	for i := range n {
		refs = append(refs, add(t, l, event(i))...)
		now = now.AddDate(0, 0, 1)
	}
	return l, dir, refs
}

func day(n int) time.Time { return day0.AddDate(0, 0, n) }

func listed(t *testing.T, dir string) (all []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if ext := filepath.Ext(e.Name()); ext == ".jsonl" || ext == ".idx" {
			all = append(all, e.Name())
		}
	}
	return all
}

func truncate(t *testing.T, l *audit.Log, c audit.TruncateConfig) audit.Truncated {
	t.Helper()
	done, err := l.Truncate(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func TestTruncate(t *testing.T) {
	for name, c := range map[string]struct {
		before time.Time
		holds  []audit.Hold
		gone   int // records
		held   string
	}{
		"nothing is so old":              {day(0), nil, 0, ""},
		"a file is not old in its whole": {day(2), nil, 0, ""},
		"as old as the time is not":      {day(2).Add(0), nil, 0, ""},
		"a file":                         {day(3), nil, 3, ""},
		"two":                            {day(6), nil, 6, ""},
		"the newest stays":               {day(100), nil, 9, ""},
		"a reader needs it":              {day(6), []audit.Hold{{"a", 100}, {"b", 5}}, 3, "b"},
		"a reader has it":                {day(6), []audit.Hold{{"a", 6}}, 6, ""},
		"a reader that has nothing":      {day(6), []audit.Hold{{"a", 0}}, 0, "a"},
	} {
		t.Run(name, func(t *testing.T) {
			l, dir, refs := days(t, 11)
			done := truncate(t, l, audit.TruncateConfig{Before: c.before, Holds: c.holds, Actor: "uid:0"})
			held := ""
			if done.Held != nil {
				held = done.Held.Name
			}
			if done.Records != uint64(c.gone) || held != c.held {
				t.Fatalf("removed %d records, held by %q", done.Records, held)
			}
			r, err := audit.Verify(dir, refs...)
			if err != nil {
				t.Fatal(err)
			}
			if c.gone == 0 {
				if r.Removed != nil || r.Records != 11 {
					t.Errorf("%+v", r)
				}
				return
			}
			if r.Removed == nil || r.Removed.Last != refs[c.gone-1] || r.Removed.First != 1 || r.Records != uint64(12-c.gone) {
				t.Errorf("%+v", r)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = open(t, audit.Config{Dir: dir, MaxBytes: 1500})
			if ref := add(t, l, event(1))[0]; ref.Sequence != 13 {
				t.Errorf("it goes on with %d", ref.Sequence)
			}
			// Who has read up to what is there misses nothing, who has not is told.
			var got []uint64
			err = l.FollowAfter(t.Context(), refs[c.gone-1], func(r audit.Record) error {
				if got = append(got, r.Sequence); r.Sequence == 13 {
					return errDone
				}
				return nil
			})
			if !errors.Is(err, errDone) || len(got) != 13-c.gone {
				t.Errorf("read %v: %v", got, err)
			}
			if err := l.FollowAfter(t.Context(), refs[c.gone-2], nil); !errors.Is(err, audit.ErrReplaced) {
				t.Errorf("from a place that was removed: %v", err)
			}
			other := refs[c.gone-1]
			other.Hash[0] ^= 1
			if err := l.FollowAfter(t.Context(), other, func(audit.Record) error { return errDone }); !errors.Is(err, audit.ErrReplaced) {
				t.Errorf("from a place that never was: %v", err)
			}
			if n := len(collect(t, audit.Tail(t.Context(), dir, 100))); n != 13-c.gone {
				t.Errorf("tail: %d", n)
			}
		})
	}
}

// TestTruncateToOneFile opens a record of which one file is left.
func TestTruncateToOneFile(t *testing.T) {
	l, dir, refs := days(t, 5)
	truncate(t, l, audit.TruncateConfig{Before: day(4)})
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{four}, listed(t, dir)); diff != "" {
		t.Fatal(diff)
	}
	l = open(t, audit.Config{Dir: dir, MaxBytes: 1500})
	add(t, l, event(9))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, dir, refs[3])
	wrong := refs[2]
	wrong.Hash[3] ^= 1
	if _, err := audit.Verify(dir, wrong); err == nil {
		t.Error("another last record was seen before")
	}
	if _, err := audit.Verify(dir, refs[0], refs[2]); err != nil {
		t.Error(err)
	}
}

// TestMissingBeginning takes files away as no record says.
// A file for each record, and each already old: what is recorded of a removal is not
// removed by it, or there would be no end.
func TestTruncateEnds(t *testing.T) {
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir, MaxBytes: 1})
	for i := range 4 {
		add(t, l, event(i))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done, err := l.Truncate(ctx, audit.TruncateConfig{Before: time.Now().AddDate(1, 0, 0), Actor: "uid:0"})
	if err != nil || done.Files != 3 || done.Records != 3 {
		t.Errorf("%+v, %v: want the three files before the newest", done, err)
	}
}

func TestMissingBeginning(t *testing.T) {
	l, dir, _ := days(t, 11)
	truncate(t, l, audit.TruncateConfig{Before: day(3)})
	add(t, l, event(1), event(2))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	verified(t, dir)
	if err := os.Remove(filepath.Join(dir, four)); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Verify(dir); err == nil || !strings.Contains(err.Error(), "before 7 are missing") {
		t.Errorf("%v", err)
	}
	all := listed(t, dir)
	for _, name := range all[:len(all)-1] {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := audit.Open(audit.Config{Dir: dir}); err == nil {
		t.Errorf("opened")
		_ = l.Close()
	}
}

// TestTruncationInterrupted dies between the record and the removal, at each file.
func TestTruncationInterrupted(t *testing.T) {
	for left := range 4 {
		l, dir, refs := days(t, 11)
		kept := make(map[string][]byte)
		for _, name := range []string{one, four, seven}[3-left:] {
			kept[name] = read(t, filepath.Join(dir, name))
		}
		truncate(t, l, audit.TruncateConfig{Before: day(9)})
		for name, data := range kept {
			if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		verified(t, dir, refs...)
		l = open(t, audit.Config{Dir: dir, MaxBytes: 1500})
		done := truncate(t, l, audit.TruncateConfig{Before: day(0)})
		if done.Files != 0 || listed(t, dir)[0] != "000000000010.jsonl" {
			t.Errorf("%d left: %+v and %v", left, done, listed(t, dir))
		}
		verified(t, dir, refs...)
	}
}

// TestTruncationOfAnotherFile removes nothing in place of what a record names.
func TestTruncationOfAnotherFile(t *testing.T) {
	l, dir, _ := days(t, 11)
	data := read(t, filepath.Join(dir, one))
	truncate(t, l, audit.TruncateConfig{Before: day(3)})
	data[40] ^= 1
	if err := os.WriteFile(filepath.Join(dir, one), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Truncate(t.Context(), audit.TruncateConfig{Before: day(0)}); err == nil {
		t.Error("removed")
	}
	if diff := cmp.Diff(data, read(t, filepath.Join(dir, one))); diff != "" {
		t.Error(diff)
	}
}

// TestTruncateRefuses keeps what would be evidence.
func TestTruncateRefuses(t *testing.T) {
	for name, c := range map[string]func(map[string][]byte){
		"a line was changed": lines(one, func(l [][]byte) [][]byte { l[1][40] ^= 1; return l }),
		"a line was cut off": lines(four, func(l [][]byte) [][]byte { return l[:2] }),
	} {
		t.Run(name, func(t *testing.T) {
			l, dir, _ := days(t, 11)
			changed := map[string][]byte{one: read(t, filepath.Join(dir, one)), four: read(t, filepath.Join(dir, four))}
			c(changed)
			for name, data := range changed {
				if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := listed(t, dir)
			if _, err := l.Truncate(t.Context(), audit.TruncateConfig{Before: day(9)}); err == nil {
				t.Error("removed")
			}
			if diff := cmp.Diff(before, listed(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestTruncationsThatLie writes records of the kind that name what they don't know.
func TestTruncationsThatLie(t *testing.T) {
	good := func(t *testing.T) (dir string, detail map[string]string) {
		l, dir, _ := days(t, 5)
		truncate(t, l, audit.TruncateConfig{Before: day(4)})
		for r, err := range audit.Search(t.Context(), dir, audit.Query{Kind: audit.KindTruncate}) {
			if err != nil {
				t.Fatal(err)
			}
			detail = r.Detail
		}
		return newDir(t), detail
	}
	for name, edit := range map[string]func(audit.Event, map[string]string) audit.Event{
		"another hash":        func(e audit.Event, d map[string]string) audit.Event { d["hash"] = strings.Repeat("0", 64); return e },
		"no hash":             func(e audit.Event, d map[string]string) audit.Event { delete(d, "hash"); return e },
		"a range elsewhere":   func(e audit.Event, d map[string]string) audit.Event { d["last"], d["records"] = "2", "2"; return e },
		"no range":            func(e audit.Event, d map[string]string) audit.Event { delete(d, "last"); return e },
		"a file elsewhere":    func(e audit.Event, d map[string]string) audit.Event { d["../"+one] = d[one]; delete(d, one); return e },
		"no file":             func(e audit.Event, d map[string]string) audit.Event { delete(d, one); return e },
		"more than is known":  func(e audit.Event, d map[string]string) audit.Event { d["more"] = "x"; return e },
		"what was not done":   func(e audit.Event, d map[string]string) audit.Event { e.OK = false; return e },
		"a record of another": func(e audit.Event, d map[string]string) audit.Event { e.Kind = "audit.truncated"; return e },
	} {
		t.Run(name, func(t *testing.T) {
			dir, detail := good(t)
			l, from, _ := days(t, 4)
			e := edit(audit.Event{Kind: audit.KindTruncate, OK: true, Detail: detail}, detail)
			add(t, l, e)
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, four), read(t, filepath.Join(from, four)), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := audit.Verify(dir); err == nil {
				t.Error("it holds")
			}
			if l, err := audit.Open(audit.Config{Dir: dir}); err == nil {
				t.Error("opened")
				_ = l.Close()
			}
		})
	}
}

// TestTruncationAgainstHeads removes records as older than they were, which heads of
// them tell, and as old as they were.
func TestTruncationAgainstHeads(t *testing.T) {
	for name, c := range map[string]struct {
		signed time.Time // record 1 was the last one then
		holds  bool
	}{"older": {day(0), true}, "by a clock that was set back": {day(3).Add(time.Hour), true}, "younger": {day(5), false}} {
		l, dir, refs := days(t, 7)
		truncate(t, l, audit.TruncateConfig{Before: day(3)})
		known := []audit.Known{{Ref: refs[1], Time: day(9), By: "b"}, {Ref: refs[0], Time: c.signed, By: "a"}, {Ref: refs[5], Time: day(9), By: "b"}}
		r, err := audit.VerifyKnown(t.Context(), dir, known)
		if (err == nil) != c.holds || c.holds && (r.Gone != 2 || r.Confirmed != 1) {
			t.Errorf("%s: %v, %d are gone and %d stand", name, err, r.Gone, r.Confirmed)
		}
		if !c.holds && !strings.Contains(err.Error(), "whose head b keeps, was written after") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRetain removes records a tenth of the time after theirs is over, however
// few there are, and no sooner; and what a reader needs, when it has read it.
func TestRetain(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		l, err := audit.Open(audit.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		var held atomic.Uint64
		held.Store(1 << 60)
		var last atomic.Pointer[audit.Retention]
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() {
			ended <- l.Retain(ctx, audit.RetainConfig{
				Keep:  100 * 24 * time.Hour,
				Every: 6 * time.Hour,
				Holds: func(context.Context) ([]audit.Hold, error) { return []audit.Hold{{"a", held.Load()}}, nil },
			}, func(r audit.Retention) { last.Store(&r) })
		}()
		oldest := func() (time.Time, uint64) {
			t.Helper()
			synctest.Wait()
			for r, err := range audit.Read(t.Context(), dir, mustOldest(t, l)) {
				if err != nil {
					t.Fatal(err)
				}
				return r.Time, r.Sequence
			}
			return time.Time{}, 0
		}
		for i := range 150 {
			add(t, l, event(i))
			time.Sleep(24 * time.Hour)
			if at, _ := oldest(); time.Since(at) > 112*24*time.Hour {
				t.Fatalf("on day %d there is a record of %s ago: %+v %v", i, time.Since(at), last.Load(), listed(t, dir))
			}
		}
		if at, seq := oldest(); seq == 1 || time.Since(at) < 99*24*time.Hour {
			t.Errorf("the oldest is record %d of %s ago", seq, time.Since(at))
		}
		_, before := oldest()
		held.Store(before)
		time.Sleep(40 * 24 * time.Hour)
		if _, seq := oldest(); seq != before || last.Load().Held == nil || last.Load().Held.Name != "a" {
			t.Errorf("record %d was removed: %+v", before, last.Load())
		}
		held.Store(1 << 60)
		time.Sleep(24 * time.Hour)
		if _, seq := oldest(); seq == before || last.Load().Held != nil {
			t.Errorf("it stays: %+v", last.Load())
		}
		verified(t, dir)
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func mustOldest(t *testing.T, l *audit.Log) uint64 {
	t.Helper()
	at, err := l.Oldest()
	if err != nil {
		t.Fatal(err)
	}
	return at.Sequence
}

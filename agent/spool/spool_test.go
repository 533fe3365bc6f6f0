package spool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/credence-id/credence/agent/spool"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, cfg spool.Config) *spool.Spool {
	t.Helper()
	s, err := spool.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func add(t *testing.T, s *spool.Spool, records ...string) {
	t.Helper()
	for _, r := range records {
		if err := s.Append(t.Context(), []byte(r)); err != nil {
			t.Fatalf("%s: %v", r, err)
		}
	}
}

func next(t *testing.T, s *spool.Spool, n int) []spool.Record {
	t.Helper()
	all, err := s.Next(n, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// texts says what records hold, a gap as its count and reason.
func texts(all []spool.Record) []string {
	out := []string{}
	for _, r := range all {
		if r.Gap != nil {
			out = append(out, fmt.Sprintf("gap of %d: %s", r.Gap.Lost, r.Gap.Why))
			continue
		}
		out = append(out, string(r.Data))
	}
	return out
}

func holds(t *testing.T, s *spool.Spool, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, texts(next(t, s, 1000))); d != "" {
		t.Errorf("it holds (-want +got):\n%s", d)
	}
}

func file(dir string, first int) string { return filepath.Join(dir, fmt.Sprintf("%012d.seg", first)) }

func TestRecordsOutliveTheProcessInOrder(t *testing.T) {
	cfg := spool.Config{Dir: filepath.Join(t.TempDir(), "spool")}
	s := open(t, cfg)
	id := s.ID()
	add(t, s, "one", "two", "three")
	s.Arrived(next(t, s, 1))
	s.Close()
	s = open(t, cfg)
	select {
	case <-s.Wake():
	default:
		t.Error("nobody is woken for what is there already")
	}
	add(t, s, "four")
	all := next(t, s, 10)
	if d := cmp.Diff([]string{"two", "three", "four"}, texts(all)); d != "" {
		t.Error(d)
	}
	for i, r := range all {
		if r.Sequence != uint64(i+2) {
			t.Errorf("%s has number %d", r.Data, r.Sequence)
		}
	}
	if s.ID() != id || len(id) != 16 {
		t.Errorf("its name was %q and is %q", id, s.ID())
	}
	if st := s.Stats(); st.Backlog != 3 || st.Lost != 0 || st.Full || st.Trouble != "" {
		t.Errorf("%+v", st)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700 | os.ModeDir, "id": 0o600, "lost": 0o600, "shipped": 0o600, "000000000001.seg": 0o600} {
		if info, err := os.Stat(filepath.Join(cfg.Dir, name)); err != nil || info.Mode() != mode {
			t.Errorf("%q: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestARecordIsOnDiskBeforeAppendReturns(t *testing.T) {
	var synced atomic.Bool
	d := spool.Disk{Fail: func(act, path string) error {
		if act == "sync" && strings.HasSuffix(path, ".seg") {
			synced.Store(true)
		}
		return nil
	}}
	dir := t.TempDir()
	s := open(t, d.On(spool.Config{Dir: dir}))
	synced.Store(false)
	add(t, s, "one")
	text, err := os.ReadFile(file(dir, 1))
	if err != nil || !bytes.Contains(text, []byte(" one\n")) || !synced.Load() {
		t.Errorf("the file holds %q, synced %v, %v", text, synced.Load(), err)
	}
}

func TestManyShareOneSync(t *testing.T) {
	var syncs atomic.Int32
	gate := make(chan struct{})
	d := spool.Disk{Fail: func(act, path string) error {
		if act == "sync" && strings.HasSuffix(path, ".seg") && syncs.Add(1) == 2 { // the first one is Open's
			<-gate
		}
		return nil
	}}
	synctest.Test(t, func(t *testing.T) {
		gate = make(chan struct{})
		s := open(t, d.On(spool.Config{Dir: t.TempDir()}))
		var all sync.WaitGroup
		for n := range 200 {
			all.Go(func() {
				if err := s.Append(t.Context(), fmt.Appendf(nil, "r%d", n)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		all.Wait()
		if n := syncs.Load(); n > 4 {
			t.Errorf("%d syncs for 200 records", n)
		}
		if got := len(next(t, s, 1000)); got != 200 {
			t.Errorf("%d records", got)
		}
		s.Close()
	})
}

// A write that a crash tore anywhere was never confirmed: it is cut off, and
// all before it stands.
func TestATornTailIsCutOffAtEveryByte(t *testing.T) {
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	add(t, s, "one", "two", "three")
	s.Close()
	whole, err := os.ReadFile(file(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	two := bytes.Index(whole, []byte("three")) - len("3 r 01234567 ")
	for cut := two; cut < len(whole); cut++ {
		for _, tail := range []string{"", "\x00\x00\x00", "\n"} {
			other := t.TempDir()
			if err := os.WriteFile(file(other, 1), append(bytes.Clone(whole[:cut]), tail...), 0o600); err != nil {
				t.Fatal(err)
			}
			s := open(t, spool.Config{Dir: other})
			add(t, s, "again")
			want := []string{"one", "two", "again"}
			if tail == "\n" && cut == len(whole)-1 { // it was whole
				want = []string{"one", "two", "three", "again"}
			}
			holds(t, s, want...)
			if st := s.Stats(); st.Lost != 0 {
				t.Errorf("cut at %d: %d lost", cut, st.Lost)
			}
			s.Close()
		}
	}
}

func TestADamagedRecordIsCountedAndTheOthersStand(t *testing.T) {
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	add(t, s, "one", "two", "three")
	s.Close()
	text, err := os.ReadFile(file(dir, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file(dir, 1), bytes.Replace(text, []byte("two"), []byte("tow"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, spool.Config{Dir: dir})
	holds(t, s, "one", "three")
	s.Arrived(next(t, s, 10))
	if err := s.Room(t.Context()); err != nil {
		t.Fatal(err)
	}
	holds(t, s, "gap of 1: damaged")
}

// filled is a spool that takes no more, and how many records it holds.
func filled(t *testing.T, dir string) (s *spool.Spool, kept int) {
	t.Helper()
	s = open(t, spool.Config{Dir: dir, Max: spool.MinMax})
	record := bytes.Repeat([]byte("x"), 16<<10)
	for s.Append(t.Context(), record) == nil {
		kept++
	}
	return s, kept
}

func TestBeyondTheBoundTheNewestAreLostAndCounted(t *testing.T) {
	dir := t.TempDir()
	s, kept := filled(t, dir)
	for range 4 {
		if err := s.Append(t.Context(), bytes.Repeat([]byte("y"), 16<<10)); !errors.Is(err, spool.ErrFull) {
			t.Fatalf("got %v", err)
		}
	}
	st := s.Stats()
	if st.Lost != 5 || st.Untold != 5 || st.Bytes > spool.MinMax || int(st.Backlog) != kept || kept < 60 {
		t.Errorf("%d kept, %+v", kept, st)
	}
	s.Close() // the count outlives the process
	s = open(t, spool.Config{Dir: dir, Max: spool.MinMax})
	for {
		all := next(t, s, 16)
		if len(all) == 0 {
			break
		}
		for _, r := range all {
			if kept--; r.Gap != nil && kept >= 0 {
				t.Errorf("a gap before what was kept")
			}
		}
		s.Arrived(all)
		add(t, s, "later")
		if kept <= 0 {
			break
		}
	}
	var seen []string
	for all := next(t, s, 100); len(all) > 0; all = next(t, s, 100) {
		seen = append(seen, texts(all)...)
		s.Arrived(all)
	}
	if got := strings.Join(seen, " "); strings.Count(got, "gap") > 1 {
		t.Errorf("after it: %v", got)
	}
	if st := s.Stats(); st.Lost != 5 || st.Untold != 0 || st.Backlog != 0 || st.Full {
		t.Errorf("at last %+v", st)
	}
}

func TestTheGapStandsWhereTheRecordsWereLost(t *testing.T) {
	s, kept := filled(t, t.TempDir())
	s.Arrived(next(t, s, kept/2))
	add(t, s, "later")
	all := texts(next(t, s, 1000))
	if n := len(all); all[n-1] != "later" || all[n-2] != "gap of 1: full" {
		t.Errorf("the last two are %v", all[n-2:])
	}
}

func TestRoomSaysWhatAppendWould(t *testing.T) {
	s, kept := filled(t, t.TempDir())
	if err := s.Append(t.Context(), bytes.Repeat([]byte("y"), 15<<10)); err == nil {
		kept++
	}
	for range 64 {
		_ = s.Append(t.Context(), bytes.Repeat([]byte("z"), 256))
	}
	lost := s.Stats().Lost
	if err := s.Room(t.Context()); !errors.Is(err, spool.ErrFull) {
		t.Errorf("got %v", err)
	}
	if s.Stats().Lost != lost {
		t.Error("who asks is counted")
	}
	s.Arrived(next(t, s, kept))
	if err := s.Room(t.Context()); err != nil {
		t.Error(err)
	}
}

// sick is a disk that fails on one act for as long as it is told to.
type sick struct {
	act atomic.Value // string
	err error
}

func (d *sick) disk() spool.Disk {
	d.act.Store("")
	return spool.Disk{Fail: func(act, path string) error {
		if want := d.act.Load().(string); want != "" && strings.Contains(want, act) {
			return d.err
		}
		return nil
	}}
}

func TestADiskThatFailsLosesWithACountAndRecovers(t *testing.T) {
	for _, act := range []string{"write", "sync", "write truncate", "sync truncate", "write place", "write open", "sync open truncate"} {
		t.Run(act, func(t *testing.T) {
			d := &sick{err: syscall.ENOSPC}
			cfg := d.disk().On(spool.Config{Dir: t.TempDir()})
			s := open(t, cfg)
			add(t, s, "one")
			d.act.Store(act)
			for range 3 {
				if err := s.Append(t.Context(), []byte("lost")); !errors.Is(err, spool.ErrDisk) || !errors.Is(err, syscall.ENOSPC) {
					t.Errorf("got %v", err)
				}
			}
			if err := s.Room(t.Context()); !errors.Is(err, spool.ErrDisk) {
				t.Errorf("room: %v", err)
			}
			if st := s.Stats(); st.Lost != 3 || !strings.Contains(st.Trouble, "no space") {
				t.Errorf("%+v", st)
			}
			d.act.Store("")
			if err := s.Room(t.Context()); err != nil {
				t.Errorf("room when it is well: %v", err)
			}
			add(t, s, "two")
			if st := s.Stats(); st.Trouble != "" || st.Untold != 0 {
				t.Errorf("%+v", st)
			}
			holds(t, s, "one", "gap of 3: disk", "two")
			s.Close()
			holds(t, open(t, spool.Config{Dir: cfg.Dir}), "one", "gap of 3: disk", "two")
		})
	}
}

// A crash while the disk is sick loses no count that was noted.
func TestACountOfLossesOutlivesACrash(t *testing.T) {
	d := &sick{err: syscall.EIO}
	cfg := d.disk().On(spool.Config{Dir: t.TempDir()})
	s := open(t, cfg)
	d.act.Store("write")
	if err := s.Append(t.Context(), []byte("lost")); err == nil {
		t.Fatal("taken")
	}
	s.Close()
	s = open(t, spool.Config{Dir: cfg.Dir})
	add(t, s, "one")
	holds(t, s, "gap of 1: disk", "one")
}

func TestASlowDiskHoldsNobodyForLongerThanHeWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var slow atomic.Bool
		d := spool.Disk{Fail: func(act, _ string) error {
			if act == "sync" && slow.Load() {
				<-gate
			}
			return nil
		}}
		s := open(t, d.On(spool.Config{Dir: t.TempDir()}))
		slow.Store(true)
		var all sync.WaitGroup
		for _, name := range []string{"in flight", "waits"} {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				if err := s.Append(ctx, []byte(name)); !errors.Is(err, spool.ErrDisk) || !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("%s: %v", name, err)
				}
			})
			synctest.Wait()
		}
		start := time.Now()
		all.Wait()
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("it took %s", d)
		}
		slow.Store(false)
		close(gate)
		synctest.Wait()
		// What was in flight is there all the same, and not counted as lost.
		add(t, s, "after")
		holds(t, s, "in flight", "gap of 1: disk", "after")
		s.Close()
	})
}

func TestSegmentsGoWhenAllOfThemHasArrived(t *testing.T) {
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir, Segment: 4096})
	for n := range 200 {
		add(t, s, fmt.Sprintf("%0100d", n))
	}
	files := func() int {
		all, err := filepath.Glob(filepath.Join(dir, "*.seg"))
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if files() < 5 {
		t.Errorf("%d segments", files())
	}
	for n := 0; n < 200; {
		all := next(t, s, 7)
		for i, r := range all {
			if want := fmt.Sprintf("%0100d", n+i); string(r.Data) != want {
				t.Fatalf("record %d is %s", n+i, r.Data)
			}
		}
		n += len(all)
		s.Arrived(all)
	}
	if files() != 1 || s.Stats().Backlog != 0 {
		t.Errorf("%d segments stay, %+v", files(), s.Stats())
	}
	s.Close()
	s = open(t, spool.Config{Dir: dir, Segment: 4096})
	add(t, s, "201")
	if all := next(t, s, 10); len(all) != 1 || all[0].Sequence != 201 {
		t.Errorf("after a restart: %v", texts(all))
	}
}

// Without the note of what has arrived, records come again under the numbers
// that they had: who gets them knows them.
func TestRecordsThatComeAgainKeepTheirNumbers(t *testing.T) {
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	add(t, s, "one", "two")
	before := next(t, s, 10)
	s.Arrived(before)
	s.Close()
	for name, text := range map[string]string{"gone": "", "torn": "0000", "garbage": "\xff\xff\xff\xff", "negative": "-1\n"} {
		if err := os.WriteFile(filepath.Join(dir, "shipped"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, spool.Config{Dir: dir})
		after := next(t, s, 10)
		if len(after) != 2 || after[0].Sequence != before[0].Sequence || after[1].Sequence != before[1].Sequence {
			t.Errorf("%s: %v", name, texts(after))
		}
		s.Close()
	}
}

func TestNoNumberIsTakenTwiceWhenTheDiskForgets(t *testing.T) {
	dir := t.TempDir()
	s := open(t, spool.Config{Dir: dir})
	add(t, s, "one", "two")
	s.Arrived(next(t, s, 10))
	s.Close()
	if err := os.Truncate(file(dir, 1), 0); err != nil {
		t.Fatal(err)
	}
	s = open(t, spool.Config{Dir: dir})
	add(t, s, "three")
	if all := next(t, s, 10); len(all) != 1 || all[0].Sequence != 3 {
		t.Errorf("got %+v", all)
	}
}

func TestWhatCanNeverBeKeptIsRefusedAndCounted(t *testing.T) {
	s := open(t, spool.Config{Dir: t.TempDir()})
	for _, r := range []string{"", "two\nlines", strings.Repeat("x", spool.MaxRecord+1)} {
		if err := s.Append(t.Context(), []byte(r)); !errors.Is(err, spool.ErrRefused) {
			t.Errorf("%.10q: %v", r, err)
		}
	}
	add(t, s, strings.Repeat("x", spool.MaxRecord))
	lost := uint64(0) // told by one gap, or by several
	for _, one := range next(t, s, 10) {
		switch {
		case one.Gap != nil:
			lost += one.Gap.Lost
		case len(one.Data) != spool.MaxRecord:
			t.Errorf("it holds %d bytes", len(one.Data))
		}
	}
	if lost != 3 {
		t.Errorf("%d are told lost", lost)
	}
	s.Close()
	if err := s.Append(t.Context(), []byte("late")); !errors.Is(err, spool.ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestAForeignFileIsNotTouched(t *testing.T) {
	for name, write := range map[string]func(dir string) error{
		"a directory":       func(dir string) error { return os.Mkdir(filepath.Join(dir, "000000000001.seg"), 0o700) },
		"another name":      func(dir string) error { return os.WriteFile(filepath.Join(dir, "1.seg"), nil, 0o600) },
		"a link":            func(dir string) error { return os.Symlink("/etc/passwd", filepath.Join(dir, "000000000001.seg")) },
		"one that is large": func(dir string) error { return large(file(dir, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := write(dir); err != nil {
				t.Fatal(err)
			}
			if s, err := spool.Open(spool.Config{Dir: dir}); err == nil {
				s.Close()
				t.Error("opened")
			}
		})
	}
	if _, err := spool.Open(spool.Config{Dir: t.TempDir(), Max: 1}); err == nil {
		t.Error("a bound of one byte is taken")
	}
}

func large(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, 65<<20)
}

// FuzzOpen opens whatever may lie there, and goes on from it.
func FuzzOpen(f *testing.F) {
	whole := append(spool.Line(1, []byte("one")), spool.Line(2, []byte("two"))...)
	f.Add(whole, []byte("{}"), []byte("1"))
	f.Add(whole[:len(whole)-3], []byte{}, []byte{})
	f.Add([]byte("18446744073709551615 r 00000000 x\n"), []byte("1 l 00000000 {}"), []byte("18446744073709551615"))
	f.Add(append(spool.Line(1<<62, []byte("far")), spool.Line(1, []byte("back"))...), []byte{}, []byte{})
	f.Fuzz(func(t *testing.T, segment, lost, shipped []byte) {
		dir := t.TempDir()
		for name, text := range map[string][]byte{"000000000001.seg": segment, "lost": lost, "shipped": shipped} {
			if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s, err := spool.Open(spool.Config{Dir: dir})
		if err != nil {
			return
		}
		defer s.Close()
		if err := s.Append(t.Context(), []byte("new")); err != nil {
			t.Fatal(err)
		}
		found, last := false, uint64(0)
		all, err := s.Next(10000, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			if r.Sequence <= last {
				t.Errorf("number %d after %d", r.Sequence, last)
			}
			last, found = r.Sequence, string(r.Data) == "new"
		}
		if !found {
			t.Errorf("what was confirmed is not the last of %v", texts(all))
		}
	})
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte("1 r 00000000 x"))
	f.Add(bytes.TrimSuffix(spool.Line(7, []byte(`{"a":1}`)), []byte("\n")))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := spool.ParseLine(line)
		if err == nil && r.Gap == nil && !bytes.Equal(spool.Line(r.Sequence, r.Data), append(bytes.Clone(line), '\n')) {
			t.Errorf("%q was read as another line", line)
		}
	})
}

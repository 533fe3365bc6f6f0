package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

var errDone = errors.New("done")

func collect(t *testing.T, seq func(func(audit.Record, error) bool)) []uint64 {
	t.Helper()
	var got []uint64
	for r, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Sequence)
	}
	return got
}

func TestReadAndTail(t *testing.T) {
	dir := newDir(t)
	fill(t, audit.Config{Dir: dir, MaxBytes: 1500}, 8)
	for _, c := range []struct {
		after uint64
		want  []uint64
	}{{0, []uint64{1, 2, 3, 4, 5, 6, 7, 8}}, {3, []uint64{4, 5, 6, 7, 8}}, {5, []uint64{6, 7, 8}}, {7, []uint64{8}}, {8, nil}, {100, nil}} {
		if diff := cmp.Diff(c.want, collect(t, audit.Read(t.Context(), dir, c.after))); diff != "" {
			t.Errorf("after %d (-want +got):\n%s", c.after, diff)
		}
	}
	for n, want := range map[int][]uint64{-1: nil, 0: nil, 1: {8}, 2: {7, 8}, 6: {3, 4, 5, 6, 7, 8}, 99: {1, 2, 3, 4, 5, 6, 7, 8}} {
		if diff := cmp.Diff(want, collect(t, audit.Tail(t.Context(), dir, n))); diff != "" {
			t.Errorf("last %d (-want +got):\n%s", n, diff)
		}
	}
	for range audit.Read(t.Context(), dir, 0) {
		break // the iterator must bear it
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range audit.Read(ctx, dir, 0) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

func TestRecordsAreLines(t *testing.T) {
	dir := newDir(t)
	fill(t, audit.Config{Dir: dir}, 3)
	var got []byte
	for r, err := range audit.Read(t.Context(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		line, err := r.Line()
		if err != nil {
			t.Fatal(err)
		}
		got = append(append(got, line...), '\n')
	}
	if want := read(t, filepath.Join(dir, one)); !bytes.Equal(got, want) {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestFollow(t *testing.T) {
	for _, last := range []int{0, 2, 5, 100} {
		t.Run(fmt.Sprint(last), func(t *testing.T) {
			l := open(t, audit.Config{Dir: newDir(t), MaxBytes: 1500})
			for i := range 5 {
				add(t, l, event(i))
			}
			next := uint64(5-min(last, 5)) + 1
			seen := make(chan uint64)
			var wg sync.WaitGroup
			wg.Go(func() {
				err := l.Follow(t.Context(), last, func(r audit.Record) error {
					seen <- r.Sequence
					return nil
				})
				if !errors.Is(err, audit.ErrClosed) {
					t.Errorf("follow: %v", err)
				}
				close(seen)
			})
			expect := func() {
				for ; next <= l.Head().Sequence; next++ {
					if got := <-seen; got != next {
						t.Fatalf("got %d, want %d", got, next)
					}
				}
			}
			if last > 0 {
				expect() // it is following now
				for i := range 20 {
					add(t, l, event(i))
					if i%3 == 0 {
						expect()
					}
				}
				expect()
			}
			_ = l.Close()
			wg.Wait()
			if n, more := <-seen; more {
				t.Errorf("then %d", n)
			}
		})
	}
}

func TestFollowEnds(t *testing.T) {
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir})
	add(t, l, event(1), event(2))
	if err := l.Follow(t.Context(), 9, func(audit.Record) error { return errDone }); !errors.Is(err, errDone) {
		t.Errorf("its consumer's error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err := l.Follow(ctx, 9, func(audit.Record) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	path := filepath.Join(dir, one)
	if err := os.WriteFile(path, bytes.Replace(read(t, path), []byte("checkout"), []byte("checkouT"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.Follow(t.Context(), 9, func(audit.Record) error { return errDone }); err == nil || errors.Is(err, errDone) {
		t.Errorf("tampered: %v", err)
	}
}

// TestFollowSeesOnlyWhatIsDurable: what a failing fsync takes back was never
// shown.
func TestFollowSeesOnlyWhatIsDurable(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		fail := make(chan error)
		disk := newDisk(func(act string, n int) error {
			if act == "sync" && n > 2 { // Open's acts are syncdir and open
				select {
				case err := <-fail:
					return err
				case <-time.After(time.Hour):
				}
			}
			return nil
		})
		l, err := audit.OpenOn(disk, audit.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = l.Follow(t.Context(), 10, func(r audit.Record) error {
				got = append(got, r.Serial)
				return nil
			})
		})
		wg.Go(func() {
			if _, err := l.Append(t.Context(), event(1)); !errors.Is(err, syscall.EIO) {
				t.Error(err)
			}
		})
		synctest.Wait() // written, not synced
		fail <- syscall.EIO
		synctest.Wait()
		time.Sleep(2 * time.Hour) // the bubble's
		if _, err := l.Append(t.Context(), event(2)); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if diff := cmp.Diff([]string{event(2).Serial}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			l := open(b, audit.Config{Dir: newDir(b)})
			left := make(chan struct{}, b.N)
			for range b.N {
				left <- struct{}{}
			}
			close(left)
			b.ResetTimer()
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for range left {
						if _, err := l.Append(b.Context(), event(1)); err != nil {
							b.Error(err)
						}
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
		})
	}
}

// BenchmarkRawSync is what one writer of as many bytes could have.
func BenchmarkRawSync(b *testing.B) {
	f, err := os.Create(filepath.Join(b.TempDir(), "raw"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	line := bytes.Repeat([]byte("x"), 520)
	for b.Loop() {
		if _, err := f.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "appends/s")
}

func BenchmarkVerify(b *testing.B) {
	dir := newDir(b)
	l := open(b, audit.Config{Dir: dir})
	batch := make([]audit.Event, 1000)
	for i := range batch {
		batch[i] = event(i)
	}
	for range 10 {
		add(b, l, batch...)
	}
	for b.Loop() {
		verified(b, dir)
	}
	b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "records/s")
}

func TestNothingToRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "absent")
	for name, seq := range map[string]func(func(audit.Record, error) bool){
		"read": audit.Read(t.Context(), dir, 0), "tail": audit.Tail(t.Context(), dir, 20),
		"read of an empty one": audit.Read(t.Context(), t.TempDir(), 0), "tail of an empty one": audit.Tail(t.Context(), t.TempDir(), 20),
	} {
		n := 0
		for _, err := range seq {
			if n++; err == nil {
				t.Errorf("%s: no error", name)
			}
		}
		if n != 1 {
			t.Errorf("%s: %d turns", name, n)
		}
	}
}

// TestReadersBesideAWriter look at the record while it grows.
func TestReadersBesideAWriter(t *testing.T) {
	dir := newDir(t)
	l, err := audit.OpenOn(newDisk(nil), audit.Config{Dir: dir, MaxBytes: 20_000})
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(written)
		for i := range 1000 {
			add(t, l, event(i), event(i))
		}
	})
	for growing := true; growing; {
		select {
		case <-written:
			growing = false
		default:
		}
		known := l.Head()
		if r := verified(t, dir, known); r.Records < known.Sequence {
			t.Errorf("%d records where %d were durable", r.Records, known.Sequence)
		}
		tail := collect(t, audit.Tail(t.Context(), dir, 3))
		if known.Sequence >= 3 && len(tail) < 3 {
			t.Errorf("the last three are %v", tail)
		}
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir); r.Records != 2000 {
		t.Errorf("%d records", r.Records)
	}
}

func TestFollowAfter(t *testing.T) {
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir, MaxBytes: 1500}) // a few records a file
	var refs []audit.Ref
	for i := range 20 {
		got, err := l.Append(t.Context(), event(i))
		if err != nil {
			t.Fatal(err)
		}
		refs = append(refs, got...)
	}
	next := func(after audit.Ref) (got uint64, err error) {
		err = l.FollowAfter(t.Context(), after, func(r audit.Record) error {
			got = r.Sequence
			return errDone
		})
		return got, err
	}
	for i, after := range append([]audit.Ref{{}}, refs[:19]...) {
		if got, err := next(after); got != uint64(i+1) || !errors.Is(err, errDone) {
			t.Errorf("after record %d comes %d (%v)", i, got, err)
		}
	}
	if got, err := next(audit.Ref{Sequence: 7}); got != 8 || !errors.Is(err, errDone) {
		t.Errorf("without a hash: %d (%v)", got, err)
	}
	other := refs[7]
	other.Hash[3]++
	beyond := refs[19]
	beyond.Sequence += 5
	for name, after := range map[string]audit.Ref{"another record": other, "beyond the end": beyond} {
		if got, err := next(after); got != 0 || !errors.Is(err, audit.ErrReplaced) {
			t.Errorf("%s: %d (%v)", name, got, err)
		}
	}
	if oldest, err := l.Oldest(); err != nil || oldest != (audit.Ref{}) {
		t.Errorf("oldest is %v (%v)", oldest, err)
	}
	if err := os.Rename(filepath.Join(dir, one), filepath.Join(t.TempDir(), one)); err != nil {
		t.Fatal(err)
	}
	if _, err := next(refs[0]); !errors.Is(err, audit.ErrReplaced) {
		t.Errorf("archived: %v", err)
	}
	oldest, err := l.Oldest()
	if got, failed := next(oldest); err != nil || got != oldest.Sequence+1 || !errors.Is(failed, errDone) || oldest.Sequence == 0 {
		t.Errorf("after the oldest, %v (%v), comes %d (%v)", oldest, err, got, failed)
	}
}

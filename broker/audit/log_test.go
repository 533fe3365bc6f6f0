package audit_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

func newDir(t testing.TB) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "audit")
}

func open(t testing.TB, c audit.Config) *audit.Log {
	t.Helper()
	l, err := audit.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func event(n int) audit.Event {
	return audit.Event{
		Kind: "issue.x509", OK: true, Node: "spiffe://example.org/credence/node/a", SPIFFEID: "spiffe://example.org/ns/shop/checkout",
		Identity: "checkout", Revision: 7, Serial: fmt.Sprintf("%032x", n), NotAfter: time.Date(2026, 11, 21, 5, 0, 0, 0, time.UTC),
		Facts: map[string][]string{"workload.unix.uid": {"33"}, "node.name": {"a"}},
	}
}

func add(t testing.TB, l *audit.Log, events ...audit.Event) []audit.Ref {
	t.Helper()
	refs, err := l.Append(t.Context(), events...)
	if err != nil {
		t.Fatal(err)
	}
	return refs
}

// fill writes a record of n events in calls of one, and closes it.
func fill(t testing.TB, c audit.Config, n int) []audit.Ref {
	t.Helper()
	l := open(t, c)
	var refs []audit.Ref
	for i := range n {
		refs = append(refs, add(t, l, event(i))...)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return refs
}

func verified(t testing.TB, dir string, known ...audit.Ref) audit.Report {
	t.Helper()
	r, err := audit.Verify(dir, known...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func serials(t testing.TB, dir string) []string {
	t.Helper()
	var got []string
	for r, err := range audit.Read(t.Context(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Serial)
	}
	return got
}

func TestRecordSurvivesRestart(t *testing.T) {
	dir := newDir(t)
	first := fill(t, audit.Config{Dir: dir}, 3)
	l := open(t, audit.Config{Dir: dir})
	if got := l.Head(); got != first[2] {
		t.Errorf("head after restart is %v, want %v", got, first[2])
	}
	refs := add(t, l, event(3), event(4))
	if got, want := refs[1].ID(), "r-000005"; got != want {
		t.Errorf("ID is %q, want %q", got, want)
	}
	if r := verified(t, dir, append(first, refs...)...); r.Records != 5 || r.Head != l.Head() {
		t.Errorf("report is %+v", r)
	}
}

func TestRecordReadsBackAsWritten(t *testing.T) {
	dir := newDir(t)
	now := time.Date(2026, 11, 21, 3, 58, 15, 120, time.FixedZone("", 3600))
	l := open(t, audit.Config{Dir: dir, Now: func() time.Time { return now }})
	want := audit.Event{
		Kind: "deny", Node: "spiffe://example.org/n", SPIFFEID: "s", Identity: "i", Revision: 1, Serial: "ab", Authority: "ef", Issued: now.UTC(), NotAfter: now.UTC(), Digest: "cd",
		Audiences: []string{"a", "<&>\u2028"}, Target: "t", Actor: "uid 0", Code: "c", Reason: "\"quoted\"\n\x00", Facts: map[string][]string{"z": {"1"}, "a": {}},
		Count: 9, Detail: map[string]string{"k": "v"},
	}
	ref := add(t, l, want)[0]
	for r, err := range audit.Read(t.Context(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, r.Event); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
		if !r.Time.Equal(now) || r.Time.Location() != time.UTC || r.Ref() != ref {
			t.Errorf("time %v, place %v, want %v and %v", r.Time, r.Ref(), now.UTC(), ref)
		}
	}
}

func TestInvalidUTF8IsRecordedAsSuch(t *testing.T) {
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir})
	e := event(1)
	e.Facts = map[string][]string{"workload.unix.path": {"/tmp/\xff"}}
	add(t, l, e)
	for r, err := range audit.Read(t.Context(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if got, want := r.Facts["workload.unix.path"][0], "/tmp/\uFFFD"; got != want {
			t.Errorf("path is %q, want %q", got, want)
		}
	}
	if e.Facts["workload.unix.path"][0] != "/tmp/\xff" {
		t.Error("the caller's event was changed")
	}
}

// TestHashIsAsDocumented follows the package comment, with nothing of the
// package.
func TestHashIsAsDocumented(t *testing.T) {
	dir := newDir(t)
	fill(t, audit.Config{Dir: dir}, 3)
	b, err := os.ReadFile(filepath.Join(dir, "000000000001.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	previous := strings.Repeat("0", 64)
	for i, line := range strings.Split(strings.TrimSuffix(string(b), "\n"), "\n") {
		var r struct{ Previous, Hash string }
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		raw, _ := hex.DecodeString(previous)
		body := strings.Replace(line, `,"hash":"`+r.Hash+`"}`, "}", 1)
		sum := sha256.Sum256(append(raw, body...))
		if r.Previous != previous || r.Hash != hex.EncodeToString(sum[:]) {
			t.Errorf("line %d: previous %s, hash %s; want %s and %x", i+1, r.Previous, r.Hash, previous, sum)
		}
		previous = r.Hash
	}
}

func TestModes(t *testing.T) {
	dir := newDir(t)
	fill(t, audit.Config{Dir: dir}, 1)
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "000000000001.jsonl"): 0o600} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %#o, want %#o", path, got, want)
		}
	}
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := audit.Open(audit.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("opening a directory that others read: %v", err)
	}
}

func TestTwoWritersAreRefused(t *testing.T) {
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir})
	if _, err := audit.Open(audit.Config{Dir: dir}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Fatalf("second open: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, audit.Config{Dir: dir})
}

func TestRefusedEvents(t *testing.T) {
	l := open(t, audit.Config{Dir: newDir(t)})
	long, many := event(0), make([]audit.Event, 200)
	long.Reason = strings.Repeat("x", audit.MaxLine)
	for i := range many {
		many[i] = event(i)
		many[i].Reason = strings.Repeat("x", 50_000)
	}
	year, name, detail := event(0), event(0), event(0)
	year.NotAfter = time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)
	name.Facts = map[string][]string{"\xff": {"1"}}
	detail.Detail = map[string]string{"\xff": "1"}
	for what, events := range map[string][]audit.Event{
		"nothing": nil, "no kind": {event(0), {OK: true}}, "too long": {event(0), long}, "too many": many,
		"a time that JSON lacks": {year}, "a fact's name that is not UTF-8": {name}, "a detail's": {detail},
	} {
		if refs, err := l.Append(t.Context(), events...); !errors.Is(err, audit.ErrRefused) || refs != nil {
			t.Errorf("%s: %v, %v", what, refs, err)
		}
	}
	if l.Head() != (audit.Ref{}) {
		t.Errorf("something was recorded: %v", l.Head())
	}
}

func TestLongestEventFits(t *testing.T) {
	dir := newDir(t)
	l := open(t, audit.Config{Dir: dir})
	e := audit.Event{Kind: "deny"}
	lo, hi := 0, audit.MaxLine // the longest reason that is taken
	for lo < hi-1 {
		e.Reason = strings.Repeat("x", (lo+hi)/2)
		if _, err := l.Append(t.Context(), e); err == nil {
			lo = (lo + hi) / 2
		} else {
			hi = (lo + hi) / 2
		}
	}
	if lo < audit.MaxLine-400 {
		t.Errorf("the longest reason is %d bytes", lo)
	}
	verified(t, dir)
}

func TestDurableBeforeReturn(t *testing.T) {
	disk := newDisk(nil)
	l, err := audit.OpenOn(disk, audit.Config{Dir: newDir(t), MaxBytes: 2000})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range 10 {
		syncs := disk.count("sync")
		add(t, l, event(i))
		if disk.unsynced() != 0 || disk.count("sync") != syncs+1 {
			t.Fatalf("record %d returned with %d bytes not durable, after %d syncs", i+1, disk.unsynced(), disk.count("sync")-syncs)
		}
	}
	// The directory that holds ours, and then one for each file's name.
	if got, want := disk.count("syncdir"), 1+disk.count("open"); got != want {
		t.Errorf("%d directory syncs, want %d", got, want)
	}
}

func TestManyCallersShareOneSync(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		disk := newDisk(func(act string, _ int) error {
			if act == "sync" {
				<-gate
			}
			return nil
		})
		l, err := audit.OpenOn(disk, audit.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				if _, err := l.Append(t.Context(), event(i)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // the disk is at work on the first, all others wait
		if l.Head() != (audit.Ref{}) {
			t.Error("a head before the first sync")
		}
		close(gate)
		wg.Wait()
		if got := disk.count("sync"); got > 2 {
			t.Errorf("%d syncs for 200 records", got)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	if r := verified(t, dir); r.Records != 200 {
		t.Errorf("%d records", r.Records)
	}
}

func TestCancelledWhileWaiting(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		disk := newDisk(func(act string, _ int) error {
			if act == "sync" {
				<-gate
			}
			return nil
		})
		l, err := audit.OpenOn(disk, audit.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wait := func(n int) {
			wg.Go(func() {
				if refs, err := l.Append(ctx, event(n)); !errors.Is(err, context.Canceled) || refs != nil {
					t.Errorf("event %d: %v, %v", n, refs, err)
				}
			})
			synctest.Wait()
		}
		wait(1) // with the disk
		wait(2) // behind it
		cancel()
		wg.Wait()
		close(gate)
		if _, err := l.Append(ctx, event(3)); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that is over: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	// What the disk had is there, what it had not is withdrawn.
	if diff := cmp.Diff([]string{event(1).Serial}, serials(t, dir)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestQueueIsBounded(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		disk := newDisk(func(act string, _ int) error {
			if act == "sync" {
				<-gate
			}
			return nil
		})
		l, err := audit.OpenOn(disk, audit.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		batch := make([]audit.Event, 100)
		for i := range batch {
			batch[i] = event(i)
			batch[i].Reason = strings.Repeat("x", 60_000)
		}
		var mu sync.Mutex
		refused := 0
		var wg sync.WaitGroup
		for range 10 { // 6 MB each; one is with the disk, five may wait
			wg.Go(func() {
				if _, err := l.Append(t.Context(), batch...); err != nil {
					mu.Lock()
					defer mu.Unlock()
					if refused++; !errors.Is(err, audit.ErrUnavailable) {
						t.Error(err)
					}
				}
			})
			synctest.Wait()
		}
		close(gate)
		wg.Wait()
		if refused != 4 {
			t.Errorf("%d of 10 refused, want 4", refused)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestClosed(t *testing.T) {
	l := open(t, audit.Config{Dir: newDir(t)})
	for range 2 {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := l.Append(t.Context(), event(1)); !errors.Is(err, audit.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
}

func TestNewFileAfterMaxBytes(t *testing.T) {
	dir := newDir(t)
	refs := fill(t, audit.Config{Dir: dir, MaxBytes: 1500}, 10)
	want := []string{"000000000001.jsonl", "000000000004.jsonl", "000000000007.jsonl", "000000000010.jsonl"}
	if diff := cmp.Diff(want, listed(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if r := verified(t, dir, refs...); r.Files != 4 || r.Records != 10 {
		t.Errorf("report is %+v", r)
	}
	open(t, audit.Config{Dir: dir, MaxBytes: 1500})
}

// sum returns the hex of the hash that the package comment defines.
func sum(t testing.TB, prevHex, body []byte) []byte {
	t.Helper()
	raw := make([]byte, 32)
	if _, err := hex.Decode(raw, prevHex); err != nil {
		return bytes.Repeat([]byte("0"), 64) // no hash can be right
	}
	s := sha256.Sum256(append(raw, body...))
	return []byte(hex.EncodeToString(s[:]))
}

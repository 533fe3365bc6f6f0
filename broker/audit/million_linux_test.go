package audit_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/credence-id/credence/broker/audit"
)

// million writes a record of a million, an event a second, as a broker does.
func million(b *testing.B) (*audit.Log, string) {
	b.Helper()
	const records, batch = 1_000_000, 1000
	dir, now := newDir(b), day0
	l := open(b, audit.Config{Dir: dir, Now: func() time.Time { return now }})
	for i := 0; i < records; i += batch {
		events := make([]audit.Event, batch)
		for j := range events {
			e := mixed(i + j)
			e.Issued, e.NotAfter, e.Digest, e.Authority = now, now.Add(time.Hour), fmt.Sprintf("%064x", i), fmt.Sprintf("%032x", 1)
			e.Facts = map[string][]string{"node.name": {"n"}, "workload.unix.uid": {"33"}, "workload.systemd.unit": {"checkout.service"}}
			events[j] = e
		}
		now = now.Add(batch * time.Second)
		add(b, l, events...)
	}
	return l, dir
}

// BenchmarkSearch finds a few of a million records: with an index and without, with
// the files in the page cache and without.
func BenchmarkSearch(b *testing.B) {
	l, dir := million(b)
	b.Logf("%d MiB in %d files", sizeOf(b, dir, "*.jsonl")>>20, len(glob(b, dir, "*.jsonl")))
	begun := time.Now()
	index(b, l)
	b.Logf("indexed in %s, %d KiB", time.Since(begun), sizeOf(b, dir, "*.idx")>>10)
	for _, c := range []struct {
		name string
		q    audit.Query
	}{
		{"serial", audit.Query{Serial: fmt.Sprintf("%032x", 123_456)}},
		{"none", audit.Query{Serial: "00"}},
		{"several", audit.Query{Kind: "deny", Identity: "id3", Target: `aws "orders"`, Limit: 100}},
		{"minutes", audit.Query{Since: day0.Add(5 * 24 * time.Hour), Until: day0.Add(5*24*time.Hour + 17*time.Minute), Limit: 100}},
		{"oldest", audit.Query{Kind: "apply", Until: day0.Add(30 * time.Minute), Limit: 100}},
	} {
		b.Run(c.name+"/warm", func(b *testing.B) { search(b, l, c.q, func() {}) })
		b.Run(c.name+"/cold", func(b *testing.B) { search(b, l, c.q, func() { forget(b, dir) }) })
	}
	b.Run("none/scan", func(b *testing.B) { search(b, l, audit.Query{Serial: "00", NoIndex: true}, func() {}) })
}

// search reports the time of the processor too: others are at work on it.
func search(b *testing.B, l *audit.Log, q audit.Query, before func()) {
	var spent time.Duration
	found := 0
	for b.Loop() {
		b.StopTimer()
		before()
		from := processor(b)
		b.StartTimer()
		found = 0
		for _, err := range l.Search(b.Context(), q) {
			if err != nil {
				b.Fatal(err)
			}
			found++
		}
		spent += processor(b) - from
	}
	b.ReportMetric(float64(found), "found")
	b.ReportMetric(float64(spent.Milliseconds())/float64(b.N), "cpu-ms/op")
}

func processor(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// forget has the page cache let go of the record's files.
func forget(b *testing.B, dir string) {
	for _, path := range glob(b, dir, "*") {
		f, err := os.Open(path)
		if err == nil {
			err = errors.Join(f.Sync(), unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED), f.Close())
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func sizeOf(t testing.TB, dir, pattern string) (size int64) {
	t.Helper()
	for _, path := range glob(t, dir, pattern) {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	return size
}

func glob(t testing.TB, dir, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

package audit_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

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

// BenchmarkSearch finds a few of a million records, with an index and without.
// With CREDENCE_COLD the page cache is emptied before each, which takes root.
func BenchmarkSearch(b *testing.B) {
	l, dir := million(b)
	size := int64(0)
	for _, path := range glob(b, dir, "*.jsonl") {
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		size += info.Size()
	}
	b.Logf("%d MiB in %d files", size>>20, len(glob(b, dir, "*.jsonl")))
	begun := time.Now()
	index(b, l)
	size = 0
	for _, path := range sidecars(b, dir) {
		info, err := os.Stat(path)
		if err != nil {
			b.Fatal(err)
		}
		size += info.Size()
	}
	b.Logf("indexed in %s, %d KiB", time.Since(begun), size>>10)
	for _, c := range []struct {
		name string
		q    audit.Query
	}{
		{"serial", audit.Query{Serial: fmt.Sprintf("%032x", 123_456)}},
		{"record", audit.Query{Sequence: 123_456}},
		{"none", audit.Query{Serial: "00"}},
		{"several", audit.Query{Kind: "deny", Identity: "id3", Target: `aws "orders"`, Limit: 100}},
		{"minute", audit.Query{Since: day0.Add(5 * 24 * time.Hour), Until: day0.Add(5*24*time.Hour + 17*time.Minute), Limit: 100}},
		{"newest", audit.Query{OK: no(), Limit: 100}},
		{"oldest", audit.Query{Kind: "apply", Until: day0.Add(30 * time.Minute), Limit: 100}},
	} {
		for how, without := range map[string]bool{"index": false, "scan": true} {
			b.Run(c.name+"/"+how, func(b *testing.B) {
				q := c.q
				q.NoIndex = without
				for b.Loop() {
					if os.Getenv("CREDENCE_COLD") != "" {
						b.StopTimer()
						if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("1"), 0); err != nil {
							b.Skip(err)
						}
						b.StartTimer()
					}
					n := 0
					for _, err := range l.Search(b.Context(), q) {
						if err != nil {
							b.Fatal(err)
						}
						n++
					}
					b.ReportMetric(float64(n), "found")
				}
			})
		}
	}
}

func glob(t testing.TB, dir, pattern string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

package audit_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/audit"
)

func yes() *bool { t := true; return &t }
func no() *bool  { f := false; return &f }

// mixed is the nth of events in which each value is somewhere.
func mixed(n int) audit.Event {
	e := audit.Event{
		Kind: []string{"issue.x509", "issue.jwt", "deny", "apply", "exchange"}[n%5], OK: n%5 != 2,
		Node: fmt.Sprintf("spiffe://example.org/credence/node/n%d", n%17), SPIFFEID: fmt.Sprintf("spiffe://example.org/w/%d", n%101),
		Identity: fmt.Sprintf("id%d", n%13), Serial: fmt.Sprintf("%032x", n), Detail: map[string]string{"kind": "issue.x509", "name": "<a&b>"},
	}
	if n%7 == 0 {
		e.Target = `aws "orders"`
	}
	if n%11 == 0 {
		e.Actor = "uid:0"
	}
	return e
}

// mixedRecord writes n, an hour apart, 40 at once, in files of about size bytes.
func mixedRecord(t testing.TB, n int, size int64) (*audit.Log, string) {
	t.Helper()
	dir, now := newDir(t), day0
	l := open(t, audit.Config{Dir: dir, MaxBytes: size, Now: func() time.Time { now = now.Add(time.Hour); return now }})
	for chunk := range slices.Chunk(slices.Collect(func(yield func(int) bool) {
		for i := range n {
			if !yield(i) {
				return
			}
		}
	}), 40) {
		var events []audit.Event
		for _, i := range chunk {
			events = append(events, mixed(i))
		}
		add(t, l, events...)
	}
	return l, dir
}

// index makes the sidecars of what is there.
func index(t testing.TB, l *audit.Log) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := l.IndexOnce(ctx); err != nil {
		t.Fatal(err)
	}
}

func queries() map[string]audit.Query {
	return map[string]audit.Query{
		"all":                  {},
		"a serial":             {Serial: fmt.Sprintf("%032x", 277)},
		"an id":                {SPIFFEID: "spiffe://example.org/w/55"},
		"part of an id":        {SPIFFEID: "spiffe://example.org/w/5"},
		"an identity":          {Identity: "id3"},
		"a node":               {Node: "spiffe://example.org/credence/node/n4"},
		"a node's name":        {Node: "n4"},
		"part of it":           {Node: "4"},
		"a kind":               {Kind: "issue.x509"},
		"a family of kinds":    {Kind: "issue.*"},
		"a kind without":       {Kind: "deny.*"},
		"half a kind":          {Kind: "issue"},
		"a target":             {Target: `aws "orders"`},
		"an actor":             {Actor: "uid:0"},
		"denied":               {OK: no()},
		"done":                 {OK: yes()},
		"several":              {Identity: "id3", Kind: "deny", Node: "n2"},
		"a record":             {Sequence: 234},
		"the first":            {Sequence: 1},
		"none such":            {Sequence: 1 << 40},
		"before one":           {Below: 100},
		"and of a kind":        {Below: 100, Kind: "apply"},
		"a limit":              {Limit: 7},
		"a limit of a kind":    {Limit: 7, Kind: "apply", Below: 250},
		"since":                {Since: day(1)},
		"until":                {Until: day(1)},
		"between":              {Since: day0.Add(5 * time.Hour), Until: day0.Add(6 * time.Hour)},
		"nothing is between":   {Since: day0.Add(5 * time.Hour), Until: day0.Add(5 * time.Hour)},
		"the wrong way round":  {Since: day0.Add(6 * time.Hour), Until: day0.Add(5 * time.Hour)},
		"since for ever":       {Since: time.Unix(-1<<50, 0)},
		"until for ever":       {Until: time.Unix(1<<50, 0)},
		"until long ago":       {Until: time.Unix(-1<<50, 0)},
		"not UTF-8":            {Identity: "a\xff"},
		"what is not there":    {Serial: "00", Target: "x"},
		"what is in the facts": {Target: "aws"},
	}
}

// all reads a whole record.
func all(t testing.TB, dir string) (records []audit.Record) {
	t.Helper()
	for r, err := range audit.Read(t.Context(), dir, 0) {
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	return records
}

// wanted is what a query should find.
func wanted(records []audit.Record, q audit.Query) (found []uint64) {
	for _, r := range slices.Backward(records) {
		if q.Matches(r) && (q.Limit == 0 || len(found) < q.Limit) {
			found = append(found, r.Sequence)
		}
	}
	return found
}

func TestSearch(t *testing.T) {
	l, dir := mixedRecord(t, 300, 43<<10)
	records := all(t, dir)
	check := func(how string, search func(audit.Query) func(func(audit.Record, error) bool)) {
		for name, q := range queries() {
			if want, got := wanted(records, q), collect(t, search(q)); !slices.Equal(want, got) {
				t.Errorf("%s, %s (-want +got):\n%s", how, name, cmp.Diff(want, got))
			}
		}
	}
	files := func(q audit.Query) func(func(audit.Record, error) bool) { return audit.Search(t.Context(), dir, q) }
	check("without an index", files)
	index(t, l)
	if n := len(sidecars(t, dir)); n < 2 {
		t.Fatalf("%d sidecars of %v", n, listed(t, dir))
	}
	check("with one", files)
	check("of a log", func(q audit.Query) func(func(audit.Record, error) bool) { return l.Search(t.Context(), q) })
	check("told to read all", func(q audit.Query) func(func(audit.Record, error) bool) { q.NoIndex = true; return files(q) })
	if q := (audit.Query{Kind: "deny"}); len(wanted(records, q)) != 60 {
		t.Error("the reference is wrong")
	}
}

func sidecars(t testing.TB, dir string) []string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(dir, "*.idx"))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestHostileSidecars puts what is wrong in place of an index: nothing that the
// record has may be missed, and nothing found that it has not.
func TestHostileSidecars(t *testing.T) {
	l, dir := mixedRecord(t, 1100, 150<<10)
	index(t, l)
	made := sidecars(t, dir)
	if len(made) < 2 {
		t.Fatal(made)
	}
	path, records := made[0], all(t, dir)
	good, other := read(t, path), read(t, made[1])
	for name, data := range map[string][]byte{
		"empty":              {},
		"cut":                good[:len(good)/2],
		"longer":             append(bytes.Clone(good), 0),
		"a bit":              append(append(bytes.Clone(good[:200]), good[200]^1), good[201:]...),
		"another file's":     other,
		"of another size":    audit.Resum(edit(good, 31, 8, 12345)),
		"of another hash":    audit.Resum(edit(good, 39, 8, 0)),
		"of no blocks":       audit.Resum(append(edit(good[:79], 71, 8, 0), make([]byte, 32)...)),
		"of many blocks":     audit.Resum(edit(good, 71, 8, 1<<60)),
		"a block elsewhere":  audit.Resum(edit(good, 79, 8, 5)),
		"a long filter":      audit.Resum(edit(good, 79+32, 8, 1<<62)),
		"no filter":          audit.Resum(edit(good, 79+32, 8, 0)),
		"times turned round": audit.Resum(edit(good, 79+16, 8, 1<<62)),
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, q := range []audit.Query{{Kind: "deny"}, {Serial: fmt.Sprintf("%032x", 7)}, {Sequence: 9}, {Since: day0, Until: day0.Add(5 * time.Hour)}} {
				if diff := cmp.Diff(wanted(records, q), collect(t, audit.Search(t.Context(), dir, q))); diff != "" {
					t.Errorf("%+v (-want +got):\n%s", q, diff)
				}
			}
			index(t, l)
			if !bytes.Equal(read(t, path), good) {
				t.Error("it was not made anew")
			}
		})
	}
	// A second block that begins within a line.
	x := bytes.Clone(good)
	second := 79 + 40 + int(binary.BigEndian.Uint64(x[79+32:]))
	x = audit.Resum(edit(x, second, 8, binary.BigEndian.Uint64(x[second:])+3))
	if err := os.WriteFile(path, x, 0o600); err != nil {
		t.Fatal(err)
	}
	q := audit.Query{Serial: fmt.Sprintf("%032x", 300)}
	if diff := cmp.Diff([]uint64{301}, collect(t, audit.Search(t.Context(), dir, q))); diff != "" {
		t.Error(diff)
	}
	// One that hides is not asked, if told so.
	for i := second + 40; i < second+440; i++ {
		x[i] = 0
	}
	if err := os.WriteFile(path, audit.Resum(edit(x, second, 8, binary.BigEndian.Uint64(good[second:]))), 0o600); err != nil {
		t.Fatal(err)
	}
	q.NoIndex = true
	if diff := cmp.Diff([]uint64{301}, collect(t, audit.Search(t.Context(), dir, q))); diff != "" {
		t.Error(diff)
	}
}

func edit(data []byte, at, n int, value uint64) []byte {
	out := bytes.Clone(data)
	binary.BigEndian.PutUint64(out[at:at+n], value)
	return out
}

// TestSearchFindsWhatIsBroken says so, and does not pass over it.
func TestSearchFindsWhatIsBroken(t *testing.T) {
	l, dir := mixedRecord(t, 400, 1<<20)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	data := bytes.Replace(read(t, filepath.Join(dir, one)), []byte(`"identity":"id3"`), []byte(`"identity":"id4"`), 1)
	if err := os.WriteFile(filepath.Join(dir, one), data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, err := range audit.Search(t.Context(), dir, audit.Query{Identity: "id4"}) {
		if _, ok := errors.AsType[*audit.BrokenError](err); ok {
			return
		}
	}
	t.Error("nothing is said")
}

// TestSearchBesideAWriter lets an incomplete write at the end be.
func TestSearchBesideAWriter(t *testing.T) {
	for name, tail := range map[string]string{
		"half a line": `{"sequence":401,"time":"2026`, "zeros": strings.Repeat("\x00", 70000), "a line and zeros": "{\"sequence\":401}\x00\n\x00",
	} {
		_, dir := mixedRecord(t, 400, 1<<20)
		records := all(t, dir)
		f, err := os.OpenFile(filepath.Join(dir, one), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(tail); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
		for _, q := range []audit.Query{{}, {Kind: "deny"}} {
			if got := collect(t, audit.Search(t.Context(), dir, q)); len(got) != len(wanted(records, q)) {
				t.Errorf("%s: %d of %d", name, len(got), len(wanted(records, q)))
			}
		}
	}
}

func TestSearchEnds(t *testing.T) {
	_, dir := mixedRecord(t, 400, 100<<10)
	for range audit.Search(t.Context(), dir, audit.Query{}) {
		break
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, err := range audit.Search(ctx, dir, audit.Query{}) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
	}
}

// TestKeepIndex makes a sidecar as soon as a file is done with.
func TestKeepIndex(t *testing.T) {
	dir := newDir(t)
	synctest.Test(t, func(t *testing.T) {
		l, err := audit.Open(audit.Config{Dir: dir, MaxBytes: 1500})
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error)
		go func() { ended <- l.KeepIndex(t.Context()) }()
		for i := range 12 {
			add(t, l, event(i))
		}
		synctest.Wait()
		if n, files := len(sidecars(t, dir)), len(listed(t, dir)); n == 0 || files != 2*n+1 {
			t.Errorf("%v", listed(t, dir))
		}
		first := sidecars(t, dir)[0]
		if err := os.Remove(first); err != nil {
			t.Fatal(err)
		}
		for i := range 6 {
			add(t, l, event(i))
		}
		synctest.Wait()
		if _, err := os.Stat(first); err == nil {
			t.Error("what has its index is read again with each file")
		}
		index(t, l)
		if _, err := os.Stat(first); err != nil {
			t.Error("a start does not make it anew: ", err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, audit.ErrClosed) {
			t.Error(err)
		}
	})
}

func FuzzSidecar(f *testing.F) {
	l, dir := mixedRecord(f, 600, 100<<10)
	index(f, l)
	for _, path := range sidecars(f, dir) {
		f.Add(read(f, path))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		data = audit.Resum(data)
		again, err := audit.ParseSidecar(data)
		if err == nil && !bytes.Equal(again, data) {
			t.Error("it reads as another")
		}
	})
}

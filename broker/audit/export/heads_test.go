package export_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/audit/export"
)

// headOf signs the newest head of a record.
func headOf(t testing.TB, l *audit.Log) audit.Head {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := audit.SignHead(audit.HeadOf("example.org", "b1", l.Head(), time.Unix(1_800_000_000, 0)), key, [][]byte{{1}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A tape notes what comes, in order, and has the heads that are asked for.
type tape struct {
	mu     sync.Mutex // guards what follows
	all    []string
	fails  error // what heads meet
	newest audit.Head
	none   error // why there is no newest
	asked  int
}

func (s *tape) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *tape) head(context.Context) (audit.Head, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	return s.newest, s.none
}

func (s *tape) Send(_ context.Context, batch []audit.Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range batch {
		s.all = append(s.all, fmt.Sprint(r.Sequence))
	}
	return nil
}

func (s *tape) SendHead(_ context.Context, h audit.Head) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		s.all = append(s.all, "failed")
		return s.fails
	}
	s.all = append(s.all, fmt.Sprint("head ", h.Sequence))
	return nil
}

func (s *tape) want(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := cmp.Diff(want, s.all); d != "" {
		t.Error(d)
	}
	s.all = nil
}

// TestAHeadAMinute comes after the record that it speaks of, and moves no cursor.
func TestAHeadAMinute(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		l, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "audit")})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		add(t, l, 2)
		s, cursor := &tape{newest: headOf(t, l)}, filepath.Join(dir, "cursor")
		s.newest.Sequence = 3 // of a record that has not come yet
		var said bytes.Buffer
		e, err := export.New(export.Config{
			Name: "x", Source: l, Sink: s, Cursor: cursor, Log: slog.New(slog.NewTextHandler(&said, nil)),
			Head: s.head,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- e.Run(ctx) }()
		advance := func(d time.Duration) { synctest.Wait(); <-time.After(d); synctest.Wait() }
		sign := func() { h := headOf(t, l); s.set(func() { s.newest = h }) }

		advance(90 * time.Second)
		s.want(t, "1", "2")
		add(t, l, 1)
		advance(time.Second)
		s.want(t, "3", "head 3")
		if at, err := export.LoadCursor(cursor); err != nil || at != l.Head() {
			t.Errorf("the cursor: %v, %v", at, err)
		}
		for range 40 { // many records in less than a minute
			add(t, l, 1)
			sign()
			advance(time.Second)
		}
		s.set(func() {
			if strings.Contains(strings.Join(s.all, " "), "head") || s.asked > 2 {
				t.Errorf("within a minute: %v; asked %d times", s.all, s.asked)
			}
			s.all = nil
		})
		advance(time.Minute)
		s.want(t, "head 43") // nothing else came
		advance(time.Hour)
		s.want(t)
		s.set(func() {
			if s.asked > 70 {
				t.Errorf("asked %d times in an hour", s.asked)
			}
			s.fails = errors.New("no heads are taken here")
		})
		add(t, l, 1)
		sign()
		advance(150 * time.Second)
		s.want(t, "44", "failed", "failed", "failed")
		if e.State().Problem != "" || e.State().At != l.Head() {
			t.Errorf("%+v", e.State())
		}
		s.set(func() { s.fails = nil })
		advance(time.Minute)
		s.want(t, "head 44")
		s.set(func() { s.none = errors.New("nobody signs") })
		add(t, l, 1)
		advance(2 * time.Minute)
		s.want(t, "45")
		cancel()
		<-ended
		for _, why := range []string{"no heads are taken here", "nobody signs"} {
			if n := strings.Count(said.String(), why); n != 1 {
				t.Errorf("%s: said %d times", why, n)
			}
		}
	})
}

// once exports all that there is.
func once(t *testing.T, l *audit.Log, sink export.Sink, cursor string) {
	t.Helper()
	head := headOf(t, l)
	e, err := export.New(export.Config{
		Name: "x", Source: until{l, l.Head().Sequence}, Sink: sink, Cursor: cursor, Tries: 1,
		Head: func(context.Context) (audit.Head, error) { return head, nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// keptIn says which places a file of an export stands for.
func keptIn(t *testing.T, text string) (all []string) {
	t.Helper()
	kept, err := audit.ReadKept(strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	for _, h := range kept.Heads {
		all = append(all, fmt.Sprintf("%d of %s, signed %t", h.Sequence, h.Origin, len(h.Chain) > 0))
	}
	return all
}

func TestHeadsInAFile(t *testing.T) {
	dir := t.TempDir()
	l := open(t, filepath.Join(dir, "audit"))
	path := filepath.Join(dir, "out.jsonl")
	export1 := func(n int) string {
		t.Helper()
		add(t, l, n)
		f, err := export.OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		once(t, l, f, path+".cursor")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	whole := export1(5)
	write(t, path, whole+`{"head":{"trust_do`) // as a crash leaves it
	whole = export1(2)
	if d := cmp.Diff([]string{"5 of b1, signed true", "7 of b1, signed true", "7 of b1, signed false"}, keptIn(t, whole)); d != "" {
		t.Error(d)
	}
	var out bytes.Buffer
	once(t, l, export.Writer{W: &out}, "")
	if d := cmp.Diff([]string{"7 of b1, signed true", "7 of b1, signed false"}, keptIn(t, out.String())); d != "" {
		t.Error(d)
	}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSuffix(line, "\n")
		_, asRecord := audit.ParseLine([]byte(line))
		if _, asHead := audit.ParseHead([]byte(line)); strings.HasPrefix(line, `{"head":{`) != (asRecord != nil) || asHead == nil {
			t.Errorf("%s: as a record %v, as a head %v", line, asRecord, asHead)
		}
	}
}

func TestHeadsOverHTTPS(t *testing.T) {
	dir := t.TempDir()
	l := open(t, filepath.Join(dir, "audit"))
	add(t, l, 3)
	got, heads := newKept(), newKept()
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		if r.URL.Path != "/v1/logs" {
			got.take(string(body))
			return
		}
		var data logs.LogsData
		if err := proto.Unmarshal(body, &data); err != nil {
			t.Error(err)
		}
		for _, one := range data.GetResourceLogs()[0].GetScopeLogs()[0].GetLogRecords() {
			if one.GetEventName() != "credence.audit.head" {
				continue
			}
			h, err := audit.ParseHead([]byte(one.GetBody().GetStringValue()))
			if a := attributes(one.GetAttributes()); err != nil || a["credence.sequence"] != "3" || a["credence.hash"] != h.Hash || one.GetTimeUnixNano() != uint64(h.Time.UnixNano()) {
				t.Errorf("%v %v", one, err)
			}
			heads.take(h.Hash)
		}
	}))
	defer server.Close()
	once(t, l, sinkTo(t, dir, server, export.HTTPConfig{}), "")
	if d := cmp.Diff([]string{"3 of b1, signed true", "3 of b1, signed false"}, keptIn(t, strings.Join(got.lines, ""))); d != "" {
		t.Error(d)
	}
	once(t, l, sinkTo(t, dir, server, export.HTTPConfig{OTLP: true}), "")
	if d := cmp.Diff([]string{fmt.Sprintf("%x", l.Head().Hash)}, heads.lines); d != "" {
		t.Error(d)
	}
}

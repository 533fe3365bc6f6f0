package export_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
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
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/audit/export"
)

func open(t testing.TB, dir string) *audit.Log {
	t.Helper()
	l, err := audit.Open(audit.Config{Dir: dir, MaxBytes: 20 << 10})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func add(t testing.TB, l *audit.Log, n int) {
	t.Helper()
	for i := range n {
		e := audit.Event{Kind: "issue.x509", OK: i%3 > 0, SPIFFEID: "spiffe://example.org/w", Serial: fmt.Sprint(i), Reason: "<&>\u2028"}
		if _, err := l.Append(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
}

// A kept is what a receiver has, in the order in which it came.
type kept struct {
	mu      sync.Mutex
	lines   []string
	arrived chan struct{} // holds one
}

func newKept() *kept { return &kept{arrived: make(chan struct{}, 1)} }

func (k *kept) take(lines ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.lines = append(k.lines, lines...)
	select {
	case k.arrived <- struct{}{}:
	default:
	}
}

// distinct checks each line and returns how many records there are, from 1 on
// without a gap: doubles may be, what is lost may not.
func (k *kept) distinct(t testing.TB) int {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := 0
	for _, line := range k.lines {
		r, err := audit.ParseLine([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		if int(r.Sequence) > seen+1 {
			t.Fatalf("record %d comes after %d", r.Sequence, seen)
		}
		seen = max(seen, int(r.Sequence))
	}
	return seen
}

// await waits until n records are there.
func (k *kept) await(t testing.TB, n int) {
	t.Helper()
	for k.distinct(t) < n {
		select {
		case <-k.arrived:
		case <-t.Context().Done():
			t.Fatalf("%d records came", k.distinct(t))
		}
	}
}

// A collector takes OTLP as the protocol says, and is told how to fail.
type collector struct {
	*kept
	t      testing.TB
	calls  int
	answer func(call int, w http.ResponseWriter, records []string) (taken int) // -1: hang up
}

func (c *collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost || r.URL.Path != "/v1/logs" || r.Header.Get("Content-Type") != "application/x-protobuf" || r.Header.Get("Authorization") != "Bearer s3cret" {
		c.t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		w.WriteHeader(http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Error(err)
	}
	var data logs.LogsData
	if err := (proto.UnmarshalOptions{}).Unmarshal(body, &data); err != nil || len(data.ProtoReflect().GetUnknown()) > 0 {
		c.t.Errorf("%v", err)
	}
	var records []string
	for _, of := range data.GetResourceLogs() {
		if d := cmp.Diff(map[string]string{"service.name": "credence-broker"}, attributes(of.GetResource().GetAttributes())); d != "" {
			c.t.Error(d)
		}
		for _, scope := range of.GetScopeLogs() {
			for _, one := range scope.GetLogRecords() {
				records = append(records, one.GetBody().GetStringValue())
				c.check(one)
			}
		}
	}
	c.calls++
	switch taken := c.answer(c.calls, w, records); {
	case taken < 0:
		panic(http.ErrAbortHandler)
	default:
		c.take(records[:taken]...)
	}
}

func attributes(all []*common.KeyValue) map[string]string {
	m := make(map[string]string)
	for _, a := range all {
		m[a.GetKey()] = a.GetValue().GetStringValue()
	}
	return m
}

func (c *collector) check(one *logs.LogRecord) {
	r, err := audit.ParseLine([]byte(one.GetBody().GetStringValue()))
	if err != nil {
		c.t.Error(err)
	}
	a := attributes(one.GetAttributes())
	severity := logs.SeverityNumber_SEVERITY_NUMBER_INFO
	if !r.OK {
		severity = logs.SeverityNumber_SEVERITY_NUMBER_WARN
	}
	if a["credence.sequence"] != fmt.Sprint(r.Sequence) || a["credence.hash"] != r.Hash || a["credence.serial"] != r.Serial ||
		one.GetTimeUnixNano() != uint64(r.Time.UnixNano()) || one.GetEventName() != "credence.audit.issue.x509" || one.GetSeverityNumber() != severity {
		c.t.Errorf("%v of %+v", one, r)
	}
}

// partial is an ExportLogsServiceResponse.
func partial(rejected int64, message string) []byte {
	inner := protowire.AppendTag(nil, 1, protowire.VarintType)
	inner = protowire.AppendVarint(inner, uint64(rejected))
	inner = protowire.AppendTag(inner, 2, protowire.BytesType)
	inner = protowire.AppendString(inner, message)
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), inner)
}

// The ways in which a collector fails, each once in a while, and what it keeps of
// a batch when it does.
func failures() map[string]func(call int, w http.ResponseWriter, records []string) int {
	sometimes := func(fail func(http.ResponseWriter, []string) int) func(int, http.ResponseWriter, []string) int {
		return func(call int, w http.ResponseWriter, records []string) int {
			if call == 1 || call == 3 {
				return fail(w, records)
			}
			return len(records)
		}
	}
	status := func(code, keep int) func(int, http.ResponseWriter, []string) int {
		return sometimes(func(w http.ResponseWriter, records []string) int {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(code)
			return min(keep, len(records))
		})
	}
	return map[string]func(int, http.ResponseWriter, []string) int{
		"never":                           func(_ int, _ http.ResponseWriter, r []string) int { return len(r) },
		"unavailable":                     status(503, 0),
		"unavailable, and took some":      status(503, 3),
		"too many requests":               status(429, 0),
		"a gateway's timeout, and took":   status(504, 1000),
		"unauthorized":                    status(401, 0),
		"redirected":                      status(307, 0),
		"too large":                       status(413, 0),
		"too large above four":            func(_ int, w http.ResponseWriter, r []string) int { return tooLarge(w, r, 4) },
		"bad request":                     status(400, 0),
		"hangs up":                        sometimes(func(http.ResponseWriter, []string) int { return -1 }),
		"a warning":                       sometimes(func(w http.ResponseWriter, r []string) int { _, _ = w.Write(partial(0, "slow down")); return len(r) }),
		"rejects some":                    sometimes(func(w http.ResponseWriter, r []string) int { _, _ = w.Write(partial(2, "no")); return len(r) / 2 }),
		"rejects one for a while":         rejectOne(),
		"answers with what is no message": sometimes(func(w http.ResponseWriter, _ []string) int { _, _ = io.WriteString(w, "<html>ok</html>"); return 0 }),
		"answers without end": sometimes(func(w http.ResponseWriter, _ []string) int {
			_, _ = w.Write(make([]byte, 3<<20))
			return 0
		}),
	}
}

func tooLarge(w http.ResponseWriter, records []string, most int) int {
	if len(records) > most {
		w.WriteHeader(http.StatusRequestEntityTooLarge)
		return 0
	}
	return len(records)
}

// rejectOne rejects each batch in which the fifth record is, four times.
func rejectOne() func(int, http.ResponseWriter, []string) int {
	times := 0
	return func(_ int, w http.ResponseWriter, records []string) int {
		for i, r := range records {
			if strings.HasPrefix(r, `{"sequence":5,`) && times < 4 {
				times++
				_, _ = w.Write(partial(1, "no"))
				return i
			}
		}
		return len(records)
	}
}

// TestNothingIsLost sends a record to collectors that fail, and stops once on the
// way: a new Exporter goes on from the cursor.
func TestNothingIsLost(t *testing.T) {
	for name, answer := range failures() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			l := open(t, filepath.Join(dir, "audit"))
			add(t, l, 30)
			c := &collector{kept: newKept(), t: t, answer: answer}
			server := httptest.NewUnstartedServer(c)
			server.Config.ErrorLog = nil
			server.StartTLS()
			defer server.Close()
			sink := sinkTo(t, dir, server, export.HTTPConfig{OTLP: true, Resource: map[string]string{"service.name": "credence-broker"}})
			cursor := filepath.Join(dir, "cursor")
			for _, want := range []int{30, 45} {
				e, err := export.New(export.Config{Name: "x", Source: l, Sink: sink, Cursor: cursor, Pause: time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan error)
				go func() { ended <- e.Run(ctx) }()
				c.await(t, want)
				for e.State().At.Sequence < uint64(want) { // it is acknowledged after it was taken
					select {
					case <-c.arrived:
					case <-time.After(time.Millisecond):
					}
				}
				cancel()
				if err := <-ended; !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				if s := e.State(); s.At != l.Head() || s.Problem != "" || e.Hold().Sequence != uint64(want) {
					t.Errorf("%+v", s)
				}
				if at, err := export.LoadCursor(cursor); err != nil || at != l.Head() {
					t.Errorf("%v %v", at, err)
				}
				if want == 30 {
					add(t, l, 15)
				}
			}
		})
	}
}

// sinkTo posts to a test server, as it wants to be posted to.
func sinkTo(t testing.TB, dir string, server *httptest.Server, c export.HTTPConfig) *export.HTTP {
	t.Helper()
	c.URL, c.CAFile, c.HeadersFile = server.URL, filepath.Join(dir, "ca.pem"), filepath.Join(dir, "headers")
	write(t, c.CAFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})))
	write(t, c.HeadersFile, "# for the collector\nauthorization: Bearer s3cret\n")
	sink, err := export.NewHTTP(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sink.Close() })
	return sink
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAReplacedRecordIsTold and neither skipped nor begun anew.
func TestAReplacedRecordIsTold(t *testing.T) {
	dir := t.TempDir()
	cursor := filepath.Join(dir, "cursor")
	l := open(t, filepath.Join(dir, "a"))
	add(t, l, 5)
	k := newKept()
	once := func(l export.Source) error {
		e, err := export.New(export.Config{Name: "x", Source: l, Sink: writerTo(k), Cursor: cursor, Tries: 2, Pause: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return e.Run(t.Context())
	}
	if err := once(until{l, 5}); err != nil {
		t.Fatal(err)
	}
	other := open(t, filepath.Join(dir, "b"))
	add(t, other, 9)
	if err := once(until{other, 9}); !errors.Is(err, audit.ErrReplaced) {
		t.Errorf("%v", err)
	}
	shorter := open(t, filepath.Join(dir, "c"))
	add(t, shorter, 2)
	if err := once(until{shorter, 2}); !errors.Is(err, audit.ErrReplaced) {
		t.Errorf("%v", err)
	}
	if n := k.distinct(t); n != 5 {
		t.Errorf("%d were exported", n)
	}
}

// until ends a Log at a record.
type until struct {
	*audit.Log
	last uint64
}

func (u until) FollowAfter(ctx context.Context, after audit.Ref, fn func(audit.Record) error) error {
	done := errors.New("done")
	err := u.Log.FollowAfter(ctx, after, func(r audit.Record) error {
		if err := fn(r); err != nil || r.Sequence < u.last {
			return err
		}
		return done
	})
	if errors.Is(err, done) {
		return nil
	}
	return err
}

type sinkFunc func(context.Context, []audit.Record) error

func (f sinkFunc) Send(ctx context.Context, batch []audit.Record) error { return f(ctx, batch) }

func (sinkFunc) SendHead(context.Context, audit.Head) error { return nil }

func writerTo(k *kept) export.Sink {
	return sinkFunc(func(_ context.Context, batch []audit.Record) error {
		for _, r := range batch {
			line, err := r.Line()
			if err != nil {
				return err
			}
			k.take(string(line))
		}
		return nil
	})
}

// TestRetryAfter waits as long as the receiver asks, within bounds.
func TestRetryAfter(t *testing.T) {
	for wish, least := range map[time.Duration]time.Duration{0: time.Second / 2, time.Minute: time.Minute, time.Hour: 15 * time.Minute} {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			l, err := audit.Open(audit.Config{Dir: filepath.Join(dir, "audit")})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			add(t, l, 3)
			var times []time.Time
			ctx, cancel := context.WithCancel(t.Context())
			e, err := export.New(export.Config{Name: "x", Source: l, Sink: sinkFunc(func(context.Context, []audit.Record) error {
				if times = append(times, time.Now()); len(times) > 1 {
					cancel()
					return nil
				}
				return &export.Refusal{Err: errors.New("later"), RetryAfter: wish}
			})})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Run(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if took := times[1].Sub(times[0]); took < least || took > least+time.Second {
				t.Errorf("told %s it waited %s", wish, took)
			}
		})
	}
}

// TestASlowReceiver holds up nothing but itself.
func TestASlowReceiver(t *testing.T) {
	l := open(t, filepath.Join(t.TempDir(), "audit"))
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan struct{})
	e, err := export.New(export.Config{Name: "x", Source: l, Sink: sinkFunc(func(ctx context.Context, _ []audit.Record) error {
		close(stuck)
		<-ctx.Done()
		return ctx.Err()
	})})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- e.Run(ctx) }()
	add(t, l, 1)
	<-stuck
	add(t, l, 200)
	if h := e.Hold(); h.Sequence != 0 || h.Name != "export x" {
		t.Errorf("%+v", h)
	}
	cancel()
	<-ended
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	l := open(t, filepath.Join(dir, "audit"))
	add(t, l, 5)
	path := filepath.Join(dir, "out.jsonl")
	run := func(last uint64) error {
		f, err := export.OpenFile(path)
		if err != nil {
			return err
		}
		defer f.Close()
		e, err := export.New(export.Config{Name: path, Source: until{l, last}, Sink: f, Cursor: path + ".cursor", Tries: 1})
		if err != nil {
			return err
		}
		return e.Run(t.Context())
	}
	if err := run(5); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write(t, path, string(whole)+`{"sequence":6,"ti`) // as a crash leaves it
	add(t, l, 2)
	if err := run(7); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	k := newKept()
	k.take(strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")...)
	if n := k.distinct(t); n != 7 || len(k.lines) != 7 {
		t.Errorf("%d records in %d lines", n, len(k.lines))
	}
	for _, other := range []string{"root:x:0:0", strings.Repeat("x", 100_000), "a\nb"} {
		write(t, path, other)
		if _, err := export.OpenFile(path); err == nil {
			t.Errorf("%.20q was taken", other)
		}
		if text, _ := os.ReadFile(path); string(text) != other {
			t.Errorf("%.20q was changed", other)
		}
	}
}

func TestNDJSONAndSVID(t *testing.T) {
	dir := t.TempDir()
	l := open(t, filepath.Join(dir, "audit"))
	add(t, l, 3)
	k := newKept()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Content-Type") != "application/x-ndjson" || len(r.TLS.PeerCertificates) != 1 {
			t.Errorf("%v %v", r.Header, err)
		}
		k.take(strings.Split(strings.TrimSuffix(string(body), "\n"), "\n")...)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	defer server.Close()
	selfSigned(t, dir)
	sink := sinkTo(t, dir, server, export.HTTPConfig{SVIDDir: dir})
	e, err := export.New(export.Config{Name: "x", Source: until{l, 3}, Sink: sink, Tries: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := k.distinct(t); n != 3 {
		t.Errorf("%d", n)
	}
}

func TestURLs(t *testing.T) {
	for url, good := range map[string]bool{
		"https://c.example": true, "https://c.example:4318/x?a=b": true, "http://127.0.0.1:4318": true, "http://[::1]:1/": true, "http://localhost:1": true,
		"": false, "c.example": false, "http://c.example": false, "http://127.0.0.1.example": false, "https://u:p@c.example": false, "ftp://c.example": false, "https://": false, "https://c/#x": false, "http://localhost.example": false,
	} {
		if _, err := export.CheckURL(url); (err == nil) != good {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestHeaders(t *testing.T) {
	dir := t.TempDir()
	for text, good := range map[string]bool{
		"": true, "A: b\n\n# c\nX-Api_Key:d": true, "A": false, ": b": false, "A b: c": false, "A: b\x00": false, "Host: x": false, "content-type: x": false, "A: " + strings.Repeat("x", 20000): false,
	} {
		path := filepath.Join(dir, "headers")
		write(t, path, text)
		_, err := export.NewHTTP(export.HTTPConfig{URL: "https://c.example", HeadersFile: path})
		if (err == nil) != good {
			t.Errorf("%.20q: %v", text, err)
		}
		if err != nil && strings.Contains(err.Error(), "b\x00") {
			t.Errorf("%v tells a value", err)
		}
	}
}

func FuzzCursor(f *testing.F) {
	dir := f.TempDir()
	for _, text := range []string{"", "{}", `{"sequence":1,"hash":"` + strings.Repeat("a", 64) + `"}` + "\n", `{"sequence":0,"hash":"` + strings.Repeat("a", 64) + `"}` + "\n", `{"sequence":1,"sequence":2}`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(dir, "cursor")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		at, err := export.LoadCursor(path)
		if err == nil && string(text) != fmt.Sprintf("{\"sequence\":%d,\"hash\":\"%x\"}\n", at.Sequence, at.Hash) {
			t.Errorf("%q reads as %+v", text, at)
		}
		if err == nil && at == (audit.Ref{}) {
			t.Error("an empty place")
		}
	})
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte{})
	f.Add(partial(2, "no"))
	f.Add([]byte("<html>"))
	f.Fuzz(func(t *testing.T, answer []byte) {
		rejected, _, err := export.ParseAnswer(answer)
		if refused := export.PartialSuccess(answer) != nil; refused != (err != nil || rejected != 0) {
			t.Errorf("%d %v", rejected, err)
		}
	})
}

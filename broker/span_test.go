package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/codes"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/credence-id/credence/broker"
)

// traced has e be a broker that is traced.
func (e *env) traced(observe func(broker.Event)) *tracetest.InMemoryExporter {
	e.Helper()
	spans := tracetest.NewInMemoryExporter()
	cfg := e.config()
	cfg.Observe, cfg.Tracer = observe, sdk.NewTracerProvider(sdk.WithSyncer(spans)).Tracer("test")
	b, err := broker.New(e.Context(), cfg)
	e.must(err)
	e.Cleanup(func() { e.must(b.Close()) })
	e.Broker = b
	return spans
}

// says is what spans say, in the order in which they ended.
func says(spans *tracetest.InMemoryExporter) (all []string) {
	for _, s := range spans.GetSpans() {
		text := s.Name
		for _, kv := range s.Attributes {
			text += " " + kv.Value.AsString()
		}
		if s.Status.Code == codes.Error {
			text += " (" + s.Status.Description + ")"
		}
		all = append(all, text)
	}
	return all
}

// A join is one trace, whether it is let in or not, and so is what is given for a
// login or for evidence. Nothing that a stranger chose is in it.
func TestJoinsLoginsAndExchangesAreTraced(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	spans := e.traced(nil)
	e.SetPolicy(e.newPolicy(2, people()))
	e.run()
	n := e.caller("n1")
	e.equal(says(spans), []string{"evidence", "sign x509", "record", "join token ok"})
	if all := spans.GetSpans(); all[0].SpanContext.TraceID() != all[3].SpanContext.TraceID() || all[2].Parent.SpanID() != all[3].SpanContext.SpanID() {
		t.Errorf("the steps of a join are in other traces: %+v", all)
	}
	spans.Reset()
	for _, r := range []broker.JoinRequest{
		{Method: "token", Evidence: []byte("canary"), PublicKey: keys(t, 1)[0], Version: "canary"},
		{Method: "canary", Evidence: []byte("canary"), PublicKey: keys(t, 1)[0]},
	} {
		if _, err := e.Join(t.Context(), r); err == nil {
			t.Errorf("%s joined", r.Method)
		}
	}
	e.equal(says(spans), []string{"evidence (failed)", "join token evidence refused (failed)", "join unknown method not allowed (denied)"})
	for _, s := range spans.GetSpans() {
		if text := fmt.Sprintf("%+v", s); strings.Contains(text, "canary") {
			t.Error(text)
		}
	}
	spans.Reset()
	l := signIn(t, "a", ana)
	_, denial, err := e.Login(t.Context(), l)
	if _, again, failed := e.Login(t.Context(), l); err != nil || denial != nil || failed != nil || again == nil {
		t.Fatal(err, denial, again, failed)
	}
	e.equal(says(spans), []string{"decide x509", "sign x509", "sign x509", "record", "login ok", "decide x509", "login spent"})
	evidence := e.shown(n)
	spans.Reset()
	if _, denial, err := e.exchange(evidence); denial != nil || err != nil {
		t.Fatal(denial, err)
	}
	evidence.Kind, evidence.ID = broker.KindX509, spiffeid.RequireFromString("spiffe://partner.example/canary")
	if _, denial, err := e.exchange(evidence); denial == nil || err != nil {
		t.Fatal(denial, err)
	}
	e.equal(says(spans), []string{"decide jwt", "sign jwt", "record", "exchange ok", "decide jwt (denied)", "exchange denied"})
}

// Deciding, signing and recording are spans, and nothing of what they were about
// stands in them; and metrics are told of both.
func TestSpansAndEvents(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	var events []broker.Event
	spans := e.traced(func(e broker.Event) { events = append(events, e) })
	n := e.caller("n1")
	events = nil
	spans.Reset()
	good, denied := item(t, 1), item(t, 2)
	denied.Workload = workload(t, "workload.unix.uid", "4711", "workload.unix.user", "canary")
	e.issue(n, good, denied)
	var names []string
	for _, s := range spans.GetSpans() {
		names = append(names, s.Name)
		for _, secret := range []string{"canary", "4711", "spiffe://"} {
			if text := fmt.Sprintf("%+v", s); strings.Contains(text, secret) {
				t.Errorf("%s: %s", secret, text)
			}
		}
	}
	if want := []string{"decide", "sign", "decide", "record"}; !slices.Equal(names, want) {
		t.Errorf("spans are %q, want %q", names, want)
	}
	if len(events) != 2 || events[0].What != broker.EventDenied || events[0].Outcome != broker.DeniedAll ||
		events[1].What != broker.EventIssued || events[1].Count != 1 || events[1].Outcome != broker.OutcomeOK {
		t.Errorf("%+v", events)
	}
	for _, event := range events {
		if strings.Contains(fmt.Sprint(event), "canary") {
			t.Error(event)
		}
	}
}

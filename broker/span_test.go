package broker_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/credence-id/credence/broker"
)

// Deciding, signing and recording are spans, and nothing of what they were about
// stands in them; and metrics are told of both.
func TestSpansAndEvents(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	spans := tracetest.NewInMemoryExporter()
	cfg := e.config()
	cfg.Tracer = sdk.NewTracerProvider(sdk.WithSyncer(spans)).Tracer("test")
	var events []broker.Event
	cfg.Observe = func(e broker.Event) { events = append(events, e) }
	b, err := broker.New(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	e.Broker = b
	n := e.caller("n1")
	events = nil
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

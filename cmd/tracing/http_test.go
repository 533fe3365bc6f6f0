package tracing_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/metadata"

	"github.com/credence-id/credence/cmd/tracing"
)

// asked is a request as an SDK that is traced makes it.
func asked(traceparent ...string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, "http://127.0.0.1:1/canary-in-a-path?q=canary-in-a-query", nil)
	r.Header["Traceparent"] = traceparent
	r.Header.Set("Tracestate", "k=canary-in-tracestate")
	r.Header.Set("Baggage", "k=canary-in-baggage")
	r.Header.Set("Authorization", "canary-in-a-header")
	return r
}

const (
	theirs = "0af7651916cd43dd8448eb211c80319c"
	valid  = "00-" + theirs + "-b7ad6b7169203331-01"
)

// A request's own trace is taken up, if it is one, and nothing else of it: neither
// what it forces nor its text.
func TestRequests(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		what        string
		traceparent []string
		taken       bool
	}{
		{"one", []string{valid}, true}, {"a later version's", []string{"01-" + theirs + "-b7ad6b7169203331-01-more"}, true},
		{"none", nil, false}, {"empty", []string{""}, false}, {"two", []string{valid, valid}, false},
		{"of zeros", []string{"00-00000000000000000000000000000000-b7ad6b7169203331-01"}, false},
		{"too long", []string{valid + strings.Repeat("0", 8<<10)}, false}, {"in upper case", []string{strings.ToUpper(valid)}, false},
		{"of a version that there is not", []string{"ff" + valid[2:]}, false}, {"of text", []string{"canary-in-a-traceparent"}, false},
	} {
		spans := tracetest.NewInMemoryExporter()
		tr := tracing.New(sdk.WithSyncer(tracing.Mute(spans)), 1, "credence-test", "v1")
		ctx, end := tr.Request("credentials")(asked(row.traceparent...), "orders")
		end(http.StatusServiceUnavailable)
		all := spans.GetSpans()
		if len(all) != 1 || all[0].Name != "credentials" || (all[0].SpanContext.TraceID().String() == theirs) != row.taken {
			t.Fatalf("%s: %+v", row.what, all)
		}
		if got := trace.SpanContextFromContext(ctx); got.SpanID() != all[0].SpanContext.SpanID() {
			t.Errorf("%s: what is done for it is not under the span", row.what)
		}
		text := fmt.Sprintf("%+v", all[0])
		for _, part := range []string{"canary", "127.0.0.1"} {
			if strings.Contains(text, part) {
				t.Errorf("%s: %s", row.what, text)
			}
		}
		if attributes := fmt.Sprint(all[0].Attributes); !strings.Contains(attributes, "orders") || !strings.Contains(attributes, "503") {
			t.Errorf("%s: %s", row.what, attributes)
		}
		tr.Close()
	}
}

// Who asks over HTTP forces no more than who asks over gRPC does.
func TestRequestsForceNothing(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewInMemoryExporter()
	tr := tracing.New(sdk.WithSyncer(spans), 1e-9, "credence-test", "v1")
	request := tr.Request("token")
	for range 5000 {
		_, end := request(asked(valid), "")
		end(http.StatusOK)
	}
	n := len(spans.GetSpans()) // before Close, which forgets them
	tr.Close()
	if n == 0 || n > 2500 {
		t.Errorf("%d of 5000 were traced", n)
	}
}

// Off, nothing stands before a request.
func TestRequestsOff(t *testing.T) {
	t.Parallel()
	tr, err := tracing.Open(t.Context(), tracing.Settings{}, "s", "v", nil)
	if err != nil || tr.Request("token") != nil {
		t.Error(err)
	}
}

// A program that sends no spans hands the trace on, and nothing else.
func TestCarry(t *testing.T) {
	t.Parallel()
	ctx, end := tracing.Carry(asked(valid), "orders")
	end(http.StatusOK)
	sent, _ := metadata.FromOutgoingContext(tracing.Onward(ctx))
	if got := sent.Get("traceparent"); len(got) != 1 || got[0] != valid || len(sent) != 1 {
		t.Errorf("sent %v", sent)
	}
	ctx, _ = tracing.Carry(asked(), "orders")
	if sent, any := metadata.FromOutgoingContext(tracing.Onward(ctx)); any {
		t.Errorf("sent %v", sent)
	}
	if sent, any := metadata.FromOutgoingContext(tracing.Onward(context.Background())); any {
		t.Errorf("sent %v", sent)
	}
}

package agent_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/exchangers"
)

// TestExchangesAreTraced holds that a trace has what the cloud calls its answer,
// granted or refused, and nothing of what was given.
func TestExchangesAreTraced(t *testing.T) {
	t.Parallel()
	spans := tracetest.NewSpanRecorder()
	sky := &cloud{}
	b, a := started(t, exchanging(sky), func(c *agent.Config) {
		c.Tracer = sdk.NewTracerProvider(sdk.WithSpanProcessor(spans)).Tracer("test")
	})
	b.Grant(targeting("/a", 1, "aws", "gcp"))
	given := credential(t, a, "aws")
	sky.mu.Lock()
	sky.refuse = &exchangers.Error{Provider: "gcp", Class: exchangers.Config, RequestID: "no-1", Message: "marked"}
	sky.mu.Unlock()
	if _, err := a.Credential(t.Context(), process(t), "gcp"); err == nil {
		t.Error("it is not refused")
	}
	var got []string
	for _, s := range spans.Ended() {
		for _, kv := range s.Attributes() {
			got = append(got, fmt.Sprintf("%s %s=%s %s", s.Name(), kv.Key, kv.Value.AsString(), s.Status().Code))
		}
		if text := fmt.Sprint(s.Attributes(), s.Events(), s.Status()); strings.Contains(text, given) || strings.Contains(text, "marked") {
			t.Errorf("a span tells %s", text)
		}
	}
	want := []string{
		"exchange credence.target=aws Unset", "exchange credence.flow=aws_roles_anywhere Unset", "exchange credence.cloud_request_id=q-1 Unset",
		"exchange credence.target=gcp Error", "exchange credence.flow=aws_roles_anywhere Error", "exchange credence.cloud_request_id=no-1 Error",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

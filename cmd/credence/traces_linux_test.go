package main_test

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// A traceSink is a collector of traces.
type traceSink struct {
	collector.UnimplementedTraceServiceServer
	at string

	mu      sync.Mutex // guards what follows
	spans   map[string][]string
	text    strings.Builder // all that came
	changed chan struct{}
}

func newTraceSink(t *testing.T) *traceSink {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &traceSink{at: l.Addr().String(), spans: map[string][]string{}, changed: make(chan struct{})}
	g := grpc.NewServer()
	collector.RegisterTraceServiceServer(g, s)
	var running sync.WaitGroup
	running.Go(func() { _ = g.Serve(l) })
	t.Cleanup(func() { g.Stop(); running.Wait() })
	return s
}

func (s *traceSink) Export(_ context.Context, r *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fmt.Fprintln(&s.text, r)
	for _, resource := range r.GetResourceSpans() {
		who := resource.GetResource().GetAttributes()[0].GetValue().GetStringValue()
		for _, scope := range resource.GetScopeSpans() {
			for _, span := range scope.GetSpans() {
				trace := fmt.Sprintf("%x", span.GetTraceId())
				s.spans[trace] = append(s.spans[trace], who+" "+span.GetName())
			}
		}
	}
	close(s.changed)
	s.changed = make(chan struct{})
	return &collector.ExportTraceServiceResponse{}, nil
}

func (s *traceSink) of(trace string) (spans []string, changed <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.spans[trace]), s.changed
}

// await waits until a trace has these spans.
func (s *traceSink) await(t *testing.T, trace string, want ...string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		got, changed := s.of(trace)
		missing := slices.DeleteFunc(slices.Clone(want), func(name string) bool { return slices.Contains(got, name) })
		if len(missing) == 0 {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Errorf("trace %s has %q, and not %q", trace, got, missing)
			return
		}
	}
}

// get asks as an SDK that is traced does.
func (s *traceSink) get(t *testing.T, method, url, trace string, header map[string]string, client *http.Client) string {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		r.Header.Set(name, value)
	}
	r.Header.Set("Traceparent", "00-"+trace+"-b7ad6b7169203331-01")
	r.Header.Set("Tracestate", "k=canary-in-tracestate")
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

// A supply is where an SDK of Google's finds its subject token.
type supply struct {
	Source struct {
		URL     string            `json:"url"`
		Headers map[string]string `json:"headers"`
	} `json:"credential_source"`
}

// A trace that an SDK's request belongs to goes on, through an output's endpoint or
// exec's, over the agent to the broker's record; and one at the token endpoint, there.
// No secret is in it, nor anything that the caller chose.
func TestATraceGoesFromAnSDKToTheRecord(t *testing.T) {
	t.Parallel()
	sink := newTraceSink(t)
	cloud := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"canary-of-the-cloud","expires_in":3600,"token_type":"Bearer","issued_token_type":"urn:ietf:params:oauth:token-type:access_token"}`)
	}))
	t.Cleanup(cloud.Close)
	// Spans are sent at once, and the agent begins no traces.
	soon := "OTEL_BSP_SCHEDULE_DELAY=20"
	s := newSide(t, "example.org", func(s *side) {
		s.env, s.more = []string{soon}, "traces: {otlp: "+sink.at+", ratio: 0.000000001}\n"
	})
	ca := s.write("cloud.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cloud.Certificate().Raw})))
	s.credence(fmt.Sprintf(`kind: Identity
name: web
spiffe_id: /web
match: [{node.name: n1, workload.unix.uid: %d}]
targets: [gcp]
---
kind: Target
name: gcp
gcp: {audience: "//iam.googleapis.com/projects/424242/locations/global/workloadIdentityPools/new-pool/providers/new-jwt"}
endpoint: %s
ca_file: %s
`, os.Getuid(), cloud.URL, ca), "apply", "-f", "-")
	agent := exec.Command("credence", "agent", "run", "-c", s.agentFile("n1", fmt.Sprintf("traces: {otlp: %s, ratio: 0.000000001}\noutputs:\n- {name: web, uid: %d, sdk: {dir: %s, targets: [gcp]}}\n", sink.at, os.Getuid(), s.path("sdk"))))
	agent.Env = append(os.Environ(), soon)
	if _, err := startCmd(t, agent).await(`output written.*output=web`, 0); err != nil {
		t.Fatal(err)
	}
	of := func(text []byte) (found supply) {
		t.Helper()
		if err := json.Unmarshal(text, &found); err != nil || found.Source.URL == "" {
			t.Fatalf("%s: %v", text, err)
		}
		return found
	}
	text, err := os.ReadFile(s.path("sdk", "gcp.json"))
	if err != nil {
		t.Fatal(err)
	}
	child := exec.Command("credence", "exec", "--socket", s.socket("n1"), "--target", "gcp", "--", "sh", "-c", `tr -d '\n' <"$GOOGLE_APPLICATION_CREDENTIALS"; echo; exec cat`)
	hold, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hold.Close()
	printed, err := startCmd(t, child).await(`^(\{.*\})$`, 0)
	if err != nil {
		t.Fatal(err)
	}
	secrets := []string{"canary"}
	for n, from := range []supply{of(text), of([]byte(printed[1]))} {
		trace := fmt.Sprintf("%032x", n+1)
		var answer struct {
			Token string `json:"subject_token"`
		}
		body := sink.get(t, http.MethodGet, from.Source.URL, trace, from.Source.Headers, http.DefaultClient)
		if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Token == "" {
			t.Fatalf("%s: %v", body, err)
		}
		want := []string{
			"credence-agent credence.broker.v1.Node/IssueJWT", "credence-broker credence.broker.v1.Node/IssueJWT",
			"credence-broker decide", "credence-broker sign", "credence-broker record",
			[]string{"credence-agent credentials", "credence-agent credence.agent.v1.Credentials/Token"}[n],
		}
		sink.await(t, trace, want...)
		secrets = append(secrets, answer.Token, strings.TrimPrefix(from.Source.URL, "http://"), "spiffe://")
		for _, secret := range from.Source.Headers {
			secrets = append(secrets, secret)
		}
	}
	web := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.web, MinVersion: tls.VersionTLS12}, DisableKeepAlives: true}}
	trace := fmt.Sprintf("%032x", 3)
	sink.get(t, http.MethodPost, s.issuer+"/token", trace, map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, web)
	sink.await(t, trace, "credence-broker token")
	admin := []string{"--agent-admin", s.path("n1", "run", "admin.sock")}
	if _, out, errs := credenceCmd(t, "", append([]string{"agent", "status"}, admin...)...); !regexp.MustCompile(`(?m)^gcp +spiffe://example\.org/web +20\d\d-`).MatchString(out) {
		t.Errorf("what the cloud gave is not told: %s%s", out, errs)
	}
	if _, out, errs := credenceCmd(t, "", append([]string{"agent", "metrics"}, admin...)...); !strings.Contains(out, `credence_agent_credential_expiry_timestamp_seconds{flow="gcp",target="gcp"} `) {
		t.Errorf("it is no metric: %s%s", out, errs)
	}
	sink.mu.Lock()
	defer sink.mu.Unlock()
	for _, secret := range secrets {
		if strings.Contains(sink.text.String(), secret) {
			t.Errorf("a span has %q", secret)
		}
	}
}

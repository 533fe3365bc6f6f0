package telemetry_test

import (
	_ "embed"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/agent/spool"
	"github.com/credence-id/credence/agent/telemetry"
	"github.com/credence-id/credence/exchangers"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// everything is an agent of which all can be told.
func everything() *state {
	return &state{status: agent.Status{
		Node: id("/credence/node/n1").String(), NodeEnds: noon.Add(time.Hour), Connected: true, Heard: noon, Kept: noon, Sets: 2,
		Sessions: []agent.Session{
			session("orders", exchangers.Session{Obtained: noon, Expires: noon.Add(time.Hour)}),
			session("orders", exchangers.Session{Obtained: noon.Add(-time.Minute), Expires: noon.Add(time.Minute), Failing: noon.Add(time.Second)}),
			session("orders", exchangers.Session{Failing: noon}), session("billing", exchangers.Session{}),
		},
		Spool: spool.Stats{Backlog: 3, Bytes: 400, Max: 64 << 20, Lost: 5}, Bundles: map[string]time.Time{"example.org": noon},
		Held: []agent.Holding{{ID: id("/a"), Ends: noon.Add(30 * time.Minute)}, {ID: id("/a"), Ends: noon.Add(20 * time.Minute)}, {ID: id("/b"), Ends: noon.Add(40 * time.Minute)}},
	}}
}

func session(target string, s exchangers.Session) agent.Session {
	return agent.Session{Target: target, Flow: "gcp", Session: s}
}

// busy are metrics of which each has counted something.
func busy(t *testing.T, cfg telemetry.MetricsConfig) *telemetry.Metrics {
	t.Helper()
	m := telemetry.NewMetrics(cfg)
	m.Of(everything())
	for _, what := range []string{agent.EventNode, agent.EventSVIDs, agent.EventRefused, agent.EventWatched, agent.EventAttested, agent.EventExchanged, agent.EventDelivered, agent.EventCalled} {
		m.Observe(agent.Event{What: what, Subject: "s", Detail: "d", Outcome: agent.OutcomeOK, Took: time.Second})
	}
	m.Output("web")("write", nil)
	m.Output("web")("hook", errors.New("no such process"))
	m.Call(t, "/A/Unary", false, nil)
	m.Call(t, "/A/Stream", true, status.Error(codes.PermissionDenied, "no"))
	return m
}

// families scrapes, and reads the answer as Prometheus does.
func families(t *testing.T, m *telemetry.Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Dashboards and alerts hang on these: a name, a label or a type changes only
// with a line in the release notes.
//
//go:embed testdata/frozen.txt
var frozen string

func TestFrozen(t *testing.T) {
	t.Parallel()
	m := busy(t, telemetry.MetricsConfig{Version: "v1", SPIFFEIDs: true})
	var lines []string
	for name, f := range families(t, m) {
		if strings.HasPrefix(name, "go_") || strings.HasPrefix(name, "process_") {
			continue // the runtime's
		}
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		slices.Sort(labels)
		lines = append(lines, fmt.Sprintf("%s %s %s | %s", name, strings.ToLower(f.GetType().String()), strings.Join(labels, ","), f.GetHelp()))
	}
	slices.Sort(lines)
	if d := cmp.Diff(strings.Split(strings.TrimSpace(frozen), "\n"), lines); d != "" {
		t.Error(d)
	}
	problems, err := testutil.GatherAndLint(m.Gatherer())
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	all := families(t, busy(t, telemetry.MetricsConfig{SPIFFEIDs: true}))
	value := func(name string, labels ...string) float64 {
		for _, m := range all["credence_agent_"+name].GetMetric() {
			var has []string
			for _, l := range m.GetLabel() {
				has = append(has, l.GetValue())
			}
			if slices.Equal(has, labels) {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		t.Errorf("%s%v is not there", name, labels)
		return 0
	}
	for _, c := range []struct {
		what string
		got  float64
		want float64
	}{
		{"live", value("live"), 1}, {"ready", value("ready"), 1}, {"connected", value("broker_connected"), 1},
		{"the node's end", value("node_svid_expiry_timestamp_seconds"), float64(noon.Add(time.Hour).Unix())},
		{"the first end", value("svid_earliest_expiry_timestamp_seconds"), float64(noon.Add(20 * time.Minute).Unix())},
		{"the first of one ID", value("svid_expiry_timestamp_seconds", "spiffe://example.org/a"), float64(noon.Add(20 * time.Minute).Unix())},
		{"sessions", value("credential_sessions"), 4}, {"the first session's end", value("credential_expiry_timestamp_seconds", "gcp", "orders"), float64(noon.Add(time.Minute).Unix())},
		{"and beginning", value("credential_obtained_timestamp_seconds", "gcp", "orders"), float64(noon.Add(-time.Minute).Unix())},
		{"what fails longest", value("credential_failing_timestamp_seconds", "gcp", "orders"), float64(noon.Unix())},
		{"backlog", value("spool_reports"), 3}, {"lost", value("spool_lost_reports_total"), 5},
		{"a bundle", value("bundle_updated_timestamp_seconds", "example.org"), float64(noon.Unix())},
		{"attestations", value("attestations_total", "s", "ok"), 1}, {"their time", value("attestation_duration_seconds", "s"), 1},
		{"exchanges", value("exchanges_total", "d", "ok", "s"), 1},
		{"hooks", value("output_acts_total", "hook", "failed", "web"), 1},
		{"calls", value("calls_total", "PermissionDenied", "A/Stream"), 1}, {"of no stream", value("call_duration_seconds", "A/Unary"), 1},
		{"streams that ended", value("open_streams", "A/Stream"), 0},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

// What is not known is not told as zero, and SPIFFE IDs only where asked for.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	m.Of(&state{status: agent.Status{Held: []agent.Holding{{ID: id("/a"), Ends: noon}}}, hung: []string{"x"}, unready: []string{"y"}})
	all := families(t, m)
	for _, name := range []string{"broker_heard_timestamp_seconds", "node_svid_expiry_timestamp_seconds", "kept_timestamp_seconds", "svid_expiry_timestamp_seconds", "credential_expiry_timestamp_seconds", "credential_failing_timestamp_seconds"} {
		if f := all["credence_agent_"+name]; f != nil {
			t.Errorf("%v", f)
		}
	}
	for _, name := range []string{"live", "ready", "broker_connected"} {
		if v := all["credence_agent_"+name].GetMetric()[0].GetGauge().GetValue(); v != 0 {
			t.Errorf("%s is %v", name, v)
		}
	}
}

func TestNamesAreBounded(t *testing.T) {
	t.Parallel()
	m := telemetry.NewMetrics(telemetry.MetricsConfig{})
	for n := range 2000 {
		m.Observe(agent.Event{What: agent.EventExchanged, Subject: fmt.Sprintf("target-%d", n), Detail: "oauth", Outcome: agent.OutcomeOK})
	}
	many := &state{}
	for n := range 2000 {
		many.status.Sessions = append(many.status.Sessions, session(fmt.Sprintf("target-%d", n), exchangers.Session{Expires: noon}))
	}
	m.Of(many)
	all := families(t, m)
	f := all["credence_agent_exchanges_total"]
	for _, name := range []string{"exchanges_total", "credential_expiry_timestamp_seconds"} {
		if n := len(all["credence_agent_"+name].GetMetric()); n != 513 {
			t.Errorf("%s: %d series", name, n)
		}
	}
	total := 0.0
	for _, one := range f.GetMetric() {
		total += one.GetCounter().GetValue()
	}
	if total != 2000 {
		t.Errorf("%v were counted", total)
	}
}

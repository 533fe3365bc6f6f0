package telemetry_test

import (
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/broker/telemetry"
	"github.com/credence-id/credence/federation"
)

var noon = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

// fixed stands as it says.
type fixed server.Overview

func (f fixed) Overview() server.Overview { return server.Overview(f) }

// everything is a broker of which all can be told.
func everything() fixed {
	ca := authority.Status{ID: "a1", Use: authority.Issuing, Alg: "ES256", State: authority.Active, Self: true, ActivatedAt: noon.Add(-time.Hour), NotAfter: noon.Add(time.Hour), NextAt: noon.Add(time.Minute)}
	jwt := authority.Status{ID: "j1", Use: authority.JWTKey, Alg: "RS256", State: authority.Published, NotAfter: noon.Add(9 * time.Hour), Problem: "no room"}
	return fixed{
		Revision: 41, Identities: 7, BehindSince: noon.Add(-time.Second), Unready: []string{"why"},
		Store:   broker.Contact{Away: true, Since: noon.Add(-time.Minute), Error: "no such host"},
		Counts:  broker.Counts{Nodes: 3, Ended: 2, Evicted: 1, Overdue: 1, FirstEnds: noon.Add(time.Minute), Connected: 2, Sessions: 4, Sets: 9, Cutoffs: 5, Unsaved: 1, Unlisted: 2, Record: 100, Indexed: 90},
		Audit:   audit.Stats{Head: audit.Ref{Sequence: 100}, Records: 60, Commits: 20, Failed: 1, Waiting: 2, Bytes: 300, FailingSince: noon.Add(-time.Hour), Free: 1 << 30},
		Issuing: ca, Authorities: []authority.Status{ca, jwt}, OwnEnds: noon.Add(2 * time.Hour),
		CRLs:    []authority.CRL{{Issuer: "a1", NextUpdate: noon.Add(3 * time.Hour)}},
		Peers:   []federation.Status{{TrustDomain: spiffeid.RequireTrustDomainFromString("partner.example"), State: federation.Fresh, ConfirmedAt: noon, FetchedAt: noon.Add(-time.Hour), Sequence: 12}},
		Limited: map[string]uint64{"address": 3},
	}
}

// busy are metrics of which each has counted something.
func busy(t *testing.T, b telemetry.Broker) *telemetry.Metrics {
	t.Helper()
	m := telemetry.New(telemetry.Config{Version: "v1", TrustDomain: "example.org", StoreKind: "sqlite"})
	m.Of(b)
	m.Observe(broker.Event{What: broker.EventIssued, Subject: broker.KindX509, Outcome: broker.OutcomeOK, Count: 3, Took: time.Second})
	m.Observe(broker.Event{What: broker.EventDenied, Subject: broker.KindJWT, Outcome: broker.DeniedAudience})
	m.Observe(broker.Event{What: broker.EventJoined, Subject: "token", Outcome: broker.OutcomeOK, Took: time.Second})
	m.Observe(broker.Event{What: broker.EventRenewed, Outcome: broker.OutcomeOK})
	m.Recorded(audit.Commit{Records: 1, Took: time.Millisecond})
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

var update = flag.Bool("update", false, "write testdata/frozen.txt anew")

// Dashboards and alerts hang on what testdata/frozen.txt lists: a name, a label or
// a type changes only with a line in the release notes.
func TestFrozen(t *testing.T) {
	t.Parallel()
	m := busy(t, everything())
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
	got := strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.WriteFile("testdata/frozen.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/frozen.txt")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
	problems, err := testutil.GatherAndLint(m.Gatherer())
	if err != nil || len(problems) > 0 {
		t.Errorf("%v %v", problems, err)
	}
}

func TestValues(t *testing.T) {
	t.Parallel()
	all := families(t, busy(t, everything()))
	value := func(name string, labels ...string) float64 {
		for _, m := range all["credence_broker_"+name].GetMetric() {
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
	at := func(d time.Duration) float64 { return float64(noon.Add(d).Unix()) }
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"live", value("live"), 1}, {"ready", value("ready"), 0},
		{"what was issued", value("svids_issued_total", "x509"), 3}, {"requests", value("svid_requests_total", "x509", "ok"), 1},
		{"their time", value("svid_request_duration_seconds", "x509"), 1},
		{"denials", value("denials_total", "audience_not_listed", "jwt"), 1},
		{"joins", value("joins_total", "token", "ok"), 1},
		{"the CA's end", value("authority_expiry_timestamp_seconds", "ES256", "a1", "active", "x509"), at(time.Hour)},
		{"the signing CA's end", value("issuing_ca_expiry_timestamp_seconds"), at(time.Hour)},
		{"a problem", value("authority_problem", "RS256", "j1", "published", "jwt"), 1}, {"no problem", value("authority_problem", "ES256", "a1", "active", "x509"), 0},
		{"the own end", value("svid_expiry_timestamp_seconds"), at(2 * time.Hour)},
		{"a CRL", value("crl_next_update_timestamp_seconds", "a1"), at(3 * time.Hour)},
		{"a peer", value("peer_bundle_confirmed_timestamp_seconds", "partner.example"), at(0)}, {"its bound", value("peer_bundle_max_age_seconds", "partner.example"), 86400},
		{"fresh peers", value("peers", "fresh"), 1}, {"stale peers", value("peers", "stale"), 0},
		{"joined", value("nodes", "joined"), 3}, {"ended", value("nodes", "ended"), 2}, {"evicted", value("nodes", "evicted"), 1},
		{"the first end", value("node_svid_earliest_expiry_timestamp_seconds"), at(time.Minute)},
		{"store", value("store_reachable"), 0}, {"since", value("store_reachable_changed_timestamp_seconds"), at(-time.Minute)},
		{"behind", value("policy_behind_timestamp_seconds"), at(-time.Second)},
		{"failing", value("record_failing_timestamp_seconds"), at(-time.Hour)}, {"lag", value("index_lag_records"), 10},
		{"limits", value("rate_limited_total", "address"), 3},
		{"calls", value("calls_total", "PermissionDenied", "A/Stream"), 1}, {"streams that ended", value("open_streams", "A/Stream"), 0},
	} {
		if c.got != c.want {
			t.Errorf("%s: %v, want %v", c.what, c.got, c.want)
		}
	}
}

// What is not known is not told as zero: an alert would go off, or never.
func TestLeftOut(t *testing.T) {
	t.Parallel()
	all := families(t, busy(t, fixed{Audit: audit.Stats{Free: -1}}))
	for _, name := range []string{
		"issuing_ca_expiry_timestamp_seconds", "svid_expiry_timestamp_seconds", "policy_behind_timestamp_seconds", "record_failing_timestamp_seconds",
		"record_free_bytes", "store_reachable", "node_svid_earliest_expiry_timestamp_seconds",
	} {
		if f := all["credence_broker_"+name]; f != nil {
			t.Errorf("%v", f)
		}
	}
}

// However many authorities and peers there are, series are bounded.
func TestSeriesAreBounded(t *testing.T) {
	t.Parallel()
	o := everything()
	for n := range 2000 {
		o.Peers = append(o.Peers, federation.Status{TrustDomain: spiffeid.RequireTrustDomainFromString(fmt.Sprintf("p%d.example", n)), State: federation.Stale, ConfirmedAt: noon})
		o.Authorities = append(o.Authorities, authority.Status{ID: fmt.Sprint(n), Use: authority.JWTKey, NotAfter: noon})
	}
	all := families(t, busy(t, o))
	if n := len(all["credence_broker_peer_bundle_confirmed_timestamp_seconds"].GetMetric()); n != telemetry.MaxPeers {
		t.Errorf("%d peers", n)
	}
	if n := len(all["credence_broker_authority_expiry_timestamp_seconds"].GetMetric()); n != telemetry.MaxAuthorities {
		t.Errorf("%d authorities", n)
	}
	for _, m := range all["credence_broker_peers"].GetMetric() {
		if m.GetLabel()[0].GetValue() == "stale" && m.GetGauge().GetValue() != 2000 {
			t.Errorf("%v", m)
		}
	}
}

// Calls that fail by an error of no status are counted as what gRPC makes of it.
func TestCodes(t *testing.T) {
	t.Parallel()
	m := busy(t, everything())
	m.Call(t, "/A/Unary", false, errors.New("a secret of ours"))
	for _, one := range families(t, m)["credence_broker_calls_total"].GetMetric() {
		if strings.Contains(one.String(), "secret") {
			t.Error(one)
		}
	}
}

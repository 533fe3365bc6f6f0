package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/agent"
)

// snapshot tells how an agent stands when it is scraped.
type snapshot struct {
	agent     Agent
	spiffeIDs bool
	targets   *names
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	live       = desc("live", "1 while none of the agent's own loops hangs.")
	ready      = desc("ready", "1 while SVIDs are renewed, or more than a quarter of their lives is left.")
	connected  = desc("broker_connected", "1 while a Watch stream to a broker is open.")
	heard      = desc("broker_heard_timestamp_seconds", "When a broker last answered.")
	nodeEnds   = desc("node_svid_expiry_timestamp_seconds", "When the node's SVID ends.")
	held       = desc("svids_held", "X509-SVIDs that are served, each counted once.")
	firstEnds  = desc("svid_earliest_expiry_timestamp_seconds", "When the first of the X509-SVIDs that are served ends.")
	ends       = desc("svid_expiry_timestamp_seconds", "When an X509-SVID that is served ends; of several of one SPIFFE ID the first.", "spiffe_id")
	sets       = desc("workload_sets", "Different sets of facts that workloads have, or had shortly ago.")
	sessions   = desc("credential_sessions", "Sessions with providers that are kept fresh.")
	sessionEnd = desc("credential_expiry_timestamp_seconds", "When what a provider gave ends; of several sessions with one target the first.", "target", "flow")
	sessionGot = desc("credential_obtained_timestamp_seconds", "When that was obtained: it is replaced at about half of its life.", "target", "flow")
	failing    = desc("credential_failing_timestamp_seconds", "Since when no exchange for a session with a target succeeds; absent: the last did.", "target", "flow")
	backlog    = desc("spool_reports", "Reports that the broker's record does not have yet.")
	spoolBytes = desc("spool_bytes", "What they take on disk.")
	spoolMax   = desc("spool_max_bytes", "What they may take.")
	lost       = desc("spool_lost_reports_total", "Reports that were lost.")
	bundle     = desc("bundle_updated_timestamp_seconds", "When the broker last told of a trust domain's bundle.", "trust_domain")
	kept       = desc("kept_timestamp_seconds", "When what goes on over a restart was last written.")
)

// Describe implements prometheus.Collector.
func (s snapshot) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{live, ready, connected, heard, nodeEnds, held, firstEnds, ends, sets, sessions, sessionEnd, sessionGot, failing, backlog, spoolBytes, spoolMax, lost, bundle, kept} {
		c <- d
	}
}

// Collect implements prometheus.Collector. What there is no time of is left out.
func (s snapshot) Collect(c chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	at := func(d *prometheus.Desc, t time.Time, labels ...string) {
		if !t.IsZero() {
			gauge(d, float64(t.UnixMilli())/1000, labels...)
		}
	}
	st := s.agent.Status()
	gauge(live, one(len(s.agent.Hung()) == 0))
	gauge(ready, one(len(s.agent.Unready()) == 0))
	gauge(connected, one(st.Connected))
	at(heard, st.Heard)
	at(nodeEnds, st.NodeEnds)
	gauge(held, float64(len(st.Held)))
	first, byID := firstOf(st.Held)
	at(firstEnds, first)
	if s.spiffeIDs {
		for id, t := range byID {
			at(ends, t, id)
		}
	}
	gauge(sets, float64(st.Sets))
	gauge(sessions, float64(len(st.Sessions)))
	for k, t := range s.firstSessions(st.Sessions) {
		at(sessionEnd, t.Expires, k.target, k.flow)
		at(sessionGot, t.Obtained, k.target, k.flow)
		at(failing, t.Failing, k.target, k.flow)
	}
	gauge(backlog, float64(st.Spool.Backlog))
	gauge(spoolBytes, float64(st.Spool.Bytes))
	gauge(spoolMax, float64(st.Spool.Max))
	c <- prometheus.MustNewConstMetric(lost, prometheus.CounterValue, float64(st.Spool.Lost))
	for td, t := range st.Bundles {
		at(bundle, t, td)
	}
	at(kept, st.Kept)
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// firstOf is when the first of all ends, and the first of each SPIFFE ID.
func firstOf(all []agent.Holding) (first time.Time, byID map[string]time.Time) {
	byID = make(map[string]time.Time)
	for _, h := range all {
		id := h.ID.String()
		if t, ok := byID[id]; !ok || h.Ends.Before(t) {
			byID[id] = h.Ends
		}
		if first.IsZero() || h.Ends.Before(first) {
			first = h.Ends
		}
	}
	return first, byID
}

// sessionKey is what tells sessions apart in metrics.
type sessionKey struct{ target, flow string }

// firstSessions are of each target what ends first, and what fails longest.
func (s snapshot) firstSessions(all []agent.Session) map[sessionKey]agent.Session {
	by := make(map[sessionKey]agent.Session)
	for _, one := range all {
		k := sessionKey{s.targets.bounded(one.Target), one.Flow}
		first := by[k]
		if !one.Expires.IsZero() && (first.Expires.IsZero() || one.Expires.Before(first.Expires)) {
			first.Expires, first.Obtained = one.Expires, one.Obtained
		}
		if !one.Failing.IsZero() && (first.Failing.IsZero() || one.Failing.Before(first.Failing)) {
			first.Failing = one.Failing
		}
		by[k] = first
	}
	return by
}

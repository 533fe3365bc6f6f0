package telemetry

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/server"
	"github.com/credence-id/credence/federation"
)

// A Broker is what is told about. *server.Server is one.
type Broker interface{ Overview() server.Overview }

// Bounds of what has a series each.
const (
	maxAuthorities = 64
	maxPeers       = 512 // by the name of their trust domain
)

// snapshot tells how a broker stands when it is scraped.
type snapshot struct{ broker Broker }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
}

var (
	live         = desc("live", "1 while none of the broker's own loops stands still.")
	ready        = desc("ready", "1 while the broker can issue, and what is written is in force.")
	authorityEnd = desc("authority_expiry_timestamp_seconds", "When an authority signs no more: a CA's certificate ends, a JWT key is due to be replaced.", "authority", "use", "alg", "state")
	authorityDue = desc("authority_next_step_timestamp_seconds", "When the next step in an authority's life is due, at the earliest.", "authority", "use", "alg", "state")
	authorityBad = desc("authority_problem", "1 where what is due of an authority is not done.", "authority", "use", "alg", "state")
	issuingEnd   = desc("issuing_ca_expiry_timestamp_seconds", "When the CA ends that signs SVIDs now.")
	issuingFrom  = desc("issuing_ca_activated_timestamp_seconds", "When that CA began to sign.")
	ownEnd       = desc("svid_expiry_timestamp_seconds", "When the broker's own X509-SVID ends.")
	crlEnd       = desc("crl_next_update_timestamp_seconds", "Until when a CRL is current.", "authority")
	peers        = desc("peers", "Peers by state.", "state")
	peerAt       = desc("peer_bundle_confirmed_timestamp_seconds", "When a peer's endpoint last gave the bundle that is believed.", "trust_domain")
	peerFetched  = desc("peer_bundle_fetched_timestamp_seconds", "When the content of a peer's bundle was first fetched.", "trust_domain")
	peerMax      = desc("peer_bundle_max_age_seconds", "How old that confirmation may be before nothing of the peer is evidence.", "trust_domain")
	peerSequence = desc("peer_bundle_sequence", "The sequence number of a peer's bundle.", "trust_domain")
	nodes        = desc("nodes", "Nodes: joined have an SVID that holds, ended have none, evicted are not welcome.", "state")
	nodesLate    = desc("nodes_renewal_overdue", "Joined nodes past three quarters of their SVID's life: they renew at half.")
	nodeEnd      = desc("node_svid_earliest_expiry_timestamp_seconds", "When the first SVID of the joined nodes ends.")
	connected    = desc("nodes_connected", "Nodes with a Watch stream here.")
	sessions     = desc("sessions", "Watch streams here.")
	sets         = desc("remembered_sets", "Sets of facts of which it is remembered what they gave.")
	identities   = desc("identities", "Identities in force.")
	revision     = desc("policy_revision", "The revision of the policy in force.")
	taken        = desc("store_taken_revision", "The store's revision up to which all of it holds here.")
	written      = desc("store_revision", "The store's last revision, as it was last seen.")
	behind       = desc("policy_behind_timestamp_seconds", "Since when resources are written that are not in force; absent: there are none.")
	storeUp      = desc("store_reachable", "1 while the store answers.")
	storeSince   = desc("store_reachable_changed_timestamp_seconds", "Since when it does, or does not.")
	queries      = desc("store_queries_total", "Queries and transactions that the store was asked for.")
	sequence     = desc("record_sequence", "The sequence number of the last durable record.")
	records      = desc("record_appends_total", "Records that were made durable.")
	writes       = desc("record_writes_total", "Writes that made records durable.")
	failures     = desc("record_write_errors_total", "Writes of the record that failed.")
	failing      = desc("record_failing_timestamp_seconds", "Since when nothing can be recorded, and so nothing is issued; absent: it can.")
	waiting      = desc("record_waiting_calls", "Calls that wait for the record's disk.")
	waitingBytes = desc("record_waiting_bytes", "What these bring.")
	free         = desc("record_free_bytes", "Room on the record's disk.")
	indexLag     = desc("index_lag_records", "Records that the issuance index does not have yet.")
	cutoffs      = desc("cutoffs", "Cut-offs that stand.")
	unsaved      = desc("cutoffs_unsaved", "Cut-offs that the store does not have yet.")
	unlisted     = desc("cutoffs_unlisted", "Cut-offs of which something may not be on a CRL yet.")
	limited      = desc("rate_limited_total", "Callers that were told to slow down.", "limit")
)

// Describe implements prometheus.Collector.
func (s snapshot) Describe(c chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		live, ready, authorityEnd, authorityDue, authorityBad, issuingEnd, issuingFrom, ownEnd, crlEnd, peers, peerAt, peerFetched, peerMax, peerSequence,
		nodes, nodesLate, nodeEnd, connected, sessions, sets, identities, revision, taken, written, behind, storeUp, storeSince, queries,
		sequence, records, writes, failures, failing, waiting, waitingBytes, free, indexLag, cutoffs, unsaved, unlisted, limited,
	} {
		c <- d
	}
}

// teller sends metrics. What there is no time of is left out.
type teller struct{ c chan<- prometheus.Metric }

func (t teller) gauge(d *prometheus.Desc, v float64, labels ...string) {
	t.c <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
}

func (t teller) counter(d *prometheus.Desc, v uint64, labels ...string) {
	t.c <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
}

func (t teller) at(d *prometheus.Desc, at time.Time, labels ...string) {
	if !at.IsZero() {
		t.gauge(d, float64(at.UnixMilli())/1000, labels...)
	}
}

// Collect implements prometheus.Collector.
func (s snapshot) Collect(c chan<- prometheus.Metric) {
	t, o := teller{c}, s.broker.Overview()
	t.gauge(live, one(len(o.Hung) == 0))
	t.gauge(ready, one(len(o.Unready) == 0))
	t.authorities(o)
	t.peers(o.Peers)
	t.counts(o)
	t.record(o)
	t.gauge(identities, float64(o.Identities))
	t.gauge(revision, float64(o.Revision))
	t.gauge(taken, float64(o.Taken))
	t.gauge(written, float64(o.Written))
	t.at(behind, o.BehindSince)
	if !o.Store.Since.IsZero() {
		t.gauge(storeUp, one(!o.Store.Away))
		t.at(storeSince, o.Store.Since)
	}
	t.counter(queries, o.Queries)
	for name, n := range o.Limited {
		t.counter(limited, n, name)
	}
}

func (t teller) authorities(o server.Overview) {
	for _, a := range o.Authorities[:min(len(o.Authorities), maxAuthorities)] {
		labels := []string{a.ID, string(a.Use), a.Alg, string(a.State)}
		if a.State != authority.Old || a.Use != authority.JWTKey { // an old key signs no more
			t.at(authorityEnd, a.NotAfter, labels...)
		}
		t.at(authorityDue, a.NextAt, labels...)
		t.gauge(authorityBad, one(a.Problem != ""), labels...)
	}
	t.at(issuingEnd, o.Issuing.NotAfter)
	t.at(issuingFrom, o.Issuing.ActivatedAt)
	t.at(ownEnd, o.OwnEnds)
	for _, l := range o.CRLs[:min(len(o.CRLs), maxAuthorities)] {
		t.at(crlEnd, l.NextUpdate, l.Issuer)
	}
}

func (t teller) peers(all []federation.Status) {
	by := map[federation.State]int{federation.Waiting: 0, federation.Fresh: 0, federation.Stale: 0, federation.Holding: 0, federation.Closed: 0}
	for i, p := range all {
		by[p.State]++
		if i >= maxPeers {
			continue
		}
		name := p.TrustDomain.Name()
		t.at(peerAt, p.ConfirmedAt, name)
		t.at(peerFetched, p.FetchedAt, name)
		t.gauge(peerMax, p.Peer.Staleness().Seconds(), name)
		t.gauge(peerSequence, float64(p.Sequence), name)
	}
	for state, n := range by {
		t.gauge(peers, float64(n), string(state))
	}
}

func (t teller) counts(o server.Overview) {
	n := o.Counts
	for state, count := range map[string]int{"joined": n.Nodes, "ended": n.Ended, "evicted": n.Evicted} {
		t.gauge(nodes, float64(count), state)
	}
	t.gauge(nodesLate, float64(n.Overdue))
	t.at(nodeEnd, n.FirstEnds)
	t.gauge(connected, float64(n.Connected))
	t.gauge(sessions, float64(n.Sessions))
	t.gauge(sets, float64(n.Sets))
	t.gauge(cutoffs, float64(n.Cutoffs))
	t.gauge(unsaved, float64(n.Unsaved))
	t.gauge(unlisted, float64(n.Unlisted))
	t.gauge(indexLag, float64(n.Record-n.Indexed))
}

func (t teller) record(o server.Overview) {
	r := o.Audit
	t.gauge(sequence, float64(r.Head.Sequence))
	t.counter(records, r.Records)
	t.counter(writes, r.Commits)
	t.counter(failures, r.Failed)
	t.at(failing, r.FailingSince)
	t.gauge(waiting, float64(r.Waiting))
	t.gauge(waitingBytes, float64(r.Bytes))
	if r.Free >= 0 {
		t.gauge(free, float64(r.Free))
	}
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

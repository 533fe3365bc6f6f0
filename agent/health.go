package agent

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/status"
)

// loopPatience is how long a loop may be at one piece of work: much longer than
// the network and the disk are given time in any.
const loopPatience = 2 * time.Minute

// tellShort bounds how many SVIDs Unready names.
const tellShort = 5

// A pulse is one loop's. The time is when it began what it does now; nil: it
// rests, which no loop can hang in.
type pulse struct{ since atomic.Pointer[time.Time] }

func (p *pulse) work(now time.Time) { p.since.Store(&now) }
func (p *pulse) rest()              { p.since.Store(nil) }

// pulses are of the loops that Run starts.
type pulses struct{ node, watch, tend, prefetch, ship, keeping, clock, home pulse }

// Hung says which of the agent's own loops hang, in words; none: it lives. What
// a broker that is away causes is no hang. It takes no lock.
func (a *Agent) Hung() (words []string) {
	now := a.cfg.Now()
	for _, l := range []struct {
		what string
		*pulse
	}{
		{"renewing the node's SVID", &a.pulses.node}, {"following the broker", &a.pulses.watch}, {"renewing workloads' SVIDs", &a.pulses.tend},
		{"making JWT-SVIDs ahead", &a.pulses.prefetch}, {"shipping reports", &a.pulses.ship}, {"keeping on disk what is served", &a.pulses.keeping},
		{"minding the clock", &a.pulses.clock}, {"looking for earlier brokers", &a.pulses.home},
	} {
		// By the monotonic clock, which stands while the machine sleeps.
		if since := l.since.Load(); since != nil && now.Sub(*since) > loopPatience {
			words = append(words, fmt.Sprintf("%s hangs for %s", l.what, now.Sub(*since).Round(time.Second)))
		}
	}
	return words
}

// Unready says why this node should be given no new workloads, in words; none:
// it should. Less than a quarter of the life of the node's SVID, or of one that
// a workload uses, is left, and its last renewal failed; or the node has not
// joined. That no broker answers makes nothing unready before.
func (a *Agent) Unready() []string {
	now := a.cfg.Now()
	a.contact.mu.Lock()
	failed := a.contact.unrenewed
	a.contact.mu.Unlock()
	cert := a.node.certificate()
	if cert == nil {
		return []string{"this node has not joined" + because(failed)}
	}
	var words []string
	if errors.Is(a.node.mustJoin(now), errDisowned) {
		words = append(words, "the broker does not take the node's SVID"+because(failed))
	}
	if short(cert.Leaf, now, failed != "") {
		words = append(words, ending("the node's SVID", cert.Leaf, now, failed))
	}
	return append(words, a.sets.short(now)...)
}

// short says whether an SVID is over, or soon will be without a renewal.
func short(leaf *x509.Certificate, now time.Time, failed bool) bool {
	left, life := leaf.NotAfter.Sub(now), leaf.NotAfter.Sub(leaf.NotBefore)
	return left <= 0 || failed && left < life/4
}

func ending(what string, leaf *x509.Certificate, now time.Time, failed string) string {
	verb := "ends"
	if !now.Before(leaf.NotAfter) {
		verb = "ended"
	}
	return fmt.Sprintf("%s %s at %s%s", what, verb, leaf.NotAfter.UTC().Format(time.RFC3339), because(failed))
}

func because(failed string) string {
	if failed == "" {
		return ""
	}
	return ": the last try to get one failed: " + failed
}

// short is Unready of what workloads use.
func (s *sets) short(now time.Time) (words []string) {
	var more int
	for _, w := range s.allShort(now) {
		if len(words) < tellShort {
			words = append(words, w)
		} else {
			more++
		}
	}
	if more > 0 {
		words = append(words, fmt.Sprintf("and %d more SVIDs", more))
	}
	return words
}

func (s *sets) allShort(now time.Time) (words []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.all {
		if st.users == 0 {
			continue
		}
		for _, v := range st.svids {
			if short(v.Certificates[0], now, st.failed != nil) {
				failed := ""
				if st.failed != nil {
					failed = status.Convert(st.failed).Message()
				}
				words = append(words, ending("the SVID of "+v.ID.String(), v.Certificates[0], now, failed))
			}
		}
	}
	slices.Sort(words)
	return slices.Compact(words)
}

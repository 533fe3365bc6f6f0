package agent

import (
	"crypto/sha256"
	"slices"
	"strings"
	"time"

	"github.com/credence-id/credence/broker/api"
)

// failure is why the last ask about a set came to nothing.
func (s *sets) failure(st *set) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.failed
}

// lend gives a set that the broker doesn't answer for what other sets hold on
// the same facts (decision 1): every fact that the granting identity or a deny
// names has the same value, absences too, and none of these is unknown. What an
// earlier run of the agent kept is lent likewise. The
// broker is asked all the same, and its answer replaces what was lent.
func (s *sets) lend(to *set, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if to.valid(now) || s.final != nil {
		return
	}
	var found []*SVID
	var lenders [][sha256.Size]byte
	for _, from := range s.all {
		if from == to || len(from.lenders) > 0 {
			continue // its answer came from elsewhere
		}
		for _, v := range from.svids {
			if v.current(now) && covers(v.depends, to.workload) {
				found = append(found, v)
				lenders = append(lenders, from.id)
			}
		}
	}
	for _, v := range s.kept.lendable(to.workload, now) {
		found, lenders = append(found, v), append(lenders, noSet)
	}
	if len(found) == 0 {
		return
	}
	to.svids, to.lenders = distinct(found), lenders
	to.changed.ring()
}

// distinct keeps of each identity the SVID that lasts longest, in the order in
// which the broker gives identities, and of each hint the first: hints are
// unique in a response (SPIFFE Workload API §5.2.1).
func distinct(all []*SVID) []*SVID {
	slices.SortFunc(all, func(x, y *SVID) int {
		if c := strings.Compare(x.Identity, y.Identity); c != 0 {
			return c
		}
		return y.Certificates[0].NotAfter.Compare(x.Certificates[0].NotAfter)
	})
	all = slices.CompactFunc(all, func(x, y *SVID) bool { return x.Identity == y.Identity })
	hints := make(map[string]bool)
	for n, v := range all {
		if hints[v.Hint] {
			plain := *v
			plain.Hint = ""
			all[n] = &plain
		}
		hints[v.Hint] = v.Hint != ""
	}
	return all
}

// covers says whether what was decided on these facts holds for a workload.
func covers(depends map[string]*api.Values, w *api.Workload) bool {
	if isProof(depends) {
		return false
	}
	for name, values := range depends {
		if !strings.HasPrefix(name, "workload.") {
			continue // the node's: the same for all on it
		}
		if unknown(w, name) || !slices.Equal(values.GetValues(), w.GetFacts()[name].GetValues()) {
			return false
		}
	}
	return len(depends) > 0
}

// unknown says whether a fact could not be proven, by itself or with all under
// a prefix.
func unknown(w *api.Workload, name string) bool {
	return slices.ContainsFunc(w.GetUnknown(), func(u string) bool {
		return name == u || strings.HasPrefix(name, u+".")
	})
}

package authority

import (
	"fmt"
	"slices"
	"time"
)

// A Status says of one authority what it is and what becomes of it.
type Status struct {
	ID          string
	Use         Use
	Alg         string
	State       State
	Broker      string // whose issuing CA; empty: shared
	Root        string // ID of the root it stands under; of a root, its own; empty: a JWT key
	Subject     string // of its certificate
	KeySource   string // where its key is kept, as the source calls itself, or who else has it
	Self        bool   // the key is ours
	PublishedAt time.Time
	ActivatedAt time.Time
	LastExpiry  time.Time // no SVID that it signed lives longer
	NotAfter    time.Time
	RevokedAt   time.Time // when an operator ended it early
	Reason      string    // why
	Next        string    // what happens to it next; empty: nothing
	NextAt      time.Time // when, at the earliest
	Waits       []string  // what that depends on
	Problem     string    // why what is due is not done
	Believed    []string  // who believes it, beyond what its name says
	Shared      bool      // of a root in the bundle: it signs others than us too
}

// List returns the authorities in the order of their publication, those that
// have ended too.
func (a *Authority) List() []Status {
	s := a.live.Load()
	list := make([]Status, 0, len(s.records))
	for _, r := range s.records {
		list = append(list, a.statusOf(s, r))
	}
	return list
}

// status is that of the authority id as it is now; of none if there is none.
func (a *Authority) status(id string) Status {
	s := a.live.Load()
	r, ok := s.find(id)
	if !ok {
		return Status{}
	}
	return a.statusOf(s, r)
}

func (a *Authority) statusOf(s *snapshot, r Record) Status {
	st := Status{
		ID: r.ID, Use: r.Use, Alg: r.Alg, State: r.State, Broker: r.Broker, Self: r.KeyRef != "", KeySource: a.keySource(r),
		PublishedAt: r.PublishedAt, ActivatedAt: r.ActivatedAt, LastExpiry: r.LastExpiry, NotAfter: r.NotAfter,
		RevokedAt: r.RevokedAt, Reason: r.Reason,
	}
	if chain, err := parseChain(r); err == nil {
		st.Subject = chain[0].Subject.String()
	}
	if r.Use != JWTKey {
		st.Root = s.rootOf(r)
	}
	st.Next, st.NextAt = a.upcoming(s, r)
	if r.State != Revoked {
		st.Waits, st.Problem = a.waits(s, r), a.problem(s, r)
	}
	if st.Shared = r.Use == Root && r.KeyRef == "" && r.published() && r.Reason == rootIsShared; st.Shared {
		st.Believed = []string{"every CA under this root can speak for us: it signs others too, as was accepted"}
	}
	return st
}

func (a *Authority) keySource(r Record) string {
	switch {
	case r.KeyRef == "":
		return a.cfg.UpstreamName
	case r.Use == Issuing && r.Broker != a.cfg.Broker:
		return "broker " + r.Broker
	}
	if s, ok := a.keysOf(r).(fmt.Stringer); ok {
		return s.String()
	}
	return ""
}

func (a *Authority) problem(s *snapshot, r Record) string {
	if why := a.problems.of(problemKey + r.ID); why != "" {
		return why
	}
	switch {
	case r.Use == Issuing && r.State == Prepared && r.Broker == a.cfg.Broker:
		return a.problems.of(problemUpstream)
	case r.Use == Issuing && r.Broker != a.cfg.Broker:
		return a.unlisted(s, r)
	case r.Use == Root && r.State == Active:
		return a.problems.of(problemCRL+r.ID, problemClock)
	case r.Use == JWTKey && r.State == Published:
		return a.problems.of(problemJWT + r.Alg)
	case s.issuing != nil && r.ID == s.issuing.ID:
		return a.problems.of(problemIssuing, problemUpstream, problemCRL+r.ID)
	}
	return a.problems.of(problemCRL + r.ID)
}

func (a *Authority) upcoming(s *snapshot, r Record) (what string, at time.Time) {
	switch r.Use {
	case Root:
		return a.upcomingRoot(s, r)
	case Domain, Issuing:
		return a.upcomingCA(s, r)
	}
	return a.upcomingJWT(s, r)
}

func (a *Authority) upcomingRoot(s *snapshot, r Record) (what string, at time.Time) {
	switch r.State {
	case Published:
		return "can be activated", r.PublishedAt.Add(3 * a.cfg.Lives.RefreshHint)
	case Active:
		return "ends", r.NotAfter
	case Old:
		until, _ := s.svidsUnder(r.ID)
		if at, ok := a.retireAt(s, r); ok && at.Equal(until) {
			return "is removed from the bundle", until
		}
		return "can be dropped", until
	}
	return "", time.Time{}
}

func (a *Authority) upcomingCA(s *snapshot, r Record) (what string, at time.Time) {
	switch {
	case r.State == Prepared && r.Use == Domain:
		return "is certified by the PKI team", time.Time{}
	case r.State == Prepared:
		return "becomes active", a.usableAt(s, r, r.PublishedAt)
	case r.State == Published:
		return "becomes active with its root", time.Time{}
	case r.State == Active && r.Use == Issuing:
		return "is replaced", r.ActivatedAt.Add(r.NotAfter.Sub(r.ActivatedAt) / 2)
	case r.State == Active || r.State == Old:
		return "ends", r.NotAfter
	}
	return "", time.Time{}
}

func (a *Authority) upcomingJWT(s *snapshot, r Record) (what string, at time.Time) {
	switch {
	case r.published() && a.cfg.Issuer == "":
		at, _ := a.retireAt(s, r)
		return "is removed from the bundle", at
	case r.State == Old:
		return "is removed from the bundle", r.removeAt(a.cfg.Lives)
	case r.published():
		at, ok := a.jwtKeys(s, r.Alg).promoteAt(a.cfg.Lives)
		if !ok {
			return "", time.Time{}
		}
		if r.State == Published {
			return "becomes active", at
		}
		return "becomes old", at
	}
	return "", time.Time{}
}

// waits says what an authority's next step depends on.
func (a *Authority) waits(s *snapshot, r Record) []string {
	switch {
	case r.Use == Root && r.State == Published:
		return []string{"agents and peers have it in their bundles", "clouds have it as an anchor", "an operator activates it"}
	case r.Use == Root && r.State == Old && !s.putAside(r) && a.cfg.Upstream == nil:
		return []string{"SVIDs under it have ended", "clouds no longer need it", "an operator drops it"}
	case r.Use == Root && r.State == Old:
		return []string{"SVIDs under it have ended"}
	case r.Use == Domain && r.State == Prepared:
		return []string{"its certificate is installed"}
	case r.Use == Domain && r.State == Published:
		return []string{"root " + r.Parent + " is activated"}
	case (r.Use == Domain || r.Use == Root) && r.State == Active && r.signsSVIDs():
		return []string{"the PKI team certifies another: it signs SVIDs itself"}
	case r.Use == Issuing && r.State == Prepared:
		return []string{"root " + r.Parent + " is known to those who verify SVIDs"}
	case r.Use == Issuing && r.State == Active:
		return a.issuingWaits(s, r)
	case r.Use == JWTKey && r.State == Published && a.cfg.Issuer != "":
		return slices.Concat([]string{fmt.Sprintf("its lead of %s", a.cfg.Lives.Lead)}, placeWaits(a.jwtKeys(s, r.Alg)), oldKeyWaits(s.jwtKeys(r.Alg)))
	}
	return nil
}

func (a *Authority) issuingWaits(s *snapshot, r Record) []string {
	parent, ok := s.find(r.Parent)
	switch {
	case a.cfg.Upstream != nil:
		return []string{"upstream " + a.cfg.UpstreamName}
	case ok:
		return []string{fmt.Sprintf("the key of %s %s", parent.Use, parent.ID)}
	}
	return []string{"the root's key"}
}

func placeWaits(k jwtKeys) (waits []string) {
	for _, place := range k.missing {
		waits = append(waits, place+" has it")
	}
	return waits
}

func oldKeyWaits(k jwtKeys) []string {
	if k.old == nil {
		return nil
	}
	return []string{"key " + k.old.ID + " has left the bundle"}
}

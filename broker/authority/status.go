package authority

import "time"

// A Status says of one authority what it is and what becomes of it.
type Status struct {
	ID          string
	Use         Use
	Alg         string
	State       State
	Broker      string // whose issuing CA; empty: shared
	PublishedAt time.Time
	ActivatedAt time.Time
	LastExpiry  time.Time // no SVID that it signed lives longer
	NotAfter    time.Time
	Next        string    // what happens to it next; empty: nothing
	NextAt      time.Time // when, at the earliest
}

// List returns the authorities in the order of their publication, those that
// have ended too.
func (a *Authority) List() []Status {
	s := a.live.Load()
	list := make([]Status, 0, len(s.records))
	for _, r := range s.records {
		st := Status{
			ID: r.ID, Use: r.Use, Alg: r.Alg, State: r.State, Broker: r.Broker,
			PublishedAt: r.PublishedAt, ActivatedAt: r.ActivatedAt, LastExpiry: r.LastExpiry, NotAfter: r.NotAfter,
		}
		st.Next, st.NextAt = a.upcoming(s, r)
		list = append(list, st)
	}
	return list
}

func (a *Authority) upcoming(s *snapshot, r Record) (what string, at time.Time) {
	switch {
	case r.Use == Root && r.published():
		return "ends", r.NotAfter
	case r.Use == Issuing && r.State == Active:
		half := r.ActivatedAt.Add(r.NotAfter.Sub(r.ActivatedAt) / 2)
		return "is replaced", half
	case r.Use == Issuing && r.State == Old:
		return "ends", r.NotAfter
	case r.Use == JWTKey && r.published() && a.cfg.Issuer == "":
		at, _ := a.retireAt(r)
		return "is removed from the bundle", at
	case r.Use == JWTKey && r.State == Old:
		return "is removed from the bundle", r.removeAt(a.cfg.Lives)
	case r.Use == JWTKey && r.published():
		at, ok := s.jwtKeys(r.Alg).promoteAt(a.cfg.Lives)
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

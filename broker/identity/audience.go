package identity

import "slices"

// An Audience is one that a workload may have JWT-SVIDs for, or a pattern of
// such, and how they are used.
type Audience struct {
	Pattern string
	Use     Use
}

// Use is how an agent may hand out the JWT-SVIDs for an audience.
type Use string

// The uses, from the most permissive to the strictest. Where several entries
// of an Identity match an audience, and where a token has several audiences,
// the strictest counts.
const (
	UseDefault Use = ""           // made beforehand, kept until it ends
	UseAudited Use = "audited"    // kept too, but each hand-out is reported first
	UseSingle  Use = "single_use" // made for one call, kept nowhere
)

// Plain are audiences of the default use.
func Plain(patterns ...string) []Audience {
	all := make([]Audience, len(patterns))
	for n, p := range patterns {
		all[n].Pattern = p
	}
	return all
}

// rank orders uses; below zero it is none.
func (u Use) rank() int { return slices.Index([]Use{UseDefault, UseAudited, UseSingle}, u) }

// use is the strictest use of these audiences.
func (i *identity) use(audiences []string) (strictest Use) {
	for n, p := range i.audiences {
		if u := i.JWT.Audiences[n].Use; u.rank() > strictest.rank() && slices.ContainsFunc(audiences, p.match) {
			strictest = u
		}
	}
	return strictest
}

package aws

import (
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Profile is what an SDK needs, besides the JWT-SVID, to make this exchange
// itself.
type Profile struct {
	Role, SessionName, Region string
	Duration                  string // in seconds; empty: the SDK's default
}

// Profile returns it, unless the Target says what an SDK can't: a session
// policy, or a second role.
func (s WebIdentity) Profile(id spiffeid.ID) (p Profile, ok bool) {
	if s.SessionPolicy != "" || len(s.SessionPolicyARNs) > 0 || s.AssumeRole != nil {
		return Profile{}, false
	}
	p = Profile{Role: s.Role, SessionName: s.sessionName(id), Region: s.region()}
	if s.Duration != 0 {
		p.Duration = strconv.Itoa(int(time.Duration(s.Duration) / time.Second))
	}
	return p, true
}

package aws

import (
	"fmt"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// Narrow shortens the session; below 15 minutes AWS has none. It has no scopes.
func (s *RolesAnywhere) Narrow(life time.Duration, scopes []string) (exchangers.Settings, error) {
	d, err := narrow(s.Duration, life, scopes)
	narrowed := *s
	narrowed.Duration, narrowed.AssumeRole = d, s.AssumeRole.narrow(life)
	return &narrowed, err
}

// Narrow shortens the session; below 15 minutes AWS has none. It has no scopes.
func (s *WebIdentity) Narrow(life time.Duration, scopes []string) (exchangers.Settings, error) {
	d, err := narrow(s.Duration, life, scopes)
	narrowed := *s
	narrowed.Duration, narrowed.AssumeRole = d, s.AssumeRole.narrow(life)
	return &narrowed, err
}

// margin is what AWS's clock and the way there may take of a life.
const margin = 5 * time.Second

func narrow(d exchangers.Duration, life time.Duration, scopes []string) (exchangers.Duration, error) {
	if len(scopes) > 0 {
		return d, fmt.Errorf("%w: sessions of AWS have none", exchangers.ErrScope)
	}
	within := (life - margin).Truncate(time.Second)
	if within < minSession {
		return d, fmt.Errorf("%w: sessions of AWS last 15m at least", exchangers.ErrLife)
	}
	if d == 0 { // what AWS, or the profile, would give may be more
		return exchangers.Duration(min(within, time.Hour)), nil
	}
	return min(d, exchangers.Duration(within)), nil
}

// narrow shortens the second session, which nothing else bounds by the first.
func (c *AssumeRole) narrow(life time.Duration) *AssumeRole {
	if c == nil {
		return nil
	}
	narrowed, within := *c, exchangers.Duration(min((life-margin).Truncate(time.Second), maxChained))
	if narrowed.Duration == 0 || narrowed.Duration > within {
		narrowed.Duration = within
	}
	return &narrowed
}

package gcp

import (
	"fmt"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// fixed is how long the tokens live whose life Google alone decides: ID tokens,
// and a federated principal's own.
const fixed = time.Hour

// Narrow shortens the token of a service account, down to a minute, and takes
// some of the scopes. Other tokens live for an hour.
func (s *Settings) Narrow(life time.Duration, scopes []string) (exchangers.Settings, error) {
	narrowed := *s
	wanted, err := exchangers.Subset(scopes, s.scopes())
	if err != nil {
		return nil, err
	}
	if len(scopes) > 0 {
		narrowed.Scopes = wanted
	}
	if s.ServiceAccount == "" || s.IDTokenAudience != "" {
		if life < fixed {
			return nil, fmt.Errorf("%w: Google gives these tokens for an hour; the access token of a service_account can be shorter", exchangers.ErrLife)
		}
		return &narrowed, nil
	}
	const margin = 2 * time.Second // what Google's clock and the way there may take
	within := (life - margin).Truncate(time.Second)
	if within < time.Minute {
		return nil, fmt.Errorf("%w: tokens of service accounts live a minute at least", exchangers.ErrLife)
	}
	asked := time.Duration(s.Lifetime)
	if asked == 0 {
		asked = time.Hour
	}
	narrowed.Lifetime = exchangers.Duration(min(asked, within))
	return &narrowed, nil
}

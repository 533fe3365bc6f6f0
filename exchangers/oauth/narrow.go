package oauth

import (
	"fmt"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// presented is how long a JWT-SVID lives that is shown to an OAuth server: it is
// used at once, and servers that take a token once refuse long ones.
const presented = 5 * time.Minute

// TokenLife is how long the JWT-SVID need live that this mode shows; 0: no
// bound. Servers that exchange tokens (RFC 8693) take short ones.
func (s Settings) TokenLife() time.Duration {
	if s.TokenExchange == nil {
		return 0
	}
	return presented
}

// Narrow takes some of the scopes that the settings list. For how long a token
// lives the server alone decides, and the caller looks at it.
func (s *Settings) Narrow(_ time.Duration, scopes []string) (exchangers.Settings, error) {
	narrowed := *s
	var list *[]string
	switch {
	case s.TokenExchange != nil:
		m := *s.TokenExchange
		narrowed.TokenExchange, list = &m, &m.Scopes
	case s.ClientAssertion != nil:
		m := *s.ClientAssertion
		narrowed.ClientAssertion, list = &m, &m.Scopes
	case s.JWTBearer != nil:
		m := *s.JWTBearer
		narrowed.JWTBearer, list = &m, &m.Scopes
	default:
		if len(scopes) > 0 {
			return nil, fmt.Errorf("%w: tokens of OpenBao and Vault have none", exchangers.ErrScope)
		}
		return &narrowed, nil
	}
	wanted, err := exchangers.Subset(scopes, *list)
	if err != nil {
		return nil, err
	}
	*list = wanted
	return &narrowed, nil
}

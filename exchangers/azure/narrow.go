package azure

import (
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// shortest is how long Entra's access tokens live at least, by default; nobody
// can ask for less.
const shortest = time.Hour

// Narrow leaves everything as it is: Entra takes neither a life nor a part of a
// scope.
func (s *Settings) Narrow(life time.Duration, scopes []string) (exchangers.Settings, error) {
	if len(scopes) > 0 && !slices.Equal(scopes, []string{s.Scope}) {
		return nil, fmt.Errorf("%w: a token is for %s, whole", exchangers.ErrScope, s.Scope)
	}
	if life < shortest {
		return nil, fmt.Errorf("%w: Entra's tokens live an hour at least", exchangers.ErrLife)
	}
	narrowed := *s
	return &narrowed, nil
}

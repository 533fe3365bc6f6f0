package oauth_test

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/oauth"
)

func TestNarrow(t *testing.T) {
	all := []string{"read", "write"}
	of := map[string]func() *oauth.Settings{
		"token_exchange":   func() *oauth.Settings { return &oauth.Settings{TokenExchange: &oauth.TokenExchange{Scopes: all}} },
		"client_assertion": func() *oauth.Settings { return &oauth.Settings{ClientAssertion: &oauth.ClientAssertion{Scopes: all}} },
		"jwt_bearer":       func() *oauth.Settings { return &oauth.Settings{JWTBearer: &oauth.JWTBearer{Scopes: all}} },
	}
	scopes := func(s exchangers.Settings) []string {
		switch s := s.(*oauth.Settings); {
		case s.TokenExchange != nil:
			return s.TokenExchange.Scopes
		case s.ClientAssertion != nil:
			return s.ClientAssertion.Scopes
		default:
			return s.JWTBearer.Scopes
		}
	}
	for name, settings := range of {
		for _, row := range []struct {
			wanted, want []string
			err          error
		}{
			{nil, all, nil},
			{[]string{"write"}, []string{"write"}, nil},
			{[]string{"write", "admin"}, nil, exchangers.ErrScope},
		} {
			s := settings()
			got, err := s.Narrow(time.Minute, row.wanted)
			if !errors.Is(err, row.err) {
				t.Errorf("%s %v: %v", name, row.wanted, err)
			}
			if err != nil {
				continue
			}
			if d := cmp.Diff(row.want, scopes(got)) + cmp.Diff(all, scopes(s)); d != "" {
				t.Errorf("%s %v: %s", name, row.wanted, d)
			}
		}
		if life := settings().TokenLife(); (life > 0) != (name == "token_exchange") {
			t.Errorf("%s: a token of %s", name, life)
		}
	}
	vault := &oauth.Settings{VaultJWT: &oauth.VaultJWT{}}
	if _, err := vault.Narrow(time.Minute, nil); err != nil {
		t.Error(err)
	}
	if _, err := vault.Narrow(time.Minute, []string{"a"}); !errors.Is(err, exchangers.ErrScope) {
		t.Error(err)
	}
}

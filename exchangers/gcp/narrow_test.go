package gcp_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/gcp"
)

func TestNarrow(t *testing.T) {
	const account = "a@b.iam.gserviceaccount.com"
	a, b := "https://scope/a", "https://scope/b"
	for _, row := range []struct {
		name   string
		s      gcp.Settings
		life   time.Duration
		scopes []string
		want   time.Duration
		err    error
	}{
		{"an account's is cut", gcp.Settings{ServiceAccount: account}, 4 * time.Minute, nil, 4*time.Minute - 2*time.Second, nil},
		{"a shorter one stays", gcp.Settings{ServiceAccount: account, Lifetime: exchangers.Duration(2 * time.Minute)}, 4 * time.Minute, nil, 2 * time.Minute, nil},
		{"the default stays", gcp.Settings{ServiceAccount: account}, 5 * time.Hour, nil, time.Hour, nil},
		{"under a minute", gcp.Settings{ServiceAccount: account}, time.Minute, nil, 0, exchangers.ErrLife},
		{"a principal's own", gcp.Settings{}, 5 * time.Minute, nil, 0, exchangers.ErrLife},
		{"an ID token", gcp.Settings{ServiceAccount: account, IDTokenAudience: "x"}, 5 * time.Minute, nil, 0, exchangers.ErrLife},
		{"a principal's own, in time", gcp.Settings{}, time.Hour, nil, 0, nil},
		{"some scopes", gcp.Settings{ServiceAccount: account, Scopes: []string{a, b}}, time.Hour, []string{b}, time.Hour - 2*time.Second, nil},
		{"another scope", gcp.Settings{ServiceAccount: account, Scopes: []string{a}}, time.Hour, []string{b}, 0, exchangers.ErrScope},
		{"more than the default scope", gcp.Settings{ServiceAccount: account}, time.Hour, []string{a}, 0, exchangers.ErrScope},
	} {
		t.Run(row.name, func(t *testing.T) {
			before := slices.Clone(row.s.Scopes)
			got, err := row.s.Narrow(row.life, row.scopes)
			if !errors.Is(err, row.err) {
				t.Fatal(err)
			}
			if err != nil {
				return
			}
			s := got.(*gcp.Settings)
			if time.Duration(s.Lifetime) != row.want || len(row.scopes) > 0 && !slices.Equal(s.Scopes, row.scopes) || !slices.Equal(row.s.Scopes, before) {
				t.Errorf("%s, %v, and %v before", s.Lifetime, s.Scopes, row.s.Scopes)
			}
		})
	}
}

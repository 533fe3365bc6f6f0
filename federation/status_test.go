package federation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

func TestConfirmed(t *testing.T) {
	good := federation.Status{
		TrustDomain: spiffeid.RequireTrustDomainFromString("partner.example"), Bundle: &federation.Bundle{},
		ConfirmedAt: time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC),
	}
	taken := map[federation.State]bool{federation.Fresh: true, federation.Holding: true}
	for _, state := range []federation.State{"", federation.Waiting, federation.Fresh, federation.Stale, federation.Holding, federation.Closed} {
		for name, change := range map[string]func(*federation.Status){
			"": func(*federation.Status) {}, "stale": func(s *federation.Status) { s.Stale = true }, "without a bundle": func(s *federation.Status) { s.Bundle = nil },
		} {
			s := good
			s.State = state
			change(&s)
			err := s.Confirmed()
			if want := taken[state] && name == ""; want != (err == nil) {
				t.Errorf("%q %s: %v", state, name, err)
			}
			if err != nil && !strings.Contains(err.Error(), "partner.example is "+string(state)+", last confirmed at 2026-05-04T10:20:30Z") {
				t.Errorf("the error is %v", err)
			}
		}
	}
}

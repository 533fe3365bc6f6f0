package gcp_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/exchangers"
	cloud "github.com/credence-id/credence/exchangers/sandbox/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

func cut(ids ...string) exchangers.Cut {
	c := exchangers.Cut{Issuer: issuertest.URL, Now: time.Now(), Until: time.Now().Add(15 * time.Minute)}
	for _, id := range ids {
		c.IDs = append(c.IDs, spiffeid.RequireFromString(id))
	}
	return c
}

// The condition of the command stops the subject's exchanges, and nobody
// else's.
func TestRevoke(t *testing.T) {
	w := newWorld(t)
	advice := settings().Revoke(cut("spiffe://example.org/another", workload))
	command := advice.Remedies[0].Command
	condition, ok := strings.CutPrefix(command[len(command)-1], "--attribute-condition=")
	if !ok || !slices.Contains(command, "prov-1") || !slices.Contains(command, "--workload-identity-pool=pool-1") || !slices.Contains(command, "--project=123") {
		t.Fatalf("%q", command)
	}
	x := exchanger(t, settings(), w.server)
	if _, err := x.Exchange(t.Context(), w.jwt(t, nil)); err != nil {
		t.Fatal(err)
	}
	err := w.cloud.PutProvider(pool, cloud.Provider{ID: "prov-1", Issuer: issuertest.URL, AttributeMapping: map[string]string{"google.subject": "assertion.sub"}, AttributeCondition: condition})
	if err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{workload, "spiffe://example.org/another"} {
		cred, err := x.Exchange(t.Context(), w.jwt(t, map[string]any{"sub": sub}))
		refused(t, cred, err)
	}
	if _, err := x.Exchange(t.Context(), w.jwt(t, map[string]any{"sub": workload + "/x"})); err != nil {
		t.Errorf("another subject: %v", err)
	}
	if text := string(advice.Remedies[1].Document); !strings.Contains(text, principal) {
		t.Errorf("the bindings are not named: %s", text)
	}
}

// A federated token lives as long as what was exchanged, one of a service
// account longer.
func TestRevokeUntil(t *testing.T) {
	c := cut(workload)
	if got := settings().Revoke(c).Until; !got.Equal(c.Until) {
		t.Errorf("until %s, want %s", got, c.Until)
	}
	if got := impersonating().Revoke(c); !got.Until.Equal(c.Until.Add(12*time.Hour)) || !strings.Contains(got.Sessions, "live on for 1h (") {
		t.Errorf("until %s: %s", got.Until, got.Sessions)
	}
	c.Until = c.Now.Add(10 * time.Hour)
	if got := settings().Revoke(c).Until; !got.Equal(c.Now.Add(time.Hour)) {
		t.Errorf("until %s, want an hour from now", got)
	}
	c.Until = c.Now.Add(-time.Hour)
	if got := settings().Revoke(c).Until; !got.Equal(c.Now) {
		t.Errorf("until %s, want now", got)
	}
}

func TestRevokeMoreThanAConditionNames(t *testing.T) {
	var many []string
	for n := range 100 {
		many = append(many, fmt.Sprintf("spiffe://example.org/%s/%d", strings.Repeat("a", 50), n))
	}
	advice := settings().Revoke(cut(many...))
	for _, r := range advice.Remedies {
		if len(r.Command) > 0 {
			t.Errorf("a command with a condition that is too long: %q", r.Command)
		}
	}
	if !strings.Contains(strings.Join(advice.Missing, "\n"), "disable the provider") {
		t.Errorf("%q", advice.Missing)
	}
}

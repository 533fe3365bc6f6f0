package azure_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/exchangers"
	cloud "github.com/credence-id/credence/exchangers/sandbox/azure"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// Without the credential that the advice names there is no token any more, for
// old JWT-SVIDs and new ones.
func TestRevoke(t *testing.T) {
	w := newWorld(t)
	now := time.Now()
	advice := settings().Revoke(exchangers.Cut{IDs: []spiffeid.ID{spiffeid.RequireFromString(workload)}, Issuer: issuertest.URL, Now: now, Until: now.Add(time.Hour)})
	if len(advice.Remedies) != 1 || !slices.Contains(advice.Remedies[0].Command, clientID) || !advice.Until.Equal(now.Add(24*time.Hour)) {
		t.Fatalf("%v", advice)
	}
	var named struct{ Subject, Issuer, Audience string }
	if err := json.Unmarshal(advice.Remedies[0].Document, &named); err != nil {
		t.Fatal(err)
	}
	if want := (cloud.Credential{Name: "checkout", Issuer: named.Issuer, Subject: named.Subject, Audience: named.Audience}); want != (cloud.Credential{Name: "checkout", Issuer: issuertest.URL, Subject: workload, Audience: cloud.Audience}) {
		t.Errorf("it names %v", named)
	}
	x := exchanger(t, settings(), w.server)
	if _, err := x.Exchange(t.Context(), w.jwt(t, "RS256", nil)); err != nil {
		t.Fatal(err)
	}
	if err := w.cloud.PutApp(tenantID, cloud.App{Kind: cloud.Application, ClientID: clientID, ObjectID: objectID}); err != nil {
		t.Fatal(err)
	}
	cred, err := x.Exchange(t.Context(), w.jwt(t, "RS256", nil))
	refused(t, cred, err)
	if !strings.Contains(strings.Join(advice.Missing, "\n"), "no cut-off by time") {
		t.Errorf("%q", advice.Missing)
	}
}

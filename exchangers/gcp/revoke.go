package gcp

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

const (
	maxCondition = 4096 // characters of an attribute condition
	maxFederated = time.Hour
	maxLifetime  = 12 * time.Hour // of a service account's token, where the organization allows it
)

// Revoke implements exchangers.Revoker.
func (s Settings) Revoke(c exchangers.Cut) exchangers.Advice {
	// It lives as long as the token that was exchanged, and no more than an hour.
	federated := c.Now.Add(maxFederated)
	if c.Until.Before(federated) {
		federated = c.Until
	}
	if federated.Before(c.Now) {
		federated = c.Now
	}
	advice := exchangers.Advice{
		Until:    federated,
		Sessions: fmt.Sprintf("Google Cloud takes no federated token back: it lives until %s", federated.UTC().Format(time.RFC3339)),
		Missing:  []string{"Google Cloud knows no CRL, no revoked token and no cut-off by time: what it can shut out is a subject, the workload itself with it"},
	}
	if s.ServiceAccount != "" {
		advice.Until = federated.Add(maxLifetime)
		lifetime := time.Hour
		if s.Lifetime != 0 {
			lifetime = time.Duration(s.Lifetime)
		}
		advice.Sessions += fmt.Sprintf(", and makes tokens of %s until then, which live on for %s (for 1h, or 12h where the organization allows it, if a thief asks)", s.ServiceAccount, exchangers.Brief(lifetime))
	}
	part := strings.Split(s.name(), "/") // projects/NUMBER/locations/global/workloadIdentityPools/POOL/providers/PROVIDER
	number, pool, provider := part[1], part[5], part[7]
	var ids, quoted []string
	for _, id := range c.IDs {
		ids = append(ids, id.String())
		quoted = append(quoted, "'"+id.String()+"'") // no SPIFFE ID has a quote or a backslash
	}
	subject, update := "assertion.sub", "update-oidc"
	if s.x509() {
		subject, update = "assertion.san.uri", "update-x509"
	}
	condition := fmt.Sprintf("!(%s in [%s])", subject, strings.Join(quoted, ", "))
	if len(condition) <= maxCondition {
		advice.Remedies = append(advice.Remedies, exchangers.Remedy{
			Does: "no new exchange for these subjects, in about a second, old tokens and new ones alike: the workload is shut out too, until it is taken away again",
			Limits: []string{
				"it replaces the provider's condition: where there is one, join the two with &&",
				fmt.Sprintf("a condition has %d characters at most, this one has %d", maxCondition, len(condition)),
				fmt.Sprintf("after %s the revoked tokens have ended: take it away again", c.Until.UTC().Format(time.RFC3339)),
			},
			Command: []string{
				"gcloud", "iam", "workload-identity-pools", "providers", update, provider, "--workload-identity-pool=" + pool,
				"--location=global", "--project=" + number, "--attribute-condition=" + condition,
			},
			Document: text(map[string]any{"attribute_condition": condition}),
		})
	} else {
		advice.Missing = append(advice.Missing, fmt.Sprintf("%d subjects are more than a condition of %d characters names: disable the provider, which shuts out all", len(ids), maxCondition))
	}
	var principals []string
	for _, id := range ids {
		principals = append(principals, fmt.Sprintf("principal://iam.googleapis.com/projects/%s/locations/global/workloadIdentityPools/%s/subject/%s", number, pool, id))
	}
	advice.Remedies = append(advice.Remedies, exchangers.Remedy{
		Does:     "federated tokens that were given already do no more, in about 90 s: take the bindings of these principals away, where google.subject is the SPIFFE ID; tokens of a service account live on",
		Document: text(map[string]any{"principals": principals}),
	})
	return advice
}

func text(v any) json.RawMessage {
	out, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings alone
	}
	return out
}

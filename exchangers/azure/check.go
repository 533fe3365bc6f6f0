package azure

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// How many federated identity credentials an app or managed identity has at
// most, and from when on to think of another.
const (
	maxCredentials  = 20
	manyCredentials = 15
)

// Check implements exchangers.Checker.
func (s *Settings) Check(q exchangers.Question) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	const fic = "cloud.federated_credential."
	return w.JWT(exchangers.JWTRules{
		Cloud: "Entra", MaxIssuer: 600, MaxSubject: 600, ExactSubject: true, IssuerField: fic + "issuer", SubjectField: fic + "subject",
	}, func() bool { return s.checkClient(w) }, func() bool { return s.checkCloud(w) }, func() bool { return s.checkAudience(w, fic+"audience") },
		func() bool { return s.checkCount(w) })
}

// checkClient finds what is most often copied into the wrong field.
func (s *Settings) checkClient(w *exchangers.Walk) bool {
	const none = "00000000-0000-0000-0000-000000000000"
	switch {
	case strings.EqualFold(s.ClientID, s.Tenant):
		return w.Fail("client", "client_is_tenant", "client_id", "client_id is the tenant's ID", "set client_id to the application (client) ID")
	case s.ClientID == none || s.Tenant == none:
		return w.Fail("client", "client_zero", "client_id", "client_id or tenant is all zeros", "set them to the application's client ID and its tenant's ID")
	}
	return w.Done("client", "%s of tenant %s", s.ClientID, s.Tenant)
}

// resources are those that have another name in each cloud.
var resources = []map[string]string{
	{"public": "management.azure.com", "usgov": "management.usgovcloudapi.net", "china": "management.chinacloudapi.cn"},
	{"public": "management.core.windows.net", "usgov": "management.core.usgovcloudapi.net", "china": "management.core.chinacloudapi.cn"},
	{"public": "graph.microsoft.com", "usgov": "graph.microsoft.us", "china": "microsoftgraph.chinacloudapi.cn"},
	{"public": "vault.azure.net", "usgov": "vault.usgovcloudapi.net", "china": "vault.azure.cn"},
}

// checkCloud wants endpoint and scope to be of the Target's cloud.
func (s *Settings) checkCloud(w *exchangers.Walk) bool {
	if err := s.checkPlace("endpoint", w.Target.Endpoint); err != nil {
		return w.Fail("cloud", "endpoint_cloud", "cloud", err.Error(), "set cloud of the Target, or leave endpoint out")
	}
	u, err := url.Parse(s.Scope)
	if err != nil {
		return w.Fail("cloud", "target_scope", "scope", "the scope is no URL", "set scope to one resource and /.default")
	}
	for _, r := range resources {
		for place, host := range r {
			if strings.EqualFold(u.Hostname(), host) && place != s.cloud() {
				return w.Fail("cloud", "scope_cloud", "scope", fmt.Sprintf("%s is of the %s cloud, and this Target is for %s", host, place, s.cloud()),
					"set scope to https://"+r[s.cloud()]+"/.default, or cloud to "+place)
			}
		}
	}
	return w.Done("cloud", "%s, %s", s.cloud(), s.Scope)
}

// checkAudience wants the cloud's own audience: a managed identity has no other.
func (s *Settings) checkAudience(w *exchangers.Walk, field string) bool {
	const step = "audience"
	ours, usual := s.Audience(), s.place().audience
	if !w.Audience(field, ours) {
		return false
	}
	if len(w.Registered.Audiences) > 1 {
		return w.Fail(step, "audience_many", field, fmt.Sprintf("%d audiences, and a federated identity credential has one", len(w.Registered.Audiences)), "leave one: "+ours)
	}
	for place, p := range places {
		if place != s.cloud() && ours == p.audience {
			return w.Fail(step, "audience_cloud", "audience", ours+" is the audience of the "+place+" cloud, and this Target is for "+s.cloud(), "leave audience out: it is "+usual+" then")
		}
	}
	switch d, differs := exchangers.Differ(ours, usual); {
	case !differs:
		return w.Done(step, "%s", ours)
	case len(w.Registered.Audiences) == 0 && (d.Kind == "case" || d.Kind == "slash" || d.Kind == "scheme"):
		w.Compare(step, "audience", "the audience", "audience", ours, usual)
		w.Findings[len(w.Findings)-1].Change = "leave audience of the Target out: it is " + usual + " then"
		return false
	case strings.Contains(ours, "iam.googleapis.com/") || ours == "sts.amazonaws.com":
		return w.Warn(step, "audience_other_cloud", "audience", ours+" is another cloud's audience: a token for one would be good for both", "leave audience out: it is "+usual+" then")
	}
	return w.Warn(step, "audience_unusual", "audience", ours+" is not "+usual+", and a managed identity takes no other", "leave audience out, unless the federated identity credential of an app says this one")
}

// checkCount counts the federated identity credentials that this Target takes.
func (s *Settings) checkCount(w *exchangers.Walk) bool {
	const step, field = "credentials", "cloud.federated_credential"
	subjects := map[string]bool{}
	for _, p := range w.Parties { // of all, whoever is asked about
		subjects[p.SPIFFEID] = true
	}
	n := len(subjects)
	found := fmt.Sprintf("%d SPIFFE IDs may use this Target, and client_id has at most %d federated identity credentials", n, maxCredentials)
	switch change := "share them out over several managed identities, a Target each, or give what may share one the same SPIFFE ID"; {
	case n > maxCredentials:
		return w.Fail(step, "credentials_many", field, found, change)
	case n >= manyCredentials:
		return w.Warn(step, "credentials_soon", field, found, change)
	}
	return w.Done(step, "%d of %d", n, maxCredentials)
}

package gcp

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// maxAudiences is how many a provider may allow.
const maxAudiences = 10

// Check implements exchangers.Checker.
func (s *Settings) Check(q exchangers.Question) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	own := []func() bool{
		func() bool { return s.checkProvider(w) }, func() bool { return s.checkEndpoint(w) }, func() bool { return s.checkAllowed(w) },
		func() bool { return s.checkServiceAccount(w) }, func() bool { return s.checkScopes(w) },
	}
	if s.x509() {
		return w.X509(exchangers.X509Rules{
			Cloud: "Google", Anchors: 3, AnchorField: "cloud.provider.trust_store", MaxSubject: maxSubject, SubjectField: "cloud.provider.attribute_mapping",
			MaxLife: maxLeafLife, MaxRSA: 4096,
		}, own...)
	}
	return w.JWT(exchangers.JWTRules{
		Cloud: "Google", MaxSubject: maxSubject, IssuerField: "cloud.provider.issuer_uri", SubjectField: "cloud.service_account.binding",
		MaxLife: 24 * time.Hour, UploadableKeys: 8,
	}, own...)
}

var projectOf = regexp.MustCompile(`/projects/([^/]+)/`)

// checkProvider holds the resource name's IDs against Google's rules: those
// that Validate leaves.
func (s *Settings) checkProvider(w *exchangers.Walk) bool {
	parts := strings.Split(s.name(), "/")
	for _, i := range []int{5, 7} { // projects/N/locations/global/workloadIdentityPools/POOL/providers/PROVIDER
		if strings.HasPrefix(parts[i], "gcp-") {
			return w.Fail("provider", "provider_reserved", "audience", parts[i]+" begins with gcp-, which Google keeps for itself", "correct the ID in audience of the Target")
		}
	}
	return w.Done("provider", "%s", s.resource())
}

// checkEndpoint wants Google's own STS to be the one for the kind of SVID.
func (s *Settings) checkEndpoint(w *exchangers.Walk) bool {
	u, err := url.Parse(w.Target.Endpoint)
	if err != nil {
		return w.Fail("endpoint", "target_endpoint", "endpoint", "the endpoint is no URL", "correct endpoint of the Target")
	}
	mtls := strings.EqualFold(u.Hostname(), "sts.mtls.googleapis.com")
	switch google := mtls || strings.EqualFold(u.Hostname(), "sts.googleapis.com"); {
	case google && s.x509() && !mtls:
		return w.Fail("endpoint", "endpoint_no_mtls", "endpoint", u.Hostname()+" takes no X509-SVID", "leave endpoint out: it is https://sts.mtls.googleapis.com then")
	case google && !s.x509() && mtls:
		return w.Fail("endpoint", "endpoint_mtls", "endpoint", u.Hostname()+" takes no JWT-SVID", "leave endpoint out: it is https://sts.googleapis.com then")
	}
	return true
}

// checkAllowed compares the token's audience with the provider's allowed ones.
// A list that is not empty takes the place of the default, in both its forms.
func (s *Settings) checkAllowed(w *exchangers.Walk) bool {
	const step, field = "audience", "cloud.provider.allowed_audiences"
	ours, theirs := s.Audience(), w.Registered.Audiences
	if ours == "" {
		return true
	}
	if len(theirs) > maxAudiences {
		return w.Fail(step, "audience_many", field, fmt.Sprintf("%d allowed audiences, and Google takes %d", len(theirs), maxAudiences), "empty the provider's allowed audiences")
	}
	number := projectOf.FindStringSubmatch(ours)
	for _, one := range theirs {
		project := projectOf.FindStringSubmatch(one)
		if project != nil && number != nil && strings.Trim(project[1], "0123456789") != "" {
			return w.Fail(step, "audience_project_id", field, "the provider's allowed audience names the project by its ID, "+exchangers.Clean(project[1])+", not by its number", "empty the provider's allowed audiences, or set "+ours)
		}
	}
	if !w.Audience(field, ours) {
		return false
	}
	return w.Done(step, "%s", ours)
}

var projectID = regexp.MustCompile(`^[a-z][a-z0-9-]*(\.[a-z0-9.-]+)?$`)

func (s *Settings) checkServiceAccount(w *exchangers.Walk) bool {
	for field, email := range s.accounts() {
		_, at, _ := strings.Cut(email, "@")
		if project, user := strings.CutSuffix(at, ".iam.gserviceaccount.com"); user && !projectID.MatchString(project) {
			return w.Fail("service account", "service_account_project", field, email+" has "+project+" where the project's ID stands", "copy the e-mail address of the service account from the console")
		}
	}
	if time.Duration(s.Lifetime) > time.Hour {
		return w.Warn("service account", "lifetime_policy", "lifetime", fmt.Sprintf("lifetime is %s: more than 1h needs an organization policy", time.Duration(s.Lifetime)),
			"allow it by constraints/iam.allowServiceAccountCredentialLifetimeExtension, or lower lifetime")
	}
	if s.ServiceAccount == "" {
		return w.Done("service account", "none: the principal's own token")
	}
	return w.Done("service account", "%s", s.ServiceAccount)
}

// accounts are the service accounts, by where they stand: the first of each
// field that is wrong is named, so their order plays no part.
func (s *Settings) accounts() func(yield func(string, string) bool) {
	return func(yield func(string, string) bool) {
		for _, d := range s.Delegates {
			if !yield("delegates", d) {
				return
			}
		}
		if s.ServiceAccount != "" {
			yield("service_account", s.ServiceAccount)
		}
	}
}

// checkScopes wants scopes that Google has: URLs of its own.
func (s *Settings) checkScopes(w *exchangers.Walk) bool {
	for _, one := range s.scopes() {
		u, err := url.Parse(one)
		if err != nil || !strings.HasSuffix("."+u.Hostname(), ".googleapis.com") && !strings.HasSuffix("."+u.Hostname(), ".google.com") {
			return w.Fail("scopes", "scope_unknown", "scopes", exchangers.Clean(one)+" is no scope of Google's", "use https://www.googleapis.com/auth/cloud-platform, or another of https://www.googleapis.com/auth/")
		}
	}
	return true
}

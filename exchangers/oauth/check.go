package oauth

import (
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// Check implements exchangers.Checker. What an OAuth server takes it says
// itself: these are the rules that all are known to have.
func (s *Settings) Check(q exchangers.Question) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	if s.VaultCert != nil {
		return w.X509(exchangers.X509Rules{
			Cloud: "the server", Anchors: 10, AnchorField: "server.certificate_role", SubjectField: "server.allowed_uri_sans",
		}, func() bool { return checkCN(w) })
	}
	return w.JWT(exchangers.JWTRules{
		Cloud: "the server", MaxIssuer: 600, IssuerField: "server.issuer", SubjectField: "server.subject",
	}, func() bool { return s.checkAudience(w) })
}

func (s *Settings) checkAudience(w *exchangers.Walk) bool {
	return w.Audience("server.audience", s.Audience()) && w.Done("audience", "%s", s.Audience())
}

// checkCN wants a CN: OpenBao and Vault name who logs in by it.
func checkCN(w *exchangers.Walk) bool {
	for _, p := range w.Walked() {
		if !strings.Contains(","+strings.ToUpper(strings.ReplaceAll(p.Subject, ", ", ",")), ",CN=") {
			return w.Fail("subject", "subject_no_cn", "identity.x509.subject", "X509-SVIDs of "+p.Identity+" have no CN, and the server names who logs in by it",
				"set x509.subject of Identity "+p.Identity+" to CN="+p.Identity)
		}
	}
	return w.Done("subject", "each has a CN")
}

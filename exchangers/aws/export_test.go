package aws

import "github.com/spiffe/go-spiffe/v2/spiffeid"

// Canonical, StringToSign and SignText are the signer's steps: the test holds
// each against what AWS's own client made.
var (
	Canonical    = canonicalRequest
	StringToSign = stringToSign
	SignText     = signText
	Refusal      = anywhereRefusal
)

// SessionName is the default one.
func SessionName(id spiffeid.ID) string { return WebIdentity{}.sessionName(id) }

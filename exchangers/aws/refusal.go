package aws

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/credence-id/credence/exchangers"
)

// A hint is the way out for a code whose message holds text.
type hint struct {
	code, text    string           // empty: any
	class         exchangers.Class // empty: by code and status
	reason, field string           // of exchangers.Error
	way           string
}

// The first that fits is taken.
var anywhereHints = []hint{
	{"AccessDeniedException", "MaxSessionDuration", "", "role_max_session", "duration", "lower the Target's duration, or the profile's, or raise the role's maximum session duration"},
	{"AccessDeniedException", "session tags", "", "attribute_mapping", "cloud.profile.attribute_mapping", "change the profile's attribute mapping: a mapped attribute of the X509-SVID is no legal session tag"},
	{"AccessDeniedException", "Unable to assume role", "", "trust_policy", "cloud.role.trust_policy", "the role's trust policy must let rolesanywhere.amazonaws.com do sts:AssumeRole, sts:TagSession and sts:SetSourceIdentity, with conditions that this X509-SVID meets"},
	{"AccessDeniedException", "Untrusted signing certificate", "", "anchor_differs", "cloud.trust_anchor", "the trust anchor must hold a CA of our bundle: compare it with credence bundle show"},
	{"AccessDeniedException", "Insufficient certificate", "", "certificate_insufficient", "identity.x509.subject", "the X509-SVID must be no CA, with a subject and key usage digitalSignature"},
	{"AccessDeniedException", "Untrusted certificate", "", "certificate_untrusted", "cloud.trust_anchor", "check the trust anchor's CA, and this machine's clock"},
	{"AccessDeniedException", "revoked", "", "certificate_revoked", "cloud.trust_anchor.crl", "the certificate is in a revocation list that was imported for the trust anchor"},
	{"AccessDeniedException", "ignature", "", "signature", "clock", "check this machine's clock, and that no proxy changes the request"},
	{"AccessDeniedException", "", "", "profile_refuses", "cloud.profile", "check that trust anchor and profile are enabled, that the profile lists the role, and that it accepts session_name if that is set"},
	{"ResourceNotFoundException", "", "", "arn_unknown", "trust_anchor", "check trust_anchor and profile: one does not exist in that region"},
	{"ValidationException", "", "", "request_invalid", "role", "check the ARNs, session_name and duration of the Target"},
}

var webIdentityHints = []hint{
	{"InvalidIdentityToken", "retrieve verification key", exchangers.Propagation, "issuer_unread", "broker.issuer", "AWS could not read our issuer's discovery document or key: it must answer from the internet within 5 s"},
	{"InvalidIdentityToken", "No OpenIDConnect provider", "", "issuer_unregistered", "cloud.oidc_provider.url", "create an OIDC provider in the role's account whose URL is our issuer, byte for byte"},
	{"InvalidIdentityToken", "audience", "", "audience_unregistered", "cloud.oidc_provider.client_ids", "add the Target's audience to the client IDs of the OIDC provider"},
	{"InvalidIdentityToken", "thumbprint", "", "thumbprint", "cloud.oidc_provider.thumbprints", "update the thumbprint of the OIDC provider"},
	{"InvalidIdentityToken", "", "", "token_refused", "cloud.oidc_provider.url", "check that the OIDC provider's URL is our issuer and that AWS can read it"},
	{"ExpiredTokenException", "", "", "token_expired", "clock", "compare the broker's clock"},
	{"IDPCommunicationError", "", exchangers.Propagation, "issuer_unread", "broker.issuer", "AWS could not reach our issuer: it must answer from the internet within 5 s"},
	{"IDPRejectedClaim", "", "", "claim_refused", "cloud.role.trust_policy", "check the role's trust policy and the claims of the JWT-SVID"},
	{"AccessDenied", "", "", "trust_policy", "cloud.role.trust_policy", "check that the role exists and that its trust policy names the OIDC provider with conditions that this SPIFFE ID (:sub) and audience (:aud) meet; claims for tags need sts:TagSession too"},
	{"ValidationError", "MaxSessionDuration", "", "role_max_session", "duration", "lower the Target's duration, or raise the role's maximum session duration"},
	{"ValidationError", "", "", "request_invalid", "role", "check role, session_name and duration of the Target"},
	{"PackedPolicyTooLarge", "", "", "session_policy_large", "session_policy", "use a smaller session_policy, or fewer session tags"},
	{"MalformedPolicyDocument", "", "", "session_policy_malformed", "session_policy", "check session_policy and session_policy_arns"},
	{"RegionDisabledException", "", "", "region_disabled", "region", "activate STS for that region in the account, or choose another region"},
}

var assumeRoleHints = []hint{
	{"AccessDenied", "", "", "second_trust_policy", "assume_role.role", "assume_role.role must exist, and its trust policy must let the first role do sts:AssumeRole and, as the session has a source identity, sts:SetSourceIdentity, with conditions that external_id meets; where it names an account alone, the first role needs a permission too; a session policy must allow it"},
	{"ValidationError", "session limit", "", "second_session_limit", "assume_role.duration", "lower assume_role.duration: a chained session lives for 1h at most"},
	{"ValidationError", "MaxSessionDuration", "", "second_role_max_session", "assume_role.duration", "lower assume_role.duration, or raise the second role's maximum session duration"},
	{"ValidationError", "", "", "second_request_invalid", "assume_role.role", "check role, session_name, external_id and duration of assume_role"},
	{"MalformedPolicyDocument", "", "", "second_session_policy_malformed", "assume_role.session_policy", "check assume_role.session_policy"},
	{"PackedPolicyTooLarge", "", "", "second_session_policy_large", "assume_role.session_policy", "use a smaller assume_role.session_policy"},
	{"InvalidClientTokenId", "", "", "second_endpoint", "assume_role.endpoint", "check assume_role.endpoint: it does not know the session that was just given"},
	{"SignatureDoesNotMatch", "", "", "signature", "clock", "check this machine's clock, and that no proxy changes the request"},
	{"RegionDisabledException", "", "", "region_disabled", "region", "activate STS for that region in the account, or choose another region"},
}

// Codes of throttling, whatever their status: STS sends some with 400.
func throttled(code string) bool {
	switch code {
	case "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException",
		"TooManyRequestsException", "RequestLimitExceeded", "SlowDown", "PriorRequestNotComplete":
		return true
	}
	return false
}

func refusal(status int, code, message, id string, after time.Duration, hints []hint) *exchangers.Error {
	e := &exchangers.Error{Provider: provider, Status: status, Code: exchangers.Clean(code), Message: exchangers.Clean(message),
		Class: exchangers.ClassOf(status), RequestID: id, RetryAfter: after}
	if throttled(code) {
		e.Class = exchangers.Throttled
	}
	for _, h := range hints {
		if h.code == code && strings.Contains(message, h.text) {
			e.Reason, e.Field, e.Hint = h.reason, h.field, h.way
			if h.class != "" {
				e.Class = h.class
			}
			return e
		}
	}
	if status/100 == 3 || status == http.StatusNotFound || status == http.StatusMethodNotAllowed {
		e.Hint = "check the Target's endpoint: redirects are not followed"
	}
	return e
}

// retryAfter reads AWS's own header, in milliseconds, and the common one.
func retryAfter(h http.Header) time.Duration {
	if ms, err := strconv.ParseUint(h.Get("X-Amz-Retry-After"), 10, 32); err == nil {
		return min(time.Duration(ms)*time.Millisecond, 5*time.Minute)
	}
	return exchangers.RetryAfter(h)
}

package aws_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/aws"
)

// Each refusal of Roles Anywhere comes to what is to be done: nothing but what
// it says is for a while is tried again.
func TestClassesOfRolesAnywhere(t *testing.T) {
	const c, th, o = exchangers.Config, exchangers.Throttled, exchangers.Outage
	for _, row := range []struct {
		status        int
		code, message string
		want          exchangers.Class
	}{
		{403, "AccessDeniedException", "Untrusted certificate. Insufficient certificate", c},
		{403, "AccessDeniedException", "Untrusted signing certificate", c},
		{403, "AccessDeniedException", "Certificate revoked", c},
		{403, "AccessDeniedException", "Invalid signature", c},
		{403, "AccessDeniedException", "Unable to assume role for arn:aws:iam::123456789012:role/r.", c},
		{403, "AccessDeniedException", "Unable to assume role for r. The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", c},
		{404, "ResourceNotFoundException", "", c},
		{400, "ValidationException", "", c},
		{429, "ThrottlingException", "", th}, {400, "ThrottlingException", "", th},
		{500, "InternalServerException", "", o}, {503, "", "", o}, {502, "", "", o}, {429, "", "", th}, {404, "", "", c},
	} {
		e := aws.Refusal(row.status, http.Header{"X-Amzn-Errortype": {row.code}}, fmt.Appendf(nil, `{"message":%q}`, row.message))
		if e.Class != row.want {
			t.Errorf("%d %s %q: %s, want %s", row.status, row.code, row.message, e.Class, row.want)
		}
	}
}

// The same of STS, by the SDK's own reading.
func TestClassesOfSTS(t *testing.T) {
	const c, p, th, o = exchangers.Config, exchangers.Propagation, exchangers.Throttled, exchangers.Outage
	for _, row := range []struct {
		status        int
		code, message string
		want          exchangers.Class
	}{
		{400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account for https://x", c},
		{400, "InvalidIdentityToken", "Incorrect token audience", c},
		{400, "InvalidIdentityToken", "The ID Token provided is not a valid JWT.", c},
		{400, "InvalidIdentityToken", "Missing a required claim: sub.", c},
		{400, "InvalidIdentityToken", "Couldn't retrieve verification key from your identity provider, please reference AssumeRoleWithWebIdentity documentation for requirements", p},
		{400, "IDPCommunicationError", "", p},
		{400, "InvalidIdentityToken", "OpenIDConnect provider's HTTPS certificate doesn't match configured thumbprint", c},
		{400, "ExpiredTokenException", "Token expired: current date/time 1 must be before the expiration date/time 0", c},
		{403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity", c},
		{400, "ValidationError", "1 validation error detected", c}, {400, "MissingParameter", "", c},
		{400, "PackedPolicyTooLarge", "", c}, {400, "MalformedPolicyDocument", "", c}, {403, "IDPRejectedClaim", "", c}, {403, "RegionDisabledException", "", c},
		{400, "Throttling", "Rate exceeded", th}, {429, "TooManyRequestsException", "", th}, {503, "ServiceUnavailable", "", o}, {500, "InternalFailure", "", o},
	} {
		t.Run(fmt.Sprint(row.status, row.code), func(t *testing.T) {
			_, _, x := record(t, row.status, fmt.Sprintf(`<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error><RequestId>r</RequestId></ErrorResponse>`, row.code, row.message))
			cred, err := x.Exchange(t.Context(), svids{jwt: "a.b.c"})
			if e := refused(t, cred, err); e.Class != row.want {
				t.Errorf("%q: %s, want %s", row.message, e.Class, row.want)
			}
		})
	}
}

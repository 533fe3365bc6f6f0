package gcp_test

import (
	"encoding/json"
	"testing"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/gcp"
)

// Each of Google's refusals comes to what is to be done: nothing but what it
// says is for a while is tried again.
func TestClasses(t *testing.T) {
	const c, p, th, o = exchangers.Config, exchangers.Propagation, exchangers.Throttled, exchangers.Outage
	for _, row := range []struct {
		status        int
		code, message string
		rpc           bool // as iamcredentials answers
		want          exchangers.Class
	}{
		{400, "invalid_grant", "The audience in ID Token [x] does not match the expected audience.", false, c},
		{400, "invalid_grant", "The issuer in ID Token null does not match the expected one in config: https://x.", false, c},
		{400, "invalid_grant", "ID Token issued at 1 is stale to sign-in.", false, c},
		{400, "invalid_grant", "Unable to verify the ID Token signature.", false, c},
		{400, "invalid_grant", "Error connecting to the given credential's issuer.", false, p},
		{400, "unauthorized_client", "The given credential is rejected by the attribute condition.", false, c},
		{400, "invalid_target", "The target service indicated by the \"audience\" parameters is invalid.", false, c},
		{400, "invalid_request", "The size of mapped attribute google.subject exceeds the 127 bytes limit.", false, c},
		{400, "invalid_request", "Invalid value for \"audience\"", false, c},
		{400, "unsupported_grant_type", "", false, c},
		{400, "invalid_scope", "", false, c},
		{429, "quota_exceeded", "The request was throttled due to rate limit", false, th},
		{500, "INTERNAL", "", true, o}, {503, "UNAVAILABLE", "", true, o}, {504, "DEADLINE_EXCEEDED", "", true, o},
		{429, "RESOURCE_EXHAUSTED", "", true, th},
		{403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.getAccessToken' denied on resource (or it may not exist).", true, c},
		{404, "NOT_FOUND", "", true, c}, {401, "UNAUTHENTICATED", "", true, c}, {400, "INVALID_ARGUMENT", "Lifetime of access token must be larger then zero.", true, c},
		{500, "", "", false, o}, {502, "", "", false, o}, {408, "", "", false, o}, {429, "", "", false, th}, {404, "", "", false, c}, {302, "", "", false, c},
	} {
		var body any = map[string]string{"error": row.code, "error_description": row.message}
		if row.rpc {
			body = map[string]any{"error": map[string]any{"code": row.status, "status": row.code, "message": row.message}}
		}
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		if e := gcp.Refusal(row.status, text, exchangers.NewSecret("token")); e.Class != row.want {
			t.Errorf("%d %s %q: %s, want %s", row.status, row.code, row.message, e.Class, row.want)
		}
	}
}

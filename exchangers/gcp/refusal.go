package gcp

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// A hint is the way out for a code whose message holds text.
type hint struct {
	code, text string           // no text: any
	class      exchangers.Class // empty: by status
	way        string
}

// The first that fits is taken.
var hints = []hint{
	{"invalid_grant", "Error connecting to the given credential's issuer", exchangers.Propagation, "Google could not read our issuer's key set, or it lacks the key: the issuer must answer from the internet, or its keys be uploaded anew"},
	{"invalid_grant", "The audience in ID Token", "", "empty the provider's allowed audiences, or add the Target's audience to them, with https:"},
	{"invalid_grant", "The issuer in ID Token", "", "set the provider's issuer URI to our issuer, byte for byte"},
	{"invalid_grant", "stale to sign-in", "", "compare the broker's clock"},
	{"invalid_grant", "signature", "", "the provider's key set holds another key of that ID: upload it anew"},
	{"invalid_grant", "certificate", "", "the X.509 provider's trust store must hold a CA of our bundle: compare it with credence bundle show"},
	{"invalid_grant", "", "", "check the provider's issuer URI, audiences and keys"},
	{"unauthorized_client", "attribute condition", "", "the provider's attribute condition is false for this SPIFFE ID"},
	{"invalid_target", "", "", "check audience: the pool or provider does not exist, or is disabled or deleted"},
	{"invalid_request", "127 bytes", "", "the SPIFFE ID is longer than 127 bytes: shorten it, or map google.subject to something shorter"},
	{"invalid_request", "subject_token_type", "", "check svid: an OIDC provider takes jwt, an X.509 provider x509, at its own endpoint"},
	{"invalid_request", "map", "", "the provider maps no google.subject for this SVID: for svid x509 it must be assertion.san.uri"},
	{"invalid_request", "audience", "", "check audience: it takes the project's number, not its ID"},
	{"invalid_scope", "", "", "check scopes"},
	{"quota_exceeded", "", exchangers.Throttled, ""},
	{"RESOURCE_EXHAUSTED", "", exchangers.Throttled, ""},
	{"INTERNAL", "", exchangers.Outage, ""},
	{"UNAVAILABLE", "", exchangers.Outage, ""},
	{"DEADLINE_EXCEEDED", "", exchangers.Outage, ""},
	{"ABORTED", "", exchangers.Outage, ""},
	{"PERMISSION_DENIED", "required permission to use project", "", "give this SPIFFE ID's principal roles/serviceusage.serviceUsageConsumer on quota_project"},
	{"PERMISSION_DENIED", "", "", "give this SPIFFE ID's principal roles/iam.workloadIdentityUser on the service_account, which must exist (roles/iam.serviceAccountTokenCreator to each delegate for the next), and enable the IAM Service Account Credentials API; a new binding takes up to 2 min"},
	{"NOT_FOUND", "", "", "check service_account"},
	{"UNAUTHENTICATED", "", "", "check impersonation_endpoint: it does not know the token that STS gave"},
	{"INVALID_ARGUMENT", "Lifetime", "", "lower lifetime to 1h, or allow more by the organization policy constraints/iam.allowServiceAccountCredentialLifetimeExtension"},
	{"INVALID_ARGUMENT", "lifetime", "", "lower lifetime to 1h, or allow more by the organization policy constraints/iam.allowServiceAccountCredentialLifetimeExtension"},
	{"INVALID_ARGUMENT", "", "", "check scopes, lifetime and service_account"},
}

// refusal reads an OAuth error (RFC 6749 §5.2) or a google.rpc.Status.
func refusal(status int, body []byte, secret exchangers.Secret) *exchangers.Error {
	code, message := parse(body)
	if code == "" && message == "" {
		message = fmt.Sprintf("HTTP status %d, and no reason that can be read", status)
	}
	e := &exchangers.Error{Provider: provider, Status: status, Code: exchangers.Clean(code),
		Message: exchangers.Clean(message, secret), Class: exchangers.ClassOf(status)}
	for _, h := range hints {
		if h.code == code && strings.Contains(message, h.text) {
			e.Hint = h.way
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

func parse(body []byte) (code, message string) {
	var answer struct {
		Error       json.RawMessage `json:"error"`
		Description string          `json:"error_description"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return "", ""
	}
	if json.Unmarshal(answer.Error, &code) == nil {
		return code, answer.Description
	}
	var rpc struct{ Status, Message string }
	if json.Unmarshal(answer.Error, &rpc) != nil {
		return "", ""
	}
	return rpc.Status, rpc.Message
}

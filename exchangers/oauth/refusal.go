package oauth

import (
	"cmp"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/credence-id/credence/exchangers"
)

// A hint is the class and the way out of an error code, or of a text.
type hint struct {
	text          string           // of Vault's messages
	class         exchangers.Class // empty: by status
	reason, field string           // of exchangers.Error
	way           string
}

var tokenHints = map[string]hint{
	"invalid_client":          {"", "", "client_refused", "client_id", "the server does not take this JWT-SVID as the client's assertion: compare the client's issuer, subject (this SPIFFE ID), keys and audience, byte for byte, its client_auth, and the clocks"},
	"invalid_grant":           {"", "", "token_refused", "audience", "the server does not take this JWT-SVID: compare the issuer, keys and audience that it expects, byte for byte, and the clocks"},
	"invalid_target":          {"", "", "resource_unknown", "resources", "check resources and requested_audiences: the server issues no token for them, or not to this SPIFFE ID"},
	"invalid_scope":           {"", "", "scope_refused", "scopes", "check scopes: the server does not know them, or does not give them to this SPIFFE ID"},
	"invalid_request":         {"", "", "request_invalid", "client_auth", "check requested_token_type, client_id and client_auth: the server misses a parameter, or does not take one"},
	"unauthorized_client":     {"", "", "client_unauthorized", "client_id", "let the client use this grant at the server, and check client_id"},
	"unsupported_grant_type":  {"", "", "grant_unknown", "token_url", "the server has not this grant: use another mode, or check token_url"},
	"temporarily_unavailable": {"", exchangers.Outage, "outage", "", ""},
	"server_error":            {"", exchangers.Outage, "outage", "", ""},
	"slow_down":               {"", exchangers.Throttled, "throttled", "", ""},
}

// The first that fits is taken.
var loginHints = []hint{
	{"error configuring token validator", exchangers.Propagation, "issuer_unread", "broker.issuer", "the server could not read our issuer's discovery document or keys: it must reach the issuer, and trust its web certificate (oidc_discovery_ca_pem)"},
	{"fetching keys", exchangers.Propagation, "issuer_unread", "broker.issuer", "the server could not read our issuer's discovery document or keys: it must reach the issuer, and trust its web certificate (oidc_discovery_ca_pem)"},
	// Said with status 500, by servers that name an entity by the certificate's CN.
	{"missing name in alias", exchangers.Config, "subject_no_cn", "identity.x509.subject", "add x509.subject: \"CN=<identity>\" to the Identity: the server wants a CN"},
	{"alias name", exchangers.Config, "subject_no_cn", "identity.x509.subject", "add x509.subject: \"CN=<identity>\" to the Identity: the server wants a CN"},
	{"audience", "", "audience_unregistered", "server.bound_audiences", "the role's bound_audiences must hold the Target's audience, byte for byte"},
	{"issuer", "", "issuer_unregistered", "server.bound_issuer", "the mount's bound_issuer must be our issuer, byte for byte"},
	{"missing role", "", "mount_differs", "mount", "the mount is one of auth method jwt: check mount, or use vault_jwt"},
	{"could not be found", "", "role_unknown", "role", "check role: the mount has none of that name"},
	{"client certificate must be supplied", "", "certificate_unseen", "url", "the server saw no certificate: for vault_jwt check mount, it is one of auth method cert; else TLS must end there, not at a proxy before it, with tls_disable_client_certs off"},
	{"all constraints", "", "spiffe_id_unregistered", "server.allowed_uri_sans", "the role's allowed_uri_sans must hold this SPIFFE ID"},
	{"invalid certificate", "", "anchor_differs", "server.certificate", "the role's certificate must be our bundle's CA, and its allowed_uri_sans hold this SPIFFE ID"},
	{"failed to verify client's certificate", exchangers.Config, "certificate_refused", "clock", "the server finds no fault with the CA, but with our certificate: compare the clocks, and the X509-SVID's life and key usage"}, // status 500 too
	{"expired", "", "token_expired", "clock", "compare the clocks of the broker and of the server"},
	{"not valid yet", "", "token_expired", "clock", "compare the clocks of the broker and of the server"},
	{"not yet valid", "", "token_expired", "clock", "compare the clocks of the broker and of the server"},
	{"in the future", "", "token_expired", "clock", "compare the clocks of the broker and of the server"},
	{"algorithm", "", "algorithm_refused", "server.jwt_supported_algs", "the mount's jwt_supported_algs must hold the JWT-SVID's algorithm, RS256"},
	{"signature", "", "signature", "server.jwks", "the JWT-SVID's signature does not verify with our issuer's published key: check the mount's oidc_discovery_url, jwks_url or jwt_validation_pubkeys"},
	{"key", "", "key_unusable", "server.jwks", "the server could not use our issuer's keys: check the mount's oidc_discovery_url, jwks_url or jwt_validation_pubkeys"},
	{"claim", "", "claim_refused", "server.bound_subject", "the role's bound_subject or bound_claims do not fit this SPIFFE ID"},
	{"permission denied", "", "login_denied", "role", "check mount and namespace, and that the role is for this SPIFFE ID"},
	{"missing client token", "", "login_none", "mount", "check mount and namespace: there is no login"},
	{"route", "", "login_none", "mount", "check mount and namespace: there is no login"},
}

const redirectHint = "check the Target's endpoint, and %s: redirects are not followed"

// tokenRefusal reads an OAuth error (RFC 6749 §5.2).
func (a answer) tokenRefusal(m object, secrets []exchangers.Secret) *exchangers.Error {
	code, _ := m.text("error")
	message, _ := m.text("error_description")
	if message == "" {
		message = code
	}
	e := a.refusal(code, message, exchangers.Clean(a.header.Get("X-Request-Id"), secrets...), secrets)
	known := tokenHints[code]
	e.Reason, e.Field = known.reason, known.field
	if e.Hint = known.way; known.class != "" && e.Class == exchangers.Config {
		e.Class = known.class
	}
	if e.Hint == "" && a.nowhere() {
		e.Hint = fmt.Sprintf(redirectHint, "token_url")
	}
	return e
}

// loginRefusal reads Vault's errors.
func (a answer) loginRefusal(m object, secrets []exchangers.Secret) *exchangers.Error {
	var all []string
	_ = json.Unmarshal(m["errors"], &all)
	message := strings.Join(all, "; ")
	e := a.refusal("login_refused", message, a.loginID(m, secrets), secrets)
	if a.status == http.StatusPreconditionFailed { // a replica that is behind
		e.Class = exchangers.Outage
	}
	for _, h := range loginHints {
		if (h.class != "" || e.Class == exchangers.Config) && strings.Contains(message, h.text) {
			e.Class, e.Reason, e.Field, e.Hint = cmp.Or(h.class, exchangers.Config), h.reason, h.field, h.way
			return e
		}
	}
	if a.nowhere() {
		e.Hint = fmt.Sprintf(redirectHint, "url, mount and namespace")
	}
	return e
}

func (a answer) nowhere() bool {
	return a.status/100 == 3 || a.status == http.StatusNotFound || a.status == http.StatusMethodNotAllowed
}

func (a answer) refusal(code, message, id string, secrets []exchangers.Secret) *exchangers.Error {
	if message == "" {
		message = fmt.Sprintf("HTTP status %d, and no reason that can be read", a.status)
	}
	return &exchangers.Error{Provider: provider, Status: a.status, Code: exchangers.Clean(code, secrets...), Message: exchangers.Clean(message, secrets...),
		Class: exchangers.ClassOf(a.status), RequestID: id, RetryAfter: exchangers.RetryAfter(a.header)}
}

package azure

import (
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"strconv"

	"github.com/credence-id/credence/exchangers"
)

// A hint is the class and the way out of an AADSTS code.
type hint struct {
	class         exchangers.Class // empty: by status
	reason, field string           // of exchangers.Error
	way           string
}

const (
	ficHint    = "compare the federated identity credential of client_id, byte for byte and in case: "
	issuerHint = "Entra could not read our issuer's discovery document or key: the issuer must answer from the internet; a new one takes up to 30 min"
)

var hints = map[string]hint{
	"AADSTS70021":   {exchangers.Propagation, "credential_unmatched", "cloud.federated_credential", ficHint + "issuer, subject and audience; a new one takes minutes"},
	"AADSTS700211":  {"", "issuer_unregistered", "cloud.federated_credential.issuer", ficHint + "its issuer must be ours"},
	"AADSTS700212":  {"", "audience_unregistered", "cloud.federated_credential.audience", ficHint + "its audience must be the Target's"},
	"AADSTS700213":  {"", "subject_unregistered", "cloud.federated_credential.subject", ficHint + "its subject must be this SPIFFE ID"},
	"AADSTS7002131": {"", "expression_unmatched", "cloud.federated_credential.subject", ficHint + "no expression matches this SPIFFE ID"},
	"AADSTS7002138": {"", "subject_case", "cloud.federated_credential.subject", ficHint + "its subject differs from this SPIFFE ID by letter case"},
	"AADSTS70025":   {"", "credential_none", "cloud.federated_credential", "add a federated identity credential to client_id: it has none"},
	"AADSTS7000226": {"", "credential_none", "cloud.federated_credential", "add a federated identity credential to client_id: it has none"},
	"AADSTS7002241": {"", "expression_refused", "cloud.federated_credential.subject", "use an exact subject: Entra takes expressions only of a few issuers"},
	"AADSTS700024":  {"", "token_expired", "clock", "compare the broker's clock"},
	"AADSTS700027":  {"", "signature", "broker.issuer", "the JWT-SVID's signature does not verify with our issuer's published key: check that the issuer serves this broker's keys"},
	"AADSTS7000272": {exchangers.Propagation, "key_unknown", "broker.issuer", issuerHint},
	"AADSTS501661":  {exchangers.Propagation, "issuer_unread", "broker.issuer", issuerHint},
	"AADSTS5002738": {"", "alg_refused", "broker.issuer", "tokens for Azure must be RS256"},
	"AADSTS5002730": {"", "key_type", "broker.issuer", "tokens for Azure must be RS256, with an RSA key"},
	"AADSTS700016":  {"", "client_unknown", "client_id", "check client_id and tenant: the tenant has no such application"},
	"AADSTS90002":   {"", "tenant_unknown", "tenant", "check tenant: there is none of that name"},
	"AADSTS900023":  {"", "tenant_malformed", "tenant", "check tenant: it is neither an ID nor a domain"},
	"AADSTS70011":   {"", "scope_refused", "scope", "check scope: it must be one resource and /.default"},
	"AADSTS1002012": {"", "scope_refused", "scope", "check scope: it must be one resource and /.default"},
	"AADSTS28003":   {"", "scope_refused", "scope", "check scope: it must be one resource and /.default"},
	"AADSTS500011":  {"", "resource_unknown", "scope", "check scope: the tenant has no service principal of that resource"},
	"AADSTS700223":  {"", "federation_disabled", "cloud.tenant_policy", "workload identity federation is disabled by the tenant's policy"},
	"AADSTS700238":  {"", "federation_disabled", "cloud.tenant_policy", "workload identity federation is disabled by the tenant's policy"},
	"AADSTS50196":   {exchangers.Throttled, "throttled", "", "Entra sees a loop of requests"},
	"AADSTS90033":   {exchangers.Outage, "outage", "", ""},
}

var aadsts = regexp.MustCompile(`AADSTS[0-9]{1,9}`)

// refusal reads an OAuth error (RFC 6749 §5.2) with Entra's own codes in it.
func refusal(status int, h http.Header, body []byte, jwt exchangers.Secret) *exchangers.Error {
	var answer struct {
		Error       string  `json:"error"`
		Description string  `json:"error_description"`
		Codes       []int64 `json:"error_codes"`
	}
	if json.Unmarshal(body, &answer) != nil || answer.Error == "" && answer.Description == "" {
		answer.Description = fmt.Sprintf("HTTP status %d, and no reason that can be read", status)
	}
	code := aadsts.FindString(answer.Description)
	if code == "" && len(answer.Codes) > 0 && answer.Codes[0] > 0 {
		code = "AADSTS" + strconv.FormatInt(answer.Codes[0], 10)
	}
	if code == "" {
		code = answer.Error
	}
	e := &exchangers.Error{Provider: provider, Status: status, Code: exchangers.Clean(code),
		Message: exchangers.Clean(answer.Description, jwt), Class: exchangers.ClassOf(status), RequestID: requestID(h)}
	known := hints[code]
	e.Reason, e.Field = known.reason, known.field
	if e.Hint = known.way; known.class != "" && e.Class == exchangers.Config {
		e.Class = known.class
	}
	if e.Hint == "" && (status/100 == 3 || status == http.StatusNotFound || status == http.StatusMethodNotAllowed) {
		e.Hint = "check the Target's endpoint: redirects are not followed"
	}
	return e
}

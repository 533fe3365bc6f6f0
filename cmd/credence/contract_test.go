package main_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// A clause is one thing that a cloud's contract asks of whoever plays that
// cloud, and the tests that hold the sandbox to it: package.Test, or
// package.Test/row. A negative case has as many rows as it has changes, whose
// names begin with its ID, or a test that says it.
type clause struct {
	id, says string
	rows     int
	tests    []string
}

// checks are what each call is checked for.
var checks = []clause{
	{"RA 1", "POST /sessions, 404 or 405 else", 0, []string{"aws.TestAnywhereRefuses/R1 GET", "aws.TestAnywhereRefuses/another path", "aws.TestAnywhereRefuses/escaped path"}},
	{"RA 2", "a JSON body", 0, []string{"aws.TestAnywhereRefuses/content type", "aws.TestAnywhereRefuses/malformed JSON", "aws.TestAnywhereRefuses/member twice"}},
	{"RA 3", "ARNs in query or body, in conflict refused", 0, []string{"aws.TestAnywhereSucceeds/all ARNs in the body", "aws.TestAnywhereRefuses/ARN differs between query and body"}},
	{"RA 4", "three well-formed ARNs of one account and region, the endpoint's", 0, []string{"aws.TestAnywhereRefuses/role ARN missing", "aws.TestAnywhereRefuses/anchor ARN of a profile", "aws.TestAnywhereRefuses/R31 anchor in another region", "aws.TestAnywhereRefuses/role in another account"}},
	{"RA 5", "one of three schemes, the leaf's", 0, []string{"aws.TestAnywhereRefuses/R3 algorithm RSA, leaf P-256", "aws.TestAnywhereRefuses/algorithm ML-DSA, leaf P-256", "aws.TestAnywhereSucceeds/RSA", "aws.TestAnywhereSucceeds/P-384"}},
	{"RA 6", "the leaf's serial, decimal", 0, []string{"aws.TestAnywhereRefuses/R6 serial of another certificate", "aws.TestAnywhereRefuses/serial in hex", "aws.TestAnywhereRefuses/serial with a leading zero"}},
	{"RA 7", "scope of date, region, service, terminator", 0, []string{"aws.TestAnywhereRefuses/R9 scope date of yesterday", "aws.TestAnywhereRefuses/R7 scope region", "aws.TestAnywhereRefuses/R8 scope service", "aws.TestAnywhereRefuses/scope of another terminator"}},
	{"RA 8", "X-Amz-Date's form, 5 min either way", 0, []string{"aws.TestAnywhereRefuses/R11 date in RFC 1123", "aws.TestAnywhereRefuses/date 301 s back", "aws.TestAnywhereRefuses/date 301 s ahead", "aws.TestAnywhereSucceeds/date 300 s back", "aws.TestAnywhereSucceeds/date 299 s ahead"}},
	{"RA 9", "SignedHeaders sorted, lower-case, there, with what must be signed", 0, []string{"aws.TestAnywhereRefuses/signed headers not sorted", "aws.TestAnywhereRefuses/signed headers in upper case", "aws.TestAnywhereRefuses/signed header not there", "aws.TestAnywhereRefuses/host not signed", "aws.TestAnywhereRefuses/date not signed", "aws.TestAnywhereRefuses/R12 certificate not signed", "aws.TestAnywhereRefuses/R13 chain not signed"}},
	{"RA 10", "the canonical request is rebuilt, the signature verified", 0, []string{"aws.TestCapturedRequestsVerify", "aws.TestCapturedRequestsWithOneByteChanged", "aws.TestAnywhereRefuses/R17 signed by another key", "aws.TestAnywhereRefuses/another role in the query", "aws.TestAnywhereRefuses/signature in upper case"}},
	{"RA 11", "leaf: one DER, v3, subject, no CA, digitalSignature, SHA-256, valid", 0, []string{"aws.TestAnywhereRefuses/certificate with trailing bytes", "aws.TestAnywhereRefuses/no basic constraints", "aws.TestAnywhereRefuses/R22 empty subject", "aws.TestAnywhereRefuses/R21 CA:TRUE", "aws.TestAnywhereRefuses/no digitalSignature", "aws.TestAnywhereRefuses/R23 SHA-1", "aws.TestAnywhereRefuses/R19 expired 1 s ago"}},
	{"RA 12", "chain of at most 5 to either certificate of the anchor, by CAs that may", 0, []string{"aws.TestAnywhereSucceeds/five intermediates", "aws.TestAnywhereSucceeds/the anchor's second certificate", "aws.TestAnywhereRefuses/intermediate is no CA", "aws.TestAnywhereRefuses/R26 intermediate without keyCertSign", "aws.TestAnywhereRefuses/R26 pathLen 0 issued a CA", "aws.TestAnywhereRefuses/intermediate expired", "aws.TestAnywhereRefuses/name constraint"}},
	{"RA 13", "CRLs of the anchor, for leaf and intermediates", 0, []string{"aws.TestAnywhereRefuses/R28 leaf revoked", "aws.TestAnywhereRefuses/R28 intermediate revoked", "aws.TestAnywhereSucceeds/R28 CRL disabled"}},
	{"RA 14", "anchor and profile exist and are enabled", 0, []string{"aws.TestAnywhereRefuses/unknown anchor", "aws.TestAnywhereRefuses/unknown profile", "aws.TestAnywhereRefuses/R29 anchor disabled", "aws.TestAnywhereRefuses/R29 profile disabled"}},
	{"RA 15", "the role is in the profile", 0, []string{"aws.TestAnywhereRefuses/R32 role not in the profile"}},
	{"RA 16", "duration: 900 to 43200, the lesser, not above the role's", 0, []string{"aws.TestAnywhereRefuses/R33 duration 899", "aws.TestAnywhereDuration", "aws.TestAnywhereRefuses/R34 longer than the role allows"}},
	{"RA 17", "roleSessionName where the profile accepts it, charset and length", 0, []string{"aws.TestAnywhereRefuses/session name that the profile does not accept", "aws.TestAnywhereRefuses/R36 session name of 65"}},
	{"RA 18", "attributes become tags, the first SAN of each type", 0, []string{"aws.TestAnywhereAttributes", "aws.TestAnywhereRefuses/R38 condition on the second URI"}},
	{"RA 19", "source identity", 0, []string{"aws.TestAnywhereAttributes", "aws.TestAnywhereRefuses/common name that makes no source identity"}},
	{"RA 20", "trust policy: service, three actions, four keys", 0, []string{"aws.TestAnywhereRefuses/another service", "aws.TestAnywhereRefuses/no sts:AssumeRole", "aws.TestAnywhereRefuses/R37 no sts:TagSession", "aws.TestAnywhereRefuses/R37 no sts:SetSourceIdentity", "aws.TestAnywhereRefuses/R39 aws:SourceArn of another anchor", "aws.TestAnywhereRefuses/aws:SourceAccount of another", "aws.TestAnywhereRefuses/R38 condition on another SPIFFE ID", "aws.TestAnywhereRefuses/sts:SourceIdentity of another", "aws.TestARNConditions"}},
	{"RA 21", "201 and the body", 0, []string{"aws.TestAnywhereOutput", "aws.TestRolesAnywhereOverTheWire"}},
	{"RA 22", "ten calls a second", 0, []string{"aws.TestAnywhereThrottles"}},

	{"STS 1", "Action, Version, no Authorization", 0, []string{"aws.TestWebIdentityRefuses/no Action", "aws.TestWebIdentityRefuses/S2 no Version", "aws.TestWebIdentityTakes"}},
	{"STS 2", "limits of parameters", 0, []string{"aws.TestWebIdentityRefuses/S7 token of 20001", "aws.TestWebIdentityRefuses/token of 3", "aws.TestWebIdentityRefuses/S4 session name of 65", "aws.TestWebIdentityTakes/name of 64"}},
	{"STS 3", "the JWT's form, the list of algorithms", 0, []string{"aws.TestWebIdentityRefuses/S8 two segments", "aws.TestWebIdentityAlgorithms", "sandbox.TestParseJWTRefuses"}},
	{"STS 4", "a provider for that very iss in the role's account", 0, []string{"aws.TestWebIdentityRefuses/S10 iss with a trailing slash", "aws.TestWebIdentityRefuses/role of another account"}},
	{"STS 5", "discovery names the URL; at most 100 keys of a kind", 0, []string{"aws.TestWebIdentityRefuses/S19 discovery names another issuer", "aws.TestWebIdentityRefuses/more than 100 RSA keys", "aws.TestWebIdentityRefuses/more than 100 EC keys"}},
	{"STS 6", "alg, kty and crv agree; RSA of 2048 bits", 0, []string{"aws.TestWebIdentityRefuses/ES256 with an RSA key of that kid", "aws.TestWebIdentityRefuses/ES256 with a P-384 key of that kid", "aws.TestWebIdentityRefuses/RSA key of 1024 bits"}},
	{"STS 7", "the signature", 0, []string{"aws.TestWebIdentityRefuses/S17 payload changed", "aws.TestWebIdentityRefuses/header changed"}},
	{"STS 8", "integers; iss, sub, aud, iat, exp; nbf", 0, []string{"aws.TestWebIdentityRefuses/S14 exp in scientific notation", "aws.TestWebIdentityRefuses/no iss", "aws.TestWebIdentityRefuses/no aud", "aws.TestWebIdentityRefuses/nbf ahead", "aws.TestWebIdentityLeeway"}},
	{"STS 9", "sub of 6 to 255", 0, []string{"aws.TestWebIdentityRefuses/S13 sub of 256", "aws.TestWebIdentityTakes/sub of 255", "aws.TestWebIdentityTakes/sub of 6"}},
	{"STS 10", "one aud, or azp; a client ID", 0, []string{"aws.TestWebIdentityRefuses/S12 two audiences", "aws.TestWebIdentityRefuses/azp that is not registered", "aws.TestWebIdentityAuthorizedParty"}},
	{"STS 11", "the role exists, its Federated principal", 0, []string{"aws.TestWebIdentityRefuses/no such role", "aws.TestWebIdentityRefuses/another principal"}},
	{"STS 12", "five condition keys and no other", 0, []string{"aws.TestConditions", "aws.TestWebIdentityAuthorizedParty", "aws.TestWebIdentityRefuses/S22 condition on a custom claim"}},
	{"STS 13", "tags and source identity need their actions", 0, []string{"aws.TestWebIdentityRefuses/S23 tags without sts:TagSession", "aws.TestWebIdentityRefuses/source identity without sts:SetSourceIdentity", "aws.TestWebIdentityTagsAndSourceIdentity"}},
	{"STS 14", "duration not above the role's", 0, []string{"aws.TestWebIdentityRefuses/duration above the role's"}},
	{"STS 15", "XML", 0, []string{"aws.TestWebIdentityOutput", "aws.TestSDKAssumesRoleAndIsSomebody", "aws.TestSDKReadsErrors"}},

	{"GCP 1", "form or JSON", 0, []string{"gcp.TestRequestForm/JSON, camel", "gcp.TestRequestForm/other content type"}},
	{"GCP 2", "grant and token types", 0, []string{"gcp.TestExchangeRefuses/G2 other grant", "gcp.TestExchangeRefuses/G3 SAML"}},
	{"GCP 3", "the audience's form", 0, []string{"gcp.TestExchangeRefuses/audience with https", "gcp.TestExchangeRefuses/audience with project ID"}},
	{"GCP 4", "pool and provider enabled, of the right kind", 0, []string{"gcp.TestProviderState/G5 disabled pool", "gcp.TestExchangeRefuses/G6 mtls token type"}},
	{"GCP 5", "certificates at the mutual-TLS host alone", 0, []string{"gcp.TestExchangeX509Refuses/G6 JWT at this host", "gcp.TestExchangeRefuses/G6 mtls token type"}},
	{"GCP 6", "RS256 and ES256", 0, []string{"gcp.TestES256", "gcp.TestExchangeRefuses/G11 ES384"}},
	{"GCP 7", "kid resolves; at most 8 uploaded keys", 0, []string{"gcp.TestExchangeRefuses/G13 unknown kid", "gcp.TestNewRefuses/nine keys"}},
	{"GCP 8", "iss, byte for byte", 0, []string{"gcp.TestExchangeRefuses/G7 iss with slash"}},
	{"GCP 9", "aud: both default forms, or the allowed ones alone", 0, []string{"gcp.TestExchangeTakes/aud without https", "gcp.TestAllowedAudience", "gcp.TestProviderState/G8 default aud turned off"}},
	{"GCP 10", "iat, exp, 24 h, 60 s either way", 0, []string{"gcp.TestExchangeRefuses/no iat", "gcp.TestExpiryAtTheEdge", "gcp.TestExchangeRefuses/iat 61 s ahead", "gcp.TestExchangeTakes/iat 60 s ahead"}},
	{"GCP 11", "mapping: google.subject of 127 bytes, 8 KB in all", 0, []string{"gcp.TestExchangeRefuses/G15 64 of two bytes", "gcp.TestExchangeRefuses/attributes over 8 KB"}},
	{"GCP 12", "the condition", 0, []string{"gcp.TestProviderState/condition false", "gcp.TestProviderState/condition fails"}},
	{"GCP 13", "a scope", 0, []string{"gcp.TestExchangeRefuses/G17 no scope"}},
	{"GCP 14", "expires_in is the lesser of the token's rest and an hour", 0, []string{"gcp.TestExchangeTakes/G18 5 minutes", "gcp.TestExchangeTakes/24 h become one"}},
	{"GCP 15", "X.509: the client's certificate is the first, its chain, key, life, depth", 0, []string{"gcp.TestExchangeX509Refuses/no client certificate", "gcp.TestExchangeX509Refuses/G20 another leaf", "gcp.TestExchangeX509Takes", "gcp.TestTenCertificatesInAll"}},

	{"IAM 1", "a bearer that is known, unexpired, federated", 0, []string{"gcp.TestGenerateAccessTokenRefuses/I1 expired bearer", "gcp.TestNarrowScopeCannotImpersonate"}},
	{"IAM 2", "- for the project", 0, []string{"gcp.TestGenerateAccessTokenRefuses/I2 project ID"}},
	{"IAM 3", "the account exists and is enabled", 0, []string{"gcp.TestGenerateAccessTokenRefuses/account disabled", "gcp.TestDisabledAccountStopsItsTokens"}},
	{"IAM 4", "binding for principal or set; each delegate is a token creator", 0, []string{"gcp.TestBindingsGrant", "gcp.TestDelegates"}},
	{"IAM 5", "scopes, each a URL of googleapis.com", 0, []string{"gcp.TestGenerateAccessTokenRefuses/scope elsewhere"}},
	{"IAM 6", "lifetime of 1 to 3600 s, 43200 by policy", 0, []string{"gcp.TestGenerateAccessTokenRefuses/life 0", "gcp.TestGenerateAccessTokenRefuses/life 3601", "gcp.TestLifetimeExtension"}},
	{"IAM 7", "an ID token's audience", 0, []string{"gcp.TestGenerateIDToken"}},
	{"IAM 8", "a disabled provider leaves tokens", 0, []string{"gcp.TestDisabledProviderLeavesTokens"}},

	{"Entra 1", "POST, form", 0, []string{"azure.TestTokenRefuses/E1 GET", "azure.TestTokenRefuses/E2 JSON"}},
	{"Entra 2", "tenants by GUID or domain, no common ones", 0, []string{"azure.TestTokenTakes/domain", "azure.TestTokenRefuses/common", "azure.TestTokenRefuses/organizations"}},
	{"Entra 3", "grant_type", 0, []string{"azure.TestTokenRefuses/E3 other grant"}},
	{"Entra 4", "client_id in the tenant", 0, []string{"azure.TestTokenRefuses/unknown client"}},
	{"Entra 5", "the assertion's type", 0, []string{"azure.TestTokenRefuses/E7 SAML assertion"}},
	{"Entra 6", "typ, alg, kid", 0, []string{"azure.TestTokenRefuses/E8 JOSE", "azure.TestTokenRefuses/E9 ES256", "azure.TestTokenRefuses/E11 no kid"}},
	{"Entra 7", "issuer, audience, subject in that order, by bytes", 0, []string{"azure.TestTokenRefuses/iss with slash", "azure.TestTokenRefuses/E16 aud in other case", "azure.TestTokenRefuses/E17 sub in other case"}},
	{"Entra 8", "no space around", 0, []string{"azure.TestTokenRefuses/iss with space", "azure.TestTokenRefuses/sub with space"}},
	{"Entra 9", "the discovery document as Entra parses it", 0, []string{"azure.TestStateRefuses/E19 issuer differs", "azure.TestStateRefuses/E19 jwks_uri http", "azure.TestStateRefuses/E19 empty authorization"}},
	{"Entra 10", "an RS256 key by kid among the first 100", 0, []string{"azure.TestOnlyTheFirstHundredKeys", "azure.TestTokenRefuses/E9b EC key for RS256"}},
	{"Entra 11", "the signature", 0, []string{"azure.TestTokenRefuses/E13 payload changed"}},
	{"Entra 12", "nbf and exp, 5 min either way", 0, []string{"azure.TestTokenTakes/exp 299 s ago", "azure.TestTokenRefuses/E18 exp 300 s ago", "azure.TestTokenTakes/nbf 299 s ahead"}},
	{"Entra 13", "exactly one aud", 0, []string{"azure.TestTokenRefuses/E16 two aud", "azure.TestTokenTakes/aud in an array"}},
	{"Entra 14", "one resource, and three OpenID scopes", 0, []string{"azure.TestTokenTakes/resource alone", "azure.TestTokenRefuses/two resources", "azure.TestTokenRefuses/no .default"}},
	{"Entra 15", "the resource is known", 0, []string{"azure.TestTokenRefuses/E21 resource"}},
	{"Entra 16", "the body; the token is for the resource", 0, []string{"azure.TestToken", "azure.TestARMRefuses"}},
	{"Entra 17", "at most 20 credentials, unique", 0, []string{"azure.TestPutAppRefuses/E22 twenty-one", "azure.TestPutAppRefuses/E22 pair twice"}},
}

// negatives start from a request that succeeds, and change one thing.
var negatives = []clause{
	{"R1", "GET", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R2", "no Authorization", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R3", "RSA's algorithm with an EC leaf", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R4", "HMAC", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R6", "another serial", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R7", "another region", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R8", "another service", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R9", "another day", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R11", "a date in another form", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R12", "certificate not signed", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R13", "chain not signed", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R14", "body changed", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R16", "signature changed, empty, in another form", 3, []string{"aws.TestAnywhereRefuses"}},
	{"R17", "another key", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R18", "another thing signed", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R19", "expired; not yet valid", 2, []string{"aws.TestAnywhereRefuses"}},
	{"R21", "leaf is a CA", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R22", "empty subject", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R23", "SHA-1; Ed25519", 2, []string{"aws.TestAnywhereRefuses"}},
	{"R24", "a CA of the same name", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R26", "intermediates that may not", 2, []string{"aws.TestAnywhereRefuses"}},
	{"R27", "six certificates", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R28", "revoked; list disabled", 4, []string{"aws.TestAnywhereRefuses", "aws.TestAnywhereSucceeds"}},
	{"R29", "anchor, profile disabled", 2, []string{"aws.TestAnywhereRefuses"}},
	{"R31", "another account or region", 3, []string{"aws.TestAnywhereRefuses"}},
	{"R32", "role not in the profile", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R33", "durations", 4, []string{"aws.TestAnywhereRefuses"}},
	{"R34", "longer than the role's", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R36", "session names", 3, []string{"aws.TestAnywhereRefuses"}},
	{"R37", "an action is missing", 2, []string{"aws.TestAnywhereRefuses"}},
	{"R38", "another SPIFFE ID, the second URI", 2, []string{"aws.TestAnywhereRefuses"}},
	{"R39", "another anchor's ARN", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R41", "no mapping: equals, and the trap of not equals", 2, []string{"aws.TestAnywhereRefuses", "aws.TestAnywhereSucceeds"}},
	{"R42", "a URI of 257", 1, []string{"aws.TestAnywhereRefuses"}},
	{"R43", "sent twice", 0, []string{"aws.TestAnywhereReplay"}},
	{"R44", "eleven in a second", 0, []string{"aws.TestAnywhereThrottles"}},

	{"S2", "Version", 2, []string{"aws.TestWebIdentityRefuses"}},
	{"S3", "token or name missing", 2, []string{"aws.TestWebIdentityRefuses"}},
	{"S4", "session names", 3, []string{"aws.TestWebIdentityRefuses"}},
	{"S5", "durations", 2, []string{"aws.TestWebIdentityRefuses"}},
	{"S7", "a long token", 1, []string{"aws.TestWebIdentityRefuses"}},
	{"S8", "no JWT", 3, []string{"aws.TestWebIdentityRefuses"}},
	{"S9", "algorithms", 4, []string{"aws.TestWebIdentityRefuses"}},
	{"S10", "issuers", 3, []string{"aws.TestWebIdentityRefuses"}},
	{"S12", "two audiences; azp", 1, []string{"aws.TestWebIdentityRefuses", "aws.TestWebIdentityAuthorizedParty"}},
	{"S13", "claims missing, sub's length", 5, []string{"aws.TestWebIdentityRefuses"}},
	{"S14", "exp is no integer", 2, []string{"aws.TestWebIdentityRefuses"}},
	{"S15", "expired", 1, []string{"aws.TestWebIdentityRefuses", "aws.TestWebIdentityLeeway"}},
	{"S17", "payload changed", 1, []string{"aws.TestWebIdentityRefuses"}},
	{"S18", "unknown kid, removed key", 2, []string{"aws.TestWebIdentityRefuses", "aws.TestWebIdentityKeyCache"}},
	{"S19", "issuer down, slow, 500, another", 2, []string{"aws.TestWebIdentityRefuses", "aws.TestWebIdentityIssuerOutOfReach"}},
	{"S20", "no root and no thumbprint", 2, []string{"aws.TestWebIdentityIssuerOutOfReach"}},
	{"S22", "condition on a custom claim", 1, []string{"aws.TestWebIdentityRefuses"}},
	{"S23", "tags without TagSession", 1, []string{"aws.TestWebIdentityRefuses"}},
	{"S24", "source identity", 1, []string{"aws.TestWebIdentityRefuses"}},
	{"S25", "ProviderId", 1, []string{"aws.TestWebIdentityRefuses"}},
	{"S27", "the SDK's three attempts", 0, []string{"aws.TestSDKRetriesThrottling"}},

	{"G1", "GET", 1, []string{"gcp.TestRequestForm"}},
	{"G2", "another grant", 1, []string{"gcp.TestExchangeRefuses"}},
	{"G3", "token types", 2, []string{"gcp.TestExchangeRefuses"}},
	{"G5", "provider or pool unknown, disabled, deleted", 7, []string{"gcp.TestExchangeRefuses", "gcp.TestProviderState", "gcp.TestExchangeX509Refuses"}},
	{"G6", "the other kind of provider", 3, []string{"gcp.TestExchangeRefuses", "gcp.TestExchangeX509Refuses"}},
	{"G7", "issuers", 2, []string{"gcp.TestExchangeRefuses"}},
	{"G8", "audiences", 3, []string{"gcp.TestExchangeRefuses", "gcp.TestProviderState"}},
	{"G10", "24 h and a second", 1, []string{"gcp.TestExchangeRefuses"}},
	{"G11", "algorithms", 5, []string{"gcp.TestExchangeRefuses"}},
	{"G12", "payload changed", 1, []string{"gcp.TestExchangeRefuses"}},
	{"G13", "kid unknown, absent; key set unreachable", 4, []string{"gcp.TestExchangeRefuses", "gcp.TestProviderState"}},
	{"G15", "128 bytes; 127", 3, []string{"gcp.TestExchangeRefuses", "gcp.TestExchangeTakes"}},
	{"G16", "mappings to nothing", 4, []string{"gcp.TestExchangeRefuses", "gcp.TestProviderState"}},
	{"G17", "no scope", 2, []string{"gcp.TestExchangeRefuses", "gcp.TestExchangeX509Refuses"}},
	{"G18", "five minutes stay five", 1, []string{"gcp.TestExchangeTakes"}},
	{"G20", "the list is not the client's", 7, []string{"gcp.TestExchangeX509Refuses"}},
	{"G21", "leaves", 7, []string{"gcp.TestExchangeX509Refuses"}},
	{"G22", "chains", 3, []string{"gcp.TestExchangeX509Refuses"}},
	{"G23", "default mapping without a common name", 0, []string{"gcp.TestX509Mapping"}},
	{"I1", "bearers", 3, []string{"gcp.TestGenerateAccessTokenRefuses"}},
	{"I2", "a project's ID", 1, []string{"gcp.TestGenerateAccessTokenRefuses"}},
	{"I3", "no binding, no account", 2, []string{"gcp.TestGenerateAccessTokenRefuses"}},
	{"I4", "another's binding", 3, []string{"gcp.TestGenerateAccessTokenRefuses"}},
	{"I6", "scopes", 2, []string{"gcp.TestGenerateAccessTokenRefuses"}},
	{"I7", "ID token for nobody", 1, []string{"gcp.TestGenerateIDToken"}},
	{"I8", "a delegate that may not", 0, []string{"gcp.TestDelegates"}},
	{"I9", "provider disabled after the exchange", 0, []string{"gcp.TestDisabledProviderLeavesTokens"}},

	{"E1", "GET", 1, []string{"azure.TestTokenRefuses"}},
	{"E2", "JSON; no grant_type", 2, []string{"azure.TestTokenRefuses"}},
	{"E3", "another grant", 1, []string{"azure.TestTokenRefuses"}},
	{"E4", "tenants", 3, []string{"azure.TestTokenRefuses"}},
	{"E6", "no assertion", 1, []string{"azure.TestTokenRefuses"}},
	{"E7", "the assertion's type", 2, []string{"azure.TestTokenRefuses"}},
	{"E8", "typ", 3, []string{"azure.TestTokenRefuses"}},
	{"E9", "algorithms", 3, []string{"azure.TestTokenRefuses"}},
	{"E9b", "an EC key for RS256", 1, []string{"azure.TestTokenRefuses"}},
	{"E11", "no kid", 1, []string{"azure.TestTokenRefuses"}},
	{"E12", "unknown kid", 1, []string{"azure.TestTokenRefuses"}},
	{"E13", "payload changed", 1, []string{"azure.TestTokenRefuses"}},
	{"E14", "claims missing", 4, []string{"azure.TestTokenRefuses"}},
	{"E16", "audience's case; two", 2, []string{"azure.TestTokenRefuses"}},
	{"E17", "subjects", 3, []string{"azure.TestTokenRefuses", "azure.TestStateRefuses"}},
	{"E18", "times", 3, []string{"azure.TestTokenRefuses", "azure.TestTokenTakes"}},
	{"E19", "discovery", 6, []string{"azure.TestStateRefuses"}},
	{"E21", "unknown resource", 1, []string{"azure.TestTokenRefuses"}},
	{"E22", "credentials that cannot be made", 4, []string{"azure.TestPutAppRefuses"}},
	{"E23", "flexible credential", 1, []string{"azure.TestStateRefuses"}},
	{"E24", "no credential", 1, []string{"azure.TestStateRefuses"}},
	{"E26", "key rotated inside the cache time", 0, []string{"azure.TestRotation"}},
	{"E27", "429 with Retry-After", 0, []string{"azure.TestRetryAfter"}},
	{"E28", "newline after the token", 1, []string{"azure.TestTokenRefuses"}},
	{"E29", "Entra's own token", 2, []string{"azure.TestTokenRefuses"}},
}

// acrossClouds are what our exchangers show against all clouds at once.
var acrossClouds = []clause{
	{"X1", "confused deputy, all pairs", 0, []string{"exchangers.TestConfusedDeputy"}},
	{"X2", "one layout for all; ES256 is flipped to", 0, []string{"exchangers.TestOneLayoutForAllClouds"}},
	{"X3", "the ladder of lengths", 0, []string{"exchangers.TestLengthLadder"}},
	{"X4", "rotation with caches at their longest, and with too short a lead", 0, []string{"cmd/credence.TestRotationOutlivesTheCloudsCaches"}},
	{"X5", "what is said of expiry is not after it", 0, []string{"exchangers.TestExpiryIsNotOverstated"}},
	{"X6", "an issuer's outage makes no storm", 0, []string{"exchangers.TestIssuerOutage"}},
	{"X7", "what stops after a revocation, and when", 0, []string{"exchangers.TestRevocationTable"}},
}

// testSources are what a package's tests say: the literals, and each test's text.
type testSources struct {
	literals map[string]int
	tests    map[string]string
}

var packageOf = map[string]string{
	"aws": "exchangers/sandbox/aws", "gcp": "exchangers/sandbox/gcp", "azure": "exchangers/sandbox/azure", "sandbox": "exchangers/sandbox",
}

func testsOf(t *testing.T, pkg string) testSources {
	t.Helper()
	if dir, ok := packageOf[pkg]; ok {
		pkg = dir
	}
	files, err := filepath.Glob(filepath.Join("..", "..", filepath.FromSlash(pkg), "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	s := testSources{map[string]int{}, map[string]string{}}
	for _, file := range files {
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, file, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := string(b)
		ast.Inspect(f, func(n ast.Node) bool {
			if l, ok := n.(*ast.BasicLit); ok && l.Kind == token.STRING {
				if v, err := strconv.Unquote(l.Value); err == nil {
					s.literals[v]++
				}
			}
			return true
		})
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && strings.HasPrefix(fn.Name.Name, "Test") {
				from := fn.Pos()
				if fn.Doc != nil {
					from = fn.Doc.Pos()
				}
				s.tests[fn.Name.Name] = text[set.Position(from).Offset:set.Position(fn.End()).Offset]
			}
		}
	}
	return s
}

var negativeRow = regexp.MustCompile(`^([RSGIE]\d+b?) .`)

// TestContractIsHeld holds the index against the tests of the tree: each clause
// has the tests and rows that it names, and each row is a clause's.
func TestContractIsHeld(t *testing.T) {
	cache := map[string]testSources{}
	source := func(pkg string) testSources {
		if _, ok := cache[pkg]; !ok {
			cache[pkg] = testsOf(t, pkg)
		}
		return cache[pkg]
	}
	rows := map[string]int{}
	for _, pkg := range []string{"aws", "gcp", "azure"} {
		for text, n := range source(pkg).literals {
			if m := negativeRow.FindStringSubmatch(text); m != nil {
				rows[m[1]] += n
			}
		}
	}
	seen := map[string]bool{}
	for _, list := range [][]clause{checks, negatives, acrossClouds} {
		for _, c := range list {
			if seen[c.id] || c.says == "" || len(c.tests) == 0 {
				t.Errorf("%s is not whole, or stands twice", c.id)
			}
			seen[c.id] = true
			for _, test := range c.tests {
				name, row, _ := strings.Cut(test, "/")
				if strings.HasPrefix(test, "cmd/") {
					name, row = test, ""
				}
				dot := strings.LastIndexByte(name, '.')
				s := source(name[:dot])
				text, ok := s.tests[name[dot+1:]]
				switch {
				case !ok:
					t.Errorf("%s: there is no test %s", c.id, name)
				case row != "" && s.literals[row] == 0:
					t.Errorf("%s: %s has no row %q", c.id, name, row)
				case negativeRow.MatchString(c.id+" x") && c.rows == 0 && !strings.Contains(text, c.id):
					t.Errorf("%s: %s does not say that it shows it", c.id, name)
				}
			}
			if rows[c.id] != c.rows && c.rows > 0 {
				t.Errorf("%s, %s: %d rows of tests, want %d", c.id, c.says, rows[c.id], c.rows)
			}
		}
	}
	for id := range rows {
		if !seen[id] {
			t.Errorf("rows are named after %s, which no clause is", id)
		}
	}
	for family, want := range map[string]int{"R": 36, "S": 21, "G": 19, "I": 8, "E": 25} {
		n := 0
		for _, c := range negatives {
			if strings.HasPrefix(c.id, family) {
				n++
			}
		}
		if n != want {
			t.Errorf("%d negative cases of family %s, the contract has %d", n, family, want)
		}
	}
}

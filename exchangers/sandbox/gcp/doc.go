// Package gcp emulates the two token endpoints of Google Cloud's Workload
// Identity Federation, the Security Token Service and the IAM Service Account
// Credentials API, for OIDC providers; and one protected call, so that a test
// can see a credential work and stop working.
//
// It trusts its configuration alone. Each subject token is verified with keys
// fetched from its provider's issuer over TLS, or with the provider's uploaded
// key set; attribute mappings and conditions are evaluated as CEL; access to
// service accounts follows from their bindings. As in the real cloud, disabling
// a provider stops exchanges but not the tokens that it has given.
//
// X.509 providers and the mutual-TLS host are not part of it: their token type
// is refused.
package gcp

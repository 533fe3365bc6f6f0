// Package gcp emulates the two token endpoints of Google Cloud's Workload
// Identity Federation, the Security Token Service with its mutual-TLS host and
// the IAM Service Account Credentials API; and one protected call, so that a
// test can see a credential work and stop working.
//
// It trusts its configuration alone. Each subject token is verified with keys
// fetched from its provider's issuer over TLS, with the provider's uploaded key
// set, or, being a certificate chain, with its trust store; attribute mappings and conditions are evaluated as CEL; access to
// service accounts follows from their bindings. As in the real cloud, disabling
// a provider stops exchanges but not the tokens that it has given.
package gcp

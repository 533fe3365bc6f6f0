// Package azure emulates what a federated workload meets of Microsoft Entra ID:
// the v2.0 token endpoint with a client assertion, the documents that client
// libraries read before it, and one protected call in the manner of Azure
// Resource Manager, so that a test can see a credential work and stop working.
//
// It trusts its configuration alone. Each assertion is verified with keys
// fetched from the issuer that a federated identity credential names, over TLS;
// issuer, audience and subject are compared byte by byte, in that order.
// Nothing else is emulated: no users, no secrets, no consent.
package azure

// Package aws emulates two token endpoints of AWS offline: CreateSession of IAM
// Roles Anywhere and the parts of STS around AssumeRoleWithWebIdentity, with
// AssumeRole to chain to another role of the account, and GetCallerIdentity to
// prove that what they issue works until it expires.
//
// It is a judge of clients, so it refuses whatever a document says the cloud may
// refuse, and verifies for itself: SigV4 with X.509 and with issued secrets,
// certificate paths and revocation lists, tokens through keys fetched from the
// registered issuer, and role trust policies with their conditions. A policy
// with an element that it cannot evaluate is refused when it is given, never
// skipped when it counts.
//
// It trusts its configuration alone. Both services issue to a request that is
// sent twice within the allowed skew, as the real ones do: neither keeps a replay
// cache. Not emulated: ML-DSA certificates (refused), roles of other accounts, tags
// passed to AssumeRole (refused), and what credentials may do besides the two.
package aws

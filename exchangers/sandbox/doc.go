// Package sandbox holds what the offline cloud emulators under it share: a
// strict JWT parser, a fetcher of issuers' keys, strict reading of requests, a
// redacted record of them, and a switchboard of faults.
//
// The emulators are judges. Where the documents of a cloud allow a refusal they
// refuse, and where a real cloud is laxer than its documents, the laxer reading
// has an option whose name starts with Lenient. They import nothing of the
// product they judge, lest they share its mistakes: signatures, key sets and
// discovery are read here with the standard library alone.
//
// The package trusts its configuration: the certificate pool with which issuers
// are verified and the clock. It trusts no byte of a request, a token, a
// discovery document or a key set. What a token must say, and in which words a
// refusal is told, is left to each cloud.
package sandbox

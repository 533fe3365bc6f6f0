package main

import (
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/resource"
)

// trustDomainOf is the trust domain that full IDs in resources name; where
// there are none, any will do.
func trustDomainOf(all []resource.Resource) (spiffeid.TrustDomain, error) {
	for _, r := range all {
		if r.Identity != nil && strings.HasPrefix(r.Identity.SPIFFEID, "spiffe://") {
			name, _, _ := strings.Cut(strings.TrimPrefix(r.Identity.SPIFFEID, "spiffe://"), "/")
			return spiffeid.TrustDomainFromString(name)
		}
	}
	return spiffeid.TrustDomainFromString("example.org")
}

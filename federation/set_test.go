package federation_test

import (
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

var (
	_ x509bundle.Source = (*federation.Set)(nil)
	_ jwtbundle.Source  = (*federation.Set)(nil)
)

func bundleOf(td spiffeid.TrustDomain, cas ...*ca) *federation.Bundle {
	b := spiffebundle.New(td)
	for _, c := range cas {
		b.AddX509Authority(c.Cert)
	}
	return &federation.Bundle{Bundle: b}
}

// Regression: SPIFFE Federation §4
func TestSetKeepsTrustDomainsApart(t *testing.T) {
	var set federation.Set
	a, b := newCA(t, nil), newCA(t, nil)
	set.Put(bundleOf(partner, a))
	set.Put(bundleOf(third, b))
	leaf := b.Leaf(t, nil, "spiffe://partner.example/w")
	if _, _, err := federation.VerifyX509(certs(leaf), &set, epoch); err == nil {
		t.Error("an SVID of one trust domain verified by another's bundle")
	}
	if all := set.All(); len(all) != 2 || all[0].TrustDomain() != partner {
		t.Errorf("All = %v", all)
	}
	if _, err := set.GetJWTBundleForTrustDomain(example); err == nil {
		t.Error("an unknown trust domain has a bundle")
	}
}

func TestSetTellsOfChanges(t *testing.T) {
	var set federation.Set
	all, changed := set.Watch()
	if len(all) != 0 || closed(changed) {
		t.Fatal("an empty set changed")
	}
	set.Remove(partner) // is not there: no change
	if closed(changed) {
		t.Error("removing nothing is told as a change")
	}
	set.Put(bundleOf(partner))
	if !closed(changed) {
		t.Error("Put is not told")
	}
	all, changed = set.Watch()
	set.Remove(partner)
	if !closed(changed) || len(all) != 1 || len(set.All()) != 0 {
		t.Error("Remove is not told, or changed what was read before")
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

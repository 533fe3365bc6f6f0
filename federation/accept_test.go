package federation_test

import (
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

func TestAccepts(t *testing.T) {
	partner := spiffeid.RequireTrustDomainFromString("partner.example")
	for _, row := range []struct {
		name, pattern, id string
		want              bool
	}{
		{"equal", "/billing/x", "spiffe://partner.example/billing/x", true},
		{"not a prefix", "/billing", "spiffe://partner.example/billing/x", false},
		{"not a suffix", "/x", "spiffe://partner.example/billing/x", false},
		{"one segment", "/billing/*", "spiffe://partner.example/billing/x", true},
		{"a star stays in its segment", "/billing/*", "spiffe://partner.example/billing/x/y", false},
		{"any depth", "/billing/**", "spiffe://partner.example/billing/x/y", true},
		{"two stars match nothing too", "/billing**", "spiffe://partner.example/billing", true},
		{"all", "/**", "spiffe://partner.example/a", true},
		{"all of another trust domain", "/**", "spiffe://example.org/a", false},
		{"a trust domain whose name begins alike", "/**", "spiffe://partner.example.evil/a", false},
		{"a trust domain is no workload", "/**", "spiffe://partner.example", false},
		{"case counts", "/Billing/*", "spiffe://partner.example/billing/x", false},
		{"a dot is a dot", "/a.b", "spiffe://partner.example/axb", false},
		{"in the middle", "/a/*/c/**/e", "spiffe://partner.example/a/b/c/d/d/e", true},
		{"backtracking over both kinds", "/**/a/*", "spiffe://partner.example/x/a/y/a/z", true},
		{"and where it fails", "/**/a/*", "spiffe://partner.example/x/a/y/z", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := federation.Peer{TrustDomain: partner, Accept: []string{"/nobody", row.pattern}}
			if got := p.Accepts(spiffeid.RequireFromString(row.id)); got != row.want {
				t.Errorf("%s by %s: %v", row.id, row.pattern, got)
			}
		})
	}
	none := federation.Peer{TrustDomain: partner}
	if none.Accepts(spiffeid.RequireFromString("spiffe://partner.example/a")) || none.Accepts(spiffeid.ID{}) {
		t.Error("accepted without a pattern")
	}
	costly := federation.Peer{TrustDomain: partner, Accept: []string{"/**a**a**a**b"}}
	started := time.Now()
	if costly.Accepts(spiffeid.RequireFromString("spiffe://partner.example/" + strings.Repeat("a", 2000))) {
		t.Error("accepted what does not end in b")
	}
	if took := time.Since(started); took > time.Second {
		t.Errorf("a pattern of four stars took %s", took)
	}
}

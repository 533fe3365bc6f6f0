package federation_test

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

func TestPeerValidate(t *testing.T) {
	root := newCA(t, nil)
	print := federation.Fingerprint(root.Cert)
	tests := []struct {
		name string
		edit func(*federation.Peer)
		say  string // a word of the error; empty: valid
	}{
		{"by fingerprint", func(*federation.Peer) {}, ""},
		{"by SPIFFE bundle", func(p *federation.Peer) {
			p.HTTPSSPIFFE.Fingerprint, p.HTTPSSPIFFE.Bundle = "", []byte(`{"keys":[`+x509Entry(t, root.Cert)+`]}`)
		}, ""},
		{"by PEM", func(p *federation.Peer) {
			p.HTTPSSPIFFE.Fingerprint, p.HTTPSSPIFFE.Bundle = "", pemOf(root.Cert)
		}, ""},
		{"endpoint elsewhere", func(p *federation.Peer) {
			p.HTTPSSPIFFE = &federation.HTTPSSPIFFE{EndpointID: spiffeid.RequireFromPath(third, "/e")}
		}, ""},
		{"web", func(p *federation.Peer) { p.HTTPSSPIFFE, p.HTTPSWeb = nil, &federation.HTTPSWeb{} }, ""},
		{"FC-05 port, path, query", func(p *federation.Peer) { p.URL = "https://h:8443/p?q" }, ""},
		{"accept patterns", func(p *federation.Peer) { p.Accept = []string{"/billing/**", "/a/*/b/*/c/*/d/**"} }, ""},
		{"no name", func(p *federation.Peer) { p.TrustDomain = spiffeid.TrustDomain{} }, "trust domain"},
		{"our own", func(p *federation.Peer) { p.TrustDomain = example }, "our own"},
		{"no URL", func(p *federation.Peer) { p.URL = "" }, "scheme"},
		{"FC-03 http", func(p *federation.Peer) { p.URL = "http://h/b" }, "scheme"},
		{"FC-04 user information", func(p *federation.Peer) { p.URL = "https://u:p@h/b" }, "user information"},
		{"empty user information", func(p *federation.Peer) { p.URL = "https://@h/b" }, "user information"},
		{"no host", func(p *federation.Peer) { p.URL = "https:///b" }, "host"},
		{"port alone", func(p *federation.Peer) { p.URL = "https://:443/b" }, "host"},
		{"opaque", func(p *federation.Peer) { p.URL = "https:b" }, "host"},
		{"not a URL", func(p *federation.Peer) { p.URL = "https://u:secret@h:x/b" }, "parse"},
		{"very long", func(p *federation.Peer) { p.URL = "https://h/" + strings.Repeat("a", 2048) }, "longer"},
		{"no profile", func(p *federation.Peer) { p.HTTPSSPIFFE = nil }, "neither"},
		{"both profiles", func(p *federation.Peer) { p.HTTPSWeb = &federation.HTTPSWeb{} }, "both"},
		{"no endpoint ID", func(p *federation.Peer) { p.HTTPSSPIFFE.EndpointID = spiffeid.ID{} }, "endpoint_id"},
		{"endpoint ID without path", func(p *federation.Peer) { p.HTTPSSPIFFE.EndpointID = partner.ID() }, "path"},
		{"no bootstrap", func(p *federation.Peer) { p.HTTPSSPIFFE.Fingerprint = "" }, "fingerprint"},
		{"two bootstraps", func(p *federation.Peer) { p.HTTPSSPIFFE.Bundle = pemOf(root.Cert) }, "both"},
		{"bootstrap for an endpoint elsewhere", func(p *federation.Peer) {
			p.HTTPSSPIFFE.EndpointID = spiffeid.RequireFromPath(third, "/e")
		}, "third.example"},
		{"short fingerprint", func(p *federation.Peer) { p.HTTPSSPIFFE.Fingerprint = "sha256:abcd" }, "64"},
		{"fingerprint in capitals", func(p *federation.Peer) {
			p.HTTPSSPIFFE.Fingerprint = "sha256:" + strings.ToUpper(print[len("sha256:"):])
		}, "lower-case"},
		{"empty bundle file", func(p *federation.Peer) {
			p.HTTPSSPIFFE.Fingerprint, p.HTTPSSPIFFE.BundleFile = "", "partner.json"
		}, "partner.json"},
		{"bundle without authority", func(p *federation.Peer) {
			p.HTTPSSPIFFE.Fingerprint, p.HTTPSSPIFFE.Bundle = "", []byte(`{"keys":[]}`)
		}, "no X.509 authority"},
		{"garbage bundle", func(p *federation.Peer) {
			p.HTTPSSPIFFE.Fingerprint, p.HTTPSSPIFFE.Bundle = "", []byte(`garbage`)
		}, "JSON"},
		{"negative staleness", func(p *federation.Peer) { p.MaxStaleness = -1 }, "max_staleness"},
		{"accept without slash", func(p *federation.Peer) { p.Accept = []string{"billing"} }, "accept"},
		{"accept with five stars", func(p *federation.Peer) { p.Accept = []string{"/*/*/*/*/**"} }, "stars"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := federation.Peer{
				TrustDomain: partner, URL: "https://partner.example/bundle",
				HTTPSSPIFFE: &federation.HTTPSSPIFFE{EndpointID: endpoint, Fingerprint: print},
			}
			tt.edit(&p)
			err := p.ValidateFor(example)
			if tt.say == "" && err == nil {
				return
			}
			if tt.say == "" || err == nil || !strings.Contains(err.Error(), tt.say) {
				t.Errorf("got %v, want a word on %q", err, tt.say)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error holds a password: %v", err)
			}
		})
	}
}

func TestRedactURL(t *testing.T) {
	got := federation.RedactURL("https://user:secret@h:8443/bundle?token=secret#secret")
	if got != "https://h:8443/bundle" {
		t.Error(got)
	}
}

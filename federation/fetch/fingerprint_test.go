package fetch_test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
	"github.com/credence-id/credence/federation/fetch"
)

// bundleOf is the bundle of partner with the authorities of cas.
func bundleOf(t *testing.T, cas ...*ca) (document, fingerprint string) {
	t.Helper()
	b := spiffebundle.New(partner)
	for _, c := range cas {
		b.AddX509Authority(c.Cert)
	}
	text, err := federation.Marshal(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), federation.BundleFingerprint(b)
}

// An endpoint that shows no anchor, or one of several, is known by the
// fingerprint of the bundle that it gives.
func TestFingerprintOfTheBundle(t *testing.T) {
	a, b, other := newCA(t), newCA(t), newCA(t)
	both, print := bundleOf(t, a, b)
	onlyA, _ := bundleOf(t, a)
	onlyOther, _ := bundleOf(t, other)
	withOther, _ := bundleOf(t, a, b, other)
	_, otherPrint := bundleOf(t, other)
	tests := []struct {
		name, print, document string
		from                  *ca
		id                    spiffeid.ID
		why                   string
	}{
		{"its bundle", print, both, a, endpoint, ""},
		{"its bundle, by the other key", print, both, b, endpoint, ""},
		{"a key more", print, withOther, a, endpoint, "has the fingerprint"},
		{"a key less", print, onlyA, a, endpoint, "has the fingerprint"},
		{"another's bundle", print, onlyOther, other, endpoint, "has the fingerprint"},
		{"no key", print, `{"keys":[]}`, a, endpoint, "no X.509 key"},
		{"the bundle, and a server that it does not know", print, both, other, endpoint, "unknown authority"},
		{"the bundle, and another server of it", print, both, a, spiffeid.RequireFromPath(partner, "/w"), "not " + endpoint.String()},
		{"one key, not shown", otherPrint, onlyOther, other, endpoint, ""},
		{"no bundle", print, `{}`, a, endpoint, "no member keys"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := serve(t, tt.from.SVID(t, tt.id), reply(tt.document))
			resp, err := fetch.New(fetch.Config{}).Fetch(t.Context(), federation.Request{
				URL: s.URL, AllowPrivate: true, HTTPSSPIFFE: &federation.Authentication{EndpointID: endpoint, Fingerprint: tt.print}})
			if tt.why != "" {
				refused(t, err, tt.why)
				return
			}
			if err != nil || resp.PeerID != endpoint || string(resp.Document) != tt.document {
				t.Errorf("got %+v, %v", resp, err)
			}
		})
	}
}

// Before its bundle has come, a server is nobody: it can send us nowhere.
func TestWhoIsNotProvenRedirectsNowhere(t *testing.T) {
	a, b := newCA(t), newCA(t)
	both, print := bundleOf(t, a, b)
	asked := false
	target := serve(t, a.SVID(t, endpoint), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		asked = true
		fmt.Fprint(w, both)
	}))
	s := serve(t, newCA(t).SVID(t, endpoint), http.RedirectHandler(target.URL, http.StatusFound))
	_, err := fetch.New(fetch.Config{}).Fetch(t.Context(), federation.Request{
		URL: s.URL, AllowPrivate: true, HTTPSSPIFFE: &federation.Authentication{EndpointID: endpoint, Fingerprint: print}})
	refused(t, err, "redirected")
	if asked {
		t.Error("the target was asked")
	}
}

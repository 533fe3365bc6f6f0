package fetch

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// seen is whom the server proved to be, on the last connection. One that has
// proved nothing yet, and can by its bundle alone, has a chain instead.
type seen struct {
	id    spiffeid.ID
	chain []*x509.Certificate
	date  string // as its answer says
}

// transport makes a fresh one, so that nothing that was verified for one
// request serves another.
func (c *Client) transport(config *tls.Config, allowPrivate bool) *http.Transport {
	return &http.Transport{
		Proxy:                  nil, // the address to check would be the proxy's
		DialContext:            c.dialer(allowPrivate).DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    Timeout,
		DisableKeepAlives:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeader,
	}
}

// tlsConfig holds on redirects too. The profile is the request's, there is no
// fallback (SPIFFE Federation §7.2).
func (c *Client) tlsConfig(req federation.Request, server *seen) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, Time: c.now}
	switch {
	case req.HTTPSSPIFFE != nil && req.HTTPSWeb != nil:
		return nil, errors.New("both profiles are set")
	case req.HTTPSWeb != nil:
		config.RootCAs = c.roots
		return config, nil
	case req.HTTPSSPIFFE == nil:
		return nil, errors.New("no profile is set")
	}
	auth := *req.HTTPSSPIFFE
	if auth.EndpointID.IsZero() || (auth.Bundle == nil) == (auth.Fingerprint == "") {
		return nil, errors.New("https_spiffe needs an endpoint ID, and a bundle or a fingerprint")
	}
	// The host name plays no part (§5.2.2.4): verifyEndpoint does the whole work.
	config.InsecureSkipVerify = true
	config.VerifyConnection = func(state tls.ConnectionState) error {
		server.id, server.chain = spiffeid.ID{}, nil
		bundle := auth.Bundle
		if bundle == nil {
			pinned, err := federation.PinnedBundle(auth.EndpointID.TrustDomain(), state.PeerCertificates, auth.Fingerprint)
			if errors.Is(err, federation.ErrNotShown) {
				server.chain = state.PeerCertificates
				return nil
			}
			if err != nil {
				return err
			}
			bundle = pinned
		}
		var err error
		server.id, err = c.verifyEndpoint(state.PeerCertificates, auth.EndpointID, bundle)
		return err
	}
	return config, nil
}

// verifyByDocument verifies the server by the bundle that it gave, once that is
// the one of the fingerprint. Nothing of the answer was believed before, and no
// other server was asked.
func (c *Client) verifyByDocument(shown []*x509.Certificate, auth federation.Authentication, resp federation.Response) (spiffeid.ID, error) {
	b, err := federation.ParseBundle(auth.EndpointID.TrustDomain(), resp.Document)
	if err != nil {
		return spiffeid.ID{}, err
	}
	if got := federation.BundleFingerprint(b.Bundle); got != auth.Fingerprint {
		return spiffeid.ID{}, &fingerprintError{cmp.Or(got, "of no X.509 key"), auth.Fingerprint}
	}
	return c.verifyEndpoint(shown, auth.EndpointID, b.X509Bundle())
}

// verifyEndpoint wants an X509-SVID of exactly the configured SPIFFE ID.
func (c *Client) verifyEndpoint(shown []*x509.Certificate, want spiffeid.ID, bundle *x509bundle.Bundle) (spiffeid.ID, error) {
	id, _, err := federation.VerifyX509(shown, bundle, c.now())
	if err != nil {
		return spiffeid.ID{}, err
	}
	if id != want {
		return spiffeid.ID{}, fmt.Errorf("the endpoint is %s, not %s as the Peer says", id, want)
	}
	return id, nil
}

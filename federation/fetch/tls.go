package fetch

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// seen is whom the server proved to be, on the last connection.
type seen struct{ id spiffeid.ID }

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
		id, err := c.verifyEndpoint(state.PeerCertificates, auth)
		server.id = id
		return err
	}
	return config, nil
}

// verifyEndpoint wants an X509-SVID of exactly the configured SPIFFE ID.
func (c *Client) verifyEndpoint(shown []*x509.Certificate, auth federation.Authentication) (spiffeid.ID, error) {
	var bundles x509bundle.Source = auth.Bundle
	if auth.Bundle == nil {
		pinned, err := federation.PinnedBundle(auth.EndpointID.TrustDomain(), shown, auth.Fingerprint)
		if err != nil {
			return spiffeid.ID{}, err
		}
		bundles = pinned
	}
	id, _, err := federation.VerifyX509(shown, bundles, c.now())
	if err != nil {
		return spiffeid.ID{}, err
	}
	if id != auth.EndpointID {
		return spiffeid.ID{}, fmt.Errorf("the endpoint is %s, not %s as the Peer says", id, auth.EndpointID)
	}
	return id, nil
}

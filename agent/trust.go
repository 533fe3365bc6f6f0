package agent

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// brokerID is whom an agent accepts as broker, and nobody else.
func brokerID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromPath(td, "/credence/broker")
}

// VerifyBroker holds what a server showed against a bundle of our trust domain:
// exactly its broker, whose certificate has the form that our authority gives
// it. The host name plays no part.
func VerifyBroker(shown []*x509.Certificate, bundle *x509bundle.Bundle, now time.Time) error {
	td := bundle.TrustDomain()
	id, err := federation.CheckForm(shown[0])
	if err != nil {
		return fmt.Errorf("the server is not a broker: %w", err)
	}
	if id != brokerID(td) {
		return fmt.Errorf("the server is %s, not %s: is the address in broker: right?", id, brokerID(td))
	}
	if _, _, err := federation.VerifyX509(shown, bundle, now); err != nil {
		if invalid := (x509.CertificateInvalidError{}); errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			c := invalid.Cert
			way, by := "ahead", now.Sub(c.NotAfter)
			if now.Before(c.NotBefore) {
				way, by = "behind", c.NotBefore.Sub(now)
			}
			return fmt.Errorf("this machine's clock says %s, but a certificate that the broker shows holds from %s to %s: it is likely wrong, by %s at least (%s); set it (NTP), or the broker's",
				now.UTC().Format(time.RFC3339), c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339), by.Truncate(time.Second), way)
		}
		return fmt.Errorf("the broker's certificate does not verify under our trust bundle: %w", err)
	}
	return nil
}

// PinnedBundle is a bundle of the CA certificates in a shown chain whose public key
// is pinned: enough for the first contact.
func PinnedBundle(td spiffeid.TrustDomain, shown []*x509.Certificate, pins []string) (*x509bundle.Bundle, error) {
	for _, pin := range pins {
		if found, err := federation.PinnedBundle(td, shown, pin); err == nil {
			return found, nil
		}
	}
	return nil, errors.New("no CA that the server shows has a pinned key: wrong broker, or a ca_pin of another trust domain (credence token create prints the right one)")
}

// CheckPin refuses what is not "sha256:" and 64 lower-case hex digits.
func CheckPin(pin string) error {
	text, ok := strings.CutPrefix(pin, "sha256:")
	sum, err := hex.DecodeString(text)
	if !ok || err != nil || len(sum) != sha256.Size || strings.ToLower(text) != text {
		return fmt.Errorf("ca_pin %.80q: sha256: and 64 lower-case hex digits are wanted", pin)
	}
	return nil
}

// clientTLS is the TLS towards a broker. failed is told why a server was not
// accepted.
func (a *Agent) clientTLS(cert *tls.Certificate, failed func(error)) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The name plays no part (SPIFFE X509-SVID §5.2): VerifyConnection
		// does all of the verifying.
		InsecureSkipVerify: true,
		NextProtos:         []string{"h2"},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if cert == nil {
				return &tls.Certificate{}, nil
			}
			return cert, nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			err := a.verify(state.PeerCertificates)
			if err != nil {
				failed(err)
			}
			return err
		},
	}
}

func (a *Agent) verify(shown []*x509.Certificate) error {
	if len(shown) == 0 || len(shown) > 8 {
		return fmt.Errorf("the server shows %d certificates", len(shown))
	}
	if roots := a.bundles.roots(a.cfg.TrustDomain); len(roots) > 0 {
		err := VerifyBroker(shown, x509bundle.FromX509Authorities(a.cfg.TrustDomain, roots), a.cfg.Now())
		return errors.Join(err, notRevoked(shown, roots, a.bundles.currentCRLs(a.cfg.Now())))
	}
	bundle, err := PinnedBundle(a.cfg.TrustDomain, shown, a.cfg.CAPins)
	if err != nil {
		return err
	}
	return VerifyBroker(shown, bundle, a.cfg.Now())
}

// parseTrust reads a bundle as an operator hands it out: SPIFFE JSON or PEM.
func parseTrust(td spiffeid.TrustDomain, text []byte) (*spiffebundle.Bundle, error) {
	b, err := federation.ParseAny(td, text)
	if err != nil {
		return nil, fmt.Errorf("the trust bundle: %w", err)
	}
	if len(b.X509Authorities()) == 0 {
		return nil, errors.New("the trust bundle holds no CA certificate")
	}
	return b.Bundle, nil
}

// parseBundle reads a bundle document as a broker sends it.
func parseBundle(td spiffeid.TrustDomain, document []byte) (*spiffebundle.Bundle, error) {
	b, err := federation.ParseBundle(td, document)
	if err != nil {
		return nil, err
	}
	return b.Bundle, nil
}

package agent

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// leafID is the SPIFFE ID of a leaf: exactly one URI SAN with a path (SPIFFE
// X509-SVID §5.2), and no CA.
func leafID(leaf *x509.Certificate) (spiffeid.ID, error) {
	if len(leaf.URIs) != 1 {
		return spiffeid.ID{}, fmt.Errorf("the certificate has %d URI SANs, an X509-SVID has one", len(leaf.URIs))
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return spiffeid.ID{}, err
	}
	if id.Path() == "" || leaf.IsCA || leaf.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return spiffeid.ID{}, fmt.Errorf("the certificate of %s is no workload's", id)
	}
	return id, nil
}

// brokerID is whom an agent accepts as broker, and nobody else.
func brokerID(td spiffeid.TrustDomain) spiffeid.ID {
	return spiffeid.RequireFromPath(td, "/credence/broker")
}

// verifyBroker holds what a server showed against the roots: exactly the
// broker of our trust domain. The host name plays no part.
func verifyBroker(td spiffeid.TrustDomain, shown []*x509.Certificate, roots []*x509.Certificate, now time.Time) error {
	id, err := leafID(shown[0])
	if err != nil {
		return fmt.Errorf("the server is not a broker: %w", err)
	}
	if id != brokerID(td) {
		return fmt.Errorf("the server is %s, not %s: is the address in broker: right?", id, brokerID(td))
	}
	opts := x509.VerifyOptions{
		Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, c := range roots {
		opts.Roots.AddCert(c)
	}
	for _, c := range shown[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := shown[0].Verify(opts); err != nil {
		return fmt.Errorf("the broker's certificate does not verify under our trust bundle: %w", err)
	}
	return nil
}

// pinned returns the CA certificates of a shown chain whose public key is
// pinned.
func pinned(shown []*x509.Certificate, pins []string) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	for _, c := range shown {
		if !c.IsCA {
			continue
		}
		sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
		have := []byte("sha256:" + hex.EncodeToString(sum[:]))
		for _, pin := range pins {
			if subtle.ConstantTimeCompare(have, []byte(pin)) == 1 {
				found = append(found, c)
			}
		}
	}
	if len(found) == 0 {
		return nil, errors.New("no CA that the server shows has a pinned key: wrong broker, or a ca_pin of another trust domain (credence token create prints the right one)")
	}
	return found, nil
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
		return verifyBroker(a.cfg.TrustDomain, shown, roots, a.cfg.Now())
	}
	roots, err := pinned(shown, a.cfg.CAPins)
	if err != nil {
		return err
	}
	return verifyBroker(a.cfg.TrustDomain, shown, roots, a.cfg.Now())
}

// parseTrust reads a bundle as an operator hands it out: SPIFFE JSON or PEM.
func parseTrust(td spiffeid.TrustDomain, text []byte) (*spiffebundle.Bundle, error) {
	if bytes.HasPrefix(bytes.TrimSpace(text), []byte("{")) {
		return spiffebundle.Parse(td, text)
	}
	b := spiffebundle.New(td)
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the trust bundle holds a PEM block %q: only certificates are taken", block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("the trust bundle: %w", err)
		}
		if !c.IsCA {
			return nil, fmt.Errorf("the trust bundle: %s is no CA", c.Subject)
		}
		b.AddX509Authority(c)
	}
	if len(b.X509Authorities()) == 0 {
		return nil, errors.New("the trust bundle holds no CA certificate")
	}
	return b, nil
}

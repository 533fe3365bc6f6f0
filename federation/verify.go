package federation

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

const (
	maxChain       = 10
	fingerprintTag = "sha256:"
)

var (
	oidKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidExtKeyUsage    = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// VerifyX509 validates a shown X509-SVID, leaf first, at now, by the bundle of
// the leaf's own trust domain and no other (X509-SVID §5). Beyond what
// go-spiffe checks it asks that the SPIFFE ID has a path (§5.2), stands in the
// certificate byte for byte as it is compared (url.Parse drops a bare '#' and
// folds the scheme), keeps to its lengths, and that the leaf is not itself an
// authority. Who may be at the other end is left to the caller.
func VerifyX509(certs []*x509.Certificate, bundles x509bundle.Source, now time.Time) (spiffeid.ID, [][]*x509.Certificate, error) {
	switch {
	case len(certs) == 0:
		return spiffeid.ID{}, nil, errors.New("verifying an X509-SVID: no certificate")
	case len(certs) > maxChain:
		return spiffeid.ID{}, nil, fmt.Errorf("verifying an X509-SVID: more than %d certificates", maxChain)
	case bundles == nil || now.IsZero(): // crypto/x509 takes the zero time for the present
		return spiffeid.ID{}, nil, errors.New("verifying an X509-SVID: no bundles or no time given")
	}
	id, err := LeafID(certs[0])
	if err != nil {
		return spiffeid.ID{}, nil, fmt.Errorf("verifying an X509-SVID: %w", err)
	}
	chains, err := verifyFor(id, certs, bundles, now)
	if err != nil {
		return spiffeid.ID{}, nil, fmt.Errorf("verifying the X509-SVID of %s: %w", id, err)
	}
	return id, chains, nil
}

func verifyFor(id spiffeid.ID, certs []*x509.Certificate, bundles x509bundle.Source, now time.Time) ([][]*x509.Certificate, error) {
	bundle, err := bundles.GetX509BundleForTrustDomain(id.TrustDomain())
	if err != nil {
		return nil, err
	}
	// Given as its own source, a bundle refuses every other trust domain.
	_, chains, err := x509svid.Verify(certs, bundle, x509svid.WithTime(now))
	if err != nil {
		return nil, err
	}
	for _, chain := range chains {
		if len(chain) < 2 {
			return nil, errors.New("leaf is itself among the authorities")
		}
	}
	return chains, nil
}

// CheckLeaf says whether cert is fit to be shown as an X509-SVID of ours: it
// has the form that an issuer must give it (CheckForm) and is valid at now. It
// does not say who signed it.
func CheckLeaf(cert *x509.Certificate, now time.Time) error {
	id, err := CheckForm(cert)
	if err != nil {
		return err
	}
	if now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return fmt.Errorf("%s: certificate is valid from %s to %s", id,
			cert.NotBefore.Format(time.RFC3339), cert.NotAfter.Format(time.RFC3339))
	}
	return nil
}

// CheckForm returns whose X509-SVID cert is, if it has the form that an issuer
// must give a workload's (X509-SVID §3.1, §4). That is more than a validator
// may ask of a peer's (§5.2): of those see VerifyX509.
func CheckForm(cert *x509.Certificate) (spiffeid.ID, error) {
	id, err := LeafID(cert)
	if err != nil {
		return spiffeid.ID{}, err
	}
	usage, uses := extension(cert, oidKeyUsage), extension(cert, oidExtKeyUsage)
	switch {
	case cert.IsCA || cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return spiffeid.ID{}, fmt.Errorf("%s: certificate is a signing one, which authenticates nobody", id)
	case usage == nil || !usage.Critical || cert.KeyUsage&x509.KeyUsageDigitalSignature == 0:
		return spiffeid.ID{}, fmt.Errorf("%s: certificate has no critical key usage digitalSignature", id)
	case uses != nil && (!slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageServerAuth) || !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth)):
		return spiffeid.ID{}, fmt.Errorf("%s: certificate is not for both servers and clients", id)
	case len(cert.Subject.Names) == 0 && !extension(cert, oidSubjectAltName).Critical:
		return spiffeid.ID{}, fmt.Errorf("%s: certificate has no subject and its SAN is not critical", id)
	case len(cert.UnhandledCriticalExtensions) > 0:
		return spiffeid.ID{}, fmt.Errorf("%s: certificate has a critical extension that nobody knows", id)
	}
	return id, nil
}

func extension(cert *x509.Certificate, id asn1.ObjectIdentifier) *pkix.Extension {
	i := slices.IndexFunc(cert.Extensions, func(x pkix.Extension) bool { return x.Id.Equal(id) })
	if i < 0 {
		return nil
	}
	return &cert.Extensions[i]
}

// LeafID is the SPIFFE ID in a workload's certificate, as it stands there byte
// for byte: its one URI SAN (X509-SVID §2), with a path (§5.2). It says nothing
// of whether the certificate may be believed.
func LeafID(cert *x509.Certificate) (spiffeid.ID, error) {
	raw, err := uriSAN(cert)
	if err != nil {
		return spiffeid.ID{}, err
	}
	id, err := ParseID(raw)
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("URI SAN: %w", err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, fmt.Errorf("%s is a trust domain's ID, not a workload's: it has no path", id)
	}
	return id, nil
}

// uriSAN is the one URI SAN of cert as it was signed, before any URL parser
// touched it.
func uriSAN(cert *x509.Certificate) (string, error) {
	const uriTag = 6 // GeneralName uniformResourceIdentifier, RFC 5280 §4.2.1.6
	var uris []string
	for _, ext := range cert.Extensions {
		if !ext.Id.Equal(oidSubjectAltName) {
			continue
		}
		var names []asn1.RawValue
		if _, err := asn1.Unmarshal(ext.Value, &names); err != nil {
			return "", errors.New("subject alternative names do not parse")
		}
		for _, name := range names {
			if name.Class == asn1.ClassContextSpecific && name.Tag == uriTag {
				uris = append(uris, string(name.Bytes))
			}
		}
	}
	if len(uris) != 1 {
		return "", fmt.Errorf("%d URI SANs, not exactly one", len(uris))
	}
	return uris[0], nil
}

// Fingerprint names a CA's key: "sha256:" and the lower-case hex SHA-256 of its
// DER SubjectPublicKeyInfo.
func Fingerprint(ca *x509.Certificate) string {
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return fingerprintTag + hex.EncodeToString(sum[:])
}

func checkFingerprint(s string) error {
	digest, ok := strings.CutPrefix(s, fingerprintTag)
	raw, err := hex.DecodeString(digest)
	if !ok || err != nil || len(raw) != sha256.Size || strings.ToLower(digest) != digest {
		return fmt.Errorf("fingerprint %q is not sha256: and 64 lower-case hex digits", clip(s))
	}
	return nil
}

// ErrNotShown: the CA that a fingerprint names is not in the shown chain.
var ErrNotShown = errors.New("no CA in the shown chain")

// PinnedBundle is a bundle of td with the CA certificates in the shown chain
// whose key has that fingerprint. An endpoint that is met for the first time
// sends its chain with the anchor appended; only what verifies under the pinned
// CA is then believed.
func PinnedBundle(td spiffeid.TrustDomain, shown []*x509.Certificate, fingerprint string) (*x509bundle.Bundle, error) {
	if err := checkFingerprint(fingerprint); err != nil {
		return nil, err
	}
	b := x509bundle.New(td)
	for _, cert := range shown {
		if Fingerprint(cert) == fingerprint && checkAuthority(cert) == nil {
			b.AddX509Authority(cert)
		}
	}
	if b.Empty() {
		return nil, fmt.Errorf("%w has the fingerprint %s: compare it with the peer's", ErrNotShown, fingerprint)
	}
	return b, nil
}

package gcp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/credence-id/credence/exchangers"
)

const (
	maxChain    = 10 // certificates, the leaf among them
	maxLeafLife = 390 * 24 * time.Hour
	maxSubject  = 127 // bytes of google.subject
)

// presentX509 proves the X509-SVID's key by mutual TLS, on a connection of its
// own, and sends the same chain as the subject token. It refuses itself, with
// the way out, what Google refuses without saying why.
func (x *exchanger) presentX509(ctx context.Context, svids exchangers.SVIDs) (exchangers.Secret, time.Time, error) {
	fail := func(err error) (exchangers.Secret, time.Time, error) { return exchangers.Secret{}, time.Time{}, err }
	svid, err := svids.X509(ctx)
	if err != nil {
		return fail(fmt.Errorf("getting the X509-SVID for %s: %w", x.cfg.Settings.resource(), err))
	}
	if err := fit(svid, x.cfg.Now()); err != nil {
		return fail(err)
	}
	certificate := tls.Certificate{PrivateKey: svid.PrivateKey, Leaf: svid.Certificates[0]}
	for _, c := range svid.Certificates {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	client, err := exchangers.WithCertificate(x.cfg.Client, certificate)
	if err != nil {
		return fail(err)
	}
	defer client.CloseIdleConnections()
	chain, err := json.Marshal(certificate.Certificate) // standard base64, leaf first
	if err != nil {
		return fail(fmt.Errorf("writing the certificates: %w", err))
	}
	return x.federated(ctx, client, mtlsType, exchangers.NewSecret(string(chain)))
}

// unfit is a refusal of our own: Google was not asked.
func unfit(format string, args ...any) *exchangers.Error {
	return &exchangers.Error{Provider: provider, Class: exchangers.Config, Code: "unfit_svid", Message: exchangers.Clean(fmt.Sprintf(format, args...))}
}

func fit(svid *x509svid.SVID, now time.Time) error {
	if svid == nil || len(svid.Certificates) == 0 || svid.PrivateKey == nil {
		return unfit("there is no X509-SVID")
	}
	leaf := svid.Certificates[0]
	switch {
	case len(svid.ID.String()) > maxSubject:
		return unfit("the SPIFFE ID has %d bytes: google.subject holds %d", len(svid.ID.String()), maxSubject)
	case leaf.IsCA || leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return unfit("the X509-SVID must be no CA, with key usage digitalSignature and extended key usage clientAuth")
	case len(svid.Certificates) > maxChain:
		return unfit("the X509-SVID has %d certificates: Google takes %d", len(svid.Certificates), maxChain)
	case leaf.NotAfter.Sub(leaf.NotBefore) > maxLeafLife:
		return unfit("the X509-SVID lives for %d days: Google takes 390", leaf.NotAfter.Sub(leaf.NotBefore)/(24*time.Hour))
	case now.Before(leaf.NotBefore) || now.After(leaf.NotAfter):
		return unfit("the X509-SVID is valid from %s to %s: compare this machine's clock", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	switch k := leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n >= 2048 && n <= 4096 {
			return nil
		}
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P256() || k.Curve == elliptic.P384() {
			return nil
		}
	}
	return unfit("the X509-SVID's key must be P-256, P-384 or RSA of 2048 to 4096 bits")
}

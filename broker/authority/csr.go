package authority

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"net/url"
	"time"
)

// CSR returns a request (PKCS#10, DER) to certify a trust-domain CA of ours,
// and its key's ID: path length 1, keyCertSign and cRLSign, the trust domain's
// SPIFFE ID. The key is made in RootKeys once: until a certificate for it is
// installed every call asks for the same, unless again, which gives the old one
// up.
func (a *Authority) CSR(ctx context.Context, again bool) (csr []byte, keyID string, err error) {
	err = a.act("making a request for a CA", ctx, func(now time.Time) error {
		if a.cfg.Upstream != nil {
			return refused("upstream %s certifies us by itself", a.cfg.UpstreamName)
		}
		r, key, err := a.requested(ctx, now, again)
		if err != nil {
			return err
		}
		keyID = r.ID
		csr, err = a.request(key, "Credence CA", r, 1)
		return err
	})
	if err != nil {
		return nil, "", err
	}
	return csr, keyID, nil
}

// requested is the CA that no certificate is installed for yet.
func (a *Authority) requested(ctx context.Context, now time.Time, again bool) (Record, crypto.Signer, error) {
	var given []Record
	for _, r := range a.live.Load().of(Domain, "") {
		switch {
		case r.State != Prepared:
		case !again:
			key, err := openKey(ctx, a.cfg.RootKeys, r)
			return r, key, err
		default:
			r.State, r.RevokedAt, r.Reason = Revoked, now, "another was requested"
			given = append(given, r)
		}
	}
	if err := a.lead(ctx); err != nil {
		return Record{}, nil, err
	}
	r, key, err := newRecord(ctx, a.cfg.RootKeys, Domain, "P256")
	if err != nil {
		return r, nil, err
	}
	r.State = Prepared
	return r, key, a.change(ctx, append(given, r)...)
}

// Object identifiers of RFC 5280 §4.2.1.
var (
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidNameConstraints  = asn1.ObjectIdentifier{2, 5, 29, 30}
)

// request is a PKCS#10 request for a CA of ours. What the other side makes of
// its extensions is its own choice: what comes back is checked.
func (a *Authority) request(key crypto.Signer, name string, r Record, pathLen int) ([]byte, error) {
	values := []struct {
		id    asn1.ObjectIdentifier
		value any
	}{
		{oidBasicConstraints, struct {
			IsCA    bool
			PathLen int
		}{true, pathLen}},
		{oidKeyUsage, asn1.BitString{Bytes: []byte{0x06}, BitLength: 7}}, // keyCertSign, cRLSign
	}
	if a.cfg.NameConstraints {
		uri := asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(a.cfg.TrustDomain.Name())}
		type subtree struct{ Base asn1.RawValue }
		values = append(values, struct {
			id    asn1.ObjectIdentifier
			value any
		}{oidNameConstraints, struct {
			Permitted []subtree `asn1:"tag:0"`
		}{[]subtree{{uri}}}})
	}
	template := &x509.CertificateRequest{Subject: a.caName(name, r), URIs: []*url.URL{a.cfg.TrustDomain.ID().URL()}}
	for _, v := range values {
		der, err := asn1.Marshal(v.value)
		if err != nil {
			return nil, fmt.Errorf("encoding a request for a CA: %w", err)
		}
		template.ExtraExtensions = append(template.ExtraExtensions, pkix.Extension{Id: v.id, Critical: true, Value: der})
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return nil, fmt.Errorf("signing a request for a CA: %w", err)
	}
	return csr, nil
}

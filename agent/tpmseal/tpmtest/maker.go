package tpmtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"
)

// A Maker is a CA of somebody who makes TPMs, or one below it.
type Maker struct {
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewMaker makes a root, or a CA below by; its life is from an hour before now, for
// ten years.
func NewMaker(t testing.TB, name string, by *Maker, now time.Time, changes ...func(*x509.Certificate)) *Maker {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(10, 0, 0),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	m := &Maker{key: key}
	if by == nil {
		by = &Maker{template, key}
	}
	m.Certificate = by.Sign(t, template, key.Public(), changes...)
	return m
}

// PEM is the CA's certificate.
func (m *Maker) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.Certificate.Raw}))
}

// Certify makes the certificate of an endorsement key, as the TCG EK Credential
// Profile has it: without an end, and of no subject but the TPM's make.
func (m *Maker) Certify(t testing.TB, ek crypto.PublicKey, now time.Time, changes ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	about := func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{AltName(t, "id:4D414B45", "Model 7", "id:00010002")}
	}
	c, err := m.TryCertify(ek, now, append([]func(*x509.Certificate){about}, changes...)...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TryCertify is Certify, without a word on the TPM's make, where a certificate may be
// one that cannot be read.
func (m *Maker) TryCertify(ek crypto.PublicKey, now time.Time, changes ...func(*x509.Certificate)) (*x509.Certificate, error) {
	template := &x509.Certificate{
		NotBefore: now.Add(-time.Hour), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageKeyAgreement, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}},
	}
	if _, ok := ek.(*rsa.PublicKey); ok {
		template.KeyUsage = x509.KeyUsageKeyEncipherment
	}
	return m.sign(template, ek, changes)
}

// AltName is what a certificate says of its TPM: manufacturer, model and version; it is
// critical.
func AltName(t testing.TB, about ...string) pkix.Extension {
	t.Helper()
	var name pkix.RDNSequence
	for n, text := range about {
		name = append(name, pkix.RelativeDistinguishedNameSET{{Type: asn1.ObjectIdentifier{2, 23, 133, 2, n + 1}, Value: text}})
	}
	directory, err := asn1.Marshal(name)
	if err != nil {
		t.Fatal(err)
	}
	value, err := asn1.Marshal([]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 4, IsCompound: true, Bytes: directory}})
	if err != nil {
		t.Fatal(err)
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: value}
}

// Sign signs a certificate, whatever it is.
func (m *Maker) Sign(t testing.TB, template *x509.Certificate, pub crypto.PublicKey, changes ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c, err := m.sign(template, pub, changes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (m *Maker) sign(template *x509.Certificate, pub crypto.PublicKey, changes []func(*x509.Certificate)) (_ *x509.Certificate, err error) {
	if template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<60)); err != nil {
		return nil, err
	}
	for _, change := range changes {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, m.Certificate, pub, m.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Where TPMs hold the certificates of their endorsement keys.
const (
	RSACertificate tpm2.TPMHandle = 0x01c00002
	ECCCertificate tpm2.TPMHandle = 0x01c0000a
)

// Hold has a TPM hold a certificate, as its maker would.
func Hold(t testing.TB, socket string, at tpm2.TPMHandle, certificate []byte) {
	t.Helper()
	tpm, err := linuxudstpm.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer tpm.Close()
	public := tpm2.New2B(tpm2.TPMSNVPublic{
		NVIndex: at, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(len(certificate)),
		Attributes: tpm2.TPMANV{PPWrite: true, PPRead: true, OwnerRead: true, AuthRead: true, NoDA: true, PlatformCreate: true, NT: tpm2.TPMNTOrdinary},
	})
	if _, err := (tpm2.NVDefineSpace{AuthHandle: tpm2.TPMRHPlatform, PublicInfo: public}).Execute(tpm); err != nil {
		t.Fatal(err)
	}
	const chunk = 256
	for offset := 0; offset < len(certificate); offset += chunk {
		about, err := tpm2.NVReadPublic{NVIndex: at}.Execute(tpm) // its name changes by the first write
		if err != nil {
			t.Fatal(err)
		}
		if _, err := (tpm2.NVWrite{
			AuthHandle: tpm2.TPMRHPlatform, NVIndex: tpm2.NamedHandle{Handle: at, Name: about.NVName},
			Data: tpm2.TPM2BMaxNVBuffer{Buffer: certificate[offset:min(len(certificate), offset+chunk)]}, Offset: uint16(offset),
		}).Execute(tpm); err != nil {
			t.Fatal(err)
		}
	}
}

package tpm_test

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

// A forger has no TPM, but the private half of an endorsement key that is believed:
// what it may say is limited by the broker alone.
type forger struct {
	t   testing.TB
	ek  *rsa.PrivateKey
	ak  *ecdsa.PrivateKey
	td  string
	key []byte // that it joins with
	// marked is the trust domain that its attestation key is for.
	marked string

	// What it quotes, and says beside it.
	magic  uint32
	kind   uint16
	alg    uint16
	pcrs   []int
	values [][]byte
	said   [][]byte // values; nil: as quoted
	after  []byte
	secret func([]byte) []byte
	signer *ecdsa.PrivateKey
	spoil  func(map[string]any)
}

func newForger(t testing.TB) *forger {
	ak := newKey(t)
	return &forger{t: t, ek: issuertest.RSA(), ak: ak, td: domain, marked: domain, key: nodeKey, magic: 0xff544347, kind: 0x8018, alg: 0x000b, signer: ak}
}

func (f *forger) hash() string { return hashOf(f.t, f.ek.Public()) }

func hashOf(t testing.TB, pub crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	return digest(der)
}

// public is the attestation key's public area.
func (f *forger) public(changes ...func(*tpm2.TPMTPublic)) []byte {
	point, err := f.ak.PublicKey.Bytes()
	if err != nil {
		f.t.Fatal(err)
	}
	mark := sha256.Sum256([]byte("credence join tpm 1\x00" + f.marked))
	p := tpm2.TPMTPublic{
		AuthPolicy: tpm2.TPM2BDigest{Buffer: mark[:]},
		Type:       tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters:       eccParameters(func(*tpm2.TPMSECCParms) {}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: point[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: point[33:]},
		}),
	}
	for _, change := range changes {
		change(&p)
	}
	return tpm2.Marshal(p)
}

func eccParameters(change func(*tpm2.TPMSECCParms)) tpm2.TPMUPublicParms {
	p := &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256, Scheme: tpm2.TPMTECCScheme{
		Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
	}}
	change(p)
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, p)
}

// shown is evidence with an endorsement key, or a chain.
func (f *forger) shown(ak []byte, ek any) []byte {
	f.t.Helper()
	e := map[string]any{"ak": ak}
	if chain, ok := ek.([]*x509.Certificate); ok {
		raw := [][]byte{}
		for _, c := range chain {
			raw = append(raw, c.Raw)
		}
		e["chain"] = raw
	} else {
		der, err := x509.MarshalPKIXPublicKey(ek)
		if err != nil {
			f.t.Fatal(err)
		}
		e["ek"] = der
	}
	return encode(f.t, e)
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// activate is TPM2_ActivateCredential, without a TPM.
func (f *forger) activate(challenge []byte) []byte {
	var c struct{ Credential, Secret []byte }
	if err := json.Unmarshal(challenge, &c); err != nil {
		f.t.Fatal(err)
	}
	seed, err := rsa.DecryptOAEP(sha256.New(), nil, f.ek, c.Secret, []byte("IDENTITY\x00"))
	if err != nil {
		f.t.Fatal(err)
	}
	sum := sha256.Sum256(f.public())
	key := tpm2.KDFa(crypto.SHA256, seed, "STORAGE", append([]byte{0, 11}, sum[:]...), nil, 128)
	block, err := aes.NewCipher(key)
	if err != nil {
		f.t.Fatal(err)
	}
	out := bytes.Clone(c.Credential[2+sha256.Size:])
	//lint:ignore SA1019 it is what TPMs use
	cipher.NewCFBDecrypter(block, make([]byte, aes.BlockSize)).XORKeyStream(out, out)
	if binary.BigEndian.Uint16(out) != 32 || len(out) != 34 {
		f.t.Fatalf("no credential of 32 bytes: %x", out)
	}
	return out[2:]
}

func (f *forger) answer(challenge []byte) ([]byte, error) {
	secret := f.activate(challenge)
	if f.secret != nil {
		secret = f.secret(secret)
	}
	key := sha256.Sum256(f.key)
	data := sha256.Sum256(slices.Concat([]byte("credence join tpm 1\x00"+f.td+"\x00"), secret, key[:]))
	return f.quote(data[:])
}

func (f *forger) quote(data []byte) ([]byte, error) {
	text := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint32(nil, f.magic), f.kind)
	text = append(text, 0, 0)                                                      // no qualified signer
	text = append(binary.BigEndian.AppendUint16(text, uint16(len(data))), data...) //
	text = append(text, make([]byte, 17+8)...)                                     // clock and firmware
	text = binary.BigEndian.AppendUint32(text, uint32(min(len(f.pcrs), 1)))        //
	if len(f.pcrs) > 0 {
		bits := make([]byte, 3)
		for _, pcr := range f.pcrs {
			bits[pcr/8] |= 1 << (pcr % 8)
		}
		text = append(append(binary.BigEndian.AppendUint16(text, f.alg), 3), bits...)
	}
	digest := sha256.Sum256(bytes.Join(f.values, nil))
	return f.sign(append(append(append(text, 0, 32), digest[:]...), f.after...))
}

// sign answers with a text that is called a quote.
func (f *forger) sign(text []byte) ([]byte, error) {
	sum := sha256.Sum256(text)
	signature, err := ecdsa.SignASN1(rand.Reader, f.signer, sum[:])
	said := f.said
	if said == nil {
		said = f.values
	}
	if said == nil {
		said = [][]byte{}
	}
	answer := map[string]any{"quote": text, "signature": signature, "pcrs": said}
	if f.spoil != nil {
		f.spoil(answer)
	}
	return encode(f.t, answer), err
}

// unsigned is a certificate with a key that nobody has.
func unsigned(t testing.TB, pub crypto.PublicKey, change func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{SerialNumber: one, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{2, 23, 133, 8, 1}}}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, pub, newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/credence-id/credence/broker/join/bearer"
)

// evidence is what a node shows: {"ak": TPMT_PUBLIC} and either {"chain": [DER, ...]},
// the EK's certificate first, or {"ek": DER}.
type evidence struct {
	ek    crypto.PublicKey // as it was shown: nothing is proven yet
	chain []*x509.Certificate
	ak    ak
}

func readEvidence(shown []byte, trustDomain string) (e evidence, err error) {
	all, err := bearer.Object(shown)
	if err != nil {
		return e, err
	}
	chain, certified := all["chain"].([]any)
	_, bare := all["ek"].(string)
	if len(all) != 2 || certified == bare {
		return e, errors.New("ak and one of chain and ek are wanted, and nothing else")
	}
	public, err := bytesOf(all["ak"], maxPublic)
	if err != nil {
		return e, fmt.Errorf("the attestation key: %w", err)
	}
	if e.ak, err = readAK(public, trustDomain); err != nil {
		return e, err
	}
	if certified {
		if e.chain, err = readChain(chain); err != nil {
			return e, err
		}
		e.ek = e.chain[0].PublicKey
	} else {
		der, err := bytesOf(all["ek"], maxPublic)
		if err != nil {
			return e, fmt.Errorf("the endorsement key: %w", err)
		}
		if e.ek, err = x509.ParsePKIXPublicKey(der); err != nil {
			return e, fmt.Errorf("the endorsement key: %w", err)
		}
	}
	_, err = publicOf(e.ek)
	return e, err
}

const maxPublic = 1 << 10 // a public key, in bytes

func bytesOf(v any, most int) ([]byte, error) {
	text, ok := v.(string)
	if !ok || len(text) > base64.StdEncoding.EncodedLen(most) {
		return nil, fmt.Errorf("at most %d bytes in base64 are wanted", most)
	}
	out, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return nil, errors.New("it is not in base64")
	}
	return out, nil
}

// readChain reads certificates that are worth verifying: nothing here costs more
// than its bytes.
func readChain(list []any) (chain []*x509.Certificate, err error) {
	if len(list) == 0 || len(list) > maxChain {
		return nil, fmt.Errorf("a chain of %d certificates: 1 to %d are taken", len(list), maxChain)
	}
	for n, v := range list {
		der, err := bytesOf(v, 8<<10)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", n, err)
		}
		c, err := x509.ParseCertificate(der)
		if err == nil {
			err = cheap(c)
		}
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain: %w", n, err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}

// publicOf is an EK as its TPM has it, by the default template (EK Credential
// Profile, B.3.3 and B.3.4): what protects a credential is not the node's to choose.
func publicOf(ek crypto.PublicKey) (*tpm2.TPMTPublic, error) {
	switch k := ek.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() != 2048 || k.E != 65537 {
			break
		}
		if factorable(k.N) {
			return nil, errFactorable
		}
		public := tpm2.RSAEKTemplate
		public.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.FillBytes(make([]byte, 256))})
		return &public, nil
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() {
			break
		}
		public := tpm2.ECCEKTemplate
		unique, err := pointOf(k)
		public.Unique = unique
		return &public, err
	}
	return nil, errors.New("the endorsement key is neither of RSA-2048 nor of P-256, by the TCG's default template")
}

func pointOf(k *ecdsa.PublicKey) (tpm2.TPMUPublicID, error) {
	point, err := k.Bytes() // 4, X and Y
	if err != nil {
		return tpm2.TPMUPublicID{}, fmt.Errorf("a point that is not on its curve: %w", err)
	}
	n := len(point) / 2
	return tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
		X: tpm2.TPM2BECCParameter{Buffer: point[1 : 1+n]}, Y: tpm2.TPM2BECCParameter{Buffer: point[1+n:]},
	}), nil
}

// An ak is an attestation key of the one form that is taken.
type ak struct {
	key  *ecdsa.PublicKey
	name []byte // TPM 2.0 Library, part 1 §16
}

// akForm is that form, but for the point: restricted, so that it signs what its TPM
// made and no forgery of that; bound to its TPM; made there; for signatures alone. Its
// policy is one that nothing fulfils, so that only a TPM that has the private half
// activates for it; and it says whom the key is for: what another service has a TPM
// make and quote, to text of its own choice, is of another key.
func akForm(trustDomain string) tpm2.TPMTPublic {
	mark := sha256.Sum256([]byte("credence join " + Method + " 1\x00" + trustDomain))
	return tpm2.TPMTPublic{
		AuthPolicy: tpm2.TPM2BDigest{Buffer: mark[:]},
		Type:       tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Scheme: tpm2.TPMTECCScheme{
				Scheme:  tpm2.TPMAlgECDSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			CurveID: tpm2.TPMECCNistP256,
		}),
	}
}

// readAK takes a public area that is, byte for byte, one that we write ourselves
// around its point: nothing of it is left to be read in two ways. The name is made
// of what we wrote.
func readAK(public []byte, trustDomain string) (ak, error) {
	const point = 2 + 32 + 2 + 32 // X and Y, each with its size, at the end
	if len(public) < point {
		return ak{}, errForm
	}
	end := public[len(public)-point:]
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), bytes.Join([][]byte{{4}, end[2:34], end[36:]}, nil))
	if err != nil {
		return ak{}, errForm
	}
	form := akForm(trustDomain)
	if form.Unique, err = pointOf(key); err != nil {
		return ak{}, errForm
	}
	ours := tpm2.Marshal(form)
	if !bytes.Equal(ours, public) {
		return ak{}, errForm
	}
	sum := sha256.Sum256(ours)
	return ak{key, append([]byte{0, byte(tpm2.TPMAlgSHA256)}, sum[:]...)}, nil
}

var errForm = errors.New("the attestation key is not of the form that is taken: P-256, ECDSA with SHA-256, restricted, made in its TPM, bound to it, and for our trust domain")

func (a ak) signed(text, signature []byte) bool {
	sum := sha256.Sum256(text)
	return ecdsa.VerifyASN1(a.key, sum[:], signature)
}

// credentialFor encrypts a secret for the TPM that has an EK, as long as it has the
// AK too (TPM 2.0 Library, part 1 §24).
func credentialFor(ek crypto.PublicKey, subject ak, secret []byte) (credential, encrypted []byte, err error) {
	public, err := publicOf(ek)
	if err != nil {
		return nil, nil, err
	}
	key, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, nil, err
	}
	return tpm2.CreateCredential(rand.Reader, key, subject.name, secret)
}

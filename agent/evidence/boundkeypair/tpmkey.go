package boundkeypair

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/credence-id/credence/agent/tpm"
)

// A keyFile is a key that a TPM wrapped (draft-bottomley-tpm2-keys §3.1), the form
// that OpenSSL's providers for TPMs read too.
type keyFile struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"optional,explicit,tag:0"`
	Parent    int64
	Public    []byte // TPM2B_PUBLIC
	Private   []byte // TPM2B_PRIVATE
}

// loadable is the type of a key that the TPM loads as it is.
var loadable = asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}

// A tpmKey is a key as the TPM alone reads it.
type tpmKey struct {
	parent  tpm2.TPMHandle // the owner hierarchy, or what stands in the TPM
	public  tpm2.TPM2BPublic
	private tpm2.TPM2BPrivate
	key     *ecdsa.PublicKey
}

var errTPMKey = errors.New("it holds no key on P-256 that signs, that a TPM made and that never leaves it; credence agent key create --tpm makes one")

// parseTPMKey takes no key that could have been anywhere but in its TPM: the TPM holds
// the private half to what the public says of it.
func parseTPMKey(der []byte) (k tpmKey, err error) {
	var f keyFile
	rest, err := asn1.Unmarshal(der, &f)
	if err != nil || len(rest) > 0 || !f.Type.Equal(loadable) || !f.EmptyAuth {
		return k, errTPMKey
	}
	if f.Parent != int64(tpm2.TPMRHOwner) && f.Parent != int64(tpm.Standing) {
		return k, fmt.Errorf("it holds a TPM's key below %#x: below the owner's storage key, %#x or %#x, is wanted", f.Parent, uint32(tpm2.TPMRHOwner), uint32(tpm.Standing))
	}
	k.parent = tpm2.TPMHandle(f.Parent)
	public, err := tpm2.Unmarshal[tpm2.TPM2BPublic](f.Public)
	if err != nil || !bytes.Equal(tpm2.Marshal(*public), f.Public) {
		return k, errTPMKey
	}
	private, err := tpm2.Unmarshal[tpm2.TPM2BPrivate](f.Private)
	if err != nil || !bytes.Equal(tpm2.Marshal(*private), f.Private) {
		return k, errTPMKey
	}
	k.public, k.private = *public, *private
	k.key, err = publicOf(k.public)
	return k, err
}

func publicOf(text tpm2.TPM2BPublic) (*ecdsa.PublicKey, error) {
	public, err := text.Contents()
	if err != nil || public.Type != tpm2.TPMAlgECC {
		return nil, errTPMKey
	}
	if a := public.ObjectAttributes; !a.FixedTPM || !a.FixedParent || !a.SensitiveDataOrigin || !a.UserWithAuth || !a.SignEncrypt || a.Restricted {
		return nil, errTPMKey
	}
	parameters, err := public.Parameters.ECCDetail()
	if err != nil || parameters.CurveID != tpm2.TPMECCNistP256 {
		return nil, errTPMKey
	}
	point, err := public.Unique.ECC()
	if err != nil || len(point.X.Buffer) > 32 || len(point.Y.Buffer) > 32 {
		return nil, errTPMKey
	}
	uncompressed := make([]byte, 65)
	uncompressed[0] = 4 // SEC 1 §2.3.4
	new(big.Int).SetBytes(point.X.Buffer).FillBytes(uncompressed[1:33])
	new(big.Int).SetBytes(point.Y.Buffer).FillBytes(uncompressed[33:])
	key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed)
	if err != nil {
		return nil, errTPMKey
	}
	return key, nil
}

func (k tpmKey) marshal() ([]byte, error) {
	return asn1.Marshal(keyFile{Type: loadable, EmptyAuth: true, Parent: int64(k.parent), Public: tpm2.Marshal(k.public), Private: tpm2.Marshal(k.private)})
}

// CreateTPMKey makes a key, on P-256, in a TPM, which never gives it out, and writes
// what loads it there to a file that must not be there yet. An error wraps
// tpm.ErrAbsent where there is no TPM.
func CreateTPMKey(path, device string) (crypto.PublicKey, error) {
	key, err := makeTPMKey(File{path, device}.device())
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	der, err := key.marshal()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key.key, writeNew(path, pem.EncodeToMemory(&pem.Block{Type: tpmType, Bytes: der}))
}

// Held gives the public half of a key that the TPM has: an error says that it has not.
func (f File) Held() (crypto.PublicKey, error) {
	key, err := f.read()
	if err != nil {
		return nil, err
	}
	s, ok := key.(tpmSigner)
	if !ok {
		return nil, fmt.Errorf("join.key: %s: it holds the key itself, and none of a TPM: name another file", f.Path)
	}
	return s.key, s.load(func(transport.TPM, tpm2.NamedHandle) error { return nil })
}

func makeTPMKey(device string) (tpmKey, error) {
	opened, err := tpm.Open(device)
	if err != nil {
		return tpmKey{}, err
	}
	defer opened.Close()
	storage, err := tpm.OpenStorage(opened, tpm.KeyFiles)
	if err != nil {
		return tpmKey{}, err
	}
	defer storage.Close()
	made, err := tpm2.Create{ParentHandle: storage.Parent(tpm2.HMAC(tpm2.TPMAlgSHA256, 16)), InPublic: tpm2.New2B(template)}.Execute(opened)
	if err != nil {
		return tpmKey{}, fmt.Errorf("the TPM makes none: %w", err)
	}
	k := tpmKey{parent: tpm2.TPMRHOwner, public: made.OutPublic, private: made.OutPrivate}
	if storage.Stands() {
		k.parent = tpm.Standing
	}
	k.key, err = publicOf(k.public)
	return k, err
}

// template is that of a key which signs what it is given. Nobody guesses at a password
// that it has not, so that those who do at others' can't lock it.
var template = tpm2.TPMTPublic{
	Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
	ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, SignEncrypt: true},
	Parameters:       tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: tpm2.TPMECCNistP256}),
	Unique:           tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
}

func (f File) device() string {
	if f.Device == "" {
		return tpm.Device
	}
	return f.Device
}

// A tpmSigner signs by a TPM, whose device is open only while it does.
type tpmSigner struct {
	tpmKey
	device string
}

// Public implements crypto.Signer. It needs no TPM.
func (s tpmSigner) Public() crypto.PublicKey { return s.key }

// Sign implements crypto.Signer, for SHA-256. The TPM is the one source of randomness.
func (s tpmSigner) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) (signature []byte, err error) {
	if opts.HashFunc() != crypto.SHA256 || len(digest) != crypto.SHA256.Size() {
		return nil, errors.New("a TPM's key signs SHA-256 digests alone")
	}
	err = s.load(func(opened transport.TPM, key tpm2.NamedHandle) error {
		signature, err = sign(opened, key, digest)
		return err
	})
	return signature, err
}

// load opens the TPM and has it hold the key, for as long as f runs.
func (s tpmSigner) load(f func(transport.TPM, tpm2.NamedHandle) error) error {
	opened, err := tpm.Open(s.device)
	if err != nil {
		return fmt.Errorf("join.key: %w", err)
	}
	defer opened.Close()
	storage, err := s.storage(opened)
	if err != nil {
		return fmt.Errorf("join.key: %w", err)
	}
	defer storage.Close()
	err = storage.Load(s.public, s.private, func(key tpm2.NamedHandle) error { return f(opened, key) })
	if tpm.Foreign(err) {
		return fmt.Errorf("join.key: another TPM than that at %s made it, or this one was cleared since, and nobody gets it back: credence agent key create --tpm makes another, in another file, for an operator to register: %w", s.device, err)
	}
	if err != nil {
		return fmt.Errorf("join.key: using it by the TPM: %w", err)
	}
	return nil
}

// storage is the storage key that wraps this one.
func (s tpmSigner) storage(opened transport.TPM) (*tpm.Storage, error) {
	if s.parent == tpm.Standing {
		return tpm.StandingStorage(opened)
	}
	storage, err := tpm.MakeStorage(opened, tpm.KeyFiles)
	if errors.Is(err, tpm2.TPMRCBadAuth) || errors.Is(err, tpm2.TPMRCAuthFail) {
		return nil, fmt.Errorf("its owner hierarchy, which this key is below, has got a password since: %w", err)
	}
	return storage, err
}

func sign(opened transport.TPM, key tpm2.NamedHandle, digest []byte) ([]byte, error) {
	out, err := tpm2.Sign{
		KeyHandle: tpm2.AuthHandle{Handle: key.Handle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
		Digest:    tpm2.TPM2BDigest{Buffer: digest},
		InScheme: tpm2.TPMTSigScheme{
			Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUSigScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSchemeHash{HashAlg: tpm2.TPMAlgSHA256}),
		},
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck}, // of a digest that the TPM did not make
	}.Execute(opened)
	if err != nil {
		return nil, err
	}
	by, err := out.Signature.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(by.SignatureR.Buffer), new(big.Int).SetBytes(by.SignatureS.Buffer)})
}

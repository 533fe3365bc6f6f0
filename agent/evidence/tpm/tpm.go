// Package tpm proves a node by the machine's TPM 2.0: its endorsement key (EK), and an
// attestation key (AK) that is made for the join and forgotten after it.
//
// The EK is made from the TPM's seed by the TCG's default template each time, unless
// it stands ready in the TPM; the AK is random. Between showing them and answering
// both are kept as the TPM saved them, encrypted: the device is open only while it is
// spoken to, and nothing stays in the TPM. The endorsement hierarchy has no password,
// as is usual. What is signed names the trust domain, this use and the key that the
// node joins with, so that no other service's challenge can be passed off as the
// broker's.
package tpm

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	machine "github.com/credence-id/credence/agent/tpm"
)

// Device is where Linux has the TPM.
const Device = machine.Device

// ErrAbsent says that there is no TPM.
var ErrAbsent = machine.ErrAbsent

// Config says which TPM and which of its keys. Only TrustDomain is required, to join.
type Config struct {
	TrustDomain string
	Device      string // or the socket of a TPM in software; default Device
	EK          string // "rsa" or "ecc": which endorsement key; default: that of Cert, or that whose certificate the TPM holds, or RSA
	Cert        string // a PEM file: the EK's certificate, and CAs that follow it; default: what the TPM holds
}

// Check says what is wrong with a configuration, the field's name of agent.yaml
// first.
func (c Config) Check() error {
	if c.EK != "" && c.EK != rsaEK.name && c.EK != eccEK.name {
		return fmt.Errorf("ek: %.20q: rsa or ecc is wanted", c.EK)
	}
	return nil
}

// A Node is a machine's TPM as it joins. It joins once at a time, any number of times.
type Node struct {
	cfg Config

	mu sync.Mutex // guards what follows
	ek *saved     // as it was found or made last
	ak *saved     // of the join under way
}

// New returns the node of a TPM, which isn't spoken to yet.
func New(cfg Config) *Node {
	if cfg.Device == "" {
		cfg.Device = Device
	}
	return &Node{cfg: cfg}
}

// Evidence makes an attestation key, and shows it with the endorsement key. A TPM is
// slow, and cannot be interrupted: where no RSA endorsement key stands ready, this takes
// seconds the first time.
func (n *Node) Evidence(context.Context) ([]byte, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var shown []byte
	err := n.with(func(tpm transport.TPM) error {
		found, err := n.find(tpm)
		if err != nil {
			return err
		}
		ak, public, err := makeAK(tpm, n.cfg.TrustDomain)
		if err != nil {
			return err
		}
		n.ak = ak
		evidence := map[string]any{"ak": public}
		if len(found.Chain) > 0 {
			chain := make([][]byte, len(found.Chain))
			for i, c := range found.Chain {
				chain[i] = c.Raw
			}
			evidence["chain"] = chain
		} else {
			evidence["ek"] = found.Public
		}
		shown, err = json.Marshal(evidence)
		return err
	})
	return shown, err
}

// Answer proves that the TPM has both keys, to the broker of our trust domain and for
// the public key (DER) that the node joins with.
func (n *Node) Answer(_ context.Context, challenge, publicKey []byte) ([]byte, error) {
	var asked struct {
		Credential []byte `json:"credential"`
		Secret     []byte `json:"secret"`
		PCRs       []uint `json:"pcrs"`
	}
	if len(challenge) > 4<<10 || json.Unmarshal(challenge, &asked) != nil {
		return nil, errors.New("the broker's challenge is not of join method tpm")
	}
	if len(asked.PCRs) > 24 || slices.ContainsFunc(asked.PCRs, func(pcr uint) bool { return pcr > 23 }) {
		return nil, errors.New("the broker asks for PCRs that there are not")
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ek == nil || n.ak == nil {
		return nil, errors.New("a challenge for an attestation key that was not made")
	}
	ak := n.ak
	n.ak = nil // it answers once
	var answer []byte
	err := n.with(func(tpm transport.TPM) error {
		ekKey, err := n.ek.load(tpm)
		if err != nil {
			return fmt.Errorf("loading the endorsement key: %w", err)
		}
		defer ekKey.flush(tpm)
		akKey, err := ak.load(tpm)
		if err != nil {
			return fmt.Errorf("loading the attestation key: %w", err)
		}
		defer akKey.flush(tpm)
		secret, err := activate(tpm, ekKey, akKey, asked.Credential, asked.Secret)
		if err != nil {
			return err
		}
		key := sha256.Sum256(publicKey)
		data := sha256.Sum256(slices.Concat([]byte("credence join tpm 1\x00"), []byte(n.cfg.TrustDomain), []byte{0}, secret, key[:]))
		answer, err = quote(tpm, akKey, data[:], asked.PCRs)
		return err
	})
	return answer, err
}

// with opens the TPM for as long as f runs.
func (n *Node) with(f func(transport.TPM) error) error {
	tpm, err := machine.Open(n.cfg.Device)
	if err != nil {
		return err
	}
	defer tpm.Close()
	return f(tpm)
}

// activate gives back the secret of a credential (TPM 2.0 Library, part 1 §24).
func activate(tpm transport.TPM, ek, ak loaded, credential, encrypted []byte) ([]byte, error) {
	out, err := tpm2.ActivateCredential{
		ActivateHandle: ak.named(),
		KeyHandle:      tpm2.AuthHandle{Handle: ek.handle, Name: ek.name, Auth: tpm2.Policy(tpm2.TPMAlgSHA256, 16, ekPolicy)},
		CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential},
		Secret:         tpm2.TPM2BEncryptedSecret{Buffer: encrypted},
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("reading the broker's challenge by the TPM: %w", err)
	}
	if len(out.CertInfo.Buffer) != 32 {
		return nil, fmt.Errorf("a challenge of %d bytes: 32 are taken", len(out.CertInfo.Buffer))
	}
	return out.CertInfo.Buffer, nil
}

// ekPolicy is PolicyA of the EK Credential Profile: who knows the endorsement
// hierarchy's password, which is none.
func ekPolicy(tpm transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	_, err := tpm2.PolicySecret{AuthHandle: tpm2.TPMRHEndorsement, PolicySession: session, NonceTPM: nonce}.Execute(tpm)
	return err
}

// quote signs data, and PCRs of the SHA-256 bank.
func quote(tpm transport.TPM, ak loaded, data []byte, pcrs []uint) ([]byte, error) {
	values := make([][]byte, len(pcrs))
	for i, pcr := range pcrs {
		read, err := tpm2.PCRRead{PCRSelectionIn: selection(pcr)}.Execute(tpm)
		if err != nil || len(read.PCRValues.Digests) != 1 {
			return nil, fmt.Errorf("reading PCR %d of SHA-256, which the broker asks for: the TPM has %w", pcr, errors.Join(err, errNone))
		}
		values[i] = read.PCRValues.Digests[0].Buffer
	}
	out, err := tpm2.Quote{SignHandle: ak.named(), QualifyingData: tpm2.TPM2BData{Buffer: data}, PCRSelect: selection(pcrs...)}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("quoting by the TPM: %w", err)
	}
	by, err := out.Signature.Signature.ECDSA()
	if err != nil {
		return nil, fmt.Errorf("quoting by the TPM: %w", err)
	}
	signature, err := asn1.Marshal(struct{ R, S *big.Int }{
		new(big.Int).SetBytes(by.SignatureR.Buffer), new(big.Int).SetBytes(by.SignatureS.Buffer),
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]any{"quote": out.Quoted.Bytes(), "signature": signature, "pcrs": values})
}

var errNone = errors.New("none")

func selection(pcrs ...uint) (s tpm2.TPMLPCRSelection) {
	if len(pcrs) > 0 {
		s.PCRSelections = []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(pcrs...)}}
	}
	return s
}

// makeAK makes an attestation key of the form that brokers take; its policy, which
// nothing fulfils, says that it is for this use and trust domain. The TPM makes a
// primary key from its seed and the template: what is unique in this one is random.
func makeAK(tpm transport.TPM, trustDomain string) (*saved, []byte, error) {
	random := make([]byte, 64)
	_, _ = rand.Read(random) // never fails (crypto/rand.Read)
	mark := sha256.Sum256([]byte("credence join tpm 1\x00" + trustDomain))
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(tpm2.TPMTPublic{
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
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: random[:32]}, Y: tpm2.TPM2BECCParameter{Buffer: random[32:]},
		}),
	})}.Execute(tpm)
	if err != nil {
		return nil, nil, fmt.Errorf("making an attestation key: %w", err)
	}
	kept, err := loaded{handle: made.ObjectHandle, name: made.Name}.save(tpm)
	if err != nil {
		return nil, nil, fmt.Errorf("keeping the attestation key: %w", err)
	}
	return kept, made.OutPublic.Bytes(), nil
}

package tpmseal

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// srkHandle is where the owner's storage root key stands, if somebody made it
// stay (TCG TPM v2.0 Provisioning Guidance §7.5.1).
const srkHandle tpm2.TPMHandle = 0x81000001

// session is a TPM with its storage primary key.
type session struct {
	tpm     transport.TPM
	primary tpm2.NamedHandle
	public  tpm2.TPMTPublic
	made    bool // the primary is ours to flush
}

// openSession makes the storage primary key; where the owner hierarchy has a
// password, it takes the one that stays.
func openSession(tpm transport.TPM) (*session, error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}.Execute(tpm)
	if err == nil {
		public, err := made.OutPublic.Contents()
		if err != nil {
			return nil, fmt.Errorf("reading the TPM's storage key: %w", err)
		}
		return &session{tpm, tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, *public, true}, nil
	}
	kept, keptErr := tpm2.ReadPublic{ObjectHandle: srkHandle}.Execute(tpm)
	if keptErr != nil {
		return nil, fmt.Errorf("making the TPM's storage key: %w", err)
	}
	public, err := kept.OutPublic.Contents()
	if err != nil {
		return nil, fmt.Errorf("reading the TPM's storage key: %w", err)
	}
	return &session{tpm, tpm2.NamedHandle{Handle: srkHandle, Name: kept.Name}, *public, false}, nil
}

func (s *session) close() {
	if s.made {
		_, _ = tpm2.FlushContext{FlushHandle: s.primary.Handle}.Execute(s.tpm) // the kernel's resource manager does it too
	}
}

// private is an authorization whose parameters nobody between here and the TPM
// reads, in this direction.
func (s *session) private(encrypt tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, encrypt, tpm2.Salted(s.primary.Handle, s.public))
}

func (s *session) seal(key []byte) (sealed, error) {
	made, err := tpm2.Create{
		ParentHandle: tpm2.AuthHandle{Handle: s.primary.Handle, Name: s.primary.Name, Auth: s.private(tpm2.AESEncryption(128, tpm2.EncryptIn))},
		InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
			Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: key}),
		}},
		InPublic: tpm2.New2B(tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
			ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: true, NoDA: true},
		}),
	}.Execute(s.tpm)
	if err != nil {
		return sealed{}, fmt.Errorf("sealing a key by the TPM: %w", err)
	}
	return sealed{made.OutPublic, made.OutPrivate}, nil
}

func (s *session) unseal(in sealed) ([]byte, error) {
	loaded, err := tpm2.Load{
		ParentHandle: tpm2.AuthHandle{Handle: s.primary.Handle, Name: s.primary.Name, Auth: tpm2.HMAC(tpm2.TPMAlgSHA256, 16)},
		InPrivate:    in.private, InPublic: in.public,
	}.Execute(s.tpm)
	if err != nil {
		return nil, fmt.Errorf("loading what the TPM sealed: %w", err)
	}
	defer tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(s.tpm)
	out, err := tpm2.Unseal{
		ItemHandle: tpm2.AuthHandle{Handle: loaded.ObjectHandle, Name: loaded.Name, Auth: s.private(tpm2.AESEncryption(128, tpm2.EncryptOut))},
	}.Execute(s.tpm)
	if err != nil {
		return nil, fmt.Errorf("unsealing by the TPM: %w", err)
	}
	if len(out.OutData.Buffer) != KeySize {
		return nil, errNotOurs
	}
	return out.OutData.Buffer, nil
}

// foreign says whether it was another TPM that sealed, or this one before it was
// cleared: nobody gets that key back.
func foreign(err error) bool {
	return errors.Is(err, tpm2.TPMRCIntegrity) || errors.Is(err, tpm2.TPMRCBinding)
}

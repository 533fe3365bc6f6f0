package tpmseal

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/credence-id/credence/agent/tpm"
)

// session is a TPM with its storage primary key.
type session struct {
	*tpm.Storage
	tpm transport.TPM
}

func (s session) seal(key []byte) (sealed, error) {
	made, err := tpm2.Create{
		ParentHandle: s.Parent(s.Private(tpm2.AESEncryption(128, tpm2.EncryptIn))),
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

func (s session) unseal(in sealed) (key []byte, err error) {
	err = s.Load(in.public, in.private, func(loaded tpm2.NamedHandle) error {
		out, err := tpm2.Unseal{
			ItemHandle: tpm2.AuthHandle{Handle: loaded.Handle, Name: loaded.Name, Auth: s.Private(tpm2.AESEncryption(128, tpm2.EncryptOut))},
		}.Execute(s.tpm)
		if err != nil {
			return err
		}
		if key = out.OutData.Buffer; len(key) != KeySize {
			return errNotOurs
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("unsealing by the TPM: %w", err)
	}
	return key, nil
}

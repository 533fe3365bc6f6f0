package tpm

import (
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// Standing is where the owner's storage root key stands, if somebody made it stay
// (TCG TPM v2.0 Provisioning Guidance §7.5.1).
const Standing tpm2.TPMHandle = 0x81000001

// Templates of the owner hierarchy's storage primary key, ECC P-256. The TPM makes a
// primary key from its seed and the template: each gives a key of its own.
var (
	// Guidance is that of the Provisioning Guidance, §7.5.1.
	Guidance = tpm2.ECCSRKTemplate
	// KeyFiles is that of the parents that key files name by hierarchy
	// (draft-bottomley-tpm2-keys): nothing is unique in it.
	KeyFiles = keyFiles()
)

func keyFiles() tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

// Storage is a TPM with a storage key.
type Storage struct {
	tpm    transport.TPM
	key    tpm2.NamedHandle
	public tpm2.TPMTPublic
	made   bool // it is ours to flush
}

// OpenStorage makes the storage key of a template; where the owner hierarchy has a
// password, it takes the one that stands.
func OpenStorage(tpm transport.TPM, template tpm2.TPMTPublic) (*Storage, error) {
	made, err := MakeStorage(tpm, template)
	if err == nil {
		return made, nil
	}
	if standing, standingErr := StandingStorage(tpm); standingErr == nil {
		return standing, nil
	}
	return nil, err
}

// MakeStorage makes the storage key of a template.
func MakeStorage(tpm transport.TPM, template tpm2.TPMTPublic) (*Storage, error) {
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("making the TPM's storage key: %w", err)
	}
	s := &Storage{tpm: tpm, key: tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name}, made: true}
	return s.read(made.OutPublic)
}

// StandingStorage takes the storage root key that stands in the TPM.
func StandingStorage(tpm transport.TPM) (*Storage, error) {
	standing, err := tpm2.ReadPublic{ObjectHandle: Standing}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("reading the TPM's storage key, which is to stand at %#x: %w", uint32(Standing), err)
	}
	s := &Storage{tpm: tpm, key: tpm2.NamedHandle{Handle: Standing, Name: standing.Name}}
	return s.read(standing.OutPublic)
}

func (s *Storage) read(public tpm2.TPM2BPublic) (*Storage, error) {
	contents, err := public.Contents()
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("reading the TPM's storage key: %w", err)
	}
	s.public = *contents
	return s, nil
}

// Close takes the storage key out of the TPM, unless it stands there.
func (s *Storage) Close() {
	if s.made {
		_, _ = tpm2.FlushContext{FlushHandle: s.key.Handle}.Execute(s.tpm) // the kernel's resource manager does it too
	}
}

// Stands says whether it is the key that stands in the TPM.
func (s *Storage) Stands() bool { return !s.made }

// Private is an authorization whose parameters nobody between here and the TPM
// reads, in this direction.
func (s *Storage) Private(encrypt tpm2.AuthOption) tpm2.Session {
	return tpm2.HMAC(tpm2.TPMAlgSHA256, 16, encrypt, tpm2.Salted(s.key.Handle, s.public))
}

// Parent is the storage key, as the parent of a command.
func (s *Storage) Parent(auth tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: s.key.Handle, Name: s.key.Name, Auth: auth}
}

// Load puts what the storage key wraps into the TPM, for as long as f runs.
func (s *Storage) Load(public tpm2.TPM2BPublic, private tpm2.TPM2BPrivate, f func(tpm2.NamedHandle) error) error {
	loaded, err := tpm2.Load{ParentHandle: s.Parent(tpm2.HMAC(tpm2.TPMAlgSHA256, 16)), InPrivate: private, InPublic: public}.Execute(s.tpm)
	if err != nil {
		return err
	}
	defer tpm2.FlushContext{FlushHandle: loaded.ObjectHandle}.Execute(s.tpm)
	return f(tpm2.NamedHandle{Handle: loaded.ObjectHandle, Name: loaded.Name})
}

package tpm

import (
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// loaded is a key in the TPM.
type loaded struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	stays  bool // it is the TPM's own
}

func (l loaded) named() tpm2.NamedHandle { return tpm2.NamedHandle{Handle: l.handle, Name: l.name} }

func (l loaded) flush(tpm transport.TPM) {
	if !l.stays {
		_, _ = tpm2.FlushContext{FlushHandle: l.handle}.Execute(tpm) // the kernel's resource manager does it too
	}
}

// save takes a key out of the TPM, in a form that only that TPM reads, until it is
// reset.
func (l loaded) save(tpm transport.TPM) (*saved, error) {
	if l.stays {
		return &saved{key: l}, nil
	}
	defer l.flush(tpm)
	out, err := tpm2.ContextSave{SaveHandle: l.handle}.Execute(tpm)
	if err != nil {
		return nil, err
	}
	return &saved{key: l, context: &out.Context}, nil
}

// saved is a key on its way out of the TPM, or back.
type saved struct {
	key     loaded
	context *tpm2.TPMSContext // nil: the key stays
	public  tpm2.TPMTPublic   // of an EK
	kind    *kind
}

func (s *saved) load(tpm transport.TPM) (loaded, error) {
	if s.context == nil {
		return s.key, nil
	}
	out, err := tpm2.ContextLoad{Context: *s.context}.Execute(tpm)
	if err != nil {
		return loaded{}, err
	}
	return loaded{handle: out.LoadedHandle, name: s.key.name}, nil
}

// A kind is one of the endorsement keys that a TPM may have (EK Credential Profile,
// §2.2.1.4 and B.3; Provisioning Guidance §7.8).
type kind struct {
	name        string
	template    tpm2.TPMTPublic
	certificate tpm2.TPMHandle // where the TPM holds its certificate
	stands      tpm2.TPMHandle // and the key, if somebody made it stay
}

var (
	rsaEK = kind{"rsa", tpm2.RSAEKTemplate, 0x01c00002, 0x81010001}
	eccEK = kind{"ecc", tpm2.ECCEKTemplate, 0x01c0000a, 0x81010002}
)

// endorsement is the EK of a kind: as it was kept, as it stands in the TPM, or made.
func (n *Node) endorsement(tpm transport.TPM, k *kind) (*saved, error) {
	if n.ek != nil && n.ek.kind == k {
		if key, err := n.ek.load(tpm); err == nil { // else the TPM was reset
			key.flush(tpm)
			return n.ek, nil
		}
	}
	n.ek = nil
	key, public, err := k.stood(tpm)
	if err != nil {
		if key, public, err = k.make(tpm); err != nil {
			return nil, err
		}
	}
	kept, err := key.save(tpm)
	if err != nil {
		return nil, fmt.Errorf("keeping the endorsement key: %w", err)
	}
	kept.public, kept.kind = public, k
	n.ek = kept
	return kept, nil
}

var errOther = errors.New("another key stands there")

func (k *kind) stood(tpm transport.TPM) (loaded, tpm2.TPMTPublic, error) {
	out, err := tpm2.ReadPublic{ObjectHandle: k.stands}.Execute(tpm)
	if err != nil {
		return loaded{}, tpm2.TPMTPublic{}, err
	}
	public, err := out.OutPublic.Contents()
	if err != nil {
		return loaded{}, tpm2.TPMTPublic{}, err
	}
	template := k.template
	template.Unique = public.Unique
	if public.Type != k.template.Type || string(tpm2.Marshal(template)) != string(tpm2.Marshal(public)) {
		return loaded{}, tpm2.TPMTPublic{}, errOther
	}
	return loaded{handle: k.stands, name: out.Name, stays: true}, *public, nil
}

func (k *kind) make(tpm transport.TPM) (loaded, tpm2.TPMTPublic, error) {
	out, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHEndorsement, InPublic: tpm2.New2B(k.template)}.Execute(tpm)
	if err != nil {
		return loaded{}, tpm2.TPMTPublic{}, fmt.Errorf("making the TPM's endorsement key (%s): %w", k.name, err)
	}
	key := loaded{handle: out.ObjectHandle, name: out.Name}
	public, err := out.OutPublic.Contents()
	if err != nil {
		key.flush(tpm)
		return loaded{}, tpm2.TPMTPublic{}, fmt.Errorf("reading the TPM's endorsement key (%s): %w", k.name, err)
	}
	return key, *public, nil
}

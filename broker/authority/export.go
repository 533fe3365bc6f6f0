package authority

import (
	"context"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"time"
)

// An ExportedRoot is the active root of our own, to be kept offline.
type ExportedRoot struct {
	Root        Status
	Certificate []byte // DER
	Key         []byte // PKCS#8, DER: whoever has it is the trust domain
}

// ExportRoot returns the active root's certificate and key. It is ErrRefused
// where the key cannot leave its source, and ErrNothing where the root is not
// ours.
func (a *Authority) ExportRoot(ctx context.Context) (ExportedRoot, error) {
	var done ExportedRoot
	err := a.act("exporting the root", ctx, func(time.Time) error {
		root, err := a.ownRoot()
		if err != nil {
			return err
		}
		key, err := openKey(ctx, a.cfg.RootKeys, root)
		if err != nil {
			return err
		}
		switch key.(type) {
		case *ecdsa.PrivateKey, *rsa.PrivateKey:
		default:
			return refused("the root's key never leaves %s, which keeps it offline by its own means", a.keySource(root))
		}
		done = ExportedRoot{Root: a.status(root.ID), Certificate: root.Chain[0]}
		done.Key, err = x509.MarshalPKCS8PrivateKey(key)
		return err
	})
	if err != nil {
		return ExportedRoot{}, err
	}
	return done, nil
}

func (a *Authority) ownRoot() (Record, error) {
	root, ok := activeRoot(a.live.Load())
	if !ok || root.KeyRef == "" {
		return root, nothing("the active root is not ours: its owner keeps its key")
	}
	return root, nil
}

// RemoveRootKey takes the active root's key out of its source, once a copy is
// elsewhere: id is the root that the caller has a copy of. A CA of ours under it
// must sign issuing CAs by then, or the next of them could not be made.
func (a *Authority) RemoveRootKey(ctx context.Context, id string) (Status, error) {
	var st Status
	err := a.act("removing the root's key", ctx, func(time.Time) error {
		root, err := a.ownRoot()
		if err != nil {
			return err
		}
		signer, _ := a.live.Load().signerUnder(root, Active)
		source, can := a.cfg.RootKeys.(interface {
			Remove(ctx context.Context, ref string) error
		})
		inStore := len(root.Sealed) > 0
		switch {
		case root.ID != id:
			return refused("the copy is of root %s, and %s is active", id, root.ID)
		case signer.ID == root.ID:
			return refused("root %s signs the issuing CAs itself: have a CA of ours certified under it first (csr, install)", id)
		case !can && !inStore:
			return refused("the root's key never leaves %s", a.keySource(root))
		}
		if root.Sealed = nil; inStore {
			if err := a.change(ctx, root); err != nil {
				return err
			}
		} else if err := source.Remove(ctx, root.KeyRef); err != nil {
			return err
		}
		a.mu.Lock()
		delete(a.signers, id)
		a.mu.Unlock()
		a.cfg.Log.WarnContext(ctx, "the root's key was taken offline", "authority", id)
		st = a.status(id)
		return nil
	})
	return st, err
}

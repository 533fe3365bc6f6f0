// Package publish pushes what a trust domain publishes, its bundle and the
// documents of its OIDC issuer, to places that others serve: for brokers that
// peers and clouds cannot reach.
//
// It trusts what it is given to publish, and of a place only that it keeps what
// was put there; what is there already it holds against what is to come, and
// never replaces newer or foreign documents. Making the documents is left to the
// authority, credentials to who makes a place's client, and what one kind of
// place asks for to the packages below.
package publish

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/federation"
)

// Names of the documents in a place: the issuer's URL leads to the place, so
// the first two are as OpenID Connect Discovery §4 and our jwks_uri have them.
const (
	DiscoveryName = ".well-known/openid-configuration"
	KeysName      = "keys"
	BundleName    = "bundle"
)

// MaxHeld bounds what is read of a document that a place holds.
const MaxHeld = federation.MaxDocument

var (
	// ErrConflict says that somebody else changed a document meanwhile.
	ErrConflict = errors.New("somebody else published there meanwhile")
	// ErrNewer says that a place holds more than we have.
	ErrNewer = errors.New("a newer bundle is published there")
	// ErrForeign says that a place holds somebody else's documents.
	ErrForeign = errors.New("it is not ours to replace")
)

// A Set is what a trust domain publishes at one time.
type Set struct {
	TrustDomain spiffeid.TrustDomain
	Bundle      []byte // the SPIFFE document; required, with a sequence number

	// Of the issuer, both or none.
	Issuer    string
	Discovery []byte
	Keys      []byte

	BundleCache, OIDCCache string // Cache-Control of the documents
}

// check refuses half a set, and returns the bundle.
func (s Set) check() (*federation.Bundle, error) {
	b, err := federation.ParseBundle(s.TrustDomain, s.Bundle)
	if err != nil {
		return nil, err
	}
	if _, ok := b.SequenceNumber(); !ok {
		return nil, errors.New("the bundle has no sequence number")
	}
	if (s.Issuer == "") != (s.Discovery == nil) || (s.Issuer == "") != (s.Keys == nil) {
		return nil, errors.New("issuer, discovery and keys are wanted, or none of them")
	}
	return b, nil
}

// documents are in the order of their publication: a key set is there before
// what leads to it, and the bundle, by whose number one tells how new all are,
// is the last.
func (s Set) documents() []Document {
	const json = "application/json"
	bundle := Document{BundleName, s.Bundle, Headers{json, s.BundleCache}}
	if s.Issuer == "" {
		return []Document{bundle}
	}
	return []Document{{KeysName, s.Keys, Headers{json, s.OIDCCache}}, {DiscoveryName, s.Discovery, Headers{json, s.OIDCCache}}, bundle}
}

// A Document is one to be published.
type Document struct {
	Name string // below the place's prefix
	Body []byte
	Headers
}

// Headers are those with which a place serves a document.
type Headers struct{ ContentType, CacheControl string }

// Held is a document that a place holds.
type Held struct {
	Body    []byte
	Headers *Headers // nil: the place keeps none
	Version string   // not empty; another for other content
}

func (h *Held) is(d Document) bool {
	return h != nil && string(h.Body) == string(d.Body) && (h.Headers == nil || *h.Headers == d.Headers)
}

// A Target is where a set is published. Publish returns when all of it is
// durable there, with the names of what it changed.
type Target interface {
	Publish(context.Context, Set) (changed []string, err error)
}

// A Store keeps documents, each replaced whole or not at all. Get returns nil
// for what is not there, and refuses what is larger than MaxHeld. Put replaces
// the version that Get returned, or makes what is not there: else it is
// ErrConflict. When it returns the document is durable.
type Store interface {
	Get(ctx context.Context, name string) (*Held, error)
	Put(ctx context.Context, d Document, replaces *Held) error
}

// Documents is a Target that keeps the documents as they are.
type Documents struct{ Store Store }

// Publish puts what differs. It refuses, and changes nothing, where the place
// holds a bundle with a higher number, or with the same and other content
// (SPIFFE Trust Domain and Bundle §4.1.1), another issuer's documents, or what
// is no document of these kinds. Two that publish at once cannot mix theirs.
func (p Documents) Publish(ctx context.Context, s Set) (changed []string, err error) {
	bundle, err := s.check()
	if err != nil {
		return nil, fmt.Errorf("publishing: %w", err)
	}
	all := s.documents()
	held := make([]*Held, len(all))
	for i, d := range all {
		if held[i], err = p.Store.Get(ctx, d.Name); err != nil {
			return nil, fmt.Errorf("publishing: %w", err)
		}
		if err := s.mayReplace(d, held[i], bundle); err != nil {
			return nil, fmt.Errorf("publishing %s: %w", d.Name, err)
		}
	}
	for i, d := range all {
		if held[i].is(d) {
			continue
		}
		if err := p.Store.Put(ctx, d, held[i]); err != nil {
			return changed, fmt.Errorf("publishing: %w", err)
		}
		changed = append(changed, d.Name)
	}
	return changed, nil
}

func (s Set) mayReplace(d Document, held *Held, ours *federation.Bundle) error {
	if held == nil {
		return nil
	}
	switch d.Name {
	case BundleName:
		theirs, err := federation.ParseBundle(s.TrustDomain, held.Body)
		if err != nil {
			return fmt.Errorf("%w: what is there is no bundle: remove it first, if it may go: %v", ErrForeign, err)
		}
		last, _ := theirs.SequenceNumber() // none: older than any
		next, _ := ours.SequenceNumber()
		if last > next || last == next && string(held.Body) != string(d.Body) {
			return fmt.Errorf("%w: its sequence number is %d, ours %d; is it another broker's, or was this one restored from a backup?", ErrNewer, last, next)
		}
	case DiscoveryName:
		var theirs struct {
			Issuer string `json:"issuer"`
		}
		if err := json.Unmarshal(held.Body, &theirs); err != nil || theirs.Issuer != s.Issuer {
			return fmt.Errorf("%w: it is discovery of issuer %.300q: remove it first, if it may go", ErrForeign, theirs.Issuer)
		}
	case KeysName:
		var theirs struct {
			Keys []json.RawMessage `json:"keys"`
		}
		if err := json.Unmarshal(held.Body, &theirs); err != nil || theirs.Keys == nil {
			return fmt.Errorf("%w: what is there is no key set: remove it first, if it may go", ErrForeign)
		}
	}
	return nil
}

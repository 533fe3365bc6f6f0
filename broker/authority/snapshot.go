package authority

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/credence-id/credence/broker/identity"
)

// A snapshot is everything that signing needs. It is immutable and swapped
// whole.
type snapshot struct {
	bundle  *Bundle
	records []Record                        // in the order of their publication
	index   map[string]int                  // of records, by ID: years leave thousands
	issuing *issuingCA                      // nil: none that the bundle verifies
	jwt     map[string]*jwtKey              // the active one by algorithm
	keys    map[identity.KeyDigest]struct{} // of every authority there ever was
	signing map[string]bool                 // IDs of the keys that are open
}

type issuingCA struct {
	Record
	cert   *x509.Certificate
	chain  []*x509.Certificate // cert, then what stands between it and the root; none where cert is the root
	crl    []string            // distribution points for what it signs
	signer crypto.Signer
}

type jwtKey struct {
	Record
	header []byte // encoded, with its dot
	signer crypto.Signer
}

func digest(spki []byte) identity.KeyDigest { return sha256.Sum256(spki) }

// published says whether relying parties believe the authority.
func (r Record) published() bool {
	return r.State == Published || r.State == Active || r.State == Old
}

func (s *snapshot) find(id string) (Record, bool) {
	i, ok := s.index[id]
	if !ok {
		return Record{}, false
	}
	return s.records[i], true
}

// of returns the records of one use and, where alg is set, algorithm.
func (s *snapshot) of(use Use, alg string) []Record {
	var some []Record
	for _, r := range s.records {
		if r.Use == use && (alg == "" || r.Alg == alg) {
			some = append(some, r)
		}
	}
	return some
}

// snapshot builds what the records mean, with the keys in use. The caller holds
// a.mu, under withKeys.
func (a *Authority) snapshot(records []Record, sequence uint64) (*snapshot, error) {
	s := &snapshot{
		records: slices.Clone(records),
		jwt:     map[string]*jwtKey{},
		keys:    make(map[identity.KeyDigest]struct{}, len(records)),
		signing: map[string]bool{},
		index:   make(map[string]int, len(records)),
	}
	slices.SortFunc(s.records, func(x, y Record) int {
		return cmp.Or(x.PublishedAt.Compare(y.PublishedAt), cmp.Compare(x.ID, y.ID))
	})
	var err error
	if s.bundle, err = makeBundle(a.cfg.TrustDomain, s.records, sequence, a.cfg.Lives.RefreshHint); err != nil {
		return nil, err
	}
	for i, r := range s.records {
		s.index[r.ID] = i
		s.keys[digest(r.PublicKey)] = struct{}{}
		if err := a.use(s, r); err != nil {
			return nil, err
		}
	}
	a.fallBack(s)
	return s, nil
}

// fallBack has the key before sign on, while it is published, where the active
// one cannot be opened here.
func (a *Authority) fallBack(s *snapshot) {
	for _, r := range s.of(JWTKey, "") {
		before := r
		before.State = Active // it signed until now: no standby is one to fall back to
		signer, err := a.signer(before)
		if r.State != Old || err != nil || s.jwt[r.Alg] != nil || a.unopened[s.active(r.Alg)] == nil {
			continue
		}
		s.jwt[r.Alg] = &jwtKey{Record: r, header: jwtHeader(r), signer: signer}
		s.signing[r.ID] = true
	}
}

// active is the ID of the active JWT key of alg.
func (s *snapshot) active(alg string) string {
	if k := s.jwtKeys(alg); k.active != nil {
		return k.active.ID
	}
	return ""
}

// use takes the key of r in if it signs, or will next.
func (a *Authority) use(s *snapshot, r Record) error {
	switch {
	case r.Use != JWTKey && r.State == Active && (r.Use != Issuing || r.Broker == a.cfg.Broker):
		return a.useCA(s, r)
	case r.Use == JWTKey && (r.State == Active || r.State == Published):
		// The standby's too: a key that is lost should be missed before it is needed.
		if a.unopened[r.ID] != nil {
			return nil
		}
		signer, err := a.signer(r)
		if err != nil {
			return err
		}
		if r.State == Active {
			s.jwt[r.Alg] = &jwtKey{Record: r, header: jwtHeader(r), signer: signer}
		}
	default:
		return nil
	}
	s.signing[r.ID] = true
	return nil
}

// useCA lets r sign SVIDs if it is there for that: an issuing CA, or a CA of
// ours that may certify no other.
func (a *Authority) useCA(s *snapshot, r Record) error {
	if r.KeyRef == "" {
		return nil
	}
	chain, err := parseChain(r)
	if err != nil {
		return err
	}
	if r.Use != Issuing && !leavesOnly(chain[0]) {
		return nil
	}
	if uris := chain[0].URIs; len(uris) > 0 && uris[0].String() != a.cfg.TrustDomain.IDString() {
		return fmt.Errorf("authority %s: its certificate is not one of %s", r.ID, a.cfg.TrustDomain)
	}
	ca := &issuingCA{Record: r, cert: chain[0], chain: chain, crl: a.crlURLs(r.ID, chain[0])}
	if r.Use == Root {
		ca.chain = nil
	}
	if !s.bundle.verifies(ca) || a.unopened[r.ID] != nil {
		return nil // its root or its key is gone: it is replaced
	}
	if ca.signer, err = a.signer(r); err != nil {
		return err
	}
	s.issuing = ca
	s.signing[r.ID] = true
	return nil
}

// An openedKey is open for what it was in that state.
type openedKey struct {
	crypto.Signer
	state State
}

// signer returns r's open key. Where it is not open, the error is closedKey:
// withKeys opens it. One that lies in the records is opened anew for each state: it
// is good for the one that it is sealed for, whatever the record says.
func (a *Authority) signer(r Record) (crypto.Signer, error) {
	_, sealing := a.keysOf(r).(SealedKeys)
	if s, ok := a.signers[r.ID]; ok && (!sealing || s.state == r.State) {
		return s.Signer, nil
	}
	return nil, &closedKey{r}
}

// keysOf is where r's key is kept.
func (a *Authority) keysOf(r Record) Keys {
	switch r.Use {
	case Root, Domain:
		return a.cfg.RootKeys
	case JWTKey:
		return a.cfg.JWTKeys
	}
	return a.cfg.Keys
}

func openKey(ctx context.Context, keys Keys, r Record) (crypto.Signer, error) {
	s, err := open(ctx, keys, r)
	if err != nil {
		return nil, fmt.Errorf("opening the key of authority %s (%s %s): %w", r.ID, r.Use, r.Alg, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(s.Public())
	if err != nil || !slices.Equal(spki, r.PublicKey) {
		return nil, fmt.Errorf("opening the key of authority %s (%s %s): %s is another key", r.ID, r.Use, r.Alg, r.KeyRef)
	}
	return s, nil
}

// newRecord makes a key, durably, and the record that names it: the first
// half of its digest is its ID, unique over all uses and algorithms.
func newRecord(ctx context.Context, keys Keys, use Use, alg string) (Record, crypto.Signer, error) {
	ref, signer, err := keys.Create(ctx, alg)
	if err != nil {
		return Record{}, nil, fmt.Errorf("making a key for %s %s: %w", use, alg, err)
	}
	spki, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return Record{}, nil, fmt.Errorf("making a key for %s %s: %w", use, alg, err)
	}
	r := Record{ID: digest(spki).String()[:32], Use: use, Alg: alg, KeyRef: ref, PublicKey: spki}
	if sealing, ok := keys.(SealedKeys); ok {
		if r.Sealed, err = sealing.Seal(signer, r.bound()...); err != nil {
			return Record{}, nil, fmt.Errorf("making a key for %s %s: %w", use, alg, err)
		}
	}
	return r, signer, nil
}

// bound is what a sealed key is good for. A new one is of no state yet, and good
// for nothing.
func (r Record) bound() []string { return []string{r.ID, string(r.Use), r.Alg, string(r.State)} }

func open(ctx context.Context, keys Keys, r Record) (crypto.Signer, error) {
	sealing, ok := keys.(SealedKeys)
	switch {
	case !ok && len(r.Sealed) > 0:
		return nil, errors.New("it lies encrypted in the store, and nothing is configured that opens it")
	case !ok:
		return keys.Open(ctx, r.KeyRef)
	case len(r.Sealed) == 0:
		return nil, fmt.Errorf("it is not in the store: %w", fs.ErrNotExist)
	}
	return sealing.Unseal(r.Sealed, r.bound()...)
}

// sealed returns the changed records with their keys sealed for what they become.
// That of a revoked one is good for nothing more, and goes.
func (a *Authority) sealed(last *snapshot, changed []Record) ([]Record, error) {
	changed = slices.Clone(changed)
	for i, r := range changed {
		before := r
		if known, ok := last.find(r.ID); ok && bytes.Equal(known.Sealed, r.Sealed) {
			before = known
		} else {
			before.State = ""
		}
		if r.State == Revoked {
			changed[i].Sealed = nil
		}
		if len(changed[i].Sealed) == 0 || slices.Equal(before.bound(), r.bound()) {
			continue
		}
		if err := a.reseal(&changed[i], before); err != nil {
			return nil, fmt.Errorf("sealing the key of authority %s (%s %s) as %s: %w", r.ID, r.Use, r.Alg, r.State, err)
		}
	}
	return changed, nil
}

func (a *Authority) reseal(r *Record, before Record) error {
	sealing, ok := a.keysOf(*r).(SealedKeys)
	if !ok {
		return errors.New("nothing is configured that opens it")
	}
	key, err := sealing.Unseal(before.Sealed, before.bound()...)
	if err != nil {
		return err
	}
	r.Sealed, err = sealing.Seal(key, r.bound()...)
	return err
}

// stamp is when something that becomes durable after now is public: rounded
// up, so that no lead is short.
func stamp(now time.Time) time.Time { return now.Add(time.Second) }

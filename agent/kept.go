package agent

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

const (
	maxKeptFile = 64 << 20
	keepEvery   = time.Second     // what is granted is on disk by then; what is erased, at once
	keepTokens  = 5 * time.Second // and a token by then: there are many, and each is soon replaced
)

// kept is what this agent serves, sealed on disk, so that it goes on after a
// restart though the broker is away (decision 12): still-valid SVIDs with their
// keys and what each was decided on, JWT-SVIDs, and the peers' bundles. What an earlier run
// kept is lent to a process attested anew with equal facts, until this run has
// heard the broker: from then on the broker is asked.
type kept struct {
	path    string
	seal    seal
	changed chan struct{} // of capacity 1
	erased  chan struct{} // of capacity 1
	token   chan struct{} // of capacity 1

	mu    sync.Mutex // guards what follows
	svids []*SVID    // of an earlier run; nil once the broker was heard
	peers map[spiffeid.TrustDomain]*api.Bundle
}

// keptFile is what is sealed. Messages are protobuf's.
type keptFile struct {
	SVIDs  []keptSVID  `json:"svids"`
	Peers  [][]byte    `json:"peers"` // api.Bundle
	Tokens []keptToken `json:"tokens,omitempty"`
}

type keptSVID struct {
	SVID    []byte `json:"svid"` // api.X509SVID
	Key     []byte `json:"key"`  // PKCS #8
	RenewAt int64  `json:"renew_at"`
}

// noSet stands for what an earlier run held: no set has this digest.
var noSet [sha256.Size]byte

// openKept takes up what an earlier run kept. What cannot be opened, such as
// after the machine was started anew, is nothing to go by, and is dropped.
func (a *Agent) openKept() error {
	k := &a.kept
	k.path, k.peers = filepath.Join(a.cfg.Data, "svids.sealed"), make(map[spiffeid.TrustDomain]*api.Bundle)
	k.changed, k.erased, k.token = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	var err error
	if k.seal, err = openSeal(a.cfg); err != nil {
		return fmt.Errorf("sealing what is served: %w", err)
	}
	text, err := readSealed(k.path, k.seal)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = a.restore(text)
	}
	if err != nil {
		a.cfg.Log.Warn("what an earlier run served is not taken up", "file", k.path, "seal", k.seal.where, "error", err)
		k.svids = nil
		a.tokens.init(k)
		return k.remove()
	}
	return nil
}

func readSealed(path string, seal seal) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxKeptFile {
		return nil, fmt.Errorf("%d bytes: not ours", info.Size())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return seal.open(text)
}

func (a *Agent) restore(text []byte) error {
	var f keptFile
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	now := a.cfg.Now()
	for _, one := range f.SVIDs {
		v, err := a.restored(one)
		if err != nil {
			return err
		}
		if v.current(now) {
			a.kept.svids = append(a.kept.svids, v)
		}
	}
	for _, raw := range f.Peers {
		b := &api.Bundle{}
		if err := proto.Unmarshal(raw, b); err != nil {
			return err
		}
		if td, err := federation.ParseTrustDomain(b.GetTrustDomain()); err != nil || td == a.cfg.TrustDomain {
			return fmt.Errorf("a peer's bundle of %q", b.GetTrustDomain())
		}
		if err := a.takeBundle(b); err != nil {
			return err
		}
	}
	return a.restoreTokens(f.Tokens)
}

// restored reads an SVID, which must verify by our own bundle as it is now.
func (a *Agent) restored(one keptSVID) (*SVID, error) {
	m := &api.X509SVID{}
	if err := proto.Unmarshal(one.SVID, m); err != nil {
		return nil, err
	}
	v, err := a.bare(m)
	if err != nil {
		return nil, err
	}
	for _, der := range m.GetChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		v.Certificates = append(v.Certificates, c)
	}
	key, err := x509.ParsePKCS8PrivateKey(one.Key)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok || len(v.Certificates) == 0 || len(v.Certificates) > maxChain {
		return nil, errors.New("an SVID without its key or its certificates")
	}
	pub, ok := signer.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(v.Certificates[0].PublicKey) {
		return nil, errors.New("a key of another SVID")
	}
	v.Key, v.KeyDER, v.renewAt = signer, one.Key, time.Unix(one.RenewAt, 0)
	if !v.current(a.cfg.Now()) {
		return v, nil // it is dropped
	}
	roots := x509bundle.FromX509Authorities(a.cfg.TrustDomain, a.bundles.roots(a.cfg.TrustDomain))
	if id, _, err := federation.VerifyX509(v.Certificates, roots, a.cfg.Now()); err != nil || id != v.ID {
		return nil, fmt.Errorf("an SVID that our bundle does not verify: %w", err)
	}
	return v, nil
}

// lendable are the SVIDs of an earlier run that hold for a workload.
func (k *kept) lendable(w *api.Workload, now time.Time) (found []*SVID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, v := range k.svids {
		if v.current(now) && covers(v.depends, w) {
			found = append(found, v)
		}
	}
	return found
}

// forget ends the lending from an earlier run: the broker decides from now on.
func (k *kept) forget() {
	k.mu.Lock()
	k.svids = nil
	k.mu.Unlock()
	k.nudge(true)
}

// learn notes a peer's bundle as the broker told it; nil: it is a peer's no more.
func (k *kept) learn(td spiffeid.TrustDomain, b *api.Bundle) {
	k.mu.Lock()
	if b == nil {
		delete(k.peers, td)
	} else {
		k.peers[td] = b
	}
	k.mu.Unlock()
	k.nudge(b == nil)
}

// nudge has the file written, at once where something was erased.
func (k *kept) nudge(erased bool) {
	wake := k.changed
	if erased {
		wake = k.erased
	}
	select {
	case wake <- struct{}{}:
	default:
	}
}

// nudgeLater has the file written soon.
func (k *kept) nudgeLater() {
	select {
	case k.token <- struct{}{}:
	default:
	}
}

// linger waits for more of what is not urgent.
func (k *kept) linger(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-k.changed:
	case <-k.erased:
	case <-time.After(keepTokens):
	}
}

// keeping writes the file after each change, until ctx ends: erasures at once.
func (a *Agent) keeping(ctx context.Context) error {
	k := &a.kept
	for {
		select {
		case <-ctx.Done():
			a.storeNow(ctx)
			return nil
		case <-k.changed:
		case <-k.erased:
		case <-k.token:
			k.linger(ctx)
		}
		a.storeNow(ctx)
		select {
		case <-ctx.Done(): // once more, above
		case <-time.After(keepEvery):
		case <-k.erased:
			a.storeNow(ctx)
		}
	}
}

func (a *Agent) storeNow(ctx context.Context) {
	a.pulses.keeping.work(a.cfg.Now())
	defer a.pulses.keeping.rest()
	if err := a.store(); err != nil {
		a.cfg.Log.WarnContext(ctx, "what is served is not kept for a restart", "error", err)
	}
}

// store replaces the file by what is served now. Where nothing is, there is none.
func (a *Agent) store() error {
	k := &a.kept
	f, err := a.snapshot()
	if err != nil {
		return err
	}
	if len(f.SVIDs) == 0 && len(f.Peers) == 0 {
		return k.remove()
	}
	text, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := renameio.WriteFile(k.path, k.seal.close(text), 0o600, renameio.WithTempDir(filepath.Dir(k.path))); err != nil {
		return errors.Join(err, k.remove()) // rather nothing than what was erased
	}
	return nil
}

func (k *kept) remove() error {
	if err := os.Remove(k.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (a *Agent) snapshot() (f keptFile, err error) {
	k, now := &a.kept, a.cfg.Now()
	k.mu.Lock()
	all := slices.Clone(k.svids)
	for _, b := range k.peers {
		raw, err := proto.Marshal(b)
		if err != nil {
			k.mu.Unlock()
			return f, err
		}
		f.Peers = append(f.Peers, raw)
	}
	k.mu.Unlock()
	for _, v := range append(all, a.sets.granted()...) {
		if !v.current(now) || len(v.depends) == 0 || isProof(v.depends) {
			continue
		}
		raw, err := proto.Marshal(v.message())
		if err != nil {
			return f, err
		}
		f.SVIDs = append(f.SVIDs, keptSVID{raw, v.KeyDER, v.renewAt.Unix()})
	}
	f.Tokens, err = a.tokens.snapshot(now)
	return f, err
}

// granted are the SVIDs of all sets, but those that are lent.
func (s *sets) granted() (all []*SVID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.all {
		if len(st.lenders) == 0 {
			all = append(all, st.svids...)
		}
	}
	return all
}

// message is an SVID as the broker told it.
func (v *SVID) message() *api.X509SVID {
	m := &api.X509SVID{
		Identity: v.Identity, SpiffeId: v.ID.String(), Hint: v.Hint, Digest: v.digest, FederatesWith: v.FederatesWith,
		JwtAudiences: v.JWTAudiences, Depends: v.depends,
	}
	for _, name := range slices.Sorted(maps.Keys(v.JWTUses)) {
		m.JwtUses = append(m.JwtUses, &api.AudienceUse{Audience: name, Use: v.JWTUses[name]})
	}
	for _, c := range v.Certificates {
		m.Chain = append(m.Chain, c.Raw)
	}
	for _, t := range v.Targets {
		m.Targets = append(m.Targets, &api.Target{Name: t.Name, Revision: t.Revision, Provider: t.Flow, Settings: t.Settings})
	}
	return m
}

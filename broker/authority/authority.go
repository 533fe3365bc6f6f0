// Package authority keeps the trust domain's own authorities: the root, this
// broker's issuing CA and the JWT keys. It signs what has been granted, renews
// the keys in time, and says what the trust domain's bundle is.
//
// It trusts a Grant for who may have what, and only a fresh one: it looks at
// nothing else of a request. It trusts its Records and Keys to keep what they
// said they kept; every key is durable before the record that names it, and
// every record before its key signs, so that a crash between any two steps
// loses nothing but a key file that nobody uses. Deciding is left to
// broker/identity, recording what was signed to the broker, serving the bundle
// to federation/endpoint and broker/oidc.
//
// Decided where SPIFFE's documents contradict themselves (the numbers are those
// of the tests):
//   - D-02 each CA has the trust domain's SPIFFE ID, without a path or slash.
//   - D-05 one audience is a string, more are a list; exp is an integer.
//   - D-12 a kid is of one key of the bundle, whatever its use.
//   - D-13 CAs have keyCertSign and cRLSign, and no other usage.
//   - D-15 an ID without a path gets neither certificate nor token.
//   - D-16 no CA has name constraints, but where the owner asks for them: with
//     them no validator takes a trust domain that looks like an address.
//   - D-20 tokens have no nbf: iat and notBefore lie back by what clocks differ.
package authority

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config is the wiring of an Authority. Fields are required unless noted.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Issuer      string // `iss` of JWT-SVIDs, never normalised; empty: no JWT-SVIDs
	Broker      string // whose issuing CA this is
	Records     Records
	Keys        Keys
	RootKeys    Keys   // nil: Keys; opened only to sign an issuing CA or a CRL
	JWTKeys     Keys   // nil: Keys
	Leases      Leases // where several brokers share the Records; nil: this is the only one
	Lives       Lives  // zero fields take their defaults

	Upstream     Upstream // who certifies our CAs by itself; nil: our own root, or what Install brought
	UpstreamName string   // for List and errors: "vault", "disk"; "csr" without an Upstream: no root of our own is made, Install is awaited
	Anchor       string   // under a corporate root: "root" (default), the bundle holds it; "ours", it holds our CA's own certificate
	SharedRoot   string   // what else that root signs: "dedicated" nothing, "shared" others too; empty refuses Anchor "root"

	// NameConstraints has our CAs permit URIs of our trust domain only. Not
	// every library reads such constraints: GnuTLS and rustls-webpki since
	// 0.103.12 refuse every chain that has them, Mbed TLS refuses the critical
	// extension, and rustls-webpki before that ignored them.
	NameConstraints bool
	// CRLURLs are the CRL distribution points in issuing CAs and SVIDs: each
	// http:// or https://, with %s where the issuer's authority ID goes.
	CRLURLs []string

	// Places are where the keys are published besides, for relying parties that
	// cannot reach us: a JWT key's lead counts from when each of them has it.
	// Confirmed says since when which places have a key; required with Places.
	Places    []string
	Confirmed func(ctx context.Context, id string) (map[string]time.Time, error)

	Now func() time.Time // nil means time.Now
	Log *slog.Logger     // nil discards
}

// An Authority signs SVIDs. Its methods may be called concurrently; signing
// takes no lock.
type Authority struct {
	cfg  Config
	live atomic.Pointer[snapshot]

	ready     chan struct{} // closed when RS256 can be signed
	readyOnce sync.Once

	ticking turn      // one Tick or act at a time: keys are made meanwhile
	tries   int       // of the upstream, failed one after the other; under ticking
	tryAt   time.Time // when to ask the upstream again; under ticking
	asking  unused    // the key that the upstream is asked to certify; under ticking
	lease   Lease     // held by this broker, if its Fence is set; under ticking
	asked   bool      // an operator asked for what is done; under ticking
	decided Version   // what is done was decided on no older one; under ticking

	listing  sync.Mutex // held while lists are read and put in place
	lists    atomic.Pointer[revocations]
	problems problems
	spreads  spreads
	ahead    ahead
	wake     chan struct{} // tells Run that another broker changed something

	mu          sync.Mutex // guards what follows, and is held while records are saved; never while a key source works
	publication Publication
	signers     map[string]openedKey // open keys by authority ID
	unopened    map[string]error     // keys that could not be opened since the records were read, by authority ID
	stale       bool                 // a save failed: what is durable is not known
	opened      bool                 // Open is done
}

// Open returns the authority that the records describe. In an empty store it
// first makes the root, this broker's issuing CA and, with an Issuer, the ES256
// keys. RSA keys take their time and are left to Run: see Ready. Nothing is in
// use before it is durable.
func Open(ctx context.Context, cfg Config) (*Authority, error) {
	cfg, err := complete(cfg)
	if err != nil {
		return nil, err
	}
	a := &Authority{
		cfg: cfg, ready: make(chan struct{}), ticking: make(turn, 1), wake: make(chan struct{}, 1),
		signers: map[string]openedKey{}, unopened: map[string]error{}, stale: true,
	}
	a.lists.Store(&revocations{changed: make(chan struct{})})
	if err := a.read(ctx); err != nil {
		return nil, err
	}
	defer a.resign(ctx)
	if err := a.settled(ctx, a.makeRoot); err != nil {
		return nil, err
	}
	if err := a.checkClock(); err != nil {
		return nil, err
	}
	// What else the configuration changed of the bundle (its refresh hint) is a
	// new bundle: it gets a new sequence number.
	if err := a.settled(ctx, func(ctx context.Context) error { return a.change(ctx) }); err != nil {
		if a.live.Load().issuing == nil {
			return nil, err
		}
		a.cfg.Log.ErrorContext(ctx, "the bundle is not published anew yet", "error", err)
	}
	// What works goes on working: only a start without anything that signs fails.
	err = a.settled(ctx, func(ctx context.Context) error { _, err := a.renewIssuing(ctx); return err })
	if err != nil {
		ca := a.live.Load().issuing
		if awaited := ca == nil && a.byHand(); !awaited && (ca == nil || !a.now().Before(ca.NotAfter)) {
			return nil, err
		}
		a.cfg.Log.ErrorContext(ctx, "the issuing CA is not renewed yet", "error", err)
		if err := a.sync(ctx); err != nil {
			return nil, err
		}
	}
	if err := a.settled(ctx, func(ctx context.Context) error { _, err := a.rotateJWT(ctx, "ES256"); return err }); err != nil {
		if a.live.Load().jwt["ES256"] == nil {
			return nil, err
		}
		a.cfg.Log.ErrorContext(ctx, "JWT keys are not rotated yet", "error", err)
	}
	// CRLs that cannot be made now are made later: Tick says what stands in the way.
	if err := a.settled(ctx, func(ctx context.Context) error { _, err := a.renewCRLs(ctx); return err }); err != nil {
		a.cfg.Log.ErrorContext(ctx, "CRLs are not made yet", "error", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opened = true
	return a, nil
}

func complete(cfg Config) (Config, error) {
	switch {
	case cfg.TrustDomain.IsZero():
		return cfg, errors.New("opening the authority: no trust domain")
	case cfg.Broker == "":
		return cfg, errors.New("opening the authority: no name of this broker")
	case cfg.Records == nil || cfg.Keys == nil:
		return cfg, errors.New("opening the authority: no records or no keys")
	}
	if cfg.RootKeys == nil {
		cfg.RootKeys = cfg.Keys
	}
	if cfg.JWTKeys == nil {
		cfg.JWTKeys = cfg.Keys
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	if cfg.Lives, err = cfg.Lives.complete(); err != nil {
		return cfg, fmt.Errorf("opening the authority: %w", err)
	}
	if err := errors.Join(completeAnchor(&cfg), checkPlaces(cfg)); err != nil {
		return cfg, fmt.Errorf("opening the authority: %w", err)
	}
	return cfg, nil
}

// Ready waits until JWT-SVIDs of every algorithm can be signed and the OIDC
// keys are published. Without an Issuer there is nothing to wait for. In a new
// trust domain Run must be running.
func (a *Authority) Ready(ctx context.Context) error {
	if a.cfg.Issuer == "" {
		return nil
	}
	select {
	case <-a.ready:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the first RS256 key: %w", context.Cause(ctx))
	}
}

// Bundle is the trust domain's own, as it is now.
func (a *Authority) Bundle() *Bundle { return a.live.Load().bundle }

// Document is the bundle as SPIFFE Trust Domain and Bundle §4 writes it. Its
// bytes change only when the bundle does.
func (a *Authority) Document() (document []byte, ok bool) { return a.Bundle().Document, true }

// Changed is closed when the bundle that Bundle returned before is no longer
// the newest. To miss no change, call Changed first, then Bundle.
func (a *Authority) Changed() <-chan struct{} { return a.Bundle().Changed() }

// GetX509BundleForTrustDomain makes an Authority an x509bundle.Source for its
// own trust domain, and no other.
func (a *Authority) GetX509BundleForTrustDomain(td spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if td != a.cfg.TrustDomain {
		return nil, fmt.Errorf("no bundle of %q here: this is the authority of %s", td, a.cfg.TrustDomain)
	}
	return x509bundle.FromX509Authorities(td, a.Bundle().X509Authorities), nil
}

// IssuingChain is the certificate of the CA that signs SVIDs now, then what
// stands between it and its root: what an SVID is shown with. It is empty while
// there is no such CA, and where the root signs SVIDs itself.
func (a *Authority) IssuingChain() []*x509.Certificate {
	ca := a.live.Load().issuing
	if ca == nil {
		return nil
	}
	return slices.Clone(ca.chain)
}

// OIDCKeys are the RS256 keys in the bundle: those that clouds may see.
func (a *Authority) OIDCKeys() []PublicKey {
	var keys []PublicKey
	for _, k := range a.Bundle().JWTKeys {
		if k.Alg == "RS256" {
			keys = append(keys, k)
		}
	}
	return keys
}

// Pin is what an agent that has no bundle yet may trust: "sha256:" and the
// lower-case hex SHA-256 of the active root's SubjectPublicKeyInfo. It is empty
// as long as there is no root.
func (a *Authority) Pin() string {
	roots := a.live.Load().of(Root, "")
	i := slices.IndexFunc(roots, func(r Record) bool { return r.State == Active })
	if i < 0 {
		i = slices.IndexFunc(roots, Record.published)
	}
	if i < 0 {
		return ""
	}
	return "sha256:" + digest(roots[i].PublicKey).String()
}

// checkNext holds what no change may break, whoever asked for it: an issuing
// chain is used only if the bundle last published verifies it, and so does the
// next; what signs is replaced, never lost.
func (a *Authority) checkNext(next *snapshot) error {
	last := a.live.Load()
	switch ca := next.issuing; {
	case ca == nil && last.issuing != nil:
		return errors.New("changing authorities: no issuing CA would be left that the bundle verifies")
	case ca != nil && (last.issuing == nil || last.issuing.ID != ca.ID) && !last.bundle.verifies(ca):
		return fmt.Errorf("changing authorities: the bundle last published does not verify the CA %s", ca.ID)
	}
	for alg := range last.jwt {
		if a.cfg.Issuer != "" && next.jwt[alg] == nil {
			return fmt.Errorf("changing authorities: no active %s key would be left", alg)
		}
	}
	return nil
}

func (a *Authority) install(next *snapshot, publication Publication) {
	last := a.live.Load()
	if last != nil && bytes.Equal(last.bundle.Document, next.bundle.Document) {
		next.bundle = last.bundle // with the channel that others wait on
	}
	a.live.Store(next)
	a.publication = publication
	if last != nil && last.bundle != next.bundle {
		close(last.bundle.changed)
	}
	for id := range a.signers {
		if !next.signing[id] {
			delete(a.signers, id)
		}
	}
	if next.jwt["RS256"] != nil {
		a.readyOnce.Do(func() { close(a.ready) })
	}
}

// keep holds r's open key until the change that first uses it.
func (a *Authority) keep(r Record, key crypto.Signer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.signers[r.ID] = openedKey{key, r.State}
}

// now is the time in records: whole seconds.
func (a *Authority) now() time.Time { return a.cfg.Now().UTC().Truncate(time.Second) }

var _ x509bundle.Source = (*Authority)(nil)

// parseChain parses the certificates of a record.
func parseChain(r Record) ([]*x509.Certificate, error) {
	certs := make([]*x509.Certificate, 0, len(r.Chain))
	for _, der := range r.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parsing the certificate of authority %s: %w", r.ID, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("authority %s has no certificate", r.ID)
	}
	return certs, nil
}

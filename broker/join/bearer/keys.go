package bearer

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// Bounds of an issuer's keys.
const (
	maxKeys = 100
	// keysFresh is how long fetched keys are taken without a question: a key that
	// an issuer withdraws is believed that long.
	keysFresh = 5 * time.Minute
	// keysLast is how long they are taken while the issuer can't be asked.
	keysLast = time.Hour
	// askAgain is how often an issuer is asked at most, whatever keys tokens name.
	askAgain = 10 * time.Second
	askTime  = 5 * time.Second
)

// A Get fetches what an https URL answers, bounded in size and time. The URL is
// of an issuer that an operator named, or of its discovery document.
type Get func(ctx context.Context, url string) ([]byte, error)

// unavailable says that a token could not be judged: it may be tried again.
type unavailable struct{ err error }

func (e *unavailable) Error() string { return e.err.Error() }
func (e *unavailable) Unwrap() error { return e.err }

// Unavailable makes the error of a set of keys that could not judge a token, which
// is not the token's fault.
func Unavailable(err error) error { return &unavailable{err} }

func noKeys(err error) error {
	return Unavailable(fmt.Errorf("the issuer's keys are not to be had: %w", err))
}

// keySet are keys by their ID.
type keySet map[string]jose.JSONWebKey

// parseKeys reads a JWK Set (RFC 7517 §5). Keys that are not for signatures or
// too weak are left out, as are those without an ID: no token could name them.
func parseKeys(text []byte) (keySet, error) {
	if _, err := Object(text); err != nil {
		return nil, fmt.Errorf("reading a JWK Set: %w", err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(text, &set); err != nil {
		return nil, fmt.Errorf("reading a JWK Set: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("reading a JWK Set: %d keys, at most %d are taken", len(set.Keys), maxKeys)
	}
	keys := keySet{}
	for _, k := range set.Keys {
		if k.KeyID == "" || (k.Use != "" && k.Use != "sig") || !strong(k.Key) {
			continue
		}
		if _, twice := keys[k.KeyID]; twice {
			return nil, fmt.Errorf("reading a JWK Set: key ID %.80q stands there twice", k.KeyID)
		}
		keys[k.KeyID] = k
	}
	if len(keys) == 0 {
		return nil, errors.New("reading a JWK Set: it has no key for signatures")
	}
	return keys, nil
}

func strong(key any) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return k.N.BitLen() >= 2048 && k.N.BitLen() <= 8192
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false // private and symmetric ones too
}

// verify returns what the key that a token names signed. known is false where
// there is no such key.
func (s keySet) verify(token string) (payload []byte, known bool, err error) {
	var algorithms []jose.SignatureAlgorithm
	for _, alg := range Algorithms {
		algorithms = append(algorithms, jose.SignatureAlgorithm(alg))
	}
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, true, err
	}
	header := signed.Signatures[0].Protected
	key, ok := s[header.KeyID]
	if !ok {
		return nil, false, fmt.Errorf("its key %.80q is none of the issuer's", header.KeyID)
	}
	if key.Algorithm != "" && key.Algorithm != header.Algorithm {
		return nil, true, fmt.Errorf("its key is for %s, and it is signed by %s", key.Algorithm, header.Algorithm)
	}
	payload, err = signed.Verify(key.Key)
	return payload, true, err
}

type static keySet

// NewStatic returns the keys of a JWK Set that an operator was given.
func NewStatic(jwks []byte) (oidc.KeySet, error) {
	keys, err := parseKeys(jwks)
	return static(keys), err
}

// VerifySignature implements oidc.KeySet.
func (s static) VerifySignature(_ context.Context, token string) ([]byte, error) {
	payload, _, err := keySet(s).verify(token)
	return payload, err
}

// Remote are the keys that an issuer publishes (OpenID Connect Discovery §4). It
// follows their rotation, asks at most once in ten seconds whatever tokens name,
// and may be used concurrently.
type Remote struct {
	issuer string
	get    Get
	now    func() time.Time

	mu      sync.Mutex // guards what follows
	keys    keySet
	fetched time.Time
	tried   time.Time
	failed  error         // of the last try
	asking  chan struct{} // closed when the question under way has its answer; nil: none is
}

// NewRemote returns the keys of an issuer; nothing is asked yet. Now nil means
// time.Now.
func NewRemote(issuer string, get Get, now func() time.Time) *Remote {
	if now == nil {
		now = time.Now
	}
	return &Remote{issuer: issuer, get: get, now: now}
}

// VerifySignature implements oidc.KeySet.
func (r *Remote) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	keys, err := r.current(ctx, false)
	if err != nil {
		return nil, err
	}
	payload, known, err := keys.verify(token)
	if known {
		return payload, err
	}
	if keys, err = r.current(ctx, true); err != nil {
		return nil, err
	}
	payload, _, err = keys.verify(token)
	return payload, err
}

// current returns the keys, asked for anew where they are old, or where more is
// true: a key was not among them.
func (r *Remote) current(ctx context.Context, more bool) (keySet, error) {
	r.mu.Lock()
	for r.asking != nil {
		asking := r.asking
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, noKeys(ctx.Err())
		case <-asking:
		}
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	now := r.now()
	old := now.Sub(r.fetched) >= keysFresh || now.Before(r.fetched)
	if (old || more) && (r.tried.IsZero() || now.Sub(r.tried) >= askAgain || now.Before(r.tried)) {
		r.ask(ctx, now)
	}
	if r.keys == nil || now.Sub(r.fetched) >= keysLast {
		return nil, noKeys(r.failed)
	}
	return r.keys, nil
}

// ask fetches keys. It is called with mu held, and holds it again at the end.
func (r *Remote) ask(ctx context.Context, now time.Time) {
	done := make(chan struct{})
	r.asking, r.tried = done, now
	r.mu.Unlock()
	// Others wait for the answer, whoever asked first and may have left.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), askTime)
	keys, err := r.fetch(ctx)
	cancel()
	r.mu.Lock()
	defer close(done)
	r.asking, r.failed = nil, err
	if err == nil {
		r.keys, r.fetched = keys, now
	}
}

func (r *Remote) fetch(ctx context.Context) (keySet, error) {
	text, err := r.get(ctx, strings.TrimSuffix(r.issuer, "/")+"/.well-known/openid-configuration")
	if err != nil {
		return nil, err
	}
	document, err := Object(text)
	if err != nil {
		return nil, fmt.Errorf("reading its discovery document: %w", err)
	}
	if issuer, _ := document["issuer"].(string); issuer != r.issuer { // OpenID Connect Discovery §4.3
		return nil, fmt.Errorf("its discovery document is of %.200q, want %q", issuer, r.issuer)
	}
	at, _ := document["jwks_uri"].(string)
	if !strings.HasPrefix(at, "https://") {
		return nil, fmt.Errorf("its keys are at %.200q: an https URL is wanted", at)
	}
	if text, err = r.get(ctx, at); err != nil {
		return nil, err
	}
	return parseKeys(text)
}

//go:build pkcs11 && cgo

package pkcs11

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
)

// Keys are the keys of a token. Its methods may be called concurrently. No
// signature waits for anything but the login and, where the token has no more
// of them, a session. Close it.
type Keys struct {
	cfg     Config
	refused logins
	objects chan struct{} // holds who looks for keys, makes or removes them

	mu      sync.Mutex // never held while the token works
	current *session
	former  *session // dropped, and not yet closed
}

// New returns the keys on the token that cfg names. It reads the PIN's file,
// and asks the token nothing yet.
func New(cfg Config) (*Keys, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	if _, err := readPIN(cfg.PINFile); err != nil {
		return nil, err
	}
	return &Keys{cfg: cfg, objects: make(chan struct{}, 1)}, nil
}

// Close logs out. It doesn't wait for a token that hangs.
func (k *Keys) Close() error {
	k.mu.Lock()
	sessions := []*session{k.former, k.current}
	k.former, k.current = nil, nil
	k.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for _, s := range sessions {
			if s != nil {
				s.close()
			}
		}
	}()
	select {
	case <-done:
		return nil
	case <-time.After(k.cfg.Timeout):
		return fmt.Errorf("closing token %s: it does not answer", k.cfg.TokenLabel)
	}
}

// use has f use the token. A call into the module can't be stopped: when ctx
// ends, use returns, and f ends when the module lets it; abandoned then
// tidies up what it did. A login that has ended is made afresh, once.
func use[T any](ctx context.Context, k *Keys, act string, f func(*crypto11.Context) (T, error), abandoned func(*crypto11.Context, T)) (value T, err error) {
	for again := true; ; again = false {
		s, err := k.session(ctx)
		if err != nil {
			return value, fmt.Errorf("%s: %w", act, err)
		}
		if err := ctx.Err(); err != nil {
			return value, fmt.Errorf("%s: %w", act, err)
		}
		value, err = run(ctx, s.token, f, abandoned)
		if err == nil {
			return value, nil
		}
		if isGone(err) {
			k.drop(s)
			if again {
				continue
			}
		}
		return value, k.failure(act, err)
	}
}

func run[T any](ctx context.Context, token *crypto11.Context, f func(*crypto11.Context) (T, error), abandoned func(*crypto11.Context, T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var mu sync.Mutex // decides who has the result
	left := false
	done := make(chan result, 1)
	go func() {
		value, err := f(token)
		mu.Lock()
		defer mu.Unlock()
		if left && err == nil && abandoned != nil {
			abandoned(token, value)
		}
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	mu.Lock()
	left = true
	mu.Unlock()
	select {
	case r := <-done: // just now
		return r.value, r.err
	default:
		var none T
		return none, ctx.Err()
	}
}

// alone is f, while nobody else looks for keys, makes or removes them: some
// modules fail when these happen at once, SoftHSM2 among them.
func alone[T any](ctx context.Context, k *Keys, f func(*crypto11.Context) (T, error)) func(*crypto11.Context) (T, error) {
	return func(token *crypto11.Context) (T, error) {
		select {
		case k.objects <- struct{}{}:
			defer func() { <-k.objects }()
			return f(token)
		case <-ctx.Done():
			var none T
			return none, ctx.Err()
		}
	}
}

// Create makes a key of alg that the token keeps and never shows, with a label
// that says what it is for.
func (k *Keys) Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error) {
	curve := map[string]elliptic.Curve{"ES256": elliptic.P256(), "P256": elliptic.P256(), "P384": elliptic.P384()}[alg]
	bits := map[string]int{"RS256": 2048, "RSA2048": 2048, "RSA3072": 3072, "RSA4096": 4096}[alg]
	if curve == nil && bits == 0 {
		return "", nil, fmt.Errorf("making a key of %q on a token: this source makes RS256, ES256, P256, P384, RSA2048, RSA3072 and RSA4096", alg)
	}
	id := make([]byte, 8)
	rand.Read(id) // never fails: it ends the program instead
	label := "credence-" + k.cfg.Purpose + "-" + hex.EncodeToString(id)
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	act := fmt.Sprintf("making a key of %s on token %s", alg, k.cfg.TokenLabel)
	_, err = use(ctx, k, act, alone(ctx, k, func(token *crypto11.Context) (crypto11.Signer, error) {
		public, private, err := attributes(id, label)
		if err != nil {
			return nil, err
		}
		if curve != nil {
			return token.GenerateECDSAKeyPairWithAttributes(public, private, curve)
		}
		return token.GenerateRSAKeyPairWithAttributes(public, private, bits)
	}), func(_ *crypto11.Context, made crypto11.Signer) { _ = made.Delete() }) // nobody would know it
	if err != nil {
		return "", nil, err
	}
	ref = "pkcs11:object=" + label + ";type=private"
	if key, err = k.open(ctx, ref); err != nil {
		return "", nil, fmt.Errorf("%w; the key may stay, unused: pkcs11-tool --delete-object --type privkey --label %s", err, label)
	}
	return ref, key, nil
}

// attributes are what a key pair may be used for: signing, and nothing else.
func attributes(id []byte, label string) (public, private crypto11.AttributeSet, err error) {
	if public, err = crypto11.NewAttributeSetWithIDAndLabel(id, []byte(label)); err != nil {
		return nil, nil, err
	}
	private = public.Copy()
	set := func(a crypto11.AttributeSet, name crypto11.AttributeType, value bool) {
		if err == nil {
			err = a.Set(name, value)
		}
	}
	set(public, crypto11.CkaEncrypt, false)
	set(private, crypto11.CkaPrivate, true)
	set(private, crypto11.CkaDecrypt, false)
	return public, private, err
}

// Open finds the key that ref, an RFC 7512 URI, names, and reads its public
// key once.
func (k *Keys) Open(ctx context.Context, ref string) (crypto.Signer, error) {
	if _, _, err := parseRef(ref); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	return k.open(ctx, ref)
}

// Remove destroys a key. Nothing but a backup of the token brings it back.
func (k *Keys) Remove(ctx context.Context, ref string) error {
	if _, _, err := parseRef(ref); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, k.cfg.Timeout)
	defer cancel()
	_, err := use(ctx, k, "removing key "+ref, alone(ctx, k, func(token *crypto11.Context) (none struct{}, err error) {
		key, err := find(token, ref)
		if err == nil {
			err = key.Delete()
		}
		return none, err
	}), nil)
	return err
}

var refPattern = regexp.MustCompile(`^pkcs11:object=(credence-[a-z][a-z0-9-]{0,31}-([0-9a-f]{16}));type=private$`)

func parseRef(ref string) (id []byte, label string, err error) {
	m := refPattern.FindStringSubmatch(ref)
	if m == nil {
		return nil, "", fmt.Errorf("opening a key on a token: %.128q is not the name of one", ref)
	}
	id, err = hex.DecodeString(m[2])
	return id, m[1], err
}

// find finds the one key that ref names.
func find(token *crypto11.Context, ref string) (crypto11.Signer, error) {
	id, label, err := parseRef(ref)
	if err != nil {
		return nil, err
	}
	found, err := token.FindKeyPairs(id, []byte(label))
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, fmt.Errorf("%w: the token has no such key: put in the one that it was made on, or a copy", os.ErrNotExist)
	case len(found) > 1:
		return nil, errors.New("the token has it twice: remove one")
	}
	return found[0], nil
}

// Package keystest holds the contract that every source of signing keys
// keeps, as one suite of tests, and the faults that the services' fakes share.
// It is for tests only and trusts nothing that it is given.
package keystest

import (
	"context"
	"crypto"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

// A Source is what every package of broker/keys offers: Create makes a key of
// alg and keeps it durably before it returns; Open finds one again; Remove
// destroys one, or begins to where the service has a time to think it over:
// from then on Open refuses it. The error of Open and Remove for a key that is
// not there is os.ErrNotExist. All may be called concurrently.
type Source interface {
	Create(ctx context.Context, alg string) (ref string, key crypto.Signer, err error)
	Open(ctx context.Context, ref string) (crypto.Signer, error)
	Remove(ctx context.Context, ref string) error
}

// The acts that a Suite can deny or hang.
const (
	ActCreate = "create"
	ActOpen   = "open"
	ActSign   = "sign"
	ActRemove = "remove"
)

// A Suite is one source under test.
type Suite struct {
	// Source opens the source afresh, as after a restart, on the same keys. Each
	// of its operations may take timeout, or the default where that is zero.
	Source func(t *testing.T, timeout time.Duration) Source
	// Algs are what Create is tried with. Nil: all of Algorithms.
	Algs []string
	// Missing has the form of a ref and names no key.
	Missing string
	// BadRefs have no form of a ref.
	BadRefs []string
	// NoPSS says that RSA keys sign PKCS #1 v1.5 only.
	NoPSS bool
	// Deny takes the permission to act away and says what an error must name.
	// Nil: the source has no permissions.
	Deny func(t *testing.T, act string) (names []string, restore func())
	// Hang lets the calls for act on the key ref wait, the first of which closes
	// arrived. Nil: the source is not remote.
	Hang func(act, ref string) (arrived <-chan struct{}, release func())
}

// Run runs the whole contract.
func (s Suite) Run(t *testing.T) {
	t.Run("algorithms", s.algorithms)
	t.Run("unknown algorithms", s.unknown)
	t.Run("missing", s.missing)
	t.Run("rotation", s.rotation)
	t.Run("removal", s.removal)
	t.Run("concurrency", s.concurrency)
	t.Run("cancelled", s.cancelled)
	if s.Deny != nil {
		t.Run("permissions", s.permissions)
	}
	if s.Hang != nil {
		t.Run("slow", s.slow)
		t.Run("timeout", s.timeout)
		t.Run("left", s.left)
	}
}

func (s Suite) algorithms(t *testing.T) {
	algs := s.Algs
	if algs == nil {
		algs = Algorithms()
	}
	for _, alg := range algs {
		t.Run(alg, func(t *testing.T) {
			ref, key := Create(t, s.Source(t, 0), alg)
			CheckKind(t, alg, key.Public())
			s.signs(t, key)
			found := Open(t, s.Source(t, 0), ref)
			if !Equal(found.Public(), key.Public()) {
				t.Fatal("after a restart another key was found")
			}
			s.signs(t, found)
		})
	}
}

func (s Suite) unknown(t *testing.T) {
	src := s.Source(t, 0)
	for _, alg := range []string{"", "P521", "Ed25519", "RSA1024", "rs256", "ES256K"} {
		if _, _, err := src.Create(t.Context(), alg); err == nil {
			t.Errorf("made a key of %q", alg)
		} else if !strings.Contains(err.Error(), `"`+alg+`"`) {
			t.Errorf("%q: the refusal does not name it: %v", alg, err)
		}
	}
}

func (s Suite) missing(t *testing.T) {
	src := s.Source(t, 0)
	if _, err := src.Open(t.Context(), s.Missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("opening a key that is not there: %v", err)
	}
	if err := src.Remove(t.Context(), s.Missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removing a key that is not there: %v", err)
	}
	for _, ref := range append([]string{"", ".", "..", "../keys", "/etc/passwd", "\x00", strings.Repeat("a", 4096)}, s.BadRefs...) {
		if _, err := src.Open(t.Context(), ref); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("opening %.80q: %v, want a refusal of the name", ref, err)
		}
		if err := src.Remove(t.Context(), ref); err == nil || errors.Is(err, os.ErrNotExist) {
			t.Errorf("removing %.80q: %v, want a refusal of the name", ref, err)
		}
	}
}

func (s Suite) rotation(t *testing.T) {
	src := s.Source(t, 0)
	first, old := Create(t, src, "P256")
	second, next := Create(t, src, "P256")
	if first == second || Equal(old.Public(), next.Public()) {
		t.Fatalf("%s and %s are one key", first, second)
	}
	for _, key := range []crypto.Signer{old, next, Open(t, src, first), Open(t, src, second)} {
		s.signs(t, key)
	}
}

func (s Suite) removal(t *testing.T) {
	src := s.Source(t, 0)
	gone, _ := Create(t, src, "P256")
	kept, _ := Create(t, src, "P256")
	if err := src.Remove(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	for _, src := range []Source{src, s.Source(t, 0)} {
		if _, err := src.Open(t.Context(), gone); err == nil {
			t.Error("a removed key was opened")
		}
		s.signs(t, Open(t, src, kept))
	}
	if err := src.Remove(t.Context(), gone); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removing a second time: %v", err)
	}
}

func (s Suite) concurrency(t *testing.T) {
	src := s.Source(t, 0)
	ref, shared := Create(t, src, "P256")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := signs(shared); err != nil {
				t.Error(err)
			}
			if key, err := src.Open(t.Context(), ref); err != nil {
				t.Error(err)
			} else if err := signs(key); err != nil {
				t.Error(err)
			}
			if _, key, err := src.Create(t.Context(), "P256"); err != nil {
				t.Error(err)
			} else if err := signs(key); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func (s Suite) cancelled(t *testing.T) {
	src := s.Source(t, 0)
	ref, _ := Create(t, src, "P256")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := src.Create(ctx, "P256"); !errors.Is(err, context.Canceled) {
		t.Errorf("making a key after the caller left: %v", err)
	}
	if _, err := src.Open(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("opening a key after the caller left: %v", err)
	}
	if err := src.Remove(ctx, ref); !errors.Is(err, context.Canceled) {
		t.Errorf("removing a key after the caller left: %v", err)
	}
	s.signs(t, Open(t, src, ref))
}

func (s Suite) permissions(t *testing.T) {
	src := s.Source(t, 0)
	ref, key := Create(t, src, "P256")
	for act, do := range map[string]func() error{
		ActCreate: func() error { _, _, err := src.Create(t.Context(), "P256"); return err },
		ActOpen:   func() error { _, err := src.Open(t.Context(), ref); return err },
		ActSign:   func() error { return signs(key) },
		ActRemove: func() error { return src.Remove(t.Context(), ref) },
	} {
		names, restore := s.Deny(t, act)
		err := do()
		restore()
		if err == nil {
			t.Errorf("%s: done without the permission", act)
			continue
		}
		for _, name := range names {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%s: the error does not name %q: %v", act, name, err)
			}
		}
		if errors.Is(err, os.ErrNotExist) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", act, err)
		}
	}
	s.signs(t, Open(t, src, ref))
}

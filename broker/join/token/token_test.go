package token_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/token"
	"github.com/credence-id/credence/broker/store"
	"github.com/credence-id/credence/broker/store/storetest"
)

var start = time.Date(2026, 5, 4, 10, 20, 30, 0, time.UTC)

func refused(err error) bool {
	return errors.Is(err, broker.ErrSpent) || errors.Is(err, broker.ErrNotFound)
}

// method is the method over a real store, and that store.
func method(t testing.TB, now time.Time) (join.Method, *store.Store) {
	t.Helper()
	dir := t.TempDir()
	storetest.Prepare(t, dir)
	s, err := store.Open(t.Context(), store.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return token.NewMethod(token.Config{Spend: s.SpendToken, Refused: refused, Now: func() time.Time { return now }}), s
}

func create(t testing.TB, s *store.Store, labels map[string]string) (text string) {
	t.Helper()
	text, hash := token.New()
	err := s.CreateToken(t.Context(), store.Token{Hash: hash, Node: "n1", Labels: labels, ExpiresAt: start.Add(token.DefaultTTL), CreatedBy: "uid:0"})
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// noChallenge fails the test that it is asked in: a token needs none.
func noChallenge(context.Context, []byte) ([]byte, error) {
	return nil, errors.New("a challenge was put")
}

func TestNew(t *testing.T) {
	a, hash := token.New()
	b, _ := token.New()
	raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(a, token.Prefix))
	if err != nil || len(raw) != 32 || !strings.HasPrefix(a, "cjt_") || a == b {
		t.Errorf("tokens %q and %q (%v)", a, b, err)
	}
	if sum := sha256.Sum256([]byte(a)); !bytes.Equal(hash, sum[:]) {
		t.Error("the hash is not the token's SHA-256")
	}
}

func TestJoin(t *testing.T) {
	m, s := method(t, start)
	text := create(t, s, map[string]string{"site": "a", "app.kubernetes.io": "web, *"})
	proof, err := m.Join(t.Context(), []byte(text), noChallenge)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{"node.token.site": {"a"}, "node.token.app.kubernetes.io": {"web, *"}}
	if d := cmp.Diff(want, proof.Facts.Map()); d != "" || proof.Name != "n1" || proof.DurableKey != "n1" {
		t.Errorf("name %q, durable key %q, facts:\n%s", proof.Name, proof.DurableKey, d)
	}
	if _, err := m.Join(t.Context(), []byte(text), noChallenge); !errors.Is(err, join.ErrEvidence) || !errors.Is(err, broker.ErrSpent) {
		t.Errorf("the second time: %v", err)
	}
	proof, err = m.Join(t.Context(), []byte(create(t, s, nil)), noChallenge)
	if err != nil || proof.Facts.Len() != 0 || proof.Name != "n1" {
		t.Errorf("without labels: %+v, %v", proof, err)
	}
}

func TestBadEvidence(t *testing.T) {
	spends := 0
	m := token.NewMethod(token.Config{
		Spend: func(context.Context, []byte, string, time.Time) (string, map[string]string, error) {
			spends++
			return "", nil, fmt.Errorf("spending: %w", broker.ErrNotFound)
		},
		Refused: refused, Now: func() time.Time { return start },
	})
	good, _ := token.New()
	secret := strings.TrimPrefix(good, token.Prefix)
	for _, row := range []struct {
		name, evidence string
		spends         int
	}{
		{"nothing", "", 0},
		{"the prefix alone", token.Prefix, 0},
		{"no prefix", secret, 0},
		{"another prefix", "cjx_" + secret, 0},
		{"the prefix in capitals", "CJT_" + secret, 0},
		{"the prefix twice", token.Prefix + good, 0},
		{"a byte short", good[:len(good)-1], 0},
		{"a byte long", good + "A", 0},
		{"padded", good + "=", 0},
		{"the other alphabet", token.Prefix + strings.Repeat("+", 43), 0},
		{"bits to spare", token.Prefix + strings.Repeat("A", 42) + "B", 0},
		{"a newline after", good + "\n", 0},
		{"a newline within", good[:20] + "\n" + good[20:], 0},
		{"a newline for a letter", good[:20] + "\n" + good[21:], 0},
		{"space before", " " + good, 0},
		{"long", token.Prefix + strings.Repeat("A", 1<<20), 0},
		{"not ours", good, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			spends = 0
			proof, err := m.Join(t.Context(), []byte(row.evidence), noChallenge)
			if !errors.Is(err, join.ErrEvidence) || spends != row.spends || proof.Name != "" || proof.DurableKey != "" {
				t.Errorf("%+v, %v after %d looks at the store", proof, err, spends)
			}
			if row.evidence != "" && strings.Contains(err.Error(), secret) {
				t.Error("the error tells the token")
			}
		})
	}
}

func TestExpired(t *testing.T) {
	m, s := method(t, start.Add(token.DefaultTTL))
	if _, err := m.Join(t.Context(), []byte(create(t, s, nil)), noChallenge); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("the error is %v", err)
	}
}

// TestStoreFails holds that a node is not told to give up because we failed.
func TestStoreFails(t *testing.T) {
	m, s := method(t, start)
	text := create(t, s, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Join(ctx, []byte(text), noChallenge); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("the call ended: %v", err)
	}
	if _, err := m.Join(t.Context(), []byte(text), noChallenge); err != nil {
		t.Errorf("and the token is lost: %v", err)
	}
	text = create(t, s, nil)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Join(t.Context(), []byte(text), noChallenge); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("the store is closed: %v", err)
	}
}

func TestLabelsThatAreNoFacts(t *testing.T) {
	m, s := method(t, start)
	for _, label := range []string{"", ".", "a..b", "a b", "a{b}"} {
		text := create(t, s, map[string]string{label: "x"})
		if proof, err := m.Join(t.Context(), []byte(text), noChallenge); err == nil {
			t.Errorf("label %q is fact %v", label, proof.Facts.Map())
		}
	}
}

// Regression: SPIRE #6324
func TestCheckName(t *testing.T) {
	for name, good := range map[string]bool{
		"n1": true, "a": true, "web-01.eu_west": true, "A": true, "...": true, "-": true, strings.Repeat("a", 63): true,
		"": false, ".": false, "..": false, strings.Repeat("a", 64): false, "a/b": false, "/": false, "a b": false, "a\x00": false,
		"a\n": false, "ä": false, "a%2f": false, "a?b": false, "a#": false, "a:b": false, "a{b}": false, "\xff": false,
	} {
		if err := token.CheckName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := token.CheckName(strings.Repeat("x", 1<<20)); err == nil || len(err.Error()) > 300 {
		t.Error("a long name is taken, or told whole")
	}
}

func TestCheckLabels(t *testing.T) {
	many := func(n int) map[string]string {
		m := map[string]string{}
		for i := range n {
			m[fmt.Sprint("l", i)] = "x"
		}
		return m
	}
	for _, row := range []struct {
		name   string
		labels map[string]string
		good   bool
	}{
		{"none", nil, true},
		{"one", map[string]string{"site": "a"}, true},
		{"dots, dashes and capitals", map[string]string{"App.kubernetes-io_x": "a"}, true},
		{"any text", map[string]string{"a": "ü \" \\ {}*"}, true},
		{"16", many(16), true},
		{"17", many(17), false},
		{"no name", map[string]string{"": "a"}, false},
		{"an empty part", map[string]string{"a..b": "a"}, false},
		{"a dot at the end", map[string]string{"a.": "a"}, false},
		{"a dot at the start", map[string]string{".a": "a"}, false},
		{"a slash", map[string]string{"a/b": "a"}, false},
		{"a space", map[string]string{"a b": "a"}, false},
		{"a brace", map[string]string{"a}": "a"}, false},
		{"a letter beyond ASCII", map[string]string{"ä": "a"}, false},
		{"a long name", map[string]string{strings.Repeat("a", 512): "a"}, false},
		{"no value", map[string]string{"a": ""}, false},
		{"a value of 256 bytes", map[string]string{"a": strings.Repeat("x", 256)}, true},
		{"a value of 257 bytes", map[string]string{"a": strings.Repeat("x", 257)}, false},
		{"a value that is no UTF-8", map[string]string{"a": "\xff"}, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := token.CheckLabels(row.labels)
			if (err == nil) != row.good {
				t.Fatalf("the error is %v", err)
			}
			if err != nil {
				return
			}
			m, s := method(t, start)
			proof, err := m.Join(t.Context(), []byte(create(t, s, row.labels)), noChallenge)
			if err != nil || proof.Facts.Len() != len(row.labels) {
				t.Fatalf("what was checked does not join: %v", err)
			}
			for label, value := range row.labels {
				if d := cmp.Diff([]string{value}, proof.Facts.Get("node.token."+label)); d != "" {
					t.Error(d)
				}
			}
		})
	}
}

func FuzzJoin(f *testing.F) {
	good, hash := token.New()
	for _, seed := range []string{"", token.Prefix, good, good + "\n", strings.ToUpper(good), good[4:], token.Prefix + strings.Repeat("=", 43)} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, evidence []byte) {
		m := token.NewMethod(token.Config{
			Spend: func(_ context.Context, h []byte, by string, _ time.Time) (string, map[string]string, error) {
				if !bytes.HasPrefix(evidence, []byte(token.Prefix)) || len(evidence) != len(good) || by != token.Method {
					t.Errorf("%q came to the store, by %q", evidence, by)
				}
				if bytes.Equal(h, hash) {
					return "n1", map[string]string{"site": "a"}, nil
				}
				return "", nil, broker.ErrNotFound
			},
			Refused: refused, Now: func() time.Time { return start },
		})
		proof, err := m.Join(t.Context(), evidence, noChallenge)
		switch {
		case err == nil && (string(evidence) != good || proof.Name != "n1"):
			t.Errorf("%q joins as %q", evidence, proof.Name)
		case err != nil && !errors.Is(err, join.ErrEvidence):
			t.Errorf("%q: %v", evidence, err)
		}
	})
}

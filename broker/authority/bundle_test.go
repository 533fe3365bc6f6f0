package authority_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/keys/disk"
)

func TestBundle(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	b := a.Bundle()
	var doc struct {
		Keys     []map[string]any `json:"keys"`
		Sequence uint64           `json:"spiffe_sequence"`
		Hint     int              `json:"spiffe_refresh_hint"`
	}
	if err := json.Unmarshal(b.Document, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Sequence != b.Sequence || doc.Sequence < uint64(start.UnixMilli()) || doc.Hint != 300 {
		t.Errorf("sequence %d, hint %d", doc.Sequence, doc.Hint)
	}
	uses := map[string]int{}
	for _, k := range doc.Keys {
		use := k["use"].(string)
		uses[use+" "+k["kty"].(string)]++
		members := []string{"kty", "use", "crv", "x", "y", "n", "e"} // TDB-19: and nothing else
		switch use {
		case "x509-svid":
			members = append(members, "x5c")
			x5c := k["x5c"].([]any)
			der, err := base64.StdEncoding.DecodeString(x5c[0].(string))
			if err != nil || len(x5c) != 1 || string(der) != string(b.X509Authorities[0].Raw) {
				t.Errorf("x5c %v, %v", x5c, err)
			}
		case "jwt-svid":
			members = append(members, "kid")
			if kid, _ := k["kid"].(string); kid == "" {
				t.Error("a JWT key without kid")
			}
		}
		for name := range k {
			if !slices.Contains(members, name) {
				t.Errorf("member %s on a key for %s", name, use)
			}
		}
	}
	if len(doc.Keys) != 5 || uses["x509-svid EC"] != 1 || uses["jwt-svid EC"] != 2 || uses["jwt-svid RSA"] != 2 {
		t.Errorf("keys %v", uses)
	}
	parsed, err := spiffebundle.Parse(td, b.Document)
	if err != nil {
		t.Fatal(err)
	}
	if len(parsed.X509Authorities()) != 1 || len(parsed.JWTAuthorities()) != 4 {
		t.Errorf("go-spiffe sees %d roots, %d keys", len(parsed.X509Authorities()), len(parsed.JWTAuthorities()))
	}
	spki := sha256.Sum256(b.X509Authorities[0].RawSubjectPublicKeyInfo)
	if want := "sha256:" + hex.EncodeToString(spki[:]); a.Pin() != want {
		t.Errorf("pin %s, want %s", a.Pin(), want)
	}
	if _, err := a.GetX509BundleForTrustDomain(spiffeid.RequireTrustDomainFromString("other.org")); err == nil {
		t.Error("a bundle of another trust domain")
	}
	if document, ok := a.Document(); !ok || string(document) != string(b.Document) {
		t.Error("Document is not the bundle's")
	}
}

func TestBundleChanges(t *testing.T) {
	e := newEnv(t)
	a := e.open()
	changed, before := a.Changed(), a.Bundle()
	if closed(changed) {
		t.Fatal("changed at once")
	}
	e.clock.set(start.Add(time.Second))
	e.tick(a) // makes the RSA keys
	if !closed(changed) || closed(a.Changed()) {
		t.Error("a change that is not told, or told twice")
	}
	if after := a.Bundle(); after.Sequence <= before.Sequence {
		t.Errorf("sequence %d after %d", after.Sequence, before.Sequence)
	}
	changed, before = a.Changed(), a.Bundle()
	e.tick(a)
	if closed(changed) || a.Bundle() != before {
		t.Error("a change of nothing")
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// SPIFFE Trust Domain and Bundle §4.1.1: other content, another number; the
// same content, the same bytes; also when the clock was set back.
func TestSequenceOverRestarts(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	first := a.Bundle()
	e.clock.set(start.Add(-hour))
	if got := e.open().Bundle(); string(got.Document) != string(first.Document) {
		t.Errorf("a restart published\n%s\nafter\n%s", got.Document, first.Document)
	}
	e.lives.RefreshHint = 60 * time.Second
	second := e.open().Bundle()
	if second.Sequence != first.Sequence+1 || second.RefreshHint != time.Minute {
		t.Errorf("another hint has sequence %d after %d", second.Sequence, first.Sequence)
	}
	if e.records.publication.Sequence != second.Sequence {
		t.Error("the number was not kept")
	}
}

// A broker restored from a backup counts on from its clock: its next change has
// a higher number than any that it gave after the backup was made.
func TestSequenceAfterARestore(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	rows, publication := maps.Clone(e.records.rows), e.records.publication
	replace := func(a *authority.Authority) uint64 {
		t.Helper()
		e.clock.set(e.clock.now().Add(time.Minute))
		if _, err := a.ReplaceJWT(t.Context(), "ES256", "a drill"); err != nil {
			t.Fatal(err)
		}
		return a.Bundle().Sequence
	}
	var last uint64
	for range 20 {
		last = replace(a)
	}
	e.records.rows, e.records.publication = rows, publication
	restored := e.open()
	if got := restored.Bundle(); got.Sequence != publication.Sequence {
		t.Fatalf("restored with %d, saved with %d", got.Sequence, publication.Sequence)
	}
	if next := replace(restored); next <= last {
		t.Errorf("number %d after a restore, %d was given before", next, last)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		change     func(*env, *authority.Config)
	}{
		{"no trust domain", "trust domain", func(_ *env, c *authority.Config) { c.TrustDomain = spiffeid.TrustDomain{} }},
		{"no broker", "broker", func(_ *env, c *authority.Config) { c.Broker = "" }},
		{"no keys", "keys", func(_ *env, c *authority.Config) { c.Keys = nil }},
		{"another trust domain's data", "not one of", func(_ *env, c *authority.Config) {
			c.TrustDomain = spiffeid.RequireTrustDomainFromString("other.org")
		}},
		{"keys that are gone", "not exist", func(e *env, c *authority.Config) { c.Keys = newEnv(e.t).keys }},
		{"a long issuing CA", "issuing CA", func(_ *env, c *authority.Config) { c.Lives.Issuing = 8 * day }},
		{"long tokens", "JWT-SVID", func(_ *env, c *authority.Config) { c.Lives.MaxJWT = 2 * hour }},
		{"a short lead", "refresh hints", func(_ *env, c *authority.Config) { c.Lives.Lead = 10 * time.Minute }},
		{"a hint of part of a second", "whole seconds", func(_ *env, c *authority.Config) { c.Lives.RefreshHint = 1500 * time.Millisecond }},
		{"a negative life", "root", func(_ *env, c *authority.Config) { c.Lives.Root = -hour }},
		{"a JWT key shorter than its lead", "JWT key", func(_ *env, c *authority.Config) { c.Lives.JWTKey = hour }},
		{"a root that is gone", "no root", func(e *env, _ *authority.Config) {
			for id, r := range e.records.rows {
				if r.Use == authority.Root {
					delete(e.records.rows, id)
				}
			}
		}},
		{"a key that is another's", "another key", func(e *env, _ *authority.Config) {
			ref := ""
			for id, r := range e.records.rows {
				if r.Use == authority.JWTKey {
					ref, r.KeyRef = r.KeyRef, ref
					e.records.rows[id] = r
				}
			}
			for id, r := range e.records.rows {
				if r.KeyRef == "" {
					r.KeyRef = ref
					e.records.rows[id] = r
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := newEnv(t)
			e.open()
			cfg := e.config()
			tt.change(e, &cfg)
			_, err := authority.Open(t.Context(), cfg)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// The root's key is not needed but to sign an issuing CA.
func TestRootKeyOffline(t *testing.T) {
	e := newEnv(t)
	cfg := e.config()
	cfg.RootKeys = newEnv(t).keys
	if _, err := authority.Open(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	cfg.RootKeys = newEnv(t).keys // an empty directory
	a, err := authority.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.clock.set(start.Add(7 * day / 4)) // past half of the issuing CA's life
	if _, err := a.Tick(t.Context()); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("renewed without the root: %v", err)
	}
	if len(a.OIDCKeys()) != 2 {
		t.Error("the missing root held up the JWT keys")
	}
}

func TestList(t *testing.T) {
	e := newEnv(t)
	a := e.openReady()
	next := map[string]time.Duration{}
	for _, s := range a.List() {
		next[strings.TrimSpace(string(s.Use)+" "+string(s.State)+" "+s.Next)] = s.NextAt.Sub(start)
	}
	for what, want := range map[string]time.Duration{
		"root active ends":             3652 * day,
		"x509 active is replaced":      36 * hour,
		"jwt active becomes old":       7 * day,
		"jwt published becomes active": 7 * day,
	} {
		if got, ok := next[what]; !ok || got != want {
			t.Errorf("%s: %s, %v; have %v", what, got, ok, next)
		}
	}
}

// With keys on a real disk, a start finds again what the last one made.
func TestKeysOnDisk(t *testing.T) {
	dir := t.TempDir() + "/keys"
	e := newEnv(t)
	var pins []string
	for range 2 {
		keys, err := disk.New(disk.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		e.keys = keys
		a := e.openReady()
		pins = append(pins, a.Pin()+string(a.Bundle().Document))
		signedBy(t, e, a, "RS256", states(a, "RS256")[authority.Active])
	}
	if pins[0] != pins[1] {
		t.Error("another trust domain after a restart")
	}
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 6 {
		t.Errorf("%d key files, want 6 (%v)", len(files), err)
	}
}

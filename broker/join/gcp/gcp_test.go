package gcp_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	evidence "github.com/credence-id/credence/agent/evidence/gcp"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/join/gcp"
	"github.com/credence-id/credence/exchangers/sandbox/issuertest"
)

const (
	audience = "credence://example.org/join"
	issuer   = "https://accounts.google.com"
	account  = "107517467455664443765"
	email    = "739419398126-compute@developer.gserviceaccount.com"
)

var start = time.Date(2026, 12, 1, 10, 20, 30, 0, time.UTC)

// engine is what Google says of an instance.
func engine(changes map[string]any) map[string]any {
	return issuertest.With(map[string]any{
		"project_id": "acme-prod", "project_number": 739419398126, "zone": "us-west1-a", "instance_id": "152986662232938449", "instance_name": "web-1",
		"instance_creation_timestamp": start.AddDate(0, -1, 0).Unix(), "instance_confidentiality": 1, "license_id": []string{"1000204", "5"},
	}, changes)
}

// claims are those of a token in format full.
func claims(changes map[string]any) map[string]any {
	return issuertest.With(map[string]any{
		"iss": issuer, "aud": audience, "azp": account, "sub": account, "email": email, "email_verified": true,
		"iat": start.Unix(), "exp": start.Add(time.Hour).Unix(), "google": map[string]any{"compute_engine": engine(nil)},
	}, changes)
}

func instance(changes map[string]any) map[string]any {
	return claims(map[string]any{"google": map[string]any{"compute_engine": engine(changes)}})
}

func sign(t testing.TB, claims map[string]any) []byte {
	t.Helper()
	return []byte(issuertest.Sign(t, issuertest.RSA(), "RS256", nil, claims))
}

// A world is a broker's memory and clock, and what Google publishes.
type world struct {
	t         testing.TB
	now       time.Time
	settings  string
	published map[string]any // by URL

	mu    sync.Mutex // guards what follows
	asked []string
	spent map[[32]byte]time.Time
}

func newWorld(t testing.TB) *world {
	return &world{t: t, now: start, settings: "{}", spent: map[[32]byte]time.Time{}, published: map[string]any{
		issuer + "/.well-known/openid-configuration": map[string]any{"issuer": issuer, "jwks_uri": "https://www.googleapis.com/oauth2/v3/certs"},
		"https://www.googleapis.com/oauth2/v3/certs": issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())),
	}}
}

func (w *world) get(_ context.Context, url string) ([]byte, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, url)
	document, ok := w.published[url]
	if !ok {
		return nil, fmt.Errorf("%s: status 404", url)
	}
	return json.Marshal(document)
}

func (w *world) spend(_ context.Context, digest [32]byte, ends, _ time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.spent[digest]; ok {
		return broker.ErrSpent
	}
	w.spent[digest] = ends
	return nil
}

func (w *world) method() join.Method {
	w.t.Helper()
	s := new(gcp.Settings)
	if err := yaml.UnmarshalWithOptions([]byte(w.settings), s, yaml.Strict()); err != nil {
		w.t.Fatal(err)
	}
	m, err := gcp.New(gcp.Config{Settings: s, Audience: audience, Get: w.get, Spend: w.spend, Now: func() time.Time { return w.now },
		Spent: func(err error) bool { return errors.Is(err, broker.ErrSpent) }})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func (w *world) join(token []byte) (join.Proof, error) {
	w.t.Helper()
	return w.method().Join(w.t.Context(), token, func(context.Context, []byte) ([]byte, error) {
		w.t.Error("a challenge is put")
		return nil, errors.New("no")
	})
}

// metadata is an instance's metadata server, as strict as Google's.
func metadata(t testing.TB, token func(audience string) []byte) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Metadata-Flavor", "Google")
		switch q := r.URL.Query(); {
		case r.Header.Get("Metadata-Flavor") != "Google" || r.Header.Get("X-Forwarded-For") != "":
			w.WriteHeader(http.StatusForbidden)
		case r.Method != http.MethodGet || r.URL.Path != "/computeMetadata/v1/instance/service-accounts/default/identity":
			w.WriteHeader(http.StatusNotFound)
		case len(q["audience"]) != 1 || q.Get("format") != "full":
			w.WriteHeader(http.StatusBadRequest)
		default:
			_, _ = w.Write(append(token(q.Get("audience")), '\n'))
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// The agent's own code asks the metadata server, and its token joins.
func TestJoin(t *testing.T) {
	w := newWorld(t)
	shown, err := evidence.Config{Audience: audience, Host: metadata(t, func(audience string) []byte { return sign(t, claims(map[string]any{"aud": audience})) })}.Evidence(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	proof, err := w.join(shown)
	if err != nil {
		t.Fatal(err)
	}
	if proof.Name != "web-1" || proof.Instance != "" || proof.DurableKey != `["`+issuer+`","acme-prod","152986662232938449"]` {
		t.Errorf("%+v", proof)
	}
	want := map[string][]string{"node.gcp.license_id": {"1000204", "5"}}
	for name, value := range map[string]string{
		"project": "acme-prod", "project_number": "739419398126", "zone": "us-west1-a", "region": "us-west1", "instance_id": "152986662232938449", "instance_name": "web-1",
		"instance_creation_timestamp": fmt.Sprint(start.AddDate(0, -1, 0).Unix()), "service_account": email, "service_account_id": account, "confidential": "true",
	} {
		want["node.gcp."+name] = []string{value}
	}
	if d := cmp.Diff(want, proof.Facts.Map()); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{issuer + "/.well-known/openid-configuration", "https://www.googleapis.com/oauth2/v3/certs"}, w.asked); d != "" {
		t.Error(d)
	}
	if _, err := w.join(shown); !errors.Is(err, join.ErrEvidence) || !strings.Contains(err.Error(), "used before") {
		t.Errorf("the second time: %v", err)
	}
	for _, ends := range w.spent {
		if ends.Before(start.Add(time.Hour + time.Minute)) {
			t.Errorf("it is remembered until %s, and good after that", ends)
		}
	}
	w.now = start.Add(2 * time.Hour)
	next, err := w.join(sign(t, issuertest.With(instance(map[string]any{"zone": "us-west1-b"}), map[string]any{"iat": w.now.Unix(), "exp": w.now.Add(time.Hour).Unix()})))
	if err != nil || next.DurableKey != proof.DurableKey {
		t.Errorf("by the next token: %v, %v", next, err)
	}
}

// Of 50 that come with one token one is a node.
func TestSpentOnce(t *testing.T) {
	w := newWorld(t)
	m, token := w.method(), sign(t, claims(nil))
	var all sync.WaitGroup
	results := make(chan error, 50)
	for range cap(results) {
		all.Go(func() {
			_, err := m.Join(t.Context(), token, nil)
			results <- err
		})
	}
	all.Wait()
	close(results)
	joined := 0
	for err := range results {
		if err == nil {
			joined++
		} else if !errors.Is(err, join.ErrEvidence) {
			t.Error(err)
		}
	}
	if joined != 1 {
		t.Errorf("%d joined", joined)
	}
}

func hostile(t testing.TB) map[string][]byte {
	rows := map[string][]byte{}
	for name, c := range map[string]map[string]any{
		"another audience":               claims(map[string]any{"aud": "credence://example.com/join"}),
		"an audience's list":             claims(map[string]any{"aud": []string{audience, "https://sts.example"}}),
		"no audience":                    claims(map[string]any{"aud": nil}),
		"Google's other spelling":        claims(map[string]any{"iss": "accounts.google.com"}),
		"an issuer's suffix":             claims(map[string]any{"iss": issuer + ".evil.example"}),
		"an issuer's slash":              claims(map[string]any{"iss": issuer + "/"}),
		"an issuer's case":               claims(map[string]any{"iss": "https://Accounts.google.com"}),
		"an issuer's dot":                claims(map[string]any{"iss": "https://accounts.google.com."}),
		"an issuer's homograph":          claims(map[string]any{"iss": "https://accounts.gооgle.com"}),
		"an issuer's plain http":         claims(map[string]any{"iss": "http://accounts.google.com"}),
		"Google's other issuer":          claims(map[string]any{"iss": "https://securetoken.google.com/acme-prod"}),
		"expired":                        claims(map[string]any{"exp": start.Add(-61 * time.Second).Unix(), "iat": start.Add(-5 * time.Minute).Unix()}),
		"of the future":                  claims(map[string]any{"iat": start.Add(61 * time.Second).Unix()}),
		"too old":                        claims(map[string]any{"iat": start.Add(-11*time.Minute - time.Second).Unix()}),
		"without an age":                 claims(map[string]any{"iat": nil}),
		"of no subject":                  claims(map[string]any{"sub": nil}),
		"of a subject in words":          claims(map[string]any{"sub": "web", "azp": "web"}),
		"made for another to show":       claims(map[string]any{"azp": "32555940559.apps.googleusercontent.com"}),
		"made for many to show":          claims(map[string]any{"azp": []string{account}}),
		"of an unverified address":       claims(map[string]any{"email_verified": false}),
		"of a word for verified":         claims(map[string]any{"email_verified": "true"}),
		"of nothing for verified":        claims(map[string]any{"email_verified": nil}),
		"of no address":                  claims(map[string]any{"email": nil}),
		"of a person's address":          claims(map[string]any{"email": "ana@acme.example"}),
		"of a lookalike's address":       claims(map[string]any{"email": "web@acme-gserviceaccount.com"}),
		"of a domain's suffix":           claims(map[string]any{"email": "web@acme.iam.gserviceaccount.com.evil.example"}),
		"of an address in an address":    claims(map[string]any{"email": "web@x@acme.iam.gserviceaccount.com"}),
		"of an address with a line":      claims(map[string]any{"email": email + "\n"}),
		"of an address with dots":        claims(map[string]any{"email": "web@acme..gserviceaccount.com"}),
		"of a list of addresses":         claims(map[string]any{"email": []string{email}}),
		"of no instance":                 claims(map[string]any{"google": nil}),
		"of no engine":                   claims(map[string]any{"google": map[string]any{"organization_number": 1}}),
		"of a word for Google":           claims(map[string]any{"google": "compute_engine"}),
		"of a word for an engine":        claims(map[string]any{"google": map[string]any{"compute_engine": "web-1"}}),
		"of nothing for an engine":       claims(map[string]any{"google": map[string]any{"compute_engine": json.RawMessage("null")}}),
		"of an empty engine":             claims(map[string]any{"google": map[string]any{"compute_engine": map[string]any{}}}),
		"of an engine elsewhere":         issuertest.With(claims(map[string]any{"google": nil}), map[string]any{"compute_engine": engine(nil), "project_id": "acme-prod", "instance_id": "1"}),
		"of no project":                  instance(map[string]any{"project_id": nil}),
		"of a project's number":          instance(map[string]any{"project_id": 739419398126}),
		"of a project in capitals":       instance(map[string]any{"project_id": "Acme-prod"}),
		"of a project's path":            instance(map[string]any{"project_id": "acme-prod/../x"}),
		"of a project with a line":       instance(map[string]any{"project_id": "acme-prod\n"}),
		"of a project's list":            instance(map[string]any{"project_id": []string{"acme-prod"}}),
		"of no project number":           instance(map[string]any{"project_number": "acme"}),
		"of a broken project number":     instance(map[string]any{"project_number": 1.5}),
		"of no instance's ID":            instance(map[string]any{"instance_id": ""}),
		"of an instance's ID in words":   instance(map[string]any{"instance_id": "web"}),
		"of a negative instance":         instance(map[string]any{"instance_id": "-1"}),
		"of a zone's URL":                instance(map[string]any{"zone": "projects/1/zones/us-west1-a"}),
		"of a region for a zone":         instance(map[string]any{"zone": "us-west1"}),
		"of a name in capitals":          instance(map[string]any{"instance_name": "Web"}),
		"of a name with a path":          instance(map[string]any{"instance_name": "web/1"}),
		"of no name":                     instance(map[string]any{"instance_name": nil}),
		"of an instance of the future":   instance(map[string]any{"instance_creation_timestamp": start.Add(2 * time.Minute).Unix()}),
		"of an instance without an age":  instance(map[string]any{"instance_creation_timestamp": nil}),
		"of an instance of a great age":  instance(map[string]any{"instance_creation_timestamp": json.RawMessage("999999999999999999999")}),
		"of licenses in words":           instance(map[string]any{"license_id": "5"}),
		"of a license in words":          instance(map[string]any{"license_id": []any{"5", "x"}}),
		"of a license's license":         instance(map[string]any{"license_id": []any{[]any{"5"}}}),
		"of licenses without end":        instance(map[string]any{"license_id": slices.Repeat([]string{"5"}, 65)}),
		"of a claim's other spelling":    claims(map[string]any{"Aud": audience}),
		"by another's key of its number": claims(nil), // see below
	} {
		rows[name] = sign(t, c)
	}
	good := string(rows["by another's key of its number"])
	other := issuertest.NewRSA(2048)
	rows["by another's key of its number"] = []byte(issuertest.Sign(t, other, "RS256", nil, claims(nil)))
	rows["by an unknown key"] = []byte(issuertest.Sign(t, other, "RS256", map[string]any{"kid": "k2"}, claims(nil)))
	rows["by a key that it brings"] = []byte(issuertest.Sign(t, other, "RS256", map[string]any{"jwk": issuertest.JWK("k1", other.Public())}, claims(nil)))
	rows["by a key that it links"] = []byte(issuertest.Sign(t, other, "RS256", map[string]any{"jku": "https://evil.example/keys"}, claims(nil)))
	rows["by nothing"] = []byte(issuertest.Sign(t, issuertest.RSA(), "none", nil, claims(nil)))
	rows["by another algorithm"] = []byte(issuertest.Sign(t, issuertest.RSA(), "RS384", nil, claims(nil)))
	rows["by PSS"] = []byte(issuertest.Sign(t, issuertest.RSA(), "PS256", nil, claims(nil)))
	rows["by no key's name"] = []byte(issuertest.Sign(t, issuertest.RSA(), "RS256", map[string]any{"kid": nil}, claims(nil)))
	rows["an instance's signature over another"] = []byte(strings.Join(append(strings.Split(string(rows["of no project"]), ".")[:2], strings.Split(good, ".")[2]), "."))
	rows["nothing"] = nil
	rows["an object"] = []byte(`{"token":"` + good + `"}`)
	rows["two"] = []byte(good + "\n" + good)
	rows["truncated"] = []byte(good[:len(good)-8])
	rows["oversized"] = []byte(good + strings.Repeat("A", 16<<10))
	rows["dots"] = []byte(strings.Repeat(".", 16<<10))
	return rows
}

// Whatever is not this issuer's word about an instance, to us and now, is refused,
// spends nothing and leads nowhere.
//
// Regression: CVE-2026-11800
// Regression: CVE-2025-52477
func TestHostile(t *testing.T) {
	w := newWorld(t)
	m := w.method()
	for name, token := range hostile(t) {
		if proof, err := m.Join(t.Context(), token, nil); !errors.Is(err, join.ErrEvidence) || proof.DurableKey != "" {
			t.Errorf("a token %s: %v, %v", name, proof, err)
		}
	}
	if len(w.spent) != 0 {
		t.Errorf("%d are spent", len(w.spent))
	}
	for _, url := range w.asked {
		if _, ok := w.published[url]; !ok {
			t.Errorf("%s was asked", url)
		}
	}
	for name, c := range map[string]map[string]any{
		"skew of theirs":       claims(map[string]any{"iat": start.Add(59 * time.Second).Unix()}),
		"skew of ours":         claims(map[string]any{"iat": start.Add(-2 * time.Minute).Unix(), "exp": start.Add(-59 * time.Second).Unix()}),
		"a list of one":        claims(map[string]any{"aud": []string{audience}}),
		"no azp":               claims(map[string]any{"azp": nil}),
		"IDs as numbers":       instance(map[string]any{"instance_id": json.RawMessage("152986662232938449"), "project_number": "739419398126"}),
		"no licenses":          instance(map[string]any{"license_id": nil, "instance_confidentiality": 0}),
		"a domain's project":   instance(map[string]any{"project_id": "example.com:acme-prod"}),
		"a zone of many parts": instance(map[string]any{"zone": "northamerica-northeast1-a"}),
		"a zone of the new":    instance(map[string]any{"zone": "us-central1-ai1a"}),
		"an account of ours":   claims(map[string]any{"email": "web@acme-prod.iam.gserviceaccount.com"}),
		"a claim of the new":   claims(map[string]any{"hd": "acme.example"}),
	} {
		if _, err := m.Join(t.Context(), sign(t, c), nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A service account's token that names no instance is taken where that is said, and is
// no instance's.
func TestUnbound(t *testing.T) {
	w := newWorld(t)
	w.settings = "{unbound: true}"
	token := sign(t, claims(map[string]any{"google": nil}))
	proof, err := w.join(token)
	if err != nil {
		t.Fatal(err)
	}
	if proof.DurableKey != `["`+issuer+`","service_account","`+account+`"]` || proof.Instance == "" || len(proof.Facts.Get("node.gcp.project"))+len(proof.Facts.Get("node.gcp.instance_id")) != 0 ||
		proof.Facts.Get("node.gcp.service_account")[0] != email {
		t.Errorf("%+v", proof)
	}
	if _, err := w.join(token); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("the second time: %v", err)
	}
	for name, c := range map[string]map[string]any{
		"of a person":           claims(map[string]any{"google": nil, "email": "ana@acme.example"}),
		"of a broken instance":  instance(map[string]any{"instance_id": nil}),
		"of nothing for Google": claims(map[string]any{"google": json.RawMessage("null")}),
	} {
		if _, err := w.join(sign(t, c)); !errors.Is(err, join.ErrEvidence) {
			t.Errorf("a token %s: %v", name, err)
		}
	}
	bound, err := w.join(sign(t, claims(nil)))
	if err != nil || bound.Instance != "" || bound.DurableKey == proof.DurableKey {
		t.Errorf("an instance's: %+v, %v", bound, err)
	}
}

// Google's keys change under way, and where they can't be had nothing is judged.
func TestKeys(t *testing.T) {
	w := newWorld(t)
	m, next := w.method(), issuertest.NewRSA(2048)
	if _, err := m.Join(t.Context(), sign(t, claims(nil)), nil); err != nil {
		t.Fatal(err)
	}
	w.published["https://www.googleapis.com/oauth2/v3/certs"] = issuertest.KeySet(issuertest.JWK("k2", next.Public()))
	w.now = start.Add(time.Minute)
	if _, err := m.Join(t.Context(), []byte(issuertest.Sign(t, next, "RS256", map[string]any{"kid": "k2"}, claims(nil))), nil); err != nil {
		t.Errorf("by the next key: %v", err)
	}
	if _, err := m.Join(t.Context(), sign(t, claims(map[string]any{"n": 2})), nil); !errors.Is(err, join.ErrEvidence) {
		t.Errorf("by the key that left: %v", err)
	}
	away := newWorld(t)
	clear(away.published)
	if _, err := away.join(sign(t, claims(nil))); err == nil || errors.Is(err, join.ErrEvidence) {
		t.Errorf("keys that are away: %v", err)
	}
	lost := newWorld(t)
	full := errors.New("disk full")
	m, err := gcp.New(gcp.Config{Settings: &gcp.Settings{}, Audience: audience, Get: lost.get, Now: func() time.Time { return start }, Spent: func(error) bool { return false },
		Spend: func(context.Context, [32]byte, time.Time, time.Time) error { return full }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Join(t.Context(), sign(t, claims(nil)), nil); !errors.Is(err, full) || errors.Is(err, join.ErrEvidence) {
		t.Errorf("a store that is away: %v", err)
	}
}

func TestSettings(t *testing.T) {
	keys, err := json.Marshal(issuertest.KeySet(issuertest.JWK("k1", issuertest.RSA().Public())))
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		settings gcp.Settings
		field    string
	}{
		"none":               {gcp.Settings{}, ""},
		"keys":               {gcp.Settings{JWKS: string(keys)}, ""},
		"no keys":            {gcp.Settings{JWKS: "{}"}, "jwks"},
		"a CA beside keys":   {gcp.Settings{JWKS: string(keys), CA: "x"}, "ca"},
		"no CA":              {gcp.Settings{CA: "x"}, "ca"},
		"plain http":         {gcp.Settings{Issuer: "http://accounts.google.com"}, "issuer"},
		"a workload's":       {gcp.Settings{Audience: "credence://example.org/workload"}, "audience"},
		"an age beyond days": {gcp.Settings{MaxAge: 1 << 62}, "max_age"},
	} {
		err := row.settings.Validate()
		if (err == nil) != (row.field == "") || err != nil && !strings.HasPrefix(err.Error(), row.field+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
	w := newWorld(t)
	w.settings = "{jwks: '" + string(keys) + "', audience: 'https://join.example', max_age: 1h}"
	if _, err := w.join(sign(t, claims(map[string]any{"aud": "https://join.example", "iat": start.Add(-time.Hour).Unix()}))); err != nil || len(w.asked) != 0 {
		t.Errorf("by given keys: %v, asked %v", err, w.asked)
	}
}

// What is signed over whatever claims yields facts under node.gcp alone, each of its form.
func FuzzClaims(f *testing.F) {
	for _, c := range []map[string]any{claims(nil), instance(map[string]any{"zone": "a"}), claims(map[string]any{"google": nil})} {
		text, err := json.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var c map[string]any
		if json.Unmarshal(text, &c) != nil || c == nil {
			return
		}
		w := newWorld(t)
		w.settings = "{unbound: true}"
		proof, err := w.join(sign(t, issuertest.With(c, map[string]any{"iss": issuer, "aud": audience, "iat": start.Unix(), "exp": start.Add(time.Hour).Unix()})))
		if err != nil {
			return
		}
		for name, values := range proof.Facts.All() {
			if !strings.HasPrefix(name, "node.gcp.") || slices.ContainsFunc(values, func(v string) bool { return strings.ContainsAny(v, "/ \n\x00") }) {
				t.Errorf("%s: %q", name, values)
			}
		}
	})
}

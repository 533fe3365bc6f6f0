package exchangers_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/exchangers"
	"github.com/credence-id/credence/exchangers/exchangertest"
)

// jwtTarget is one that takes JWT-SVIDs, by the rules of no cloud.
type jwtTarget struct{ invalid error }

func (jwtTarget) Audience() string  { return "aud" }
func (t jwtTarget) Validate() error { return t.invalid }
func (jwtTarget) Check(q exchangers.Question) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	return w.JWT(exchangers.JWTRules{
		Cloud: "C", MaxIssuer: 100, MinSubject: 16, MaxSubject: 127, MaxLife: 24 * time.Hour, UploadableKeys: 8, ExactSubject: true,
		IssuerField: "cloud.issuer", SubjectField: "cloud.subject",
	}, func() bool { return w.Audience("cloud.audience", "https://a.example/x") })
}

// x509Target is one that takes X509-SVIDs.
type x509Target struct{}

func (x509Target) Audience() string { return "" }
func (x509Target) Validate() error  { return nil }
func (x509Target) Check(q exchangers.Question) []exchangers.Finding {
	w := &exchangers.Walk{Question: q}
	return w.X509(exchangers.X509Rules{
		Cloud: "C", Anchors: 2, AnchorField: "cloud.anchor", MaxSubject: 127, SubjectField: "cloud.subject", MaxLife: 390 * 24 * time.Hour, MaxRSA: 4096,
	})
}

// Each difference has a name, and its first byte is the one under the caret.
func TestDiffer(t *testing.T) {
	const issuer = "https://id.example.org/td"
	for _, tt := range []struct {
		name, ours, theirs, kind string
		at                       int
	}{
		{"slash at the end", issuer, issuer + "/", "slash", 26},
		{"no slash at the end", issuer + "/", issuer, "slash", 26},
		{"case of the host", issuer, "https://ID.example.org/td", "case", 9},
		{"case of the path", issuer, "https://id.example.org/TD", "case", 24},
		{"a port", issuer, "https://id.example.org:443/td", "port", 23},
		{"another port", "https://id.example.org:8443/td", "https://id.example.org:8444/td", "port", 27},
		{"another path", issuer, "https://id.example.org/dt", "path", 24},
		{"no path", issuer, "https://id.example.org", "path", 23},
		{"http", issuer, "http://id.example.org/td", "scheme", 5},
		{"no scheme", issuer, "id.example.org/td", "scheme", 1},
		{"no https: before the slashes", "https://iam.googleapis.com/p", "//iam.googleapis.com/p", "scheme", 1},
		{"api: left out", "api://AzureADTokenExchange", "AzureADTokenExchange", "scheme", 1},
		{"a space before", issuer, " " + issuer, "whitespace", 1},
		{"a newline at the end", issuer, issuer + "\n", "whitespace", 26},
		{"a no-break space", issuer, issuer + "\u00a0", "whitespace", 26},
		{"a zero-width space inside", issuer, "https://id\u200b.example.org/td", "whitespace", 11},
		{"a byte order mark", issuer, "\ufeff" + issuer, "whitespace", 1},
		{"a Cyrillic a", issuer, "https://id.ex\u0430mple.org/td", "homograph", 14},
		{"another letter that is not ASCII", issuer, "https://id.exämple.org/td", "homograph", 14},
		{"l for 1", "https://id1.example.org", "https://idl.example.org", "homograph", 11},
		{"O for 0", "spiffe://td/v0", "spiffe://td/vO", "homograph", 14},
		{"a dash that is none", "https://id-x.example.org", "https://id\u2013x.example.org", "homograph", 11},
		{"another host", issuer, "https://login.example.org/td", "host", 9},
		{"nothing alike", issuer, "orders", "other", 1},
		{"nothing", issuer, "", "other", 1},
		{"case and slash", issuer, "https://ID.example.org/td/", "slash", 9},
		{"space and case", issuer, "https://ID.example.org/td ", "whitespace", 9},
		{"not UTF-8", issuer, "https://id.example.org/t\xff", "path", 25},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, differs := exchangers.Differ(tt.ours, tt.theirs)
			if !differs || d.Kind != tt.kind || d.Byte != tt.at {
				t.Fatalf("%s at %d, %v\n%s", d.Kind, d.Byte, differs, d.Shown)
			}
			lines := strings.Split(d.Shown, "\n")
			if len(lines) != 3 || !strings.HasSuffix(lines[2], fmt.Sprintf("^ byte %d", tt.at)) {
				t.Fatalf("shown:\n%s", d.Shown)
			}
			column := strings.IndexByte(lines[2], '^')
			ours, theirs := []rune(lines[0]), []rune(lines[1])
			if string(ours[11:min(column, len(ours))]) != string(theirs[11:min(column, len(theirs))]) {
				t.Errorf("before the caret they differ:\n%s", d.Shown)
			}
			if column < len(ours) && column < len(theirs) && ours[column] == theirs[column] && ours[column] != '<' {
				t.Errorf("above the caret they are alike:\n%s", d.Shown)
			}
		})
	}
	if _, differs := exchangers.Differ(issuer, issuer); differs {
		t.Error("the same differs")
	}
}

// What is long is shown around the place, and what nobody sees is written out.
func TestDifferShows(t *testing.T) {
	long := "https://id.example.org/" + strings.Repeat("a", 300)
	d, _ := exchangers.Differ(long+"b/"+long, long+"c/"+long)
	for line := range strings.Lines(d.Shown) {
		if len(line) > 160 {
			t.Errorf("a long line: %s", line)
		}
	}
	if d, _ := exchangers.Differ("a", "a\u200b\n"); !strings.Contains(d.Shown, "a<U+200B><U+000A>") {
		t.Errorf("shown:\n%s", d.Shown)
	}
}

func FuzzDiffer(f *testing.F) {
	f.Add("https://id.example.org", "https://id.example.org/")
	f.Add("a\u200b", "\xff")
	f.Add("éa", "èa")
	f.Fuzz(func(t *testing.T, ours, theirs string) {
		d, differs := exchangers.Differ(ours, theirs)
		if differs != (ours != theirs) {
			t.Fatal("it says that the same differs, or the reverse")
		}
		if !differs {
			return
		}
		if n := d.Byte - 1; n > len(ours) || n > len(theirs) || ours[:n] != theirs[:n] || d.Kind == "" || strings.Count(d.Shown, "\n") != 2 {
			t.Fatalf("%+v", d)
		}
	})
}

func jwtQuestion(t testing.TB) exchangers.Question { return exchangertest.Question(t, jwtTarget{}) }

func TestCheckOfJWTs(t *testing.T) {
	type question = exchangers.Question
	id := func(n int) string { return "spiffe://example.org/" + strings.Repeat("a", n-21) }
	keys := func(all ...map[string]any) func(*question) {
		return func(q *question) { q.JWKS = exchangertest.KeySet(t, all...) }
	}
	spoiled := func(name string, v any) map[string]any {
		k := exchangertest.Key(exchangertest.KeyID, 2048)
		k[name] = v
		return k
	}
	discovery := func(name string, v any) func(*question) {
		return func(q *question) {
			q.Discovery = exchangertest.Discovery(t, exchangertest.Issuer, map[string]any{name: v})
		}
	}
	issuer := func(s string) func(*question) {
		return func(q *question) { q.Issuer, q.Discovery = s, exchangertest.Discovery(t, s, nil) }
	}
	many := func(n int) (all []map[string]any) {
		for i := range n {
			all = append(all, exchangertest.Key(fmt.Sprintf("k%d", i), 2048))
		}
		return all
	}
	age := func(active, standby time.Duration) func(*question) {
		return func(q *question) {
			q.Keys[0].Published, q.Keys[1].Published = q.Now.Add(-active), q.Now.Add(-standby)
		}
	}
	const b, jwks = "broker.issuer", "broker.issuer"
	exchangertest.Run(t, jwtQuestion, []exchangertest.Fault{
		{Name: "nothing", Put: func(*question) {}},
		{Name: "no Identity", Put: func(q *question) { q.Parties = nil }, Code: "identity_none", Field: "identity.targets"},
		{Name: "another Identity", Put: func(q *question) { q.Identity = "orders" }, Code: "identity_unlisted", Field: "identity.targets"},
		{Name: "this Identity", Put: func(q *question) { q.Identity = "checkout" }},
		{Name: "older settings", Put: func(q *question) { q.Target.Settings = jwtTarget{errors.New("scope \"x\": it must be y")} }, Code: "target_scope", Field: "scope"},
		{Name: "odd settings", Put: func(q *question) { q.Target.Settings = jwtTarget{errors.New("7 of them")} }, Code: "target_settings", Field: "settings"},

		{Name: "no issuer", Put: issuer(""), Code: "issuer_none", Field: b},
		{Name: "issuer by http", Put: issuer("http://id.example.org"), Code: "issuer_not_https", Field: b},
		{Name: "issuer without a host", Put: issuer("https:///td"), Code: "issuer_not_https", Field: b},
		{Name: "issuer with a query", Put: issuer("https://id.example.org?a=b"), Code: "issuer_query", Field: b},
		{Name: "issuer with a fragment", Put: issuer("https://id.example.org#a"), Code: "issuer_query", Field: b},
		{Name: "issuer with a user", Put: issuer("https://a@id.example.org"), Code: "issuer_query", Field: b},
		{Name: "issuer with a space", Put: issuer("https://id.example.org/a "), Code: "issuer_blank", Field: b},
		{Name: "issuer of 100 bytes", Put: issuer("https://id.example.org/" + strings.Repeat("a", 77))},
		{Name: "issuer of 101 bytes", Put: issuer("https://id.example.org/" + strings.Repeat("a", 78)), Code: "issuer_long", Field: b},
		{Name: "issuer with a port", Put: issuer("https://id.example.org:8443"), Code: "issuer_with_port", Field: b},
		{Name: "issuer on this machine", Put: issuer("https://127.0.0.1:8445"), Warns: "issuer_loopback"},
		{Name: "issuer at localhost", Put: issuer("https://id.localhost:8445"), Warns: "issuer_loopback"},
		{Name: "registered so", Put: func(q *question) { q.Registered.Issuer = exchangertest.Issuer }},
		{Name: "registered with a slash", Put: func(q *question) { q.Registered.Issuer = exchangertest.Issuer + "/" }, Code: "issuer_slash", Field: "cloud.issuer"},

		{Name: "audience registered", Put: func(q *question) { q.Registered.Audiences = []string{"x", "https://a.example/x"} }},
		{Name: "audience registered otherwise", Put: func(q *question) { q.Registered.Audiences = []string{"x", "//a.example/x", "y"} }, Code: "audience_scheme", Field: "cloud.audience"},
		{Name: "other audiences", Put: func(q *question) { q.Registered.Audiences = []string{"x", "https://a.example/y"} }, Code: "audience_path", Field: "cloud.audience"},

		{Name: "subject of 127 bytes", Put: func(q *question) { q.Parties[0].SPIFFEID = id(127) }},
		{Name: "subject of 128 bytes", Put: func(q *question) { q.Parties[0].SPIFFEID = id(128) }, Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "short subject", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://a.b/cd" }, Code: "subject_short", Field: "identity.spiffe_id"},
		{Name: "template", Put: func(q *question) { q.Parties[0].SPIFFEID = "spiffe://example.org/ns/{workload.kubernetes.namespace}" }, Warns: "subject_template"},
		{Name: "template that fits nothing", Put: func(q *question) { q.Parties[0].SPIFFEID = id(128) + "/{node.name}" }, Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "the second of two is long", Put: func(q *question) {
			q.Parties = append(q.Parties, exchangers.Party{Identity: "other", SPIFFEID: id(130), TokenTTL: time.Hour})
		}, Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "the one that is not asked about is long", Put: func(q *question) {
			q.Identity, q.Parties = "checkout", append(q.Parties, exchangers.Party{Identity: "other", SPIFFEID: id(130), TokenTTL: time.Hour})
		}},
		{Name: "subject registered", Put: func(q *question) { q.Registered.Subject = exchangertest.Subject }},
		{Name: "subject registered in other case", Put: func(q *question) { q.Registered.Subject = "spiffe://example.org/ns/shop/Checkout" }, Code: "subject_case", Field: "cloud.subject"},
		{Name: "subject of another trust domain", Put: func(q *question) { q.Registered.Subject = "spiffe://example.com/ns/shop/checkout" }, Code: "subject_host", Field: "cloud.subject"},
		{Name: "subject of a template", Put: func(q *question) {
			q.Parties[0].SPIFFEID, q.Registered.Subject = "spiffe://example.org/ns/{workload.kubernetes.namespace}/web", "spiffe://example.org/ns/shop/web"
		}, Warns: "subject_template"},
		{Name: "subject that a template never gives", Put: func(q *question) {
			q.Parties[0].SPIFFEID, q.Registered.Subject = "spiffe://example.org/ns/{workload.kubernetes.namespace}/web", "spiffe://example.org/ns/shop/a/web"
		}, Warns: "subject_template", Code: "subject_path", Field: "cloud.subject"},
		{Name: "subject of the second", Put: func(q *question) {
			q.Parties = append(q.Parties, exchangers.Party{Identity: "other", SPIFFEID: "spiffe://example.org/other", TokenTTL: time.Hour})
			q.Registered.Subject = "spiffe://example.org/other"
		}},

		{Name: "no token", Put: func(q *question) { q.Parties[0].TokenTTL = 0 }, Code: "life_none", Field: b},
		{Name: "a token of a day", Put: func(q *question) { q.Parties[0].TokenTTL = 24 * time.Hour }},
		{Name: "a token of more", Put: func(q *question) { q.Parties[0].TokenTTL = 24*time.Hour + time.Second }, Code: "life_long", Field: "broker.target_ttl"},
		{Name: "a token of five minutes", Put: func(q *question) { q.Parties[0].TokenTTL = 5 * time.Minute }, Warns: "life_short"},

		{Name: "no key", Put: func(q *question) { q.Keys = nil }, Code: "key_none", Field: b},
		{Name: "no key that signs", Put: func(q *question) { q.Keys[0].Active = false }, Code: "key_none", Field: b},
		{Name: "ES256 alone", Put: func(q *question) { q.Keys[0].Alg = "ES256" }, Code: "key_none", Field: b},
		{Name: "a new trust domain's keys", Put: age(time.Minute, time.Minute)},
		{Name: "a key of half an hour", Put: age(30*time.Minute, 48*time.Hour), Code: "key_young", Field: "broker.jwt_key_lead"},
		{Name: "a key of half a day", Put: age(12*time.Hour, 48*time.Hour), Warns: "key_recent"},
		{Name: "a key of a day", Put: age(24*time.Hour, 48*time.Hour)},

		{Name: "discovery is no JSON", Put: func(q *question) { q.Discovery = []byte("<html>") }, Code: "discovery_not_json", Field: b},
		{Name: "discovery is null", Put: func(q *question) { q.Discovery = []byte("null") }, Code: "discovery_not_json", Field: b},
		{Name: "discovery of another issuer", Put: discovery("issuer", exchangertest.Issuer+"/"), Code: "discovery_issuer_slash", Field: b},
		{Name: "discovery without issuer", Put: discovery("issuer", nil), Code: "discovery_issuer_other", Field: b},
		{Name: "an empty endpoint", Put: discovery("authorization_endpoint", ""), Code: "discovery_empty", Field: b},
		{Name: "an endpoint that is null", Put: discovery("authorization_endpoint", (*string)(nil)), Code: "discovery_empty", Field: b},
		{Name: "an empty list", Put: discovery("subject_types_supported", []string{}), Code: "discovery_empty", Field: b},
		{Name: "no subject types", Put: discovery("subject_types_supported", nil), Code: "discovery_lacks", Field: b},
		{Name: "no response types", Put: discovery("response_types_supported", nil), Code: "discovery_lacks", Field: b},
		{Name: "no algorithms", Put: discovery("id_token_signing_alg_values_supported", nil), Code: "discovery_lacks", Field: b},
		{Name: "another algorithm", Put: discovery("id_token_signing_alg_values_supported", []string{"ES256"}), Code: "discovery_alg", Field: b},
		{Name: "keys by http", Put: discovery("jwks_uri", "http://id.example.org/keys"), Code: "jwks_uri_not_https", Field: b},
		{Name: "no keys' URL", Put: discovery("jwks_uri", nil), Code: "jwks_uri_not_https", Field: b},
		{Name: "keys elsewhere", Put: discovery("jwks_uri", "https://cdn.example.org/keys"), Code: "jwks_uri_elsewhere", Field: b},

		{Name: "keys are no JSON", Put: func(q *question) { q.JWKS = []byte("{") }, Code: "jwks_not_json", Field: jwks},
		{Name: "no keys", Put: keys(), Code: "jwks_lacks_key", Field: jwks},
		{Name: "the old keys alone", Put: keys(exchangertest.Key("k0", 2048)), Code: "jwks_lacks_key", Field: jwks},
		{Name: "a private key", Put: keys(spoiled("d", "AA")), Code: "jwks_private", Field: jwks},
		{Name: "a SPIFFE bundle's keys", Put: keys(spoiled("use", "jwt-svid")), Code: "jwks_use", Field: jwks},
		{Name: "an EC key", Put: keys(spoiled("kty", "EC")), Code: "jwks_alg", Field: jwks},
		{Name: "RS512", Put: keys(spoiled("alg", "RS512")), Code: "jwks_alg", Field: jwks},
		{Name: "a certificate with a key", Put: keys(spoiled("x5c", []string{"AA"})), Code: "jwks_x5c", Field: jwks},
		{Name: "a thumbprint with a key", Put: keys(spoiled("x5t", "AA")), Code: "jwks_x5c", Field: jwks},
		{Name: "1024 bits", Put: keys(exchangertest.Key(exchangertest.KeyID, 1024)), Code: "jwks_size", Field: jwks},
		{Name: "8192 bits", Put: keys(exchangertest.Key(exchangertest.KeyID, 8192)), Code: "jwks_size", Field: jwks},
		{Name: "a key ID twice", Put: keys(exchangertest.Key(exchangertest.KeyID, 2048), exchangertest.Key(exchangertest.KeyID, 3072)), Code: "jwks_kid_twice", Field: jwks},
		{Name: "8 keys", Put: keys(many(8)...)},
		{Name: "9 keys", Put: keys(many(9)...), Warns: "jwks_upload"},
		{Name: "101 keys", Put: keys(many(101)...), Code: "jwks_many", Field: jwks},
	})
}

func TestCheckOfChains(t *testing.T) {
	type question = exchangers.Question
	ca := func(parent *exchangertest.CA, name string, change func(*x509.Certificate)) *exchangertest.CA {
		return exchangertest.Certify(t, parent, name, change)
	}
	// two has an anchor and a CA under it, each changed.
	two := func(anchor, issuing func(*x509.Certificate)) func(*question) {
		return func(q *question) {
			root := ca(nil, "root", anchor)
			q.Anchors = []*x509.Certificate{root.Certificate}
			q.Chain = []*x509.Certificate{ca(root, "issuing", issuing).Certificate}
		}
	}
	long := func(names ...string) func(*question) {
		return func(q *question) { q.Anchors, q.Chain = exchangertest.Chain(t, names...) }
	}
	noCA := func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature }
	noSign := func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }
	serverAuth := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }
	clientAuth := func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }
	later := func(c *x509.Certificate) { c.NotBefore = exchangertest.Now.Add(time.Minute) }
	ended := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = exchangertest.Now.AddDate(-1, 0, 0), exchangertest.Now.Add(-time.Minute)
	}
	noPath := func(c *x509.Certificate) { c.MaxPathLenZero = true }
	onePath := func(c *x509.Certificate) { c.MaxPathLen = 1 }
	uris := func(permitted, excluded []string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.PermittedDNSDomainsCritical, c.PermittedURIDomains, c.ExcludedURIDomains = true, permitted, excluded
		}
	}
	const b, name = "broker.upstream", "broker.name_constraints"
	exchangertest.Run(t, func(t testing.TB) exchangers.Question { return exchangertest.Question(t, x509Target{}) }, []exchangertest.Fault{
		{Name: "nothing", Put: func(*question) {}},
		{Name: "subject of 128 bytes", Put: func(q *question) { q.Parties[0].SPIFFEID += strings.Repeat("a", 128-len(exchangertest.Subject)) }, Code: "subject_long", Field: "identity.spiffe_id"},
		{Name: "registered subject", Put: func(q *question) { q.Registered.Subject = exchangertest.Subject + "/" }, Code: "subject_slash", Field: "cloud.subject"},
		{Name: "no life", Put: func(q *question) { q.Parties[0].X509TTL = 0 }, Code: "life_none", Field: "identity.x509.ttl"},
		{Name: "390 days", Put: func(q *question) { q.Parties[0].X509TTL = 390 * 24 * time.Hour }},
		{Name: "391 days", Put: func(q *question) { q.Parties[0].X509TTL = 391 * 24 * time.Hour }, Code: "life_long", Field: "identity.x509.ttl"},

		{Name: "no anchor", Put: func(q *question) { q.Anchors = nil }, Code: "anchor_none", Field: b},
		{Name: "three anchors", Put: func(q *question) {
			q.Anchors = append(q.Anchors, ca(nil, "second", nil).Certificate, ca(nil, "third", nil).Certificate)
		}, Warns: "anchor_many"},
		{Name: "an anchor that is no CA", Put: two(noCA, nil), Code: "anchor_no_ca", Field: b},
		{Name: "an anchor without keyCertSign", Put: two(noSign, nil), Code: "anchor_key_usage", Field: b},
		{Name: "an anchor for servers", Put: two(serverAuth, nil), Code: "anchor_extended_key_usage", Field: b},
		{Name: "an anchor for clients", Put: two(clientAuth, nil)},
		{Name: "an anchor that ended", Put: two(ended, nil), Code: "anchor_expired", Field: b},
		{Name: "a root that signs for others", Put: func(q *question) { q.SharedRoot = true }, Warns: "anchor_shared"},
		{Name: "an anchor of our own under a root", Put: func(q *question) {
			own := ca(ca(nil, "root", nil), "own", nil)
			q.Anchors, q.Chain = []*x509.Certificate{own.Certificate}, []*x509.Certificate{ca(own, "issuing", nil).Certificate}
		}, Warns: "anchor_no_root"},

		{Name: "no chain", Put: func(q *question) { q.Chain = nil }, Code: "chain_none", Field: b},
		{Name: "five deep", Put: long("root", "policy", "region", "issuing")},
		{Name: "six deep", Put: long("root", "policy", "region", "site", "issuing"), Code: "chain_deep", Field: b},
		{Name: "no CA", Put: two(nil, noCA), Code: "chain_no_ca", Field: b},
		{Name: "no keyCertSign", Put: two(nil, noSign), Code: "chain_key_usage", Field: b},
		{Name: "for servers", Put: two(nil, serverAuth), Code: "chain_extended_key_usage", Field: b},
		{Name: "not yet valid", Put: two(nil, later), Code: "chain_not_yet_valid", Field: b},
		{Name: "ended", Put: two(nil, ended), Code: "chain_expired", Field: b},
		{Name: "signed with SHA-1", Put: func(q *question) { q.Chain[0].SignatureAlgorithm = x509.ECDSAWithSHA1 }, Code: "chain_hash", Field: b},
		{Name: "P-521", Put: func(q *question) {
			key, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			root := ca(nil, "root", nil)
			q.Anchors, q.Chain = []*x509.Certificate{root.Certificate}, []*x509.Certificate{exchangertest.CertifyKey(t, root, "issuing", key, nil).Certificate}
		}, Code: "chain_key", Field: b},
		{Name: "RSA of 2048 bits", Put: func(q *question) {
			key, err := rsa.GenerateKey(rand.Reader, 2048)
			if err != nil {
				t.Fatal(err)
			}
			root := exchangertest.CertifyKey(t, nil, "root", key, nil)
			q.Anchors, q.Chain = []*x509.Certificate{root.Certificate}, []*x509.Certificate{ca(root, "issuing", nil).Certificate}
		}},
		{Name: "another root", Put: func(q *question) { q.Anchors = []*x509.Certificate{ca(nil, "root", nil).Certificate} }, Code: "chain_no_anchor", Field: b},
		{Name: "the second of two roots", Put: func(q *question) {
			q.Anchors = append([]*x509.Certificate{ca(nil, "old", nil).Certificate}, q.Anchors...)
		}},
		{Name: "an intermediate left out", Put: func(q *question) {
			long("root", "region", "issuing")(q)
			q.Chain = q.Chain[:1]
		}, Code: "chain_no_anchor", Field: b},
		{Name: "the wrong order", Put: func(q *question) {
			long("root", "region", "issuing")(q)
			q.Chain[0], q.Chain[1] = q.Chain[1], q.Chain[0]
		}, Code: "chain_gap", Field: b},
		{Name: "path length 0 of the anchor", Put: two(noPath, nil), Code: "chain_path_length", Field: b},
		{Name: "path length 1 of the anchor", Put: two(onePath, nil)},
		{Name: "path length 0 of the issuing CA", Put: two(nil, noPath)},
		{Name: "path length 1 of an anchor of two", Put: func(q *question) {
			root := ca(nil, "root", onePath)
			region := ca(root, "region", nil)
			q.Anchors, q.Chain = []*x509.Certificate{root.Certificate}, []*x509.Certificate{ca(region, "issuing", nil).Certificate, region.Certificate}
		}, Code: "chain_path_length", Field: b},
		{Name: "our trust domain permitted", Put: two(uris([]string{"example.org"}, nil), uris([]string{".org"}, nil))},
		{Name: "another permitted", Put: two(nil, uris([]string{"example.com"}, nil)), Code: "chain_name_constraints", Field: name},
		{Name: "a subdomain's permitted", Put: two(nil, uris([]string{".example.org"}, nil)), Code: "chain_name_constraints", Field: name},
		{Name: "ours excluded by the anchor", Put: two(uris(nil, []string{"example.org"}), nil), Code: "chain_name_constraints", Field: name},
	})
}

func TestTemplatesOfSeveralSegments(t *testing.T) {
	p := exchangers.Party{SPIFFEID: "spiffe://example.org/ci/{node.github.repository|path}/{workload.x}"}
	for id, want := range map[string]bool{"a/b/c": true, "a/b": true, "a/b/c/d": true, "a": false, "a//b": false, "": false} {
		id = "spiffe://example.org/ci/" + id
		if exchangers.Renders(p.SPIFFEID, id) != want || regexp.MustCompile(p.Regexp()).MatchString(id) != want {
			t.Errorf("%s: want %v", id, want)
		}
	}
	if like, unlike := p.Globs(); like != "spiffe://example.org/ci/*/*" || unlike != "" {
		t.Errorf("globs are %q, %q", like, unlike)
	}
	if exchangers.Renders("spiffe://example.org/{a}", "spiffe://example.org/a/b") {
		t.Error("a fact is one segment unless it says otherwise")
	}
}

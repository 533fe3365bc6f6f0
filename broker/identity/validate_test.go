package identity_test

import (
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestNewSetRefuses(t *testing.T) {
	type id = identity.Identity
	set := func(change func(*id)) identity.Resources {
		return identity.Resources{
			Identities: []id{with(checkout(), change)},
			Targets:    []identity.Target{{Name: "aws", Audience: "sts.amazonaws.com"}},
			Peers:      []string{"partner.example"},
		}
	}
	match := func(all ...identity.Item) identity.Resources { return set(func(i *id) { i.Match = all }) }
	term := func(pairs ...string) identity.Resources { return set(func(i *id) { i.Match = items(pairs...) }) }
	path := func(p string) identity.Resources { return set(func(i *id) { i.SPIFFEID = p }) }
	x509 := func(x identity.X509) identity.Resources { return set(func(i *id) { i.X509 = &x }) }
	jwt := func(j identity.JWT) identity.Resources { return set(func(i *id) { i.JWT = &j }) }
	claim := func(name string, v any) identity.Resources {
		return jwt(identity.JWT{Claims: map[string]any{name: v}})
	}
	deny := func(d identity.Deny) identity.Resources { return identity.Resources{Denies: []identity.Deny{d}} }
	ok := items("node.name", "n1")

	for _, row := range []struct {
		name  string
		r     identity.Resources
		kind  string
		field string
	}{
		{"no match", match(), "Identity", "match"},
		{"an empty item", match(identity.Item{}), "Identity", "match[0]"},
		{"any_node alone", match(identity.Item{AnyNode: true}), "Identity", "match[0]"},
		{"no node term", term("workload.unix.uid", "0"), "Identity", "match[0]"},
		{"a node term that is a glob", term("node.name", "n*", "workload.unix.uid", "0"), "Identity", "match[0]"},
		{"node.method alone", term("node.method", "token", "workload.unix.uid", "0"), "Identity", "match[0]"},
		{"an unbound second item", match(ok[0], items("workload.unix.uid", "0")[0]), "Identity", "match[1]"},
		{"an unbound person", term("user.email", "*@example.org"), "Identity", "match[0]"},
		{"anybody of a provider", term("user.issuer", "https://id.example.org"), "Identity", "match[0]"},
		{"an unbound peer", term("peer.spiffe_id", "spiffe://partner.example/**"), "Identity", "match[0]"},
		{"only a when", match(identity.Item{When: `node.name == "n1"`}), "Identity", "match[0]"},
		{"a path alone", term("node.name", "n1", "workload.unix.path", "/bin/x"), "Identity", "match[0]"},
		{"a digest alone", term("node.name", "n1", "workload.unix.sha256", "00"), "Identity", "match[0]"},
		{"path and digest alone", term("node.name", "n1", "workload.unix.path", "/bin/x", "workload.unix.sha256", "00"), "Identity", "match[0]"},
		{"a path and a uid of any kind", term("node.name", "n1", "workload.unix.path", "/bin/x", "workload.unix.uid", "**"), "Identity", "match[0]"},
		{"a path alone, by when", match(identity.Item{Terms: terms("node.name", "n1"), When: `workload.unix.path == "/bin/x"`}), "Identity", "match[0]"},
		{"a foreign fact", term("node.name", "n1", "pod.name", "x"), "Identity", "match[0].pod.name"},
		{"an empty pattern", term("node.name", ""), "Identity", "match[0].node.name"},
		{"a person on a node", term("node.name", "n1", "user.email", "a"), "Identity", "match[0]"},
		{"no SPIFFE ID", path(""), "Identity", "spiffe_id"},
		{"the root", path("/"), "Identity", "spiffe_id"},
		{"the trust domain", path("spiffe://example.org"), "Identity", "spiffe_id"},
		{"the trust domain's root", path("spiffe://example.org/"), "Identity", "spiffe_id"},
		{"another trust domain", path("spiffe://other.example/a"), "Identity", "spiffe_id"},
		{"a longer trust domain", path("spiffe://example.org.evil/a"), "Identity", "spiffe_id"},
		{"a rendered trust domain", path("spiffe://{node.name}/a"), "Identity", "spiffe_id"},
		{"an appended trust domain", path("spiffe://example.org{node.name}/a"), "Identity", "spiffe_id"},
		{"no slash", path("a"), "Identity", "spiffe_id"},
		{"a slash at the end", path("/a/"), "Identity", "spiffe_id"},
		{"dots", path("/a/../b"), "Identity", "spiffe_id"},
		{"a query", path("/a?b"), "Identity", "spiffe_id"},
		{"too long", path("/" + strings.Repeat("a", 2048)), "Identity", "spiffe_id"},
		{"too long with the trust domain", path("/" + strings.Repeat("a", 2040)), "Identity", "spiffe_id"},
		{"reserved", path("/credence"), "Identity", "spiffe_id"},
		{"the broker", path("/credence/broker"), "Identity", "spiffe_id"},
		{"a node", path("/credence/node/{node.id}"), "Identity", "spiffe_id"},
		{"the broker in full", path("spiffe://example.org/credence/broker"), "Identity", "spiffe_id"},
		{"an open brace", path("/{node.name"), "Identity", "spiffe_id"},
		{"a closed brace", path("/node.name}"), "Identity", "spiffe_id"},
		{"a brace in a brace", path("/{{node.name}}"), "Identity", "spiffe_id"},
		{"no such fact", path("/{name}"), "Identity", "spiffe_id"},
		{"half a key", path(`/{workload.labels["a}`), "Identity", "spiffe_id"},
		{"life under the least", x509(identity.X509{TTL: time.Second}), "Identity", "x509.ttl"},
		{"life over the most", x509(identity.X509{TTL: 25 * time.Hour}), "Identity", "x509.ttl"},
		{"negative life", x509(identity.X509{TTL: -time.Hour}), "Identity", "x509.ttl"},
		{"another's name", x509(identity.X509{Subject: "CN=other"}), "Identity", "x509.subject"},
		{"another organisation", x509(identity.X509{Subject: "CN=checkout,O=Evil"}), "Identity", "x509.subject"},
		{"unit of a permitted organisation's name", x509(identity.X509{Subject: "OU=Acme"}), "Identity", "x509.subject"},
		{"unit not permitted", x509(identity.X509{Subject: "OU=team-a/b"}), "Identity", "x509.subject"},
		{"no subject at all", x509(identity.X509{Subject: "checkout"}), "Identity", "x509.subject"},
		{"DNS name elsewhere", x509(identity.X509{DNSNames: []string{"a.svc", "a.example.com"}}), "Identity", "x509.dns_names[1]"},
		{"DNS name within a label", x509(identity.X509{DNSNames: []string{"evilexample.org"}}), "Identity", "x509.dns_names[0]"},
		{"DNS wildcard", x509(identity.X509{DNSNames: []string{"*.example.org"}}), "Identity", "x509.dns_names[0]"},
		{"DNS capitals", x509(identity.X509{DNSNames: []string{"A.example.org"}}), "Identity", "x509.dns_names[0]"},
		{"DNS empty label", x509(identity.X509{DNSNames: []string{"a..example.org"}}), "Identity", "x509.dns_names[0]"},
		{"DNS dot at the end", x509(identity.X509{DNSNames: []string{"a.example.org."}}), "Identity", "x509.dns_names[0]"},
		{"DNS long label", x509(identity.X509{DNSNames: []string{strings.Repeat("a", 64) + ".svc"}}), "Identity", "x509.dns_names[0]"},
		{"DNS long name", x509(identity.X509{DNSNames: []string{strings.Repeat("a.", 126) + "svc"}}), "Identity", "x509.dns_names[0]"},
		{"DNS hyphen first", x509(identity.X509{DNSNames: []string{"-a.svc"}}), "Identity", "x509.dns_names[0]"},
		{"DNS name twice", x509(identity.X509{DNSNames: []string{"a.svc", "a.svc"}}), "Identity", "x509.dns_names[1]"},
		{"too many DNS names", x509(identity.X509{DNSNames: make([]string, 33)}), "Identity", "x509.dns_names"},
		{"JWT life over the most", jwt(identity.JWT{TTL: 61 * time.Minute}), "Identity", "jwt.ttl"},
		{"JWT life under the least", jwt(identity.JWT{TTL: time.Second}), "Identity", "jwt.ttl"},
		{"no algorithm", jwt(identity.JWT{Alg: "none"}), "Identity", "jwt.alg"},
		{"symmetric", jwt(identity.JWT{Alg: "HS256"}), "Identity", "jwt.alg"},
		{"empty audience", jwt(identity.JWT{Audiences: identity.Plain("a", "")}), "Identity", "jwt.audiences[1]"},
		{"use that is none", jwt(identity.JWT{Audiences: []identity.Audience{{Pattern: "a", Use: "once"}}}), "Identity", "jwt.audiences[0].use"},
		{"claim that JSON can't say", claim("a", math.NaN()), "Identity", "jwt.claims"},
		{"claim of no type", claim("a", struct{}{}), "Identity", "jwt.claims"},
		{"claim without a name", claim("", "a"), "Identity", "jwt.claims"},
		{"long claim", claim("a", strings.Repeat("a", 5000)), "Identity", "jwt.claims"},
		{"long list", claim("a", make([]any, 5000)), "Identity", "jwt.claims"},
		{"deep claim", claim("a", []any{[]any{[]any{[]any{[]any{[]any{}}}}}}), "Identity", "jwt.claims"},
		{"long hint", set(func(i *id) { i.Hint = strings.Repeat("a", 1025) }), "Identity", "hint"},
		{"no such target", set(func(i *id) { i.Targets = []string{"aws", "none"} }), "Identity", "targets[1]"},
		{"target twice", set(func(i *id) { i.Targets = []string{"aws", "aws"} }), "Identity", "targets[1]"},
		{"no such peer", set(func(i *id) { i.FederatesWith = []string{"none.example"} }), "Identity", "federates_with[0]"},
		{"no name", set(func(i *id) { i.Name = "" }), "Identity", "name"},
		{"a path for a name", set(func(i *id) { i.Name = "../a" }), "Identity", "name"},
		{"capitals in a name", set(func(i *id) { i.Name = "A" }), "Identity", "name"},
		{"a long name", set(func(i *id) { i.Name = strings.Repeat("a", 64) }), "Identity", "name"},
		{"two Identities of a name", of(checkout(), checkout()), "Identity", "name"},
		{"an empty deny", deny(identity.Deny{Name: "d"}), "Deny", "match"},
		{"an empty item of a deny", deny(identity.Deny{Name: "d", Match: []identity.Item{{}}}), "Deny", "match[0]"},
		{"a deny with any_node", deny(identity.Deny{Name: "d", Match: []identity.Item{{Terms: ok[0].Terms, AnyNode: true}}}), "Deny", "match[0].any_node"},
		{"a deny that never holds", deny(identity.Deny{Name: "d", Match: items("node.name", "n1", "user.email", "a")}), "Deny", "match[0]"},
		{"a deny of an empty ID", deny(identity.Deny{Name: "d", Match: ok, SPIFFEIDs: []string{""}}), "Deny", "spiffe_ids[0]"},
		{"a deny of no path", deny(identity.Deny{Name: "d", Match: ok, SPIFFEIDs: []string{"/**", "a"}}), "Deny", "spiffe_ids[1]"},
		{"a deny of foreign IDs", deny(identity.Deny{Name: "d", Match: ok, SPIFFEIDs: []string{"spiffe://other.example/**"}}), "Deny", "spiffe_ids[0]"},
		{"two Denies of a name", identity.Resources{Denies: []identity.Deny{{Name: "d", Match: ok}, {Name: "d", Match: ok}}}, "Deny", "name"},
		{"two Targets of a name", identity.Resources{Targets: []identity.Target{{Name: "a"}, {Name: "a"}}}, "Target", "name"},
		{"a Target with a long audience", identity.Resources{Targets: []identity.Target{{Name: "a", Audience: strings.Repeat("a", 1025)}}}, "Target", "audience"},
		{"two Peers of a name", identity.Resources{Peers: []string{"a.example", "a.example"}}, "Peer", "name"},
		{"ourselves as Peer", identity.Resources{Peers: []string{"example.org"}}, "Peer", "name"},
		{"a Peer by ID", identity.Resources{Peers: []string{"spiffe://a.example"}}, "Peer", "name"},
	} {
		s, err := identity.NewSet(config(), row.r)
		var e *identity.Error
		if s != nil || !errors.As(err, &e) {
			t.Errorf("%s: %v, %v", row.name, s != nil, err)
			continue
		}
		if e.Kind != row.kind || e.Field != row.field {
			t.Errorf("%s: %s at %s: %v", row.name, e.Kind, e.Field, err)
		}
	}
}

func TestNewSetRefusesRegisteredClaims(t *testing.T) {
	for _, name := range []string{"iss", "sub", "aud", "exp", "nbf", "iat", "jti", "act", "may_act", "cnf", "client_id", "azp", "scope"} {
		i := with(checkout(), func(i *identity.Identity) { i.JWT = &identity.JWT{Claims: map[string]any{name: "x"}} })
		if _, err := identity.NewSet(config(), of(i)); err == nil || !strings.Contains(err.Error(), "jwt.claims") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewSetTakes(t *testing.T) {
	type id = identity.Identity
	for name, change := range map[string]func(*id){
		"any node":          func(i *id) { i.Match = []identity.Item{{Terms: terms("workload.unix.uid", "0"), AnyNode: true}} },
		"any node by when":  func(i *id) { i.Match = []identity.Item{{When: `workload.unix.uid == "0"`, AnyNode: true}} },
		"a person":          func(i *id) { i.Match, i.SPIFFEID = items("user.email", "ana@example.org"), "/people/ana" },
		"a peer's workload": func(i *id) { i.Match, i.SPIFFEID = items("peer.spiffe_id", "spiffe://p.example/a"), "/p" },
		"a path and a uid":  func(i *id) { i.Match = items("node.name", "n1", "workload.unix.path", "/x", "workload.unix.uid", "0") },
		"a digest and an image": func(i *id) {
			i.Match = items("node.name", "n1", "workload.unix.sha256", "0", "workload.docker.image", "x*")
		},
		"reserved as a prefix":   func(i *id) { i.SPIFFEID = "/credences/{node.name}" },
		"reserved further down":  func(i *id) { i.SPIFFEID = "/a/credence" },
		"reserved and a fact":    func(i *id) { i.SPIFFEID = "/credence{node.name}" },
		"a label by its key":     func(i *id) { i.SPIFFEID = `/{workload.labels["app.kubernetes.io/name"]}` },
		"a label by its name":    func(i *id) { i.SPIFFEID = `/{workload.labels.app.kubernetes.io/name}` },
		"a full ID":              func(i *id) { i.SPIFFEID = "spiffe://example.org/a" },
		"all of 2048 bytes":      func(i *id) { i.SPIFFEID = "/" + strings.Repeat("a", 2048-len("spiffe://example.org/")) },
		"the suffix itself":      func(i *id) { i.X509 = &identity.X509{DNSNames: []string{"example.org", "a.b.svc"}} },
		"a subject in any order": func(i *id) { i.X509 = &identity.X509{Subject: "OU=team-a, O=Acme, cn=checkout"} },
		"a long hint":            func(i *id) { i.Hint = strings.Repeat("a", 1024) },
		"AWS session tags": func(i *id) {
			i.JWT = &identity.JWT{Claims: map[string]any{"https://aws.amazon.com/tags": map[string]any{"principal_tags": map[string]any{"team": []string{"a"}}, "n": 1}}}
		},
	} {
		if _, err := identity.NewSet(config(), of(with(checkout(), change))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestNewSetTellsAllMistakes(t *testing.T) {
	_, err := identity.NewSet(config(), of(identity.Identity{Name: "a"}, identity.Identity{Name: "b", SPIFFEID: "/b"}))
	many, ok := err.(interface{ Unwrap() []error })
	if !ok {
		t.Fatal(err)
	}
	var got []string
	for _, e := range many.Unwrap() {
		var one *identity.Error
		if !errors.As(e, &one) {
			t.Fatal(e)
		}
		got = append(got, one.Name+" "+one.Field)
	}
	if want := "a spiffe_id,a match,b match"; strings.Join(got, ",") != want {
		t.Errorf("got %s, want %s", got, want)
	}
	var r identity.Resources
	for range 100 {
		r.Identities = append(r.Identities, identity.Identity{})
	}
	if _, err = identity.NewSet(config(), r); strings.Count(err.Error(), "\n") != 19 {
		t.Errorf("more than twenty: %v", err)
	}
}

func TestConfigRefused(t *testing.T) {
	for name, change := range map[string]func(*identity.Config){
		"no trust domain": func(c *identity.Config) { c.TrustDomain = spiffeid.TrustDomain{} },
		"a long trust domain": func(c *identity.Config) {
			c.TrustDomain = spiffeid.RequireTrustDomainFromString(strings.Repeat("a", 256))
		},
		"an X.509 life over the most":  func(c *identity.Config) { c.X509TTL = 25 * time.Hour },
		"an X.509 life under a minute": func(c *identity.Config) { c.X509TTL = time.Second },
		"a JWT life over an hour":      func(c *identity.Config) { c.JWTTTL = 2 * time.Hour },
		"a JWT bound over an hour":     func(c *identity.Config) { c.MaxJWTTTL = 2 * time.Hour },
		"a target's life over an hour": func(c *identity.Config) { c.TargetTTL = 2 * time.Hour },
		"a file's life over an hour":   func(c *identity.Config) { c.FileTTL = 2 * time.Hour },
		"a negative life":              func(c *identity.Config) { c.MinTTL, c.JWTTTL = -time.Hour, -time.Minute },
		"a bound under the least":      func(c *identity.Config) { c.MaxX509TTL = time.Second },
		"a wildcard suffix":            func(c *identity.Config) { c.DNSSuffixes = []string{"*.org"} },
		"an empty suffix":              func(c *identity.Config) { c.DNSSuffixes = []string{""} },
		"a dotted suffix":              func(c *identity.Config) { c.DNSSuffixes = []string{".org"} },
		"an address as suffix":         func(c *identity.Config) { c.DNSSuffixes = []string{"1.2.3.4"} },
		"any subject":                  func(c *identity.Config) { c.Subjects = []string{"**"} },
		"a subject without value":      func(c *identity.Config) { c.Subjects = []string{"O="} },
	} {
		k := config()
		change(&k)
		if _, err := identity.NewSet(k, of(checkout())); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func TestNothingIsPermittedByDefault(t *testing.T) {
	k := identity.Config{TrustDomain: td}
	for name, x := range map[string]identity.X509{
		"DNS name": {DNSNames: []string{"a.svc"}},
		"subject":  {Subject: "CN=checkout,O=Acme"},
	} {
		if _, err := identity.NewSet(k, of(with(checkout(), func(i *identity.Identity) { i.X509 = &x }))); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := identity.NewSet(k, of(with(checkout(), func(i *identity.Identity) { i.X509 = &identity.X509{Subject: "CN=checkout"} }))); err != nil {
		t.Errorf("its own name: %v", err)
	}
}

// What a caller does to its resources afterwards must change no policy.
func TestNewSetSharesNothing(t *testing.T) {
	i := checkout()
	i.X509 = &identity.X509{Subject: "CN=checkout", DNSNames: []string{"a.svc"}}
	list := []any{"a"}
	i.JWT = &identity.JWT{Audiences: identity.Plain("orders"), Claims: map[string]any{"a": list}}
	s := requireSet(t, of(i))
	i.X509.Subject, i.X509.DNSNames[0], i.JWT.Audiences[0].Pattern = "CN=evil", "evil", "**"
	i.Match[0].Terms[0].Pattern = "**"
	list[0], i.JWT.Claims["b"] = "evil", "evil"
	g := requireDecisions(t, s, shop(t))[0].Grant
	if g.Subject() != "CN=checkout" || g.DNSNames()[0] != "a.svc" {
		t.Errorf("grant is %+v", g)
	}
	r := shop(t)
	r.Audiences = []string{"evil"}
	requireDenied(t, s, r)
	r.Audiences = []string{"orders"}
	if c := requireDecisions(t, s, r)[0].Grant.Claims(); len(c) != 1 || c["a"].([]any)[0] != "a" {
		t.Errorf("claims are %v", c)
	}
	r.Node = facts(t, "node", "node.kubernetes.cluster", "other")
	requireDenied(t, s, r)
}

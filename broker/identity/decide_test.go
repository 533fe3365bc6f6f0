package identity_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/credence-id/credence/broker/identity"
	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestRequestsRefused(t *testing.T) {
	anyone := identity.Identity{Name: "a", SPIFFEID: "/a", Match: []identity.Item{
		{Terms: terms("node.name", "n1")},
		{Terms: terms("workload.unix.uid", "1000"), AnyNode: true},
		{Terms: terms("user.email", "ana")},
		{Terms: terms("peer.id", "b")},
	}, JWT: &identity.JWT{Audiences: identity.Plain("**")}, Targets: []string{"t"}}
	s := requireSet(t, identity.Resources{Identities: []identity.Identity{anyone}, Targets: []identity.Target{{Name: "t", Audience: "x"}}})
	requireDecisions(t, s, shop(t))

	for name, change := range map[string]func(*identity.Request){
		"no time":                   func(r *identity.Request) { r.Time = time.Time{} },
		"no facts":                  func(r *identity.Request) { r.Node, r.Workload = identity.Facts{}, identity.Facts{} },
		"a workload without a node": func(r *identity.Request) { r.Node = identity.Facts{} },
		"a person on a node":        func(r *identity.Request) { r.User = facts(t, "user", "user.email", "ana") },
		"a peer on a node":          func(r *identity.Request) { r.Peer = facts(t, "peer", "peer.id", "b") },
		"a person by a node": func(r *identity.Request) {
			r.Node, r.Workload, r.User = identity.Facts{}, identity.Facts{}, facts(t, "user", "user.email", "ana")
		},
		"a person with a workload": func(r *identity.Request) {
			r.Node, r.NodeID, r.User = identity.Facts{}, "", facts(t, "user", "user.email", "ana")
		},
		"a person and a peer": func(r *identity.Request) {
			*r = identity.Request{Time: now, User: facts(t, "user", "user.email", "ana"), Peer: facts(t, "peer", "peer.id", "b")}
		},
		"a life under the least": func(r *identity.Request) { r.TTL = time.Second },
		"a negative life":        func(r *identity.Request) { r.TTL = -time.Hour },
		"target and audience":    func(r *identity.Request) { r.Target, r.Audiences = "t", []string{"a"} },
		"a file without target":  func(r *identity.Request) { r.ToFile = true },
		"an empty audience":      func(r *identity.Request) { r.Audiences = []string{"a", ""} },
		"a long audience":        func(r *identity.Request) { r.Audiences = []string{strings.Repeat("a", 1025)} },
		"many audiences":         func(r *identity.Request) { r.Audiences = strings.Split(strings.Repeat("a", 17), "") },
		"a zero key":             func(r *identity.Request) { r.Keys = []identity.KeyDigest{key(1), {}} },
		"a key twice":            func(r *identity.Request) { r.Keys = []identity.KeyDigest{key(1), key(1)} },
		"many keys":              func(r *identity.Request) { r.Keys = make([]identity.KeyDigest, 257) },
		"everything unknown":     func(r *identity.Request) { r.Unknown = []string{""} },
		"many unknown":           func(r *identity.Request) { r.Unknown = strings.Split(strings.Repeat("a", 65), "") },
		"no such target":         func(r *identity.Request) { r.Target = "u" },
		"another SPIFFE ID":      func(r *identity.Request) { r.SPIFFEID = spiffeid.RequireFromString("spiffe://example.org/b") },
	} {
		r := shop(t)
		change(&r)
		t.Run(name, func(t *testing.T) { requireDenied(t, s, r) })
	}
	requireDecisions(t, s, identity.Request{Time: now, User: facts(t, "user", "user.email", "ana")})
	requireDecisions(t, s, identity.Request{Time: now, Peer: facts(t, "peer", "peer.id", "b")})
	requireDenied(t, nil, shop(t))
	requireDenied(t, requireSet(t, identity.Resources{}), shop(t))
}

// A fact counts under its own root alone, however it came into the request.
func TestFactsUnderAnotherRoot(t *testing.T) {
	s := requireSet(t, of(identity.Identity{Name: "a", SPIFFEID: "/a", Match: items("node.name", "n1")}))
	r := identity.Request{Time: now, Node: facts(t, "node", "node.id", "x"), Workload: facts(t, "node", "node.name", "n1")}
	requireDenied(t, s, r)
}

func TestItemsAreAlternativesAndTermsAreNot(t *testing.T) {
	s := requireSet(t, of(identity.Identity{Name: "a", SPIFFEID: "/a", Match: []identity.Item{
		{Terms: terms("node.name", "n2")},
		{Terms: terms("node.name", "n1", "workload.unix.groups", "docker", "workload.unix.groups", "web")},
	}}))
	requireDecisions(t, s, shop(t))
	r := shop(t)
	r.Workload = facts(t, "workload", "workload.unix.groups", "docker")
	requireDenied(t, s, r)
}

// Regression: CVE-2021-27099
// Regression: GHSA-59w7-v8rr-pr4p
// Regression: SPIRE #6972
func TestTemplates(t *testing.T) {
	long := strings.Repeat("a", 2048)
	for _, row := range []struct {
		name, template string
		values         []string
		want           string // empty: denied
	}{
		{"a value", "/ns/{workload.x}", []string{"shop"}, "/ns/shop"},
		{"part of a segment", "/ns-{workload.x}.v1", []string{"shop"}, "/ns-shop.v1"},
		{"a full ID", "spiffe://example.org/{workload.x}", []string{"shop"}, "/shop"},
		{"dots in a name", "/{workload.x}", []string{"..."}, "/..."},
		{"absent", "/{workload.x}", nil, ""},
		{"several values", "/{workload.x}", []string{"a", "b"}, ""},
		{"empty", "/{workload.x}", []string{""}, ""},
		{"empty within a segment", "/a{workload.x}", []string{""}, ""},
		{"dot", "/{workload.x}", []string{"."}, ""},
		{"dot dot", "/{workload.x}", []string{".."}, ""},
		{"dots that add up", "/.{workload.x}", []string{"."}, ""},
		{"a slash", "/{workload.x}", []string{"a/b"}, ""},
		{"an escaped slash", "/{workload.x}", []string{"a%2fb"}, ""},
		{"a star", "/{workload.x}", []string{"*"}, ""},
		{"a plus", "/{workload.x}", []string{"a+b"}, ""},
		{"a comma", "/{workload.x}", []string{"a,b"}, ""},
		{"a colon", "/{workload.x}", []string{"a:b"}, ""},
		{"a query", "/{workload.x}", []string{"a?b"}, ""},
		{"a fragment", "/{workload.x}", []string{"a#b"}, ""},
		{"a space", "/{workload.x}", []string{"a b"}, ""},
		{"a NUL", "/{workload.x}", []string{"a\x00"}, ""},
		{"a newline", "/{workload.x}", []string{"a\n"}, ""},
		{"not ASCII", "/{workload.x}", []string{"é"}, ""},
		{"a template", "/{workload.x}", []string{"{node.name}"}, ""},
		{"too long", "/{workload.x}", []string{long}, ""},
		{"just too long", "/{workload.x}", []string{long[:2048-len("spiffe://example.org/")+1]}, ""},
		{"just fits", "/{workload.x}", []string{long[:2048-len("spiffe://example.org/")]}, "/" + long[:2048-len("spiffe://example.org/")]},
		{"reserved", "/{workload.x}/node/n2", []string{"credence"}, ""},
		{"the reserved root", "/{workload.x}", []string{"credence"}, ""},
		{"reserved in two", "/cred{workload.x}/broker", []string{"ence"}, ""},
		{"like reserved", "/{workload.x}/broker", []string{"Credence"}, "/Credence/broker"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := requireSet(t, of(identity.Identity{Name: "a", SPIFFEID: row.template, Match: items("node.name", "n1")}))
			pairs := []string{"workload.unix.uid", "0"}
			for _, v := range row.values {
				pairs = append(pairs, "workload.x", v)
			}
			r := shop(t)
			r.Workload = facts(t, "workload", pairs...)
			if row.want == "" {
				requireDenied(t, s, r)
				if x := s.Explain(r); len(x.Refused) != 1 || x.Refused[0].Field != "spiffe_id" {
					t.Errorf("explained by %s", x)
				}
				return
			}
			if got := requireDecisions(t, s, r)[0].ID.Path(); got != row.want {
				t.Errorf("rendered %s, want %s", got, row.want)
			}
			r.Unknown = []string{"workload.x"}
			requireDenied(t, s, r)
		})
	}
}

// Regression: CVE-2021-27099
func FuzzTemplate(f *testing.F) {
	f.Add("/ns/{workload.x}", "shop")
	f.Add("/{workload.x}/{workload.x}", "credence")
	f.Add("/.{workload.x}", ".")
	f.Add(`/{workload["x"]}`, "a/b")
	f.Add("/a/{workload.x | path}/b", "a/../b")
	f.Add("/{workload.x | lower | path}", "Credence/node/n2")
	f.Add(`/{workload.x | replace "." "/" | escape}-{workload.x | hash 8}`, "..")
	f.Fuzz(func(t *testing.T, template, value string) {
		if identity.ValidTemplate(td, template) != nil || len(value) > 60_000 {
			return
		}
		s := requireSet(t, of(identity.Identity{Name: "a", SPIFFEID: template, Match: items("node.name", "n1")}))
		r := shop(t)
		r.Workload = facts(t, "workload", "workload.x", value)
		ds, err := s.Decide(r)
		if err != nil {
			return
		}
		id := ds[0].ID
		if again, err := identity.ParseID(id.String()); err != nil || again != id || !id.MemberOf(td) {
			t.Errorf("%q with %q gave %q", template, value, id)
		}
		if p := id.Path() + "/"; p == "/" || strings.HasPrefix(p, "/credence/") {
			t.Errorf("%q with %q gave %q", template, value, id)
		}
		static := strings.TrimPrefix(template, "spiffe://example.org")
		static, _, _ = strings.Cut(static, "{")
		if !strings.HasPrefix(id.Path(), static) || strings.Count(id.Path(), "/") > strings.Count(template, "/") && !strings.Contains(template, "path") {
			t.Errorf("%q with %q gave %q", template, value, id)
		}
	})
}

func TestKeysGoInOrder(t *testing.T) {
	var all []identity.Identity
	for _, n := range []string{"c", "a", "d", "b"} {
		all = append(all, identity.Identity{Name: n, SPIFFEID: "/" + n, Match: items("node.name", "n1")})
	}
	s := requireSet(t, of(all...))
	r := shop(t)
	ds := requireDecisions(t, s, r)
	if diff := cmp.Diff([]string{"a", "b", "c", "d"}, names(ds)); diff != "" {
		t.Error(diff)
	}
	if ds[0].Grant.Key() != key(1) || ds[1].Grant.Key() != key(2) {
		t.Error("keys are not taken in order")
	}
	for _, d := range ds[2:] {
		if !d.Grant.IsZero() || d.ID.IsZero() {
			t.Errorf("without a key %s got %+v", d.Identity, d.Grant)
		}
	}
	r.SPIFFEID = spiffeid.RequireFromString("spiffe://example.org/c")
	if ds = requireDecisions(t, s, r); len(ds) != 1 || ds[0].Identity != "c" || ds[0].Grant.Key() != key(1) {
		t.Errorf("asked for c, got %v", names(ds))
	}
}

func TestHintsAreUnique(t *testing.T) {
	var all []identity.Identity
	for _, n := range []string{"b", "a", "c", "d", "e"} {
		hint := "main"
		if n > "c" {
			hint = ""
		}
		all = append(all, identity.Identity{Name: n, SPIFFEID: "/" + n, Match: items("node.name", "n1"), Hint: hint})
	}
	var got []string
	for _, d := range requireDecisions(t, requireSet(t, of(all...)), shop(t)) {
		got = append(got, d.Hint)
	}
	if diff := cmp.Diff([]string{"main", "", "", "", ""}, got); diff != "" {
		t.Error(diff)
	}
}

func TestLives(t *testing.T) {
	i := checkout()
	i.X509 = &identity.X509{TTL: 30 * time.Minute}
	i.JWT = &identity.JWT{TTL: 10 * time.Minute, Audiences: identity.Plain("a")}
	i.Targets = []string{"t"}
	plain := with(checkout(), func(i *identity.Identity) {
		i.Name, i.SPIFFEID, i.JWT, i.Targets = "plain", "/plain", &identity.JWT{Audiences: identity.Plain("b")}, []string{"u"}
	})
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{i, plain},
		Targets:    []identity.Target{{Name: "t", Audience: "x"}, {Name: "u", Audience: "x"}},
	})
	for _, row := range []struct {
		name   string
		change func(*identity.Request)
		want   []time.Duration
	}{
		{"X509-SVIDs", func(r *identity.Request) {}, []time.Duration{30 * time.Minute, time.Hour}},
		{"shorter X509-SVIDs", func(r *identity.Request) { r.TTL = 12 * time.Minute }, []time.Duration{12 * time.Minute, 12 * time.Minute}},
		{"X509-SVIDs of the cap", func(r *identity.Request) { r.TTL = 30 * time.Minute }, []time.Duration{30 * time.Minute, 30 * time.Minute}},
		{"of one, of its cap", func(r *identity.Request) {
			r.TTL, r.SPIFFEID = time.Hour, spiffeid.RequireFromString("spiffe://example.org/plain")
		}, []time.Duration{time.Hour}},
		{"a JWT-SVID", func(r *identity.Request) { r.Audiences = []string{"a"} }, []time.Duration{10 * time.Minute}},
		{"a JWT-SVID of no own life", func(r *identity.Request) { r.Audiences = []string{"b"} }, []time.Duration{5 * time.Minute}},
		{"a shorter JWT-SVID", func(r *identity.Request) { r.Audiences, r.TTL = []string{"a"}, time.Minute }, []time.Duration{time.Minute}},
		{"for a target", func(r *identity.Request) { r.Target = "t" }, []time.Duration{15 * time.Minute}},
		{"for a target, into a file", func(r *identity.Request) { r.Target, r.ToFile = "t", true }, []time.Duration{time.Hour}},
		{"shorter, for a target", func(r *identity.Request) { r.Target, r.TTL = "t", 2*time.Minute }, []time.Duration{2 * time.Minute}},
	} {
		r := shop(t)
		row.change(&r)
		var got []time.Duration
		for _, d := range requireDecisions(t, s, r) {
			got = append(got, d.Grant.Expires().Sub(d.Grant.Made()))
		}
		if diff := cmp.Diff(row.want, got); diff != "" {
			t.Errorf("%s: %s", row.name, diff)
		}
	}
}

// What is asked for beyond a life that is given is refused whole, with the
// bound; it lengthens nothing.
func TestLivesRefused(t *testing.T) {
	i := checkout()
	i.X509 = &identity.X509{TTL: 30 * time.Minute}
	i.JWT = &identity.JWT{TTL: 10 * time.Minute, Audiences: identity.Plain("a", "b")}
	i.Targets = []string{"t"}
	plain := with(checkout(), func(i *identity.Identity) {
		i.Name, i.SPIFFEID, i.JWT = "plain", "/plain", &identity.JWT{Audiences: identity.Plain("b")}
	})
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{i, plain}, Targets: []identity.Target{{Name: "t", Audience: "x"}},
	})
	for name, row := range map[string]struct {
		change func(*identity.Request)
		want   identity.LifeError
	}{
		"X509-SVIDs, one of them shorter": {func(r *identity.Request) { r.TTL = 45 * time.Minute }, identity.LifeError{Most: 30 * time.Minute}},
		"a nanosecond":                    {func(r *identity.Request) { r.TTL = 30*time.Minute + 1 }, identity.LifeError{Most: 30 * time.Minute}},
		"JWT-SVIDs":                       {func(r *identity.Request) { r.Audiences, r.TTL = []string{"b"}, 6*time.Minute }, identity.LifeError{Most: 5 * time.Minute}},
		"a JWT-SVID of one":               {func(r *identity.Request) { r.Audiences, r.TTL = []string{"a"}, time.Hour }, identity.LifeError{Most: 10 * time.Minute}},
		"for a target":                    {func(r *identity.Request) { r.Target, r.TTL = "t", 16*time.Minute }, identity.LifeError{Most: 15 * time.Minute}},
		"under the least":                 {func(r *identity.Request) { r.TTL = time.Minute - 1 }, identity.LifeError{Least: time.Minute}},
	} {
		r := shop(t)
		row.change(&r)
		row.want.Asked = r.TTL
		got, err := s.Decide(r)
		var refused *identity.LifeError
		if !errors.As(err, &refused) || !errors.Is(err, identity.ErrDenied) || len(got) > 0 {
			t.Errorf("%s: %v, %v", name, got, err)
			continue
		}
		if diff := cmp.Diff(row.want, *refused); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	r := shop(t)
	r.TTL = 45 * time.Minute
	if x := s.Explain(r); len(x.Refused) != 1 || x.Refused[0].Field != "x509.ttl" || !strings.Contains(x.Refused[0].Why, "30m") {
		t.Errorf("explained as %+v", x)
	}
}

func TestJWT(t *testing.T) {
	base := func() identity.Identity {
		i := checkout()
		i.JWT = &identity.JWT{Audiences: identity.Plain("orders", "spiffe://example.org/*"), Claims: map[string]any{"team": "payments"}}
		return i
	}
	alg := func(a string) identity.Identity {
		i := base()
		i.JWT.Alg = a
		return i
	}
	list := func(a ...string) identity.Identity {
		i := base()
		i.JWT.Audiences = identity.Plain(a...)
		return i
	}
	for _, row := range []struct {
		name      string
		i         identity.Identity
		audiences []string
		alg       string // empty: denied
	}{
		{"listed", base(), []string{"orders"}, "RS256"},
		{"one of two is not listed", base(), []string{"orders", "else"}, ""},
		{"in capitals", base(), []string{"Orders"}, ""},
		{"none listed", list(), []string{"orders"}, ""},
		{"no jwt block", checkout(), []string{"orders"}, ""},
		{"any listed", list("**"), []string{"a/b", "c"}, "RS256"},
		{"a star is no slash", list("*"), []string{"a/b"}, ""},
		{"SPIFFE ID", base(), []string{"spiffe://example.org/a"}, "ES256"},
		{"two SPIFFE IDs", base(), []string{"spiffe://example.org/b", "spiffe://example.org/a"}, "ES256"},
		{"a SPIFFE ID and another", base(), []string{"spiffe://example.org/b", "orders"}, "RS256"},
		{"no SPIFFE ID", list("**"), []string{"spiffe://example.org/a/"}, "RS256"},
		{"ES256 by choice", alg("ES256"), []string{"orders"}, "ES256"},
		{"RS256 by choice", alg("RS256"), []string{"spiffe://example.org/a"}, "RS256"},
	} {
		s := requireSet(t, of(row.i))
		r := shop(t)
		r.Audiences = row.audiences
		if row.alg == "" {
			requireDenied(t, s, r)
			if x := s.Explain(r); len(x.Refused) != 1 || x.Refused[0].Field != "jwt.audiences" {
				t.Errorf("%s: explained by %s", row.name, x)
			}
			continue
		}
		g := requireDecisions(t, s, r)[0].Grant
		if g.Alg() != row.alg || !cmp.Equal(g.Audiences(), row.audiences) || !g.Key().IsZero() || g.Claims()["team"] != "payments" ||
			g.Subject() != "" || g.DNSNames() != nil {
			t.Errorf("%s: grant is %+v", row.name, g)
		}
	}
}

func TestNoJWTWithoutIssuer(t *testing.T) {
	i := checkout()
	i.JWT = &identity.JWT{Audiences: identity.Plain("**")}
	i.Targets = []string{"t"}
	k := config()
	k.JWT = false
	s, err := identity.NewSet(k, identity.Resources{
		Identities: []identity.Identity{i}, Targets: []identity.Target{{Name: "t", Audience: "x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := shop(t)
	if d := requireDecisions(t, s, r)[0]; d.JWTAudiences != nil {
		t.Errorf("audiences %v are offered", d.JWTAudiences)
	}
	r.Audiences = []string{"a"}
	requireDenied(t, s, r)
	r.Audiences, r.Target = nil, "t"
	requireDenied(t, s, r)
}

func TestTargets(t *testing.T) {
	i := checkout()
	i.Targets = []string{"gcp", "roles-anywhere"}
	i.JWT = &identity.JWT{Alg: "ES256", Claims: map[string]any{"team": "payments"}}
	s := requireSet(t, identity.Resources{Identities: []identity.Identity{i}, Targets: []identity.Target{
		{Name: "gcp", Audience: "spiffe://cloud.example/gcp"}, {Name: "roles-anywhere"}, {Name: "azure", Audience: "api://x"},
	}})
	r := shop(t)
	r.Target = "gcp"
	g := requireDecisions(t, s, r)[0].Grant
	if g.Alg() != "RS256" || !cmp.Equal(g.Audiences(), []string{"spiffe://cloud.example/gcp"}) || !g.Key().IsZero() || g.Claims()["team"] != "payments" {
		t.Errorf("grant is %+v", g)
	}
	for _, name := range []string{"azure", "roles-anywhere", "none"} {
		r.Target = name
		requireDenied(t, s, r)
		if x := s.Explain(r); len(x.Refused) != 1 || x.Refused[0].Field != "targets" {
			t.Errorf("%s: explained by %s", name, x)
		}
	}
}

func TestDenies(t *testing.T) {
	for _, row := range []struct {
		name string
		ids  []string
		want []string // what is left of a, ab and shop
	}{
		{"all", nil, nil},
		{"all by pattern", []string{"/**"}, nil},
		{"a path", []string{"/a"}, []string{"ab", "shop"}},
		{"a full ID", []string{"spiffe://example.org/a"}, []string{"ab", "shop"}},
		{"a full glob", []string{"spiffe://example.org/a*"}, []string{"shop"}},
		{"a star", []string{"/*"}, []string{"shop"}},
		{"two", []string{"/ns/*/*", "/ab"}, []string{"a"}},
		{"another case", []string{"/A"}, []string{"a", "ab", "shop"}},
	} {
		s := requireSet(t, identity.Resources{
			Identities: []identity.Identity{
				{Name: "a", SPIFFEID: "/a", Match: items("node.name", "n1")},
				{Name: "ab", SPIFFEID: "/ab", Match: items("node.name", "n1")},
				{Name: "shop", SPIFFEID: "/ns/{workload.kubernetes.namespace}/x", Match: items("node.name", "n1")},
			},
			Denies: []identity.Deny{
				{Name: "elsewhere", Match: items("node.name", "n2")},
				{Name: "d", Match: items("node.name", "n*"), SPIFFEIDs: row.ids},
			},
		})
		if row.want == nil {
			requireDenied(t, s, shop(t))
			continue
		}
		if diff := cmp.Diff(row.want, names(requireDecisions(t, s, shop(t)))); diff != "" {
			t.Errorf("%s: %s", row.name, diff)
		}
	}
}

func TestMatches(t *testing.T) {
	f := facts(t, "node", "node.github.repository", "acme/checkout", "node.github.ref", "refs/tags/v1")
	for _, row := range []struct {
		name  string
		items []identity.Item
		want  bool
		fails bool
	}{
		{"a term", items("node.github.repository", "acme/*"), true, false},
		{"another", items("node.github.repository", "evil/*"), false, false},
		{"the second item", append(items("node.x", "a"), items("node.github.repository", "acme/checkout")...), true, false},
		{"a when", []identity.Item{{When: `node.github.ref.startsWith("refs/tags/v")`}}, true, false},
		{"a when that can't tell", []identity.Item{{When: `node.github.actor == "x"`}}, false, false},
		{"no items", nil, false, true},
		{"an empty item", []identity.Item{{}}, false, true},
		{"nonsense", []identity.Item{{When: `(`}}, false, true},
	} {
		got, err := identity.Matches(row.items, f)
		if got != row.want || (err != nil) != row.fails {
			t.Errorf("%s: %v, %v", row.name, got, err)
		}
		if err := identity.CheckItems(row.items); (err != nil) != row.fails {
			t.Errorf("%s: CheckItems: %v", row.name, err)
		}
	}
}

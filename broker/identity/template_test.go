package identity_test

import (
	"crypto/sha256"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/credence-id/credence/broker/identity"
)

// withX is the request of a workload with one fact, workload.x.
func withX(t testing.TB, values ...string) identity.Request {
	r := shop(t)
	pairs := []string{"workload.unix.uid", "0"}
	for _, v := range values {
		pairs = append(pairs, "workload.x", v)
	}
	r.Workload = facts(t, "workload", pairs...)
	return r
}

func templated(change func(*identity.Identity)) identity.Resources {
	return of(with(identity.Identity{Name: "a", SPIFFEID: "/a", Match: items("node.name", "n1")}, change))
}

func TestTemplateFunctions(t *testing.T) {
	hash := func(s string, n int) string { sum := sha256.Sum256([]byte(s)); return hex.EncodeToString(sum[:])[:n] }
	for _, row := range []struct {
		name, template, value string
		want                  string // empty: denied
	}{
		{"lower", "/{workload.x | lower}", "ShÖp", ""},
		{"lower ASCII", "/{workload.x | lower}", "ShOp-1", "/shop-1"},
		{"upper", "/{workload.x|upper}", "shop", "/SHOP"},
		{"replace", `/{workload.x | replace "." "-"}`, "a.b.c", "/a-b-c"},
		{"replace by nothing", `/{workload.x | replace "refs/tags/" ""}`, "refs/tags/v1", "/v1"},
		{"replace all by nothing", `/{workload.x | replace "v1" ""}`, "v1", ""},
		{"replace makes no segment", `/{workload.x | replace "." "/"}`, "a.b", ""},
		{"a pipe and a brace in quotes", `/{workload.x | replace "|" "-" | replace "}" "_"}`, "a|b}", "/a-b_"},
		{"replace grows", `/{workload.x | replace "a" "` + strings.Repeat("b", 64) + `"}`, strings.Repeat("a", 4000), ""},
		{"hash", "/{workload.x | hash}", "a/b ü", "/" + hash("a/b ü", 64)},
		{"short hash", "/v-{workload.x | hash 12}", "a/b", "/v-" + hash("a/b", 12)},
		{"hash of much", "/{workload.x | hash 8}", strings.Repeat("a", 50_000), "/" + hash(strings.Repeat("a", 50_000), 8)},
		{"hash of nothing", "/{workload.x | hash}", "", ""},
		{"escape", "/{workload.x | escape}", "acme/check out_1.x", "/acme_2fcheck_20out_5f1.x"},
		{"escape dots", "/{workload.x | escape}", "..", "/_2e_2e"},
		{"escape not ASCII", "/{workload.x | escape}", "é\x00", "/_c3_a9_00"},
		{"escape nothing", "/{workload.x | escape}", "", ""},
		{"escape too much", "/{workload.x | escape}", strings.Repeat("/", 1000), ""},
		{"functions in order", `/{workload.x | upper | escape | lower}`, "a/b", "/a_2fb"},
		{"path", "/p/{workload.x | path}/z", "acme/checkout", "/p/acme/checkout/z"},
		{"path of one", "/p/{workload.x | path}", "acme", "/p/acme"},
		{"path with dots", "/p/{workload.x | path}", "acme/../b", ""},
		{"path with an empty segment", "/p/{workload.x | path}", "acme//b", ""},
		{"path that starts with a slash", "/p/{workload.x | path}", "/acme", ""},
		{"path that ends with a slash", "/p/{workload.x | path}", "acme/", ""},
		{"path of what is no segment", "/p/{workload.x | path}", "acme/a b", ""},
		{"path, each escaped", "/p/{workload.x | path | escape}", "acme/a b/..", "/p/acme/a_20b/_2e_2e"},
		{"path, each hashed", "/p/{workload.x | path | hash 8}", "a/b", "/p/" + hash("a", 8) + "/" + hash("b", 8)},
		{"path, and a replace that makes one", `/p/{workload.x | path | replace "-" "/"}`, "a-b", ""},
		{"path after a replace", `/p/{workload.x | replace "." "/" | path}`, "a.b", "/p/a/b"},
		{"path to what is reserved", "/{workload.x | path}", "credence/broker", ""},
		{"path, lowered to what is reserved", "/{workload.x | lower | path}", "Credence/node/n2", ""},
		{"a label", `/{workload["x"] | lower}`, "A", "/a"},
		{"spaces", "/{  workload.x  |  lower  }", "A", "/a"},
		{"text", `/{"a"}-{workload.x}`, "b", "/a-b"},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := requireSet(t, templated(func(i *identity.Identity) { i.SPIFFEID = row.template }))
			r := withX(t, row.value)
			if row.want == "" {
				requireDenied(t, s, r)
				if x := s.Explain(r); len(x.Refused) != 1 || x.Refused[0].Field != "spiffe_id" {
					t.Errorf("explained by %s", x)
				}
				return
			}
			d := requireDecisions(t, s, r)[0]
			if got := d.ID.Path(); got != row.want {
				t.Errorf("rendered %s, want %s", got, row.want)
			}
			if want := []string{row.value}; !slices.Equal(d.Depends["workload.x"], want) {
				t.Errorf("it depends on %q", d.Depends)
			}
			r.Unknown = []string{"workload.x"}
			requireDenied(t, s, r)
		})
	}
}

func TestTemplatesRefused(t *testing.T) {
	for _, row := range []struct{ name, template, want string }{
		{"no such function", "/{workload.x | trim}", "there are lower, upper, replace, hash, escape, path"},
		{"another place's function", "/{workload.x | labels}", "no function here"},
		{"a function alone", "/{lower workload.x}", "not a fact's name"},
		{"no function", "/{workload.x |}", "such as | lower"},
		{"no pipe", "/{workload.x lower}", "such as | lower"},
		{"two pipes", "/{workload.x || lower}", "such as | lower"},
		{"too short a hash", "/{workload.x | hash 7}", "8 to 64"},
		{"too long a hash", "/{workload.x | hash 65}", "8 to 64"},
		{"a hash of text", `/{workload.x | hash "9"}`, "8 to 64"},
		{"two arguments", "/{workload.x | hash 8 9}", "has 2 arguments: want 1"},
		{"an argument too many", "/{workload.x | lower 1}", "has 1 arguments: want 0"},
		{"an argument too few", `/{workload.x | replace "a"}`, "want 2"},
		{"replace without quotes", "/{workload.x | replace a b}", "in quotes"},
		{"replace of nothing", `/{workload.x | replace "" "a"}`, "not empty"},
		{"a long argument", `/{workload.x | replace "a" "` + strings.Repeat("b", 65) + `"}`, "in quotes"},
		{"an open quote", `/{workload.x | replace "a" "b}`, "quote without its end"},
		{"path twice", "/{workload.x | path | path}", "twice"},
		{"many functions", "/{workload.x" + strings.Repeat(" | lower", 9) + "}", "at most 8"},
		{"text with a function", `/{"a" | lower}`, "no function"},
		{"text that is no path", `/{"{"}`, "parsing SPIFFE ID"},
		{"another system's template", "/ns/{{ .PodMeta.Namespace }}", "write {fact}"},
		{"nothing", "/{}", "names no fact"},
		{"spaces", "/{ }", "names no fact"},
		{"a key without its end", `/{workload["x}`, "quote without its end"},
		{"a slash for a path", "/{workload.x | path}/", "parsing SPIFFE ID"},
	} {
		if err := identity.ValidTemplate(td, row.template); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

// drawText is what a fact may hold: what has a meaning in IDs, escapes and names
// more often than else.
var drawText = rapid.OneOf(
	rapid.StringOf(rapid.RuneFrom([]rune(`ab_2f5e.-/{}|" ,=+\#`+"\x00é"))),
	rapid.StringMatching(`(_[0-9a-f]{2}|[a./_]){0,4}`),
	rapid.Custom(func(t *rapid.T) string { return string(rapid.SliceOfN(rapid.Byte(), 0, 6).Draw(t, "bytes")) }),
)

// Two values never come out as one but where functions say so.
func TestTemplatesAreInjective(t *testing.T) {
	for _, template := range []string{
		"/{workload.x}", "/{workload.x | escape}", "/a{workload.x | escape}b", "/{workload.x | path}", "/z/{workload.x | path | escape}/z", "/{workload.x | hash}",
	} {
		s := requireSet(t, templated(func(i *identity.Identity) { i.SPIFFEID = template }))
		seen := map[string]string{}
		rapid.Check(t, func(rt *rapid.T) {
			value := drawText.Draw(rt, "value")
			r := withX(t, value)
			ds, err := s.Decide(r)
			if err != nil {
				if strings.HasSuffix(template, "{workload.x | escape}") && value != "" {
					rt.Errorf("%s refuses %q", template, value)
				}
				return
			}
			id := ds[0].ID.String()
			if other, ok := seen[id]; ok && other != value {
				rt.Errorf("%s gives %s for %q and for %q", template, id, value, other)
			}
			seen[id] = value
		})
	}
}

func TestNamesFromTemplates(t *testing.T) {
	long := strings.Repeat("a", 64)
	for _, row := range []struct {
		name  string
		x509  identity.X509
		value string
		want  string // subject, then DNS names, between spaces; empty: denied
		field string
	}{
		{"a name", identity.X509{Subject: "CN=a,OU=team-{workload.x}", DNSNames: []string{"{workload.x}.svc"}}, "shop", "CN=a,OU=team-shop shop.svc", ""},
		{"a CN that is permitted", identity.X509{Subject: "CN={workload.x}"}, "team.one", "CN=team.one", ""},
		{"a CN that is our name", identity.X509{Subject: "CN={workload.x | lower}"}, "A", "CN=a", ""},
		{"a CN of others", identity.X509{Subject: "CN={workload.x}"}, "other", "", "x509.subject"},
		{"a value that is not permitted", identity.X509{Subject: "OU={workload.x}"}, "root", "", "x509.subject"},
		{"another attribute", identity.X509{Subject: "OU=team-{workload.x}"}, "b,O=Evil", `OU=team-b\,O=Evil`, ""},
		{"two in an RDN", identity.X509{Subject: "OU=team-{workload.x}"}, "b+O=Evil", `OU=team-b\+O=Evil`, ""},
		{"a quote, a backslash and spaces", identity.X509{Subject: "OU=team-{workload.x}"}, ` "\ `, `OU=team-\ \"\\\ `, ""},
		{"too long a value", identity.X509{Subject: "OU=team-{workload.x}"}, long, "", "x509.subject"},
		{"a control character", identity.X509{Subject: "OU=team-{workload.x}"}, "a\n", "", "x509.subject"},
		{"not UTF-8", identity.X509{Subject: "OU=team-{workload.x}"}, "a\xff", "", "x509.subject"},
		{"a country that is none", identity.X509{Subject: "C={workload.x}"}, "Germany", "", "x509.subject"},
		{"a brace", identity.X509{Subject: `OU=team-{"{"}a`}, "", `OU=team-{a`, ""},
		{"a dot in a label", identity.X509{DNSNames: []string{"{workload.x}.svc"}}, "admin.kube-system", "", "x509.dns_names[0]"},
		{"labels", identity.X509{DNSNames: []string{"b.svc", "{workload.x | labels}.svc"}}, "a.b", " b.svc a.b.svc", ""},
		{"labels, one empty", identity.X509{DNSNames: []string{"{workload.x | labels}.svc"}}, "a..b", "", "x509.dns_names[0]"},
		{"a whole name", identity.X509{DNSNames: []string{"{workload.x | labels}"}}, "web.example.org", " web.example.org", ""},
		{"a whole name elsewhere", identity.X509{DNSNames: []string{"{workload.x | labels}"}}, "web.evilexample.org", "", "x509.dns_names[0]"},
		{"a capital", identity.X509{DNSNames: []string{"{workload.x}.svc"}}, "Shop", "", "x509.dns_names[0]"},
		{"a capital, lowered", identity.X509{DNSNames: []string{"{workload.x | lower}.svc"}}, "Shop", " shop.svc", ""},
		{"a hyphen at an end", identity.X509{DNSNames: []string{"{workload.x}.svc"}}, "shop-", "", "x509.dns_names[0]"},
		{"a wildcard", identity.X509{DNSNames: []string{"{workload.x}.svc"}}, "*", "", "x509.dns_names[0]"},
		{"too long a label", identity.X509{DNSNames: []string{"a{workload.x}.svc"}}, long[1:], "", "x509.dns_names[0]"},
		{"two that come out as one", identity.X509{DNSNames: []string{"a.svc", "{workload.x}.svc"}}, "a", " a.svc", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := config()
			c.Subjects = append(c.Subjects, "OU=team-*", "CN=team.*", "C=*")
			s, err := identity.NewSet(c, templated(func(i *identity.Identity) { i.X509 = &row.x509 }))
			if err != nil {
				t.Fatal(err)
			}
			r := withX(t, row.value)
			if row.field != "" {
				requireDenied(t, s, r)
				if x := s.Explain(r); len(x.Refused) != 1 || x.Refused[0].Field != row.field || x.Refused[0].Code != identity.CodeTemplate {
					t.Errorf("explained by %s", x)
				}
				return
			}
			g := requireDecisions(t, s, r)[0].Grant
			if got := strings.TrimSuffix(g.Subject()+" "+strings.Join(g.DNSNames(), " "), " "); got != strings.TrimSuffix(row.want, " ") && got != row.want {
				t.Errorf("names are %q", got)
			}
			if row.x509.Subject == "" {
				return
			}
			parsed, err := identity.ParseSubject(g.Subject())
			if err != nil || len(parsed) != strings.Count(row.x509.Subject, "=") {
				t.Errorf("%v, %v", parsed, err)
			}
		})
	}
}

func TestNameTemplatesRefused(t *testing.T) {
	for _, row := range []struct {
		name, field, want string
		x509              identity.X509
	}{
		{"an attribute of facts", "x509.subject", "", identity.X509{Subject: "{workload.x}=a"}},
		{"a subject of facts", "x509.subject", "", identity.X509{Subject: "{workload.x}"}},
		{"a backslash before a fact", "x509.subject", "escapes nothing", identity.X509{Subject: `OU=Acme\{workload.x}`}},
		{"half a byte before a fact", "x509.subject", "escapes nothing", identity.X509{Subject: `OU=Acme\4{workload.x}`}},
		{"an attribute that is not permitted", "x509.subject", "such as L=*", identity.X509{Subject: "L={workload.x}"}},
		{"what is fixed is not permitted", "x509.subject", "", identity.X509{Subject: "O=Evil,OU={workload.x}"}},
		{"escape in a subject", "x509.subject", "needs none", identity.X509{Subject: "OU={workload.x | escape}"}},
		{"path in a subject", "x509.subject", "no function here", identity.X509{Subject: "OU={workload.x | path}"}},
		{"an end of facts", "x509.dns_names[0]", "dns_suffixes", identity.X509{DNSNames: []string{"a.{workload.x}"}}},
		{"an end elsewhere", "x509.dns_names[0]", "dns_suffixes", identity.X509{DNSNames: []string{"{workload.x}.example.com"}}},
		{"an end within a label", "x509.dns_names[0]", "dns_suffixes", identity.X509{DNSNames: []string{"{workload.x}svc"}}},
		{"no name whatever the facts", "x509.dns_names[0]", "", identity.X509{DNSNames: []string{"-{workload.x}.svc"}}},
		{"path in a name", "x509.dns_names[0]", "no function here", identity.X509{DNSNames: []string{"{workload.x | path}.svc"}}},
	} {
		_, err := identity.NewSet(config(), templated(func(i *identity.Identity) { i.X509 = &row.x509 }))
		var e *identity.Error
		if !errors.As(err, &e) || e.Field != row.field || !strings.Contains(e.Msg, row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
}

func TestClaimsFromTemplates(t *testing.T) {
	claims := map[string]any{
		"team": "{workload.x}", "text": `{"{"}not a fact{"}"}`, "n": 7,
		"deep": map[string]any{"list": []any{"a-{workload.x | hash 8}", true}}, "node": "{node.name}",
	}
	resources := templated(func(i *identity.Identity) {
		i.JWT = &identity.JWT{Audiences: identity.Plain("orders"), Claims: claims}
		i.Targets = []string{"t"}
	})
	resources.Targets = []identity.Target{{Name: "t", Audience: "t"}}
	s := requireSet(t, resources)
	r := withX(t, "a/b, {node.name} é")
	sum := sha256.Sum256([]byte("a/b, {node.name} é"))
	want := map[string]any{
		"team": "a/b, {node.name} é", "text": "{not a fact}", "n": 7,
		"deep": map[string]any{"list": []any{"a-" + hex.EncodeToString(sum[:])[:8], true}}, "node": "n1",
	}
	for _, target := range []string{"", "t"} {
		if r.Audiences, r.Target = []string{"orders"}, target; target != "" {
			r.Audiences = nil
		}
		d := requireDecisions(t, s, r)[0]
		if diff := cmp.Diff(want, d.Grant.Claims()); diff != "" {
			t.Error(diff)
		}
		if d.Depends["workload.x"] == nil || d.Depends["node.name"] == nil {
			t.Errorf("depends: %v", d.Depends)
		}
	}
	if claims["team"] != "{workload.x}" {
		t.Error("the caller's claims were changed")
	}
	for name, r := range map[string]identity.Request{
		"absent": withX(t), "several": withX(t, "a", "b"), "empty": withX(t, ""), "a control character": withX(t, "a\n"), "not UTF-8": withX(t, "a\xff"),
		"more than all claims may have": withX(t, strings.Repeat("a", 4090)), "much": withX(t, strings.Repeat("a", 50_000)),
	} {
		x509 := r
		r.Audiences = []string{"orders"}
		requireDenied(t, s, r)
		if x := s.Explain(r); len(x.Refused) != 1 || x.Refused[0].Field != "jwt.claims" || x.Refused[0].Code != identity.CodeTemplate {
			t.Errorf("%s: %s", name, x)
		}
		requireDecisions(t, s, x509) // which has no claims
	}
}

// What nobody proves who shows an SVID is in no claim.
func TestClaimsOfAPresentedSVID(t *testing.T) {
	resources := of(webIdentity(func(i *identity.Identity) {
		i.Targets, i.JWT.Claims = nil, map[string]any{"a": "{node.name}", "b": "{workload.unix.uid}"}
	}))
	r := shown(t, "/web")
	r.Audiences = []string{"orders"}
	if x := requireSet(t, resources).Explain(r); len(x.Refused) != 1 || !strings.Contains(x.Refused[0].Why, "workload.unix.uid is unknown") {
		t.Errorf("%s", x)
	}
	delete(resources.Identities[0].JWT.Claims, "b")
	requireDecisions(t, requireSet(t, resources), r)
}

func TestClaimTemplatesRefused(t *testing.T) {
	for name, claims := range map[string]map[string]any{
		"another's case":                {"Sub": "a"},
		"a letter that folds":           {"ſub": "a"},
		"what authorizes":               {"authorization_details": "a"},
		"a name of facts":               {"{node.name}": "a"},
		"a deep name of facts":          {"a": map[string]any{"{": "a"}},
		"a brace":                       {"a": "{"},
		"another system's":              {"a": "{{ .Node }}"},
		"escape":                        {"a": "{node.name | escape}"},
		"many bytes in templates alone": {"a": strings.Repeat("{node.name}", 400)},
	} {
		_, err := identity.NewSet(config(), templated(func(i *identity.Identity) { i.JWT = &identity.JWT{Claims: claims} }))
		var e *identity.Error
		if !errors.As(err, &e) || e.Field != "jwt.claims" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// An SVID that is shown fits the template as it is rendered now.
func TestPresentedFitsFunctions(t *testing.T) {
	for _, row := range []struct {
		template, id string
		fits         bool
	}{
		{"/{node.name | upper}/{workload.x | lower}", "/N1/a", true},
		{"/{node.name | upper}/{workload.x | lower}", "/n1/a", false},
		{"/{node.name | upper}/{workload.x}", "/N1/a/b", false},
		{"/{node.name | upper}/{workload.x | path}", "/N1/a/b", true},
		{"/{workload.x | path}/z", "/a/b/z", true},
		{"/{workload.x | path}/z", "/a/b/y", false},
		{"/{workload.x | path}", "/credence/broker", false},
	} {
		s := requireSet(t, of(webIdentity(func(i *identity.Identity) { i.SPIFFEID, i.Targets = row.template, nil })))
		r := shown(t, row.id)
		if _, err := s.Decide(r); (err == nil) != row.fits {
			t.Errorf("%s of %s: %v", row.id, row.template, err)
		}
	}
}

func TestParties(t *testing.T) {
	i := identity.Identity{
		Name: "a", SPIFFEID: `/{workload.app | lower}/{workload.x | path}/{workload.labels["a/b"] | escape}`,
		X509:  &identity.X509{Subject: "CN={workload.app},OU={node.team}"},
		Match: slices.Concat(items("node.name", "n1", "workload.app", "Shop"), items("node.name", "n2", "workload.x", "a/b", "workload.app", "A,b", "workload.labels.a/b", "c_d")),
	}
	got, err := i.Parties(td)
	want := []identity.Party{
		{SPIFFEID: "spiffe://example.org/shop/{workload.x|path}/{workload.labels.a/b}", Subject: "CN=Shop,OU={node.team}"},
		{SPIFFEID: "spiffe://example.org/{workload.app}/a/b/c_5fd", Subject: `CN=A\,b,OU={node.team}`},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

// FuzzNames holds that no value makes a name that is not permitted, or another
// attribute.
func FuzzNames(f *testing.F) {
	f.Add("CN=a,OU=team-{workload.x}", "{workload.x}.svc", "b,O=Evil")
	f.Add(`OU={workload.x | replace "a" ","}`, "a-{workload.x | lower}.b.svc", "a.b")
	f.Add("OU=Acme", "{workload.x | labels}", "a.example.org")
	f.Fuzz(func(t *testing.T, subject, name, value string) {
		if len(value) > 60_000 {
			return
		}
		s, err := identity.NewSet(config(), templated(func(i *identity.Identity) {
			i.X509 = &identity.X509{Subject: subject, DNSNames: []string{name}}
		}))
		if err != nil {
			return
		}
		ds, err := s.Decide(withX(t, value))
		if err != nil {
			return
		}
		g := ds[0].Grant
		parsed, err := identity.ParseSubject(g.Subject())
		if err != nil {
			t.Fatalf("%q with %q gave %q: %v", subject, value, g.Subject(), err)
		}
		if _, err := asn1.Marshal(parsed); err != nil {
			t.Errorf("%q with %q gave %q: %v", subject, value, g.Subject(), err)
		}
		for _, rdn := range parsed {
			if a := fmt.Sprint(rdn[0].Value); a != "a" && a != "Acme" && !rdn[0].Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 11}) {
				t.Errorf("%q with %q gave %q", subject, value, g.Subject())
			}
		}
		for _, n := range g.DNSNames() {
			if n != "svc" && n != "example.org" && !strings.HasSuffix(n, ".svc") && !strings.HasSuffix(n, ".example.org") ||
				strings.Trim(n, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" || strings.Contains(n, "..") || len(n) > 253 {
				t.Errorf("%q with %q gave %q", name, value, n)
			}
			if !strings.Contains(name, "labels") && !strings.Contains(name, `"`) && strings.Count(n, ".") > strings.Count(name, ".") {
				t.Errorf("%q with %q gave %q", name, value, n)
			}
		}
	})
}

// TestPartsGrowLittle holds that a function on each of many parts takes no more
// than one on the whole of a value.
func TestPartsGrowLittle(t *testing.T) {
	grow := ` | replace "a" "` + strings.Repeat("a", 64) + `"`
	s := requireSet(t, templated(func(i *identity.Identity) { i.SPIFFEID = "/{workload.x | path" + strings.Repeat(grow, 3) + "}" }))
	r := withX(t, strings.Repeat("a/", 2000)+"a")
	one := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			s.Decide(r)
		}
	})
	if one.AllocedBytesPerOp() > 4<<20 {
		t.Errorf("a decision takes %d bytes", one.AllocedBytesPerOp())
	}
}

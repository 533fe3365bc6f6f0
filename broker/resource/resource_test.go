package resource_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/join"
	"github.com/credence-id/credence/broker/resource"
	"github.com/credence-id/credence/exchangers"
)

// settings are those of a flow that these tests make up.
type settings struct {
	Role string `json:"role" yaml:"role"`
}

func (s *settings) Audience() string { return "sts" }
func (s *settings) Validate() error {
	if s.Role == "" {
		return errRole
	}
	return nil
}

type constError string

func (e constError) Error() string { return string(e) }

const errRole = constError("role: is required")

type githubSettings struct {
	Host string `yaml:"host,omitempty"`
}

func (s *githubSettings) Validate() error {
	if s.Host == "bad" {
		return constError("host: is bad")
	}
	return nil
}

func registry() resource.Registry {
	return resource.Registry{
		Methods: map[string]func() join.Settings{"github": func() join.Settings { return new(githubSettings) }},
		Flows:   map[string]func() exchangers.Settings{"cloud": func() exchangers.Settings { return new(settings) }},
	}
}

const whole = `# a comment
kind: Identity
name: checkout
spiffe_id: /ns/{workload.kubernetes.namespace}/checkout
match:
  - node.kubernetes.cluster: eu-prod
    workload.unix.uid: 1001
    when: workload.kubernetes.labels.tier in ["web", "api"]
  - node.name: a
    any_node: true
x509: {ttl: 1h, subject: "CN=checkout", dns_names: [checkout.shop.svc]}
jwt:  {ttl: 5m, audiences: [orders], claims: {team: payments}}
federates_with: [partner.example]
hint: main
targets: [orders]
---
kind: Deny
name: incident
match: [{node.name: build-7}]
spiffe_ids: ["/**"]
reason: key leaked
---
kind: JoinRule
name: github-acme
github: {}
allow: [{node.github.repository_owner: acme}]
---
kind: Peer
name: partner.example
url: https://spiffe.partner.example/bundle
https_web: {}
max_staleness: 24h
accept: ["/billing/**"]
---
kind: Target
name: orders
cloud: {role: "arn:x"}
endpoint: https://127.0.0.1:8443
`

func TestWhatIsWrittenIsTaken(t *testing.T) {
	all, err := registry().Parse("f.yaml", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	var again strings.Builder
	for _, r := range all {
		kinds = append(kinds, r.Kind)
		text, err := r.YAML()
		if err != nil {
			t.Fatal(err)
		}
		again.WriteString("---\n" + string(text))
	}
	if d := cmp.Diff(resource.Kinds, kinds); d != "" {
		t.Error(d)
	}
	twice, err := registry().Parse("again.yaml", []byte(again.String()))
	if err != nil {
		t.Fatalf("%v in\n%s", err, again.String())
	}
	for i, r := range twice {
		before, _ := all[i].YAML()
		after, _ := r.YAML()
		if d := cmp.Diff(string(before), string(after)); d != "" {
			t.Errorf("%s is not the same the second time: %s", r.Kind, d)
		}
	}
	if d := cmp.Diff(all[0].Identity, twice[0].Identity); d != "" {
		t.Error(d)
	}
	if got := all[0].Identity.Match[0].Terms[1].Pattern; got != "1001" {
		t.Errorf("an unquoted integer is %q", got)
	}
}

func TestMistakesHaveAPlace(t *testing.T) {
	const head = "kind: Identity\nname: a\nspiffe_id: /a\n"
	for name, c := range map[string]struct{ text, want string }{
		"unknown field":           {head + "mach: []\n", `f.yaml:4:1: Identity a: unknown field "mach"`},
		"unknown nested field":    {head + "x509:\n  life: 1h\n", `f.yaml:5:3: Identity a: unknown field "life"`},
		"unknown kind":            {"kind: Identty\nname: a\n", `f.yaml:1:7: kind: "Identty" is none of`},
		"no kind":                 {"name: a\n", "f.yaml:1:1: kind: is missing"},
		"no name":                 {"kind: Deny\n", "f.yaml:1:1: name: is missing"},
		"same name twice":         {head + "---\n" + head, "f.yaml:6:7: Identity a: name: there is another Identity a above"},
		"same key twice":          {head + "hint: a\nhint: b\n", "f.yaml:5:1"},
		"a number as key":         {head + "hint: a\n1: 2\n", "f.yaml:5:1: the key 1 is not text: quote it"},
		"a number as nested key":  {head + "x509: {ttl: 5m, 0x1: 2}\n", "f.yaml:4:17: the key 0x1 is not text"},
		"a null as key in a list": {head + "match: [{node.name: a, ~: b}]\n", "f.yaml:4:24: the key ~ is not text"},
		"a flag as key":           {head + "jwt:\n  claims:\n    true: b\n", "f.yaml:6:5: the key true is not text"},
		"a key alone":             {"{kind: Deny, name: a, 1}\n", "f.yaml:1:23: the key 1 is not text"},
		"not UTF-8":               {head + "hint: \"\xff\"\n", "f.yaml: it is not UTF-8"},
		"boolean term":            {head + "match:\n  - node.name: true\n", "f.yaml:5:16: Identity a: node.name: the value is not text: quote it"},
		"float term":              {head + "match:\n  - node.name: 1.5\n", "quote it"},
		"octal term":              {head + "match:\n  - node.name: 0o17\n", "quote it"},
		"null term":               {head + "match:\n  - node.name:\n", "quote it"},
		"list term":               {head + "match:\n  - node.name: [a]\n", "quote it"},
		"bad duration":            {head + "x509: {ttl: 1parsec}\n", "f.yaml:4"},
		"alias":                   {"kind: &k Identity\nname: a\n", "anchors, aliases"},
		"unknown method":          {"kind: JoinRule\nname: a\ntpm: {}\nallow: [{node.tpm.x: y}]\n", `f.yaml:3:1: JoinRule a: "tpm" is neither a field of a JoinRule nor a join method that this program has (github)`},
		"no method":               {"kind: JoinRule\nname: a\nallow: [{node.github.x: y}]\n", "it has no join method"},
		"settings":                {"kind: JoinRule\nname: a\ngithub: {host: bad}\nallow: [{node.github.x: y}]\n", `f.yaml:3:9: JoinRule a: github: host: is bad`},
		"empty allow":             {"kind: JoinRule\nname: a\ngithub: {}\nallow: []\n", "f.yaml:4:8: JoinRule a: allow: it is empty"},
		"no allow":                {"kind: JoinRule\nname: a\ngithub: {}\n", "it is empty, which would let nobody join"},
		"unknown flow":            {"kind: Target\nname: a\nclod: {}\n", `"clod" is neither`},
		"bad settings":            {"kind: Target\nname: a\ncloud: {rule: x}\n", `f.yaml:3:9: Target a: unknown field "rule"`},
		"invalid settings":        {"kind: Target\nname: a\ncloud: {}\n", "role: is required"},
		"peer without profile":    {"kind: Peer\nname: p.example\nurl: https://p.example/b\n", "f.yaml:1:1: Peer p.example: peer p.example: neither https_spiffe nor https_web"},
		"peer of a bad name":      {"kind: Peer\nname: P.example\nurl: https://p.example/b\nhttps_web: {}\n", "f.yaml:2:7: Peer P.example: name"},
		"peer over http":          {"kind: Peer\nname: p.example\nurl: http://p.example/b\nhttps_web: {}\n", "Peer p.example"},
		"not yaml":                {"kind: [\n", "f.yaml"},
		"a list":                  {"- a\n", "a resource is a mapping"},
		"nothing":                 {"\n", "it holds no resource"},
		"deep flow":               {head + "jwt: {claims: " + strings.Repeat("[", 5000) + "\n", "nested too deep"},
		"too large":               {strings.Repeat("#", resource.MaxBytes+1), "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := registry().Parse("f.yaml", []byte(c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(whole))
	f.Add([]byte("kind: Deny\nname: a\nmatch: [{node.name: 1}]\n"))
	f.Add([]byte("kind: {a: b}\n? c\n"))
	f.Add([]byte("kind: Deny\nname: |-\n  a\n  b\n"))
	f.Add([]byte("kind: Deny\nname: a\nreason: >\n  \n\n\r\r\n\n  b\n"))
	f.Add([]byte("kind: Deny\nname: a\nreason: [- - - [{[\n"))
	f.Add([]byte("kind: Deny\nname: a\nreason: []]]]]]]]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := registry().Parse("f", text)
		if err != nil {
			return
		}
		for _, r := range all {
			out, err := r.YAML()
			if err != nil {
				t.Fatalf("%s %s cannot be written: %v", r.Kind, r.Name, err)
			}
			if _, err := registry().Parse("g", out); err != nil {
				t.Fatalf("what was written is not taken: %v\n%s", err, out)
			}
		}
	})
}

func TestWithoutText(t *testing.T) {
	all, err := registry().Parse("f", []byte(whole))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		kept := r.WithoutText()
		if got, want := kept.At("match[0]", "wrong").Error(), "f: "+r.Kind+" "+r.Name+": match[0]: wrong"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		before, err := r.YAML()
		if err != nil {
			t.Fatal(err)
		}
		if after, err := kept.YAML(); err != nil || string(after) != string(before) {
			t.Errorf("%v\n%s\n%s", err, before, after)
		}
	}
}

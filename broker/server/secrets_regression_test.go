package server_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/credence-id/credence/broker/api"
)

// Of a whole session, refusals too, no secret is in the broker's log at its
// most talkative, in the record, in the store, in an explanation or an answer
// to anybody else.
//
// Regression: CVE-2025-62513
// Regression: SPIRE #6732
func TestNoSecretIsToldByTheBroker(t *testing.T) {
	e := signing(t)
	e.apply(web + "---\n" + target + "---\n" + strings.Replace(linked, "federates_with:\n  - partner.example\n", "", 1))
	spent, unspent := e.token("n1"), e.token("n2")
	key := newKey(t)
	got, err := joinOnce(t.Context(), e.stranger(), &api.JoinRequest_Start{Method: "token", Evidence: []byte(spent), PublicKey: spki(t, key.Public())})
	if err != nil {
		t.Fatal(err)
	}
	n := e.node(got, key)
	var texts []string
	says := func(m proto.Message, err error) { texts = append(texts, fmt.Sprintf("%v %+v", m, err)) }
	tell := func(err error) { texts = append(texts, fmt.Sprintf("%v %+v", err, err)) }
	tell(e.try(&api.JoinRequest_Start{Method: "token", Evidence: []byte(spent)}))
	tell(e.try(&api.JoinRequest_Start{Method: spent, Evidence: []byte("x")}))
	tokens := map[string]string{"a join token": spent, "a join token that nobody spent": unspent}
	for name, r := range map[string]*api.IssueJWTRequest{"a JWT-SVID": {Audiences: []string{"orders"}}, "a token for a target": {Target: "t1"}} {
		r.Workload = process("33")
		issued, err := n.IssueJWT(t.Context(), r)
		if err != nil || len(issued.GetSvids()) == 0 {
			t.Fatal(name, issued, err)
		}
		tokens[name] = issued.GetSvids()[0].GetToken()
		tokens[name+"'s signature"] = tokens[name][strings.LastIndexByte(tokens[name], '.')+1:]
	}
	if _, _, err := n.issue(t.Context(), t, "33"); err != nil {
		t.Fatal(err)
	}
	denied, _, err := n.issue(t.Context(), t, "34")
	says(denied, err)
	if _, err := n.Report(t.Context(), &api.ReportRequest{Exchanges: []*api.Exchange{{Id: reportID(1), Target: "t1"}}}); err != nil {
		t.Fatal(err)
	}
	nodes, err := e.admin().ListNodes(t.Context(), &api.ListNodesRequest{})
	says(nodes, err)
	status, err := e.admin().Status(t.Context(), &api.StatusRequest{})
	says(status, err)
	all, err := e.admin().Get(t.Context(), &api.GetRequest{})
	says(all, err)
	explained, err := e.admin().Explain(t.Context(), &api.ExplainRequest{Node: n.id, Facts: process("34").GetFacts()})
	says(explained, err)
	authorities, err := e.admin().ListAuthorities(t.Context(), &api.ListAuthoritiesRequest{})
	says(authorities, err)
	e.close()
	for _, r := range e.records() {
		texts = append(texts, fmt.Sprintf("%+v", r))
	}
	texts = append(texts, e.log.String())
	keys := filepath.Join(e.dir, "keys")
	err = filepath.WalkDir(e.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || strings.HasPrefix(path, keys) {
			return err
		}
		text, err := os.ReadFile(path)
		texts = append(texts, string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	private, err := filepath.Glob(filepath.Join(keys, "*"))
	if err != nil || len(private) == 0 {
		t.Fatal(private, err)
	}
	for _, file := range private { // what lies there is nowhere else
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(strings.TrimSpace(string(text)), "\n"); strings.Contains(string(text), "PRIVATE KEY") && len(lines) > 2 {
			tokens["the key "+filepath.Base(file)] = lines[len(lines)-2]
		}
	}
	if len(tokens) < 8 {
		t.Errorf("few secrets are looked for: %d", len(tokens))
	}
	for name, secret := range tokens {
		for form, text := range map[string]string{
			"as it is": secret, "in base64": strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "="), "in hex": hex.EncodeToString([]byte(secret)),
		} {
			for _, where := range texts {
				if at := strings.Index(where, text); at >= 0 {
					t.Errorf("%s is told, %s, in %.300q", name, form, where[max(0, at-100):])
				}
			}
		}
	}
}

// What an Identity says arrives at the node, field by field: one that is added
// to an answer, and that nobody fills, is told here.
//
// Regression: SPIRE #6636
func TestEveryFieldArrives(t *testing.T) {
	e := signing(t)
	_, root := foreignSVID(t, "spiffe://partner.example/a")
	e.peers.set("https://partner.example/bundle", bundleOf(t, root))
	e.apply(strings.Join([]string{target, peer, `kind: Identity
name: first
spiffe_id: /first
match: [{node.name: n1, workload.unix.uid: 33}]
hint: one
`, `kind: Identity
name: whole
spiffe_id: /whole
match: [{node.name: n1, workload.unix.uid: 33}]
x509: {dns_names: [whole.example.org]}
jwt: {audiences: [{name: orders, use: audited}], claims: {team: payments}}
federates_with: [partner.example]
hint: two
targets: [t1]
`}, "---\n"))
	n := e.join("n1")
	r, err := n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{
		Workload: process("33"), PublicKeys: [][]byte{spki(t, newKey(t).Public()), spki(t, newKey(t).Public())},
	}}})
	if err != nil || len(r.GetResults()[0].GetSvids()) != 2 {
		t.Fatal(r, err)
	}
	whole := r.GetResults()[0].GetSvids()[1]
	filled(t, whole)
	filled(t, whole.GetTargets()[0])
	filled(t, r.GetResults()[0], "keys_needed", "denial")
	for field, got := range map[string][2]string{
		"identity": {whole.GetIdentity(), "whole"}, "spiffe_id": {whole.GetSpiffeId(), "spiffe://example.org/whole"}, "hint": {whole.GetHint(), "two"},
		"federates_with": {fmt.Sprint(whole.GetFederatesWith()), "[partner.example]"}, "jwt_audiences": {fmt.Sprint(whole.GetJwtAudiences()), "[orders]"},
		"targets": {whole.GetTargets()[0].GetName() + " " + whole.GetTargets()[0].GetProvider(), "t1 cloud"}, "public_key": {fmt.Sprint(whole.GetPublicKey()), "1"},
	} {
		if got[0] != got[1] {
			t.Errorf("%s is %s, want %s", field, got[0], got[1])
		}
	}
	leaf := parse(t, whole.GetChain())[0]
	if fmt.Sprint(leaf.DNSNames) != "[whole.example.org]" {
		t.Errorf("DNS names %v", leaf.DNSNames)
	}
	jwt, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}, Audits: true})
	if err != nil || len(jwt.GetSvids()) != 1 {
		t.Fatal(jwt, err)
	}
	filled(t, jwt.GetSvids()[0], "single_use")
	if jwt.GetSvids()[0].GetIdentity() != "whole" || jwt.GetSvids()[0].GetHint() != "two" || jwt.GetSvids()[0].GetSingleUse() {
		t.Errorf("the JWT-SVID is %v", jwt.GetSvids()[0])
	}
	filled(t, n.got)
}

// filled wants every field of a message set, but for those that are named.
func filled(t *testing.T, m proto.Message, but ...string) {
	t.Helper()
	empty := map[string]bool{}
	for _, name := range but {
		empty[name] = true
	}
	r := m.ProtoReflect()
	for i := range r.Descriptor().Fields().Len() {
		var f protoreflect.FieldDescriptor = r.Descriptor().Fields().Get(i)
		if r.Has(f) == empty[string(f.Name())] {
			t.Errorf("%s of %s: set %v", f.Name(), r.Descriptor().Name(), r.Has(f))
		}
	}
}

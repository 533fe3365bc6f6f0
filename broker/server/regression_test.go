package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/credence-id/credence/broker/api"
)

// ofB are identities of node b, found by its name, its ID and a glob, and of
// each node its own.
const ofB = `kind: Identity
name: b-by-name
spiffe_id: /b/name
match: [{node.name: b, workload.unix.uid: 33}]
jwt: {audiences: ["**"]}
targets: [t1]
---
kind: Identity
name: b-by-id
spiffe_id: /b/id
match: [{node.id: b, workload.unix.uid: 33}]
jwt: {audiences: ["**"]}
targets: [t1]
---
kind: Identity
name: own
spiffe_id: /own/{node.name}
match: [{node.token.site: a, workload.unix.uid: 33}]
jwt: {audiences: ["**"]}
targets: [t1]
`

// got are the SPIFFE IDs of all that a node is issued for the process of a
// uid, by each way to ask.
func (e *env) got(n *node, id string, held []*api.Held) map[string]bool {
	e.t.Helper()
	ctx, all := e.t.Context(), map[string]bool{}
	request := &api.IssueX509Request{}
	for i := range 64 { // a batch: each with facts of its own
		w := process("33")
		w.Facts["workload.test.n"] = &api.Values{Values: []string{fmt.Sprint(i), "node.name", "b", id}}
		item := &api.IssueX509Request_Item{Workload: w, Held: held}
		for range 3 {
			item.PublicKeys = append(item.PublicKeys, spki(e.t, newKey(e.t).Public()))
		}
		request.Items = append(request.Items, item)
	}
	r, err := n.IssueX509(ctx, request)
	if err != nil {
		e.t.Fatal(err)
	}
	for _, result := range r.GetResults() {
		for _, svid := range result.GetSvids() {
			all["x509 "+svid.GetSpiffeId()] = true
			for _, der := range svid.GetChain()[:min(1, len(svid.GetChain()))] {
				all["x509 "+parse(e.t, [][]byte{der})[0].URIs[0].String()] = true
			}
		}
	}
	for name, j := range map[string]*api.IssueJWTRequest{
		"all":             {Audiences: []string{"a"}},
		"one":             {Audiences: []string{"a"}, SpiffeId: id},
		"target":          {Target: "t1"},
		"target, one":     {Target: "t1", SpiffeId: id},
		"target, to file": {Target: "t1", SpiffeId: id, ToFile: true},
	} {
		j.Workload = process("33")
		r, err := n.IssueJWT(ctx, j)
		if err != nil {
			e.t.Fatalf("%s: %v", name, err)
		}
		for _, svid := range r.GetSvids() {
			all["jwt "+svid.GetSpiffeId()] = true
		}
	}
	renewed, err := n.Renew(ctx, &api.RenewRequest{PublicKey: spki(e.t, newKey(e.t).Public())})
	if err != nil {
		e.t.Fatal(err)
	}
	all["node "+parse(e.t, renewed.GetChain())[0].URIs[0].String()] = true
	return all
}

// A node is given what policy says of it and nothing of another's, by
// whichever call it asks, and can do nothing in another's name.
//
// Regression: CVE-2021-27098
// Regression: CVE-2026-39388
func TestANodeGetsNothingOfAnothers(t *testing.T) {
	e := signing(t)
	e.apply(ofB + "---\n" + target)
	a, b := e.join("a"), e.join("b")
	wa, _ := a.watch(t)
	wb, _ := b.watch(t)
	of := func(node string) map[string]bool {
		all := map[string]bool{"node spiffe://example.org/credence/node/" + node: true}
		for _, way := range []string{"x509", "jwt"} {
			all[way+" spiffe://example.org/own/"+node] = true
			if node == "b" {
				all[way+" spiffe://example.org/b/name"], all[way+" spiffe://example.org/b/id"] = true, true
			}
		}
		return all
	}
	want := func(node string, got map[string]bool) {
		t.Helper()
		for id := range got {
			if !of(node)[id] {
				t.Errorf("node %s was issued %s", node, id)
			}
		}
		for id := range of(node) {
			if !got[id] {
				t.Errorf("node %s was not issued %s", node, id)
			}
		}
	}
	want("b", e.got(b, "spiffe://example.org/b/name", nil))
	r, err := b.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{
		Workload: process("33"), PublicKeys: [][]byte{spki(t, newKey(t).Public()), spki(t, newKey(t).Public()), spki(t, newKey(t).Public())},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	var held []*api.Held // what b has, as if it were a's
	for _, svid := range r.GetResults()[0].GetSvids() {
		held = append(held, &api.Held{Identity: svid.GetIdentity(), Digest: svid.GetDigest(), NotAfter: e.now().Unix() + 3600})
	}
	for _, id := range []string{
		"spiffe://example.org/b/name", "spiffe://example.org/b/id", "spiffe://example.org/own/b", b.id, "spiffe://example.org/credence/broker",
	} {
		want("a", merge(of("a"), e.got(a, id, held)))
	}

	// What b holds is no business of a's stream.
	ofBOnly := process("33")
	ofBOnly.Facts["workload.test.only"] = &api.Values{Values: []string{"b"}}
	if _, err := b.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: ofBOnly}}}); err != nil {
		t.Fatal(err)
	}
	set := api.WorkloadDigest(ofBOnly)
	tells := func(m *api.WatchResponse) bool {
		return slices.ContainsFunc(m.GetChanges(), func(c *api.Change) bool { return bytes.Equal(c.GetSet(), set[:]) })
	}
	e.apply(strings.Replace(ofB, "/own/{node.name}", "/own2/{node.name}", 1))
	wb.until(tells)
	last := e.apply(deny).GetRevision() // and a last change, that a is told of after all others
	for {
		m := wa.next()
		if tells(m) {
			t.Error("a is told of what b holds")
		}
		if m.GetPolicyRevision() == last {
			break
		}
	}
	// What a reports is a's word, whomever it names.
	if _, err := a.Report(t.Context(), &api.ReportRequest{Exchanges: []*api.Exchange{{Id: reportID(1), SpiffeId: b.id, Identity: "b-by-name"}}}); err != nil {
		t.Fatal(err)
	}
	for _, r := range e.records() {
		if r.Detail["report"] == "forged" && r.Node != a.id {
			t.Errorf("recorded as of %s", r.Node)
		}
	}
	t.Run("a's certificate with b's key", func(t *testing.T) {
		for name, cert := range map[string]*tls.Certificate{
			"b's name, a's key": {Certificate: b.cert.Certificate, PrivateKey: a.cert.PrivateKey},
			"both names":        {Certificate: append(slices.Clone(a.cert.Certificate[:1]), b.cert.Certificate...), PrivateKey: b.cert.PrivateKey},
		} {
			if _, err := handshake(t, e.listeners.Agents.Addr().String(), &tls.Config{Certificates: []tls.Certificate{*cert}}); err == nil {
				t.Errorf("%s were let in", name)
			}
		}
	})
}

func merge(all, more map[string]bool) map[string]bool {
	for k := range more {
		all[k] = true
	}
	return all
}

// Every way to a signature of a node's workload obeys every restriction of
// policy: a way that is added belongs into this table.
//
// Regression: GHSA-7qjx-gp9h-65qj
func TestEveryWayObeysEveryRestriction(t *testing.T) {
	const whole = "kind: Identity\nname: w\nspiffe_id: /w\nmatch: [{node.name: n1, workload.unix.uid: 33}]\njwt: {audiences: [a]}\ntargets: [t1]\n"
	ways := map[string]func(*testing.T, *node) bool{
		"x509": func(t *testing.T, n *node) bool {
			got, _, err := n.issue(t.Context(), t, "33")
			return err == nil && len(got.GetSvids()) > 0
		},
		"jwt":     issuesJWT(&api.IssueJWTRequest{Audiences: []string{"a"}}),
		"jwt, id": issuesJWT(&api.IssueJWTRequest{Audiences: []string{"a"}, SpiffeId: "spiffe://example.org/w"}),
		"target":  issuesJWT(&api.IssueJWTRequest{Target: "t1"}),
		"to file": issuesJWT(&api.IssueJWTRequest{Target: "t1", ToFile: true}),
	}
	e := signing(t)
	e.apply(target + "---\nkind: Target\nname: none\ncloud:\n  aud: none\n")
	n := e.join("n1")
	for name, row := range map[string]struct {
		yaml string
		open []string // the ways that stay open
	}{
		"none":                      {whole, []string{"x509", "jwt", "jwt, id", "target", "to file"}},
		"another node":              {strings.Replace(whole, "n1", "n2", 1), nil},
		"another process":           {strings.Replace(whole, "uid: 33", "uid: 34", 1), nil},
		"a deny of the node":        {whole + "---\nkind: Deny\nname: d\nmatch: [{node.name: n1}]\n", nil},
		"a deny of the ID":          {whole + "---\nkind: Deny\nname: d\nmatch: [{node.name: '*'}]\nspiffe_ids: [/w]\n", nil},
		"a deny of the process":     {whole + "---\nkind: Deny\nname: d\nmatch: [{workload.unix.uid: 33}]\n", nil},
		"another audience":          {strings.Replace(whole, "audiences: [a]", "audiences: [b]", 1), []string{"x509", "target", "to file"}},
		"no audience":               {strings.Replace(whole, "jwt: {audiences: [a]}\n", "", 1), []string{"x509", "target", "to file"}},
		"no target":                 {strings.Replace(whole, "targets: [t1]\n", "", 1), []string{"x509", "jwt", "jwt, id"}},
		"a target without audience": {strings.Replace(whole, "targets: [t1]", "targets: [none]", 1), []string{"x509", "jwt", "jwt, id"}},
	} {
		t.Run(name, func(t *testing.T) {
			e.apply(row.yaml)
			for way, ask := range ways {
				if got := ask(t, n); got != slices.Contains(row.open, way) {
					t.Errorf("%s: issued %v", way, got)
				}
			}
			if strings.Contains(row.yaml, "kind: Deny") {
				if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Deny", Name: "d"}); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// signing is a broker that also signs JWT-SVIDs.
func signing(t *testing.T) *env {
	t.Helper()
	e := newEnv(t, withIssuer)
	e.ready()
	return e
}

func issuesJWT(r *api.IssueJWTRequest) func(*testing.T, *node) bool {
	return func(t *testing.T, n *node) bool {
		r.Workload = process("33")
		got, err := n.IssueJWT(t.Context(), r)
		return err == nil && len(got.GetSvids()) > 0
	}
}

// Nobody gets an ID below /credence: not by any Identity, template, evidence
// or call.
//
// Regression: SPIRE #6972
func TestReservedIDsAreOutOfReach(t *testing.T) {
	e := signing(t)
	for _, id := range []string{
		"/credence", "/credence/broker", "/credence/node/n1", "/credence/node/{node.name}", "/credence/{workload.x}",
		"spiffe://example.org/credence/broker", "spiffe://example.org/credence/node/n2", "/credence//broker", "/./credence/broker", "/x/../credence/broker", "/%63redence/broker",
	} {
		_, err := e.tryApply(&api.ApplyRequest{Yaml: []byte("kind: Identity\nname: a\nspiffe_id: " + id + "\nmatch: [{node.name: n1}]\n")})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("an Identity of %s: %v", id, err)
		}
	}
	e.apply(target)
	const rendered = `kind: Identity
name: a
spiffe_id: /{workload.a}/{workload.b}
match: [{node.name: n1}]
jwt: {audiences: ["**"]}
targets: [t1]
---
kind: Identity
name: b
spiffe_id: /{workload.a}/{workload.b}/{node.name}
match: [{node.name: n1}]
jwt: {audiences: ["**"]}
targets: [t1]
---
kind: Identity
name: c
spiffe_id: /cred{workload.c}/broker
match: [{node.name: n1}]
jwt: {audiences: ["**"]}
targets: [t1]
`
	e.apply(rendered)
	n := e.join("n1")
	for _, facts := range []map[string]string{
		{"workload.a": "credence", "workload.b": "broker"}, {"workload.a": "credence", "workload.b": "node"}, {"workload.c": "ence"},
		{"workload.a": "credence/broker", "workload.b": "x"}, {"workload.a": "x", "workload.b": "../credence/broker"}, {"workload.a": ".", "workload.b": "credence"},
	} {
		w := &api.Workload{Facts: map[string]*api.Values{}}
		for name, value := range facts {
			w.Facts[name] = &api.Values{Values: []string{value}}
		}
		keys := [][]byte{spki(t, newKey(t).Public()), spki(t, newKey(t).Public())}
		r, err := n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: w, PublicKeys: keys}}})
		if err != nil || len(r.GetResults()[0].GetSvids()) > 0 || r.GetResults()[0].GetDenial() == nil {
			t.Errorf("%v: %v, %v", facts, r, err)
		}
		for _, id := range []string{"", n.id, "spiffe://example.org/credence/broker"} {
			for _, j := range []*api.IssueJWTRequest{{Workload: w, Audiences: []string{"a"}, SpiffeId: id}, {Workload: w, Target: "t1", SpiffeId: id}} {
				if r, err := n.IssueJWT(t.Context(), j); err != nil || len(r.GetSvids()) > 0 || r.GetDenial() == nil {
					t.Errorf("%v, %s: %v, %v", facts, id, r, err)
				}
			}
		}
	}
	w := &api.Workload{Facts: map[string]*api.Values{"workload.a": {Values: []string{"x"}}, "workload.b": {Values: []string{"y"}}}}
	r, err := n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: w, PublicKeys: [][]byte{spki(t, newKey(t).Public())}}}})
	if err != nil || len(r.GetResults()[0].GetSvids()) != 1 {
		t.Errorf("the same Identities grant nothing at all: %v, %v", r, err)
	}
}

// Of 200 nodes that come with one token at once, one is let in.
//
// Regression: SPIRE 1.14.6 join token
func TestOneTokenOf200JoinsAtOnce(t *testing.T) {
	e := newEnv(t)
	text, key := e.token("n1"), spki(t, newKey(t).Public())
	var mu sync.Mutex
	got := map[codes.Code]int{}
	var joining sync.WaitGroup
	var client api.NodeClient
	for i := range 200 {
		if i%8 == 0 { // as many as a stranger calls at once
			client = e.stranger()
		}
		client := client
		joining.Go(func() {
			_, err := joinOnce(t.Context(), client, &api.JoinRequest_Start{Method: "token", Evidence: []byte(text), PublicKey: key})
			mu.Lock()
			defer mu.Unlock()
			got[status.Code(err)]++
		})
	}
	joining.Wait()
	if len(got) != 2 || got[codes.OK] != 1 || got[codes.Unauthenticated] != 199 {
		t.Errorf("answers: %v", got)
	}
	joined := 0
	for _, r := range e.records() {
		if r.Kind == "join" && r.OK {
			joined++
		}
	}
	if joined != 1 {
		t.Errorf("%d joins are recorded", joined)
	}
}

// What proves something elsewhere is no join token, and a join token is
// nothing else.
//
// Regression: CVE-2026-4282
func TestNoEvidenceServesTwoEnds(t *testing.T) {
	e := signing(t)
	e.apply(web)
	n := e.join("n1")
	r, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}})
	if err != nil || len(r.GetSvids()) != 1 {
		t.Fatal(r, err)
	}
	jwt, text := r.GetSvids()[0].GetToken(), e.token("n2")
	for name, evidence := range map[string]string{
		"a JWT-SVID": jwt, "a JWT-SVID as a token": "cjt_" + jwt, "an SVID": string(n.cert.Certificate[0]), "a node's ID": n.id,
		"a token without its prefix": strings.TrimPrefix(text, "cjt_"), "a token of another prefix": strings.Replace(text, "cjt_", "cet_", 1),
		"a token in capitals": strings.ToUpper(text), "a token and more": text + "\n", "two tokens": text + text,
	} {
		if err := e.try(&api.JoinRequest_Start{Method: "token", Evidence: []byte(evidence)}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%s as join token: %v", name, err)
		}
	}
	if err := e.try(&api.JoinRequest_Start{Method: "token", Evidence: []byte(text)}); err != nil {
		t.Errorf("the token itself, after all that: %v", err)
	}
}

// A join is by a method that stands, spelled as it stands: all else ends in
// refusal, and the methods of a service are those of its listener.
//
// Regression: CVE-2025-44005
// Regression: CVE-2026-30836
func TestUnknownWaysAreRefused(t *testing.T) {
	e := newEnv(t)
	text := e.token("n1")
	names := []string{"Token", "TOKEN", "token ", " token", "token\x00", "tokens", "x509pop", "tpm", "acme", "scep", "none", "k8s", "github", "fake"}
	for b := range 256 {
		names = append(names, string(rune(b)))
	}
	client := e.stranger()
	for _, name := range names {
		_, err := joinOnce(t.Context(), client, &api.JoinRequest_Start{Method: name, Evidence: []byte(text), PublicKey: spki(t, newKey(t).Public())})
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("by method %q: %v", name, err)
		}
	}
	for step, m := range map[string]*api.JoinRequest{"no step": {}, "an empty answer": {Step: &api.JoinRequest_Answer{}}, "an empty start": {Step: &api.JoinRequest_Start_{}}} {
		stream, err := client.Join(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(m); err != nil {
			t.Fatal(err)
		}
		if got, err := stream.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", step, got, err)
		}
	}
	n := e.join("n2")
	for name, conn := range map[string]*grpc.ClientConn{"a node": e.dial(n.cert), "nobody": e.dial(nil), "the broker itself": e.dial(e.server.SVID())} {
		for _, method := range methodsOf(api.File_broker_api_admin_proto) {
			err := conn.Invoke(t.Context(), method, &emptypb.Empty{}, &emptypb.Empty{})
			if code := status.Code(err); code != codes.Unimplemented && code != codes.Unauthenticated {
				t.Errorf("%s calls %s at the agents' listener: %v", name, method, err)
			}
		}
	}
	admin, err := grpc.NewClient("unix://"+e.dir+"/admin.sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	for _, method := range methodsOf(api.File_broker_api_node_proto) {
		err := admin.Invoke(metadata.NewOutgoingContext(t.Context(), metadata.Pairs("node", n.id)), method, &emptypb.Empty{}, &emptypb.Empty{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s at the admin socket: %v", method, err)
		}
	}
}

func methodsOf(f protoreflect.FileDescriptor) (all []string) {
	for i := range f.Services().Len() {
		s := f.Services().Get(i)
		for j := range s.Methods().Len() {
			all = append(all, fmt.Sprintf("/%s/%s", s.FullName(), s.Methods().Get(j).Name()))
		}
	}
	return all
}

// Only a public key is taken for a key: no certificate, no request for one, no
// private key. What such a thing says of names is nowhere heard.
//
// Regression: GHSA-8cqv-pj7f-pwpc
// Regression: GHSA-g892-p242-8g86
func TestOnlyAPublicKeyIsAKey(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, _ := foreignSVID(t, "spiffe://example.org/credence/broker")
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{"evil.example"}, URIs: parse(t, cert.Certificate)[0].URIs}, key)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	good := spki(t, key.Public())
	for name, der := range map[string][]byte{
		"a certificate": cert.Certificate[0], "an SVID of ours": n.cert.Certificate[0], "a CSR": csr, "a SEC 1 key": sec1, "a PKCS #8 key": pkcs8,
		"PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: good}), "a key and more": append(slices.Clone(good), 0), "a key in a key": append(slices.Clone(good), good...),
	} {
		_, err := n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: process("33"), PublicKeys: [][]byte{der}}}})
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("issued for %s: %v", name, err)
		}
		if _, err := n.Renew(t.Context(), &api.RenewRequest{PublicKey: der}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("renewed for %s: %v", name, err)
		}
		if err := e.try(&api.JoinRequest_Start{Method: "token", Evidence: []byte(e.token("n2")), PublicKey: der}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("joined with %s: %v", name, err)
		}
	}
	// Nothing but what policy says is in an SVID.
	got, err := n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: process("33"), PublicKeys: [][]byte{good}}}})
	if err != nil {
		t.Fatal(err)
	}
	leaf := parse(t, got.GetResults()[0].GetSvids()[0].GetChain())[0]
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "spiffe://example.org/web" || leaf.DNSNames != nil || leaf.EmailAddresses != nil || leaf.IPAddresses != nil || leaf.IsCA {
		t.Errorf("the SVID says %v %v %v %v, CA %v", leaf.URIs, leaf.DNSNames, leaf.EmailAddresses, leaf.IPAddresses, leaf.IsCA)
	}
}

// An update is held against the same rules as what is new, whole.
//
// Regression: CVE-2026-79652
func TestAnUpdateIsHeldAgainstAllRules(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	before, err := e.admin().Get(t.Context(), &api.GetRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"no exact node":        {"node.name: n1, ", ""},
		"a glob for a node":    {"node.name: n1", "node.name: '*'"},
		"a reserved ID":        {"/web", "/credence/broker"},
		"another trust domain": {"/web", "spiffe://partner.example/web"},
		"a dot segment":        {"/web", "/a/../web"},
		"an unknown field":     {"name: web", "name: web\nadmin: true"},
		"a registered claim":   {"audiences: [orders]", "audiences: [orders], claims: {sub: x}"},
		"a foreign DNS name":   {"jwt:", "x509: {dns_names: [evil.com]}\njwt:"},
		"a long life":          {"jwt:", "x509: {ttl: 9000h}\njwt:"},
		"an absent target":     {"jwt:", "targets: [none]\njwt:"},
		"another kind":         {"kind: Identity", "kind: Target"},
	} {
		if _, err := e.tryApply(&api.ApplyRequest{Yaml: []byte(strings.Replace(web, change[0], change[1], 1))}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	after, err := e.admin().Get(t.Context(), &api.GetRequest{})
	if err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("what was refused has changed something: %v, %v", after, err)
	}
}

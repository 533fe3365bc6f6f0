package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/audit"
)

// Regression: CVE-2026-16093
func TestMalformedRequestsOfNodesAreRefused(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	good := spki(t, newKey(t).Public())
	items := func(n int, change func(*api.IssueX509Request_Item)) *api.IssueX509Request {
		r := &api.IssueX509Request{}
		for range n {
			item := &api.IssueX509Request_Item{Workload: process("33"), PublicKeys: [][]byte{good}}
			if change != nil {
				change(item)
			}
			r.Items = append(r.Items, item)
		}
		return r
	}
	facts := func(m map[string]*api.Values) *api.Workload { return &api.Workload{Facts: m} }
	values := func(v ...string) *api.Values { return &api.Values{Values: v} }
	key := func(pub crypto.PublicKey) func(*api.IssueX509Request_Item) {
		return func(i *api.IssueX509Request_Item) { i.PublicKeys = [][]byte{spki(t, pub)} }
	}
	workload := func(w *api.Workload) func(*api.IssueX509Request_Item) {
		return func(i *api.IssueX509Request_Item) { i.Workload = w }
	}
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p521, err := ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	many := map[string]*api.Values{}
	for i := range 257 {
		many[fmt.Sprint("workload.x.n", i)] = values("a")
	}
	var unknown []string
	for i := range 65 {
		unknown = append(unknown, fmt.Sprint("workload.x", i))
	}
	for name, c := range map[string]struct {
		request *api.IssueX509Request
		says    string
	}{
		"no item":                   {items(0, nil), "0 items"},
		"65 items":                  {items(65, nil), "65 items"},
		"9 keys":                    {items(1, func(i *api.IssueX509Request_Item) { i.PublicKeys = make([][]byte, 9) }), "9 keys"},
		"an empty key":              {items(1, func(i *api.IssueX509Request_Item) { i.PublicKeys = [][]byte{{}} }), "public key of 0 bytes"},
		"a long key":                {items(1, func(i *api.IssueX509Request_Item) { i.PublicKeys = [][]byte{make([]byte, 1025)} }), "1025 bytes"},
		"the same key twice":        {items(1, func(i *api.IssueX509Request_Item) { i.PublicKeys = [][]byte{good, good} }), "twice"},
		"RSA of 1024 bits":          {items(1, key(small.Public())), "of another kind"},
		"P-521":                     {items(1, key(p521.Public())), "of another kind"},
		"Ed25519":                   {items(1, key(ed)), "of another kind"},
		"a life before now":         {items(1, func(i *api.IssueX509Request_Item) { i.Ttl = -1 }), "a life of -1"},
		"a life for ever":           {items(1, func(i *api.IssueX509Request_Item) { i.Ttl = math.MaxInt64 }), "a life of"},
		"a short digest held":       {items(1, func(i *api.IssueX509Request_Item) { i.Held = []*api.Held{{Digest: []byte("x")}} }), "held digest"},
		"65 held":                   {items(1, func(i *api.IssueX509Request_Item) { i.Held = held(65) }), "65 held"},
		"a node's fact":             {items(1, workload(facts(map[string]*api.Values{"node.name": values("n1")}))), "node.name"},
		"a node's fact, hidden":     {items(1, workload(facts(map[string]*api.Values{"workload.unix.uid": values("33"), "node.fake.x": values("a")}))), "node.fake.x"},
		"a person's fact":           {items(1, workload(facts(map[string]*api.Values{"user.email": values("a")}))), "user.email"},
		"a fact without a value":    {items(1, workload(facts(map[string]*api.Values{"workload.a": values()}))), "no value"},
		"a fact without a name":     {items(1, workload(facts(map[string]*api.Values{"workload.": values("a")}))), "workload."},
		"257 facts":                 {items(1, workload(facts(many))), "257 facts"},
		"64 KiB of a fact":          {items(1, workload(facts(map[string]*api.Values{"workload.a": values(strings.Repeat("x", 64<<10))}))), "bytes"},
		"65 unknown":                {items(1, workload(&api.Workload{Unknown: unknown})), "more than 64 unknown"},
		"an unknown of no name":     {items(1, workload(&api.Workload{Unknown: []string{""}})), "unknown"},
		"an unknown of no kind":     {items(1, workload(&api.Workload{Unknown: []string{"unix"}})), "unknown"},
		"a proof that nobody reads": {items(1, workload(&api.Workload{Proofs: map[string][]byte{"docker": []byte("x")}})), "proofs"},
		"an empty proof":            {items(1, workload(&api.Workload{Proofs: map[string][]byte{"kubernetes": {}}})), "a proof of 0 bytes"},
		"a long proof":              {items(1, workload(&api.Workload{Proofs: map[string][]byte{"kubernetes": make([]byte, 16<<10+1)}})), "16385"},
		"that it is proven":         {items(1, workload(facts(map[string]*api.Values{"workload.kubernetes.proven": values("true")}))), "broker's own"},
		"a part of that":            {items(1, workload(facts(map[string]*api.Values{"workload.kubernetes.proven.x": values("true")}))), "broker's own"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.IssueX509(t.Context(), c.request)
			if text := wantCode(t, err, codes.InvalidArgument); !strings.Contains(text, c.says) {
				t.Errorf("it says %q", text)
			}
		})
	}
	if _, err := n.IssueX509(t.Context(), items(64, nil)); err != nil {
		t.Errorf("64 items: %v", err)
	}

	for name, r := range map[string]*api.IssueJWTRequest{
		"no audience and no target": {Workload: process("33")},
		"an audience and a target":  {Workload: process("33"), Audiences: []string{"orders"}, Target: "t"},
		"17 audiences":              {Workload: process("33"), Audiences: make([]string, 17)},
		"an ID that is none":        {Workload: process("33"), Audiences: []string{"orders"}, SpiffeId: "spiffe://EXAMPLE.org/a"},
		"a node's fact":             {Workload: facts(map[string]*api.Values{"node.name": values("n1")}), Audiences: []string{"orders"}},
		"a life before now":         {Workload: process("33"), Audiences: []string{"orders"}, Ttl: -1},
		"that it is proven":         {Workload: facts(map[string]*api.Values{"workload.kubernetes.proven": values("true")}), Audiences: []string{"orders"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := n.IssueJWT(t.Context(), r)
			wantCode(t, err, codes.InvalidArgument)
		})
	}
	_, err = n.Renew(t.Context(), &api.RenewRequest{PublicKey: spki(t, p521.Public())})
	wantCode(t, err, codes.InvalidArgument)
}

func held(n int) []*api.Held {
	var all []*api.Held
	for range n {
		all = append(all, &api.Held{Digest: make([]byte, 32)})
	}
	return all
}

func TestADenialTellsARecordAndNoRule(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	got, _, err := n.issue(t.Context(), t, "34")
	if err != nil {
		t.Fatal(err)
	}
	record := got.GetDenial().GetRecord()
	if d := got.GetDenial(); d.GetCode() != "denied" || len(got.GetSvids()) > 0 || !strings.HasPrefix(record, "r-") {
		t.Errorf("it got %v", got)
	}
	found := false
	for _, r := range e.records() {
		found = found || r.Ref().ID() == record && r.Kind == "deny" && r.Node == n.id
	}
	if !found {
		t.Errorf("%s is not the record of it", record)
	}
	jwt, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("34"), Audiences: []string{"orders"}})
	if err != nil || jwt.GetDenial() == nil || len(jwt.GetSvids()) > 0 {
		t.Errorf("a token: %v, %v", jwt, err)
	}
}

func reportID(n uint64) string { return broker.ReportID("0123456789abcdef", n) }

func handOut(n uint64) *api.HandOut {
	sum := sha256.Sum256([]byte("x"))
	return &api.HandOut{
		Id: reportID(n), Time: 5, SpiffeId: "spiffe://example.org/web", Identity: "web", Audiences: []string{"books", strings.Repeat("é", 300)}, TokenId: "jti-1",
		Digest: sum[:], Expires: 9, Set: sum[:], Facts: process("33").GetFacts(),
	}
}

// A hand-out says which token went to whom: as long as it is bounded, whole.
func TestHandOutsAreRecordedOneByOne(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	for at := range uint64(3) { // the last of them once more, as where an answer was lost
		again := &api.ReportRequest{HandOuts: []*api.HandOut{handOut(min(at+1, 2))}}
		if _, err := n.Report(t.Context(), again); err != nil {
			t.Fatal(err)
		}
	}
	var all []audit.Record
	for _, r := range e.records() {
		if r.Kind == "handout" {
			all = append(all, r)
		}
	}
	if len(all) != 2 {
		t.Fatalf("%d records of two hand-outs", len(all))
	}
	r, sum := all[1], hex.EncodeToString(handOut(1).GetDigest())
	if r.Node != n.id || r.SPIFFEID != "spiffe://example.org/web" || r.Identity != "web" || r.Serial != "jti-1" || r.Digest != sum || r.Detail["set"] != sum ||
		r.Count > 1 || r.NotAfter.Unix() != 9 || r.Facts["workload.unix.uid"][0] != "33" || !slices.Equal(r.Audiences, handOut(1).GetAudiences()) || !r.OK {
		t.Errorf("record %+v", r)
	}
	for name, spoil := range map[string]func(*api.HandOut){
		"no audience":        func(h *api.HandOut) { h.Audiences = nil },
		"too many audiences": func(h *api.HandOut) { h.Audiences = make([]string, 17) },
		"no digest":          func(h *api.HandOut) { h.Digest = nil },
		"no set":             func(h *api.HandOut) { h.Set = []byte{1} },
		"facts of a node":    func(h *api.HandOut) { h.Facts = map[string]*api.Values{"node.name": {Values: []string{"n2"}}} },
	} {
		h := handOut(9)
		spoil(h)
		if _, err := n.Report(t.Context(), &api.ReportRequest{HandOuts: []*api.HandOut{h}}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Agents learn how tokens are used, and of audited ones only those who say that
// they report them may keep any.
func TestUsesOnTheWire(t *testing.T) {
	e := signing(t)
	e.apply(`kind: Identity
name: web
spiffe_id: /web
match: [{node.name: n1, workload.unix.uid: 33}]
jwt: {audiences: [orders, {name: pay, use: single_use}, {name: "books*", use: audited}, "p*"]}
`)
	n := e.join("n1")
	x, err := n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{{Workload: process("33"), PublicKeys: [][]byte{spki(t, newKey(t).Public())}}}})
	if err != nil {
		t.Fatal(err)
	}
	v := x.GetResults()[0].GetSvids()[0]
	want := []*api.AudienceUse{{Audience: "pay", Use: "single_use"}, {Audience: "books*", Use: "audited"}}
	if d := cmp.Diff(want, v.GetJwtUses(), protocmp.Transform()); d != "" || fmt.Sprint(v.GetJwtAudiences()) != "[orders pay books* p*]" {
		t.Error(d, v.GetJwtAudiences())
	}
	for _, row := range []struct {
		audiences []string
		audits    bool
		single    bool
		use       string
	}{
		{[]string{"orders"}, true, false, ""},
		{[]string{"pay"}, true, true, ""},
		{[]string{"books1"}, true, false, "audited"},
		{[]string{"books1"}, false, true, "audited"},
		{[]string{"orders", "books1"}, true, false, "audited"},
		{[]string{"books1", "pay"}, true, true, ""},
	} {
		r, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: row.audiences, Audits: row.audits})
		if err != nil || len(r.GetSvids()) != 1 {
			t.Fatal(r, err)
		}
		if got := r.GetSvids()[0]; got.GetSingleUse() != row.single || got.GetUse() != row.use {
			t.Errorf("%v, audits %v: single use %v, use %q", row.audiences, row.audits, got.GetSingleUse(), got.GetUse())
		}
	}
}

// Regression: CVE-2026-40264
func TestReportsAreTheNodesWord(t *testing.T) {
	e := newEnv(t)
	n := e.join("n1")
	long := strings.Repeat("é", 300)
	r, err := n.Report(t.Context(), &api.ReportRequest{
		Exchanges: []*api.Exchange{
			{Id: reportID(1), SpiffeId: "spiffe://example.org/web", Target: "t", Ok: true, Expires: math.MaxInt64, Time: math.MinInt64},
			{Id: reportID(2), Code: long, Time: math.MaxInt64, Expires: -1},
		},
		Refusals: []*api.Refusal{{Id: reportID(3), Code: "gone", Facts: process("1").GetFacts(), Time: math.MaxInt64, Target: "t", Count: 7}},
		Gaps:     []*api.Gap{{Id: reportID(4), Lost: 12, Why: "full", Since: 1, Total: 13}},
		HandOuts: []*api.HandOut{handOut(5)},
	})
	if err != nil || r.GetAccepted() != 5 {
		t.Fatal(r, err)
	}
	var kinds []string
	for _, record := range e.records() {
		if record.Detail["report"] == "" {
			continue
		}
		kinds = append(kinds, record.Kind)
		if record.Node != n.id || len(record.Code) > 256+2 {
			t.Errorf("record %+v", record)
		}
		if record.Kind == "refusal" && (record.Count != 7 || record.Target != "t") || record.Kind == "report.gap" && (record.Count != 12 || record.Code != "full") {
			t.Errorf("record %+v", record)
		}
	}
	if d := cmp.Diff([]string{"exchange", "exchange", "refusal", "report.gap", "handout"}, kinds); d != "" {
		t.Error(d)
	}
	if r, err := n.Report(t.Context(), &api.ReportRequest{}); err != nil || r.GetAccepted() != 0 {
		t.Errorf("an empty report: %v, %v", r, err)
	}
	_, err = n.Report(t.Context(), &api.ReportRequest{Exchanges: make([]*api.Exchange, 257)})
	wantCode(t, err, codes.InvalidArgument)
	for _, id := range []string{"", "1", "fedcba9876543210-5"} { // the last one is of another spool
		_, err = n.Report(t.Context(), &api.ReportRequest{Exchanges: []*api.Exchange{{Id: reportID(5)}, {Id: id}}})
		wantCode(t, err, codes.InvalidArgument)
	}
	_, err = n.Report(t.Context(), &api.ReportRequest{Refusals: []*api.Refusal{{Id: reportID(5), Facts: map[string]*api.Values{"node.name": {Values: []string{"n2"}}}}}})
	wantCode(t, err, codes.InvalidArgument)
	// Within the bound of facts, and more than a record holds once it is JSON.
	quotes := map[string]*api.Values{"workload.a": {Values: []string{strings.Repeat(`"`, 60<<10)}}}
	_, err = n.Report(t.Context(), &api.ReportRequest{Refusals: []*api.Refusal{{Id: reportID(6), Facts: quotes}}})
	wantCode(t, err, codes.InvalidArgument)
}

func TestWhatCannotBeRecordedIsNotReleased(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	e.apply(web)
	n := e.join("n1")
	if err := e.audit.Close(); err != nil {
		t.Fatal(err)
	}
	got, _, err := n.issue(t.Context(), t, "33")
	if err == nil {
		t.Errorf("it got %v", got)
	}
	if _, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}}); err == nil {
		t.Error("a token was released")
	}
	if _, err := n.Renew(t.Context(), &api.RenewRequest{PublicKey: spki(t, newKey(t).Public())}); err == nil {
		t.Error("a node's SVID was released")
	}
}

// An SVID's record names the very text that granted it, also after others
// changed.
func TestTheRecordNamesTheRevision(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	e.apply(web + "hint: a\n")
	e.apply(target)
	n := e.join("n1")
	if got, _, err := n.issue(t.Context(), t, "33"); err != nil || len(got.GetSvids()) != 1 {
		t.Fatal(got, err)
	}
	records := e.records()
	r, err := e.admin().Get(t.Context(), &api.GetRequest{Kind: "Identity", Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	last := records[len(records)-1]
	if want := r.GetResources()[0].GetRevision(); last.Kind != "issue.x509" || last.Identity != "web" || last.Revision != want {
		t.Errorf("the record has %s by %s, revision %d, of %d", last.Kind, last.Identity, last.Revision, want)
	}
}

package server_test

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
)

func (e *env) revoke(kind, value string) broker.Revoked {
	e.t.Helper()
	r, err := e.broker.Revoke(e.t.Context(), broker.Cutoff{Kind: kind, Value: value, Reason: "leaked", Actor: "uid:0"})
	if err != nil || len(r.Problems) > 0 {
		e.t.Fatal(r, err)
	}
	return r
}

// TestRevocationReachesAnOpenStream: the set is erased and asked for again, what
// was held is signed anew, and the serial is there for the CRL.
func TestRevocationReachesAnOpenStream(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	n := e.join("n1")
	w, first := n.watch(t)
	if !first.GetCutoffsSet() || len(first.GetCutoffs()) > 0 {
		t.Errorf("it begins with %v, %v", first.GetCutoffsSet(), first.GetCutoffs())
	}
	before, _, err := n.issue(t.Context(), t, "33")
	if err != nil {
		t.Fatal(err)
	}
	r := e.revoke(broker.CutID, before.GetSvids()[0].GetSpiffeId())
	leaf, err := x509.ParseCertificate(before.GetSvids()[0].GetChain()[0])
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Serials) != 1 || r.Count != 1 || r.Serials[0].Serial != strings.ToLower(leaf.SerialNumber.Text(16)) && "0"+leaf.SerialNumber.Text(16) != r.Serials[0].Serial {
		t.Errorf("serials %v", r.Serials)
	}
	var erased, asked, told bool
	for !erased || !asked || !told {
		m := w.next()
		for _, c := range m.GetChanges() {
			if !bytes.Equal(c.GetSet(), setOf("33")) {
				t.Fatalf("another set: %v", c)
			}
			if asked = asked || !c.GetErase(); asked && !erased && !c.GetErase() {
				t.Fatal("to be asked for before it is erased")
			}
			erased = erased || c.GetErase()
		}
		if m.GetCutoffsSet() {
			told = true
			c := m.GetCutoffs()
			if len(c) != 1 || c[0].GetKind() != "id" || c[0].GetValue() != before.GetSvids()[0].GetSpiffeId() || c[0].GetBefore() != r.Cutoff.Before.UnixMilli() {
				t.Errorf("cut-offs %v", c)
			}
		}
	}
	item := &api.IssueX509Request_Item{Workload: process("33"), PublicKeys: [][]byte{spki(t, newKey(t).Public())}, Held: []*api.Held{{
		Identity: before.GetSvids()[0].GetIdentity(), Digest: before.GetSvids()[0].GetDigest(), NotAfter: leaf.NotAfter.Unix(),
	}}}
	again, err := n.IssueX509(t.Context(), &api.IssueX509Request{Items: []*api.IssueX509Request_Item{item}})
	if err != nil || len(again.GetResults()[0].GetSvids()[0].GetChain()) == 0 {
		t.Errorf("what was held stands: %v %v", again, err)
	}
}

// TestARevokedNodeIsShutOut, however old its connection is, and comes back by
// new evidence.
func TestARevokedNodeIsShutOut(t *testing.T) {
	e := newEnv(t)
	n, w := e.serve()
	e.revoke(broker.CutNode, n.id)
	for {
		if _, err := w.stream.Recv(); err != nil {
			wantCode(t, err, codes.Unavailable)
			break
		}
	}
	_, _, err := n.issue(t.Context(), t, "33")
	wantCode(t, err, codes.Unauthenticated)
	_, err = n.Renew(t.Context(), &api.RenewRequest{PublicKey: spki(t, newKey(t).Public())})
	wantCode(t, err, codes.Unauthenticated)
	_, err = api.NewNodeClient(e.dial(n.cert)).IssueX509(t.Context(), &api.IssueX509Request{})
	wantCode(t, err, codes.Unauthenticated)
	if got, _, err := e.join("n1").issue(t.Context(), t, "33"); err != nil || len(got.GetSvids()) != 1 {
		t.Errorf("joined anew: %v %v", got, err)
	}
}

func TestEvictionRevokes(t *testing.T) {
	e := newEnv(t)
	n, w := e.serve()
	if _, err := e.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: n.id, Reason: "stolen"}); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := w.stream.Recv(); err != nil {
			wantCode(t, err, codes.PermissionDenied)
			break
		}
	}
	all, err := e.broker.Cutoffs(t.Context())
	if err != nil || len(all) != 1 || all[0].Kind != broker.CutNode || all[0].Value != n.id || all[0].Reason != "stolen" {
		t.Errorf("cut-offs %v (%v)", all, err)
	}
}

// TestRevokedTokens holds what the authority makes against what agents are
// told: tokens from before are refused, the first one after is not.
func TestRevokedTokens(t *testing.T) {
	e := newEnv(t, withIssuer)
	e.ready()
	e.apply(web)
	n := e.join("n1")
	w, _ := n.watch(t)
	token := func() string {
		t.Helper()
		r, err := n.IssueJWT(t.Context(), &api.IssueJWTRequest{Workload: process("33"), Audiences: []string{"orders"}})
		if status.Code(err) != codes.OK || len(r.GetSvids()) != 1 {
			t.Fatal(r, err)
		}
		return r.GetSvids()[0].GetToken()
	}
	before := token()
	e.revoke(broker.CutID, "spiffe://example.org/web")
	m := w.until(func(m *api.WatchResponse) bool { return len(m.GetCutoffs()) > 0 })
	revoked, err := agent.NewCutoffs(td, m.GetCutoffs())
	if err != nil {
		t.Fatal(err)
	}
	check := func(token string) error {
		t.Helper()
		var claims struct{ Iat, Exp int64 }
		text, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		if err == nil {
			err = json.Unmarshal(text, &claims)
		}
		if err != nil {
			t.Fatal(err)
		}
		return revoked.Check(spiffeid.RequireFromString("spiffe://example.org/web"), "k", time.Unix(claims.Iat, 0), time.Unix(claims.Exp, 0))
	}
	if check(before) == nil {
		t.Error("one from before is taken")
	}
	if err := check(token()); err != nil {
		t.Error("one from after: ", err)
	}
}

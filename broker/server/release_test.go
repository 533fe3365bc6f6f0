package server_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"flag"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

// What a broker answers to the agent of its release (see broker/api) is kept when
// it is made:
//
//	go test ./broker/server -run TestAgentsOfOlderReleases -freeze release-NNN
var freeze = flag.String("freeze", "", "keep the fields of the answers to the agent of this release")

// An old agent says what an agent of a release said, and knows of the answers
// what that release did.
type oldAgent struct {
	*env
	release *agenttest.Release
	conn    *grpc.ClientConn
	watch   grpc.ClientStream
	key     *ecdsa.PrivateKey    // of the last public key that was shown
	held    protoreflect.Message // the X509-SVID that it has; nil: none
	ends    int64
	bundle  *spiffebundle.Bundle // that it was given
	shows   bool                 // what it holds, in the present request
	answers map[string][]string  // which fields they had, by method
	tokens  []string             // JWT-SVIDs
}

// TestAgentsOfOlderReleases replays what agents of earlier releases said: this
// broker answers with all that they read, and it means the same.
func TestAgentsOfOlderReleases(t *testing.T) {
	t.Parallel()
	dirs, err := filepath.Glob("../api/testdata/release-*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("%d releases are kept (%v)", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) { replay(t, dir) })
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func replay(t *testing.T, dir string) {
	release, err := agenttest.ParseRelease(read(t, filepath.Join(dir, "protocol.binpb")))
	if err != nil {
		t.Fatal(err)
	}
	var script []struct {
		Method  string
		Message any
	}
	if err := json.Unmarshal(read(t, filepath.Join(dir, "agent.json")), &script); err != nil || len(script) < 10 {
		t.Fatalf("%d messages (%v)", len(script), err)
	}
	e := newEnv(t, withIssuer)
	e.ready()
	e.apply("kind: Target\nname: aws\ncloud: {aud: cloud}\n---\nkind: Identity\nname: a\nspiffe_id: /a\nmatch: [{node.name: n1, workload.unix.uid: 1000}]\njwt: {audiences: [orders, {name: books, use: audited}]}\ntargets: [aws]\n")
	a := &oldAgent{env: e, release: release, conn: e.dial(nil), answers: map[string][]string{}}
	var asks any
	for _, m := range script {
		a.say(m.Method, m.Message)
		if strings.HasSuffix(m.Method, "/IssueX509") {
			asks = m.Message
		}
	}
	a.await(asks)
	if len(a.tokens) < 3 {
		t.Errorf("%d JWT-SVIDs", len(a.tokens))
	}
	path := filepath.Join(dir, "answers.json")
	if *freeze == filepath.Base(dir) {
		text, err := json.MarshalIndent(a.answers, "", "\t")
		if err == nil {
			err = os.WriteFile(path, append(text, '\n'), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	var want map[string][]string
	if err := json.Unmarshal(read(t, path), &want); err != nil {
		t.Fatal(err)
	}
	for method, fields := range want {
		got := slices.DeleteFunc(slices.Clone(a.answers[method]), func(f string) bool { return !slices.Contains(fields, f) })
		if d := cmp.Diff(fields, got); d != "" {
			t.Errorf("%s answers without what its agent reads: want -, got +:\n%s", method, d)
		}
	}
}

// say fills the holes of what was said, says it, and reads the answer.
func (a *oldAgent) say(full string, said any) {
	a.t.Helper()
	method, err := a.release.Method(full)
	if err != nil {
		a.t.Fatal(err)
	}
	a.shows = false
	text, err := json.Marshal(a.fill(said, ""))
	if err != nil {
		a.t.Fatal(err)
	}
	request := dynamicpb.NewMessage(method.Input())
	if err := protojson.Unmarshal(text, request); err != nil {
		a.t.Fatal(err)
	}
	name := string(method.Name())
	ctx, cancel := context.WithTimeout(a.t.Context(), 30*time.Second)
	a.t.Cleanup(cancel)
	if !method.IsStreamingClient() {
		answer := dynamicpb.NewMessage(method.Output())
		if err := a.conn.Invoke(ctx, full, request, answer); err != nil {
			a.t.Fatalf("%s of %s: %v", name, text, err)
		}
		a.hear(name, answer)
		return
	}
	stream, begins := a.watch, name != "Watch" || !request.Has(method.Input().Fields().ByName("acknowledged"))
	if begins {
		desc := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
		if stream, err = a.conn.NewStream(ctx, desc, full); err != nil {
			a.t.Fatal(err)
		}
	}
	if err := stream.SendMsg(request); err != nil && err != io.EOF {
		a.t.Fatal(err)
	}
	if !begins {
		return // an acknowledgement has no answer
	}
	answer := dynamicpb.NewMessage(method.Output())
	if err := stream.RecvMsg(answer); err != nil {
		a.t.Fatalf("%s of %s: %v", name, text, err)
	}
	if name == "Watch" {
		a.watch = stream
	}
	a.hear(name, answer)
}

// fill puts in what was another's: keys, the token, what it was given.
func (a *oldAgent) fill(said any, under string) any {
	switch said := said.(type) {
	case map[string]any:
		for name, value := range said {
			if name == "held" {
				a.shows = true
				said[name] = []any{map[string]any{"identity": a.text(a.held, "identity"), "digest": base64.StdEncoding.EncodeToString([]byte(a.text(a.held, "digest"))), "notAfter": a.ends}}
				continue
			}
			said[name] = a.fill(value, name)
		}
	case []any:
		for i := range said {
			said[i] = a.fill(said[i], under)
		}
	case string:
		switch {
		case said == "$token":
			return base64.StdEncoding.EncodeToString([]byte(a.token("n1")))
		case under == "publicKey" || under == "publicKeys":
			a.key = newKey(a.t)
			return base64.StdEncoding.EncodeToString(spki(a.t, a.key.Public()))
		}
	}
	return said
}

// field is a message's by its name.
func (a *oldAgent) field(m protoreflect.Message, name string) protoreflect.Value {
	a.t.Helper()
	d := m.Descriptor().Fields().ByName(protoreflect.Name(name))
	if d == nil {
		a.t.Fatalf("%s has no %s", m.Descriptor().FullName(), name)
	}
	return m.Get(d)
}

func (a *oldAgent) text(m protoreflect.Message, name string) string {
	a.t.Helper()
	v := a.field(m, name)
	if b, ok := v.Interface().([]byte); ok {
		return string(b)
	}
	return v.String()
}

func (a *oldAgent) list(m protoreflect.Message, name string) (all []protoreflect.Message) {
	a.t.Helper()
	l := a.field(m, name).List()
	for i := range l.Len() {
		all = append(all, l.Get(i).Message())
	}
	return all
}

// hear notes which fields an answer has, and holds it to what they mean.
func (a *oldAgent) hear(method string, m proto.Message) {
	a.t.Helper()
	seen := map[string]bool{}
	for _, f := range a.answers[method] {
		seen[f] = true
	}
	fieldsOf(m.ProtoReflect(), "", seen)
	a.answers[method] = slices.Sorted(maps.Keys(seen))
	r := m.ProtoReflect()
	switch method {
	case "Join":
		a.hearJoined(a.field(r, "joined").Message())
	case "Renew":
		a.hearJoined(r)
	case "Watch":
		for _, b := range a.list(r, "bundles") {
			if _, err := spiffebundle.Parse(td, []byte(a.text(b, "document"))); err != nil {
				a.t.Errorf("the bundle of %s: %v", a.text(b, "trust_domain"), err)
			}
		}
	case "IssueX509":
		a.hearX509(a.list(a.list(r, "results")[0], "svids"))
	case "IssueJWT":
		for _, s := range a.list(r, "svids") {
			a.hearJWT(s)
		}
	case "Report":
		if n := a.field(r, "accepted").Uint(); n != 1 {
			a.t.Errorf("%d of one report are accepted", n)
		}
	}
}

// fieldsOf are the paths of all that is set.
func fieldsOf(m protoreflect.Message, under string, seen map[string]bool) {
	m.Range(func(d protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		path := under + string(d.Name())
		seen[path] = true
		switch {
		case d.IsMap() || d.Message() == nil:
		case d.IsList():
			for i := range v.List().Len() {
				fieldsOf(v.List().Get(i).Message(), path+".", seen)
			}
		default:
			fieldsOf(v.Message(), path+".", seen)
		}
		return true
	})
}

func (a *oldAgent) chain(m protoreflect.Message) (raw [][]byte) {
	l := a.field(m, "chain").List()
	for i := range l.Len() {
		raw = append(raw, l.Get(i).Bytes())
	}
	return raw
}

func (a *oldAgent) hearJoined(m protoreflect.Message) {
	a.t.Helper()
	bundle, err := spiffebundle.Parse(td, []byte(a.text(m, "bundle")))
	if err != nil {
		a.t.Fatal(err)
	}
	raw := a.chain(m)
	a.bundle = bundle
	id, _, err := federation.VerifyX509(parse(a.t, raw), bundle, a.now())
	if err != nil || id.String() != a.text(m, "node_id") || !strings.HasPrefix(id.Path(), "/credence/node/") {
		a.t.Fatalf("it is %s, told that it is %s: %v", id, a.text(m, "node_id"), err)
	}
	a.conn = a.dial(&tls.Certificate{Certificate: raw, PrivateKey: a.key})
}

func (a *oldAgent) hearX509(svids []protoreflect.Message) {
	a.t.Helper()
	if len(svids) != 1 || a.text(svids[0], "identity") != "a" || a.text(svids[0], "spiffe_id") != "spiffe://example.org/a" || len(a.text(svids[0], "digest")) != 32 {
		a.t.Fatalf("SVIDs %v", svids)
	}
	s, raw := svids[0], a.chain(svids[0])
	if a.shows {
		if len(raw) > 0 || a.text(a.held, "digest") != a.text(s, "digest") {
			a.t.Error("what it holds is signed again")
		}
		return
	}
	chain := parse(a.t, raw)
	a.held, a.ends = s, chain[0].NotAfter.Unix()
	if id, _, err := federation.VerifyX509(chain, a.authority, a.now()); err != nil || id.String() != "spiffe://example.org/a" {
		a.t.Errorf("the X509-SVID is %s: %v", id, err)
	}
	var depends []string
	a.field(s, "depends").Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
		depends = append(depends, k.String())
		return true
	})
	slices.Sort(depends)
	if !slices.Equal(depends, []string{"node.name", "workload.unix.uid"}) {
		a.t.Errorf("it depends on %v", depends)
	}
	targets := a.list(s, "targets")
	if len(targets) != 1 || a.text(targets[0], "name") != "aws" || a.text(targets[0], "provider") != "cloud" || !bytes.Contains([]byte(a.text(targets[0], "settings")), []byte(`"aud":"cloud"`)) {
		a.t.Errorf("targets %v", targets)
	}
	uses := a.list(s, "jwt_uses")
	if a.field(s, "jwt_audiences").List().Len() != 2 || len(uses) != 1 || a.text(uses[0], "audience") != "books" || a.text(uses[0], "use") != "audited" {
		a.t.Errorf("audiences %v, uses %v", a.field(s, "jwt_audiences"), uses)
	}
}

func (a *oldAgent) hearJWT(s protoreflect.Message) {
	a.t.Helper()
	token := a.text(s, "token")
	var claims struct {
		Audience any   `json:"aud"`
		Expires  int64 `json:"exp"`
	}
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err == nil {
		err = json.Unmarshal(payload, &claims)
	}
	if err != nil || a.text(s, "spiffe_id") != "spiffe://example.org/a" || a.text(s, "identity") != "a" || a.field(s, "expires").Int() != claims.Expires {
		a.t.Errorf("%v: %v, the token says %s", err, s, payload)
	}
	audience, _ := claims.Audience.(string)
	if list, ok := claims.Audience.([]any); ok {
		audience, _ = list[0].(string)
	}
	if v, err := jwtsvid.ParseAndValidate(token, a.bundle, []string{audience}); err != nil || v.ID.String() != "spiffe://example.org/a" {
		a.t.Errorf("the JWT-SVID for %s: %v", audience, err)
	}
	if use := a.text(s, "use"); (use == "audited") != (audience == "books") || a.field(s, "single_use").Bool() {
		a.t.Errorf("for %s its use is %q", audience, use)
	}
	a.tokens = append(a.tokens, token)
}

// await has the stream tell of a denial, and of all else that it tells.
func (a *oldAgent) await(asks any) {
	a.t.Helper()
	a.say("/credence.broker.v1.Node/Watch", map[string]any{"since": map[string]any{}})
	a.say("/credence.broker.v1.Node/IssueX509", asks) // for this stream
	a.apply("kind: Deny\nname: incident\nmatch: [{node.name: n1}]\nreason: test\n")
	sum := api.WorkloadDigest(&api.Workload{Facts: map[string]*api.Values{
		"workload.unix.uid": {Values: []string{"1000"}}, "workload.unix.gid": {Values: []string{"100", "27"}},
	}, Unknown: []string{"workload.unix.sha256"}})
	method, err := a.release.Method("/credence.broker.v1.Node/Watch")
	if err != nil {
		a.t.Fatal(err)
	}
	for erased := false; !erased || !slices.Contains(a.answers["Watch"], "bundles.crls.der"); {
		m := dynamicpb.NewMessage(method.Output())
		if err := a.watch.RecvMsg(m); err != nil {
			a.t.Fatal("it is not told to erase, or of CRLs: ", err)
		}
		a.hear("Watch", m)
		for _, c := range a.list(m, "changes") {
			set := a.text(c, "set")
			erased = erased || a.field(c, "erase").Bool() && (set == "" || set == string(sum[:]))
		}
	}
}

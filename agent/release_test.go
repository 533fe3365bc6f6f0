package agent_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/agent/agenttest"
	"github.com/credence-id/credence/broker/api"
)

// What the agent of a release says to its broker is kept when it is made:
//
//	go test ./agent -run TestADayOfAnAgent -freeze ../broker/api/testdata/release-NNN/agent.json
//
// where NNN is the store's schema, the name that releases go by in testdata. See
// broker/api, which keeps the protocol, and broker/server, which keeps the answers
// and holds each later broker to them.
var freeze = flag.String("freeze", "", "write what the agent says to this file")

// A day is all that an agent does with a broker.
func day(t *testing.T, b *agenttest.Broker) {
	t.Helper()
	b.Start()
	granted := targeting("/a", 1, "aws")
	granted.Audiences = []string{"orders", "books"}
	granted.Uses = map[string]string{"books": "audited"}
	cfg := config(t, b)
	cfg.Version = "recorded"
	cfg.Attestors["workload.unix"] = &facts{all: map[string][]string{"workload.unix.uid": {"1000"}, "workload.unix.gid": {"100", "27"}}, unknown: []string{"workload.unix.sha256"}}
	exchanging(&cloud{jwt: true})(&cfg)
	a := run(t, cfg).ready()
	if got, err := a.Explain(t.Context(), process(t), nil, ""); err != nil || len(got.Near) != 1 {
		t.Errorf("explained: %+v, %v", got, err)
	}
	b.Grant(granted)
	b.Push(change(nil, false))
	v := a.view(t)
	if got := paths(v.next()); !slices.Equal(got, []string{"/a"}) {
		t.Errorf("it serves %v", got)
	}
	for _, audience := range []string{"orders", "books"} {
		if _, err := a.JWT(t.Context(), process(t), []string{audience}, spiffeid.ID{}); err != nil {
			t.Errorf("a JWT-SVID for %s: %v", audience, err)
		}
	}
	credential(t, a, "aws")
	b.Await("the exchange's report", func() bool { return len(b.Reports()) > 0 })
	asked := b.Calls("IssueX509")
	b.Push(change(nil, false)) // it asks again, and says what it holds
	b.Await("another asking", func() bool { return b.Calls("IssueX509") > asked })
	b.Revoke(&api.Cutoff{Kind: "authority", Value: a.NodeSigner(), Before: time.Now().UnixMilli()})
	b.Await("a renewal", func() bool { return b.Calls("Renew") == 1 })
	b.Await("a stream under it", func() bool { return b.Calls("Watch") == 2 })
}

// TestADayOfAnAgent is as others, and tells what it says.
func TestADayOfAnAgent(t *testing.T) {
	t.Parallel()
	b := agenttest.NewBroker(t, domain)
	type message struct {
		Method  string
		Message json.RawMessage
	}
	var mu sync.Mutex
	var all []message
	b.Heard = func(method string, m proto.Message) {
		text, err := protojson.Marshal(m)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, message{method, text})
	}
	day(t, b)
	mu.Lock()
	defer mu.Unlock()
	said := map[string]bool{}
	for _, m := range all {
		said[m.Method[strings.LastIndexByte(m.Method, '/')+1:]] = true
	}
	for _, method := range []string{"Join", "Watch", "IssueX509", "IssueJWT", "Report", "Renew", "Explain"} {
		if !said[method] {
			t.Errorf("it never says %s", method)
		}
	}
	if *freeze == "" {
		return
	}
	text, err := json.MarshalIndent(all, "", "\t")
	if err != nil {
		t.Fatal(err)
	}
	// What is made anew each time is a hole.
	text = bytes.ReplaceAll(text, []byte(base64.StdEncoding.EncodeToString([]byte("token-1"))), []byte("$token"))
	if err := os.WriteFile(*freeze, append(text, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestAnAgentBesideAnOlderBroker has this agent do with brokers of the releases
// before it what it does with its own: agents may be upgraded first.
func TestAnAgentBesideAnOlderBroker(t *testing.T) {
	t.Parallel()
	all, err := filepath.Glob("../broker/api/testdata/release-*/protocol.binpb")
	if err != nil || len(all) == 0 {
		t.Fatalf("%d releases are kept (%v)", len(all), err)
	}
	for _, path := range all {
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			t.Parallel()
			set, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b := agenttest.NewBroker(t, domain)
			if b.Release, err = agenttest.ParseRelease(set); err != nil {
				t.Fatal(err)
			}
			day(t, b)
		})
	}
}

package agent_test

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/credence-id/credence/agent"
	"github.com/credence-id/credence/broker/api"
)

// No two Targets that differ in anything share a session, even if their names
// and revisions are the same: one that was removed and made anew.
func TestTargetsThatDifferInAnythingShareNoSession(t *testing.T) {
	t.Parallel()
	base := map[string]any{"flow": "x", "settings": map[string]any{}, "endpoint": "https://a.example", "ca_file": "/a.pem"}
	dims := map[string][2]string{
		"account": {"arn:aws:iam::111111111111:role/a", "arn:aws:iam::222222222222:role/a"}, "region": {"eu-west-1", "us-east-1"},
		"tenant": {"t1", "t2"}, "audience": {"a", "b"}, "scopes": {`["a","b"]`, `["ab"]`}, "session_policy": {"{}", `{"Version":"2012-10-17"}`},
		"service_account": {"a@p", "b@p"}, "duration": {"1h", "2h"},
	}
	sky := &cloud{}
	b, a := started(t, exchanging(sky))
	at := func(settings map[string]any, endpoint, caFile string) {
		t.Helper()
		wire := map[string]any{}
		for k, v := range base {
			wire[k] = v
		}
		wire["settings"], wire["endpoint"], wire["ca_file"] = settings, endpoint, caFile
		text, err := json.Marshal(wire)
		if err != nil {
			t.Fatal(err)
		}
		g := grant("/a")
		g.Targets = []*api.Target{{Name: "t", Revision: 7, Provider: "x", Settings: text}}
		b.Grant(g)
		if sky.exchanges() == 0 {
			return // nobody has asked yet
		}
		before := b.Calls("IssueX509")
		b.Push(change(digest(uid("1000")), false))
		b.Await("it is asked again", func() bool { return b.Calls("IssueX509") > before })
	}
	var seen []string
	fresh := func(what string) {
		t.Helper()
		got := ""
		eventually(t, what+" has a session of its own", func() bool { got = credential(t, a, "t"); return !slices.Contains(seen, got) })
		if again := credential(t, a, "t"); again != got {
			t.Errorf("%s: %s after %s", what, again, got)
		}
		seen = append(seen, got)
	}
	for name, values := range dims {
		for _, v := range values {
			at(map[string]any{name: v}, "https://a.example", "/a.pem")
			fresh(name + " " + v)
		}
	}
	at(map[string]any{}, "https://b.example", "/a.pem")
	fresh("endpoint")
	at(map[string]any{}, "https://b.example", "/b.pem")
	fresh("ca_file")
	if n := sky.exchanges(); n != len(seen) {
		t.Errorf("%d exchanges for %d targets", n, len(seen))
	}
}

// FuzzKey looks for two lists of texts that are joined alike, and two Targets
// with one digest.
func FuzzKey(f *testing.F) {
	f.Add("a,b", "ab", uint64(1), uint64(1))
	f.Add(`a"`, `a\"`, uint64(1), uint64(11))
	f.Add("", "\x00", uint64(0), uint64(0))
	f.Add("\x01a\x01b", "\x03a\x01b", uint64(0), uint64(0))
	f.Fuzz(func(t *testing.T, x, y string, n, m uint64) {
		xs, ys := strings.Split(x, ","), strings.Split(y, ",")
		if (agent.Joined(xs...) == agent.Joined(ys...)) != slices.Equal(xs, ys) {
			t.Errorf("%q and %q", xs, ys)
		}
		part := func(all []string, i int) string {
			if i < len(all) {
				return all[i]
			}
			return ""
		}
		a := agent.Target{Name: part(xs, 0), Revision: n, Flow: part(xs, 1), Settings: []byte(part(xs, 2))}
		b := agent.Target{Name: part(ys, 0), Revision: m, Flow: part(ys, 1), Settings: []byte(part(ys, 2))}
		same := a.Name == b.Name && a.Revision == b.Revision && a.Flow == b.Flow && bytes.Equal(a.Settings, b.Settings)
		if (a.Digest() == b.Digest()) != same {
			t.Errorf("%+v and %+v", a, b)
		}
	})
}

package api_test

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/credence-id/credence/broker/api"
)

func values(v ...string) *api.Values { return &api.Values{Values: v} }

func workload(unknown []string, facts map[string]*api.Values) *api.Workload {
	return &api.Workload{Facts: facts, Unknown: unknown}
}

// What is attested differently must not get what was decided for the other.
func TestDifferentWorkloadsHaveDifferentDigests(t *testing.T) {
	all := map[string]*api.Workload{
		"nothing":             workload(nil, nil),
		"a fact":              workload(nil, map[string]*api.Values{"a": values("b")}),
		"another value":       workload(nil, map[string]*api.Values{"a": values("c")}),
		"two values":          workload(nil, map[string]*api.Values{"a": values("b", "c")}),
		"in another order":    workload(nil, map[string]*api.Values{"a": values("c", "b")}),
		"the values joined":   workload(nil, map[string]*api.Values{"a": values("bc")}),
		"an empty value":      workload(nil, map[string]*api.Values{"a": values("")}),
		"no value":            workload(nil, map[string]*api.Values{"a": values()}),
		"a value as a fact":   workload(nil, map[string]*api.Values{"a": values("b"), "c": values()}),
		"a fact unknown":      workload([]string{"a"}, nil),
		"two unknown":         workload([]string{"a", "b"}, nil),
		"the unknown joined":  workload([]string{"ab"}, nil),
		"an empty unknown":    workload([]string{""}, nil),
		"a fact and unknown":  workload([]string{"b"}, map[string]*api.Values{"a": values("b")}),
		"known, not unknown":  workload(nil, map[string]*api.Values{"a": values("b"), "b": values("")}),
		"two facts":           workload(nil, map[string]*api.Values{"a": values("b"), "b": values("b")}),
		"name and value swap": workload(nil, map[string]*api.Values{"b": values("a")}),
		"a proof":             {Proofs: map[string][]byte{"a": []byte("b")}},
		"a proof and unknown": {Proofs: map[string][]byte{"b": []byte("b")}, Unknown: []string{"a"}},
		"two proofs":          {Proofs: map[string][]byte{"a": nil, "b": nil}},
	}
	seen := map[[32]byte]string{}
	for name, w := range all {
		digest := api.WorkloadDigest(w)
		if other, twice := seen[digest]; twice {
			t.Errorf("%s and %s have one digest", name, other)
		}
		seen[digest] = name
	}
}

func TestTheDigestIsOfWhatWasAttested(t *testing.T) {
	facts := map[string]*api.Values{}
	for _, name := range []string{"d", "c", "b", "a"} {
		facts["workload."+name] = values("1", "2")
	}
	w := workload([]string{"workload.y", "workload.x"}, facts)
	want := api.WorkloadDigest(w)
	wire, err := proto.Marshal(w)
	if err != nil {
		t.Fatal(err)
	}
	for range 32 { // maps have no order
		var again api.Workload
		if err := proto.Unmarshal(wire, &again); err != nil {
			t.Fatal(err)
		}
		again.Unknown = []string{"workload.x", "workload.y"}
		if api.WorkloadDigest(&again) != want {
			t.Fatal("another digest for the same workload")
		}
	}
	if w.Unknown[0] != "workload.y" {
		t.Error("the workload was changed")
	}
	if api.WorkloadDigest(nil) != api.WorkloadDigest(&api.Workload{}) {
		t.Error("no workload is not nothing attested")
	}
	// Broker and agent may be of different versions: it never changes.
	got := api.WorkloadDigest(workload([]string{"workload.docker"}, map[string]*api.Values{"workload.unix.uid": values("33")}))
	if text := hex.EncodeToString(got[:]); text != "ff0c059107c429cf19c05ac0df271c9ac2f0e882fd3b174a2b76782e8f2c6377" {
		t.Errorf("digest %s", text)
	}
	proven := workload([]string{"workload.docker"}, map[string]*api.Values{"workload.unix.uid": values("33")})
	proven.Proofs = map[string][]byte{"kubernetes": []byte("x")}
	got = api.WorkloadDigest(proven)
	if text := hex.EncodeToString(got[:]); text != "cfbf6bf7c3507fe5fb22230c9c39da10ae21abe2ac6193b2f7cf71437917ac19" {
		t.Errorf("digest %s with a proof", text)
	}
	proven.Proofs["kubernetes"] = []byte("the next")
	if api.WorkloadDigest(proven) != got {
		t.Error("the next token makes another set of the workload")
	}
}

package identity_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/credence-id/credence/broker/identity"
)

// What a failed attestor leaves must neither grant, nor keep a deny from
// holding, however the condition is put.
func TestThreeValues(t *testing.T) {
	const (
		bound   = "node.name"
		subject = "workload.docker.image"
	)
	type state struct {
		name    string
		value   string
		unknown string
	}
	states := []state{
		{"equal", "good", ""},
		{"other", "bad", ""},
		{"absent", "", ""},
		{"attestor failed", "", "workload.docker"},
		{"fact failed", "", "workload.docker.image"},
		{"attestor failed after it spoke", "good", "workload.docker"},
		{"another attestor failed", "good", "workload.dock"},
		{"fact failed after it was proven", "good", "workload.docker.image"},
	}
	for _, row := range []struct {
		name  string
		item  identity.Item
		truth string // t, f or u for each state in order
	}{
		{"equality", identity.Item{Terms: terms(bound, "n1", subject, "good")}, "tffuuutu"},
		{"glob", identity.Item{Terms: terms(bound, "n1", subject, "go*")}, "tffuuutu"},
		{"bare star", identity.Item{Terms: terms(bound, "n1", subject, "**")}, "ttfuuutu"},
		{"CEL", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good"`}, "tfuuuutu"},
		{"CEL with has", identity.Item{Terms: terms(bound, "n1"), When: `has(workload.docker.image) && workload.docker.image == "good"`}, "tffuuutu"},
		{"CEL by key", identity.Item{Terms: terms(bound, "n1"), When: `workload["docker"]["image"] == "good"`}, "tfuuuutu"},
		{"CEL in", identity.Item{Terms: terms(bound, "n1"), When: `"image" in workload.docker && workload.docker.image == "good"`}, "tfuuuutu"},
		{"negation", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image != "bad"`}, "tfuuuutu"},
		{"negated has", identity.Item{Terms: terms(bound, "n1"), When: `!has(workload.docker.image)`}, "fftuuufu"},
		{"negated in", identity.Item{Terms: terms(bound, "n1"), When: `!("image" in workload.docker)`}, "ffuuuufu"},
		{"negated iteration", identity.Item{Terms: terms(bound, "n1"), When: `!workload.docker.exists(k, k == "image")`}, "ffuuuufu"},
		{"iteration that looks at nothing", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.exists(k, true)`}, "ttuuuutu"},
		{"has of a group", identity.Item{Terms: terms(bound, "n1"), When: `has(workload.docker)`}, "ttfuuutu"},
		{"negated has of a group", identity.Item{Terms: terms(bound, "n1"), When: `!has(workload.docker)`}, "fftuuufu"},
		{"negated iteration over all", identity.Item{Terms: terms(bound, "n1"), When: `!workload.exists(k, k == "docker.image")`}, "fftuuuuu"},
		{"false and unknown", identity.Item{Terms: terms(bound, "n1"), When: `node.name == "n2" && workload.docker.image == "good"`}, "ffffffff"},
		{"unknown and false", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good" && node.name == "n2"`}, "ffffffff"},
		{"true or unknown", identity.Item{Terms: terms(bound, "n1"), When: `node.name == "n1" || workload.docker.image == "good"`}, "tttttttt"},
		{"unknown or true", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good" || node.name == "n1"`}, "tttttttt"},
		{"not unknown or false", identity.Item{Terms: terms(bound, "n1"), When: `!(workload.docker.image == "good") || node.name == "n2"`}, "ftuuuufu"},
		{"choice", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good" ? true : true`}, "ttuuuutu"},
		{"another fact false", identity.Item{Terms: terms(bound, "n2", subject, "good")}, "ffffffff"},
		{"unknown fact first", identity.Item{Terms: terms(subject, "good", bound, "n2")}, "ffffffff"},
		{"false when on unknown terms", identity.Item{Terms: terms(bound, "n1", subject, "good"), When: `node.name == "n2"`}, "ffffffff"},
		{"unknown when on false terms", identity.Item{Terms: terms(bound, "n2"), When: `workload.docker.image == "good"`}, "ffffffff"},
		{"spent cost limit", identity.Item{Terms: terms(bound, "n1"), When: expensive}, "uuuuuuuu"},
		{"list has no such type", identity.Item{Terms: terms(bound, "n1"), When: `node.name < 3`}, "uuuuuuuu"},
	} {
		for n, st := range states {
			t.Run(row.name+"/"+st.name, func(t *testing.T) {
				r := shop(t)
				r.Unknown = nil
				w := []string{"workload.unix.uid", "0"}
				if st.value != "" {
					w = append(w, subject, st.value)
				}
				r.Workload = facts(t, "workload", w...)
				if st.unknown != "" {
					r.Unknown = []string{st.unknown}
				}
				if got, want := granted(t, row.item, r), row.truth[n] == 't'; got != want {
					t.Errorf("identity granted: %v, want %v", got, want)
				}
				if got, want := denied(t, row.item, r), row.truth[n] != 'f'; got != want {
					t.Errorf("deny holds: %v, want %v", got, want)
				}
			})
		}
	}
}

// expensive is true, but costs more than is spent on it.
var expensive = func() string {
	list := "[" + strings.Repeat("1,", 40) + "1]"
	return fmt.Sprintf(`node.name == "n1" && %s.all(a, %s.all(b, %s.all(c, a + b + c > 0)))`, list, list, list)
}()

func granted(t *testing.T, item identity.Item, r identity.Request) bool {
	t.Helper()
	s := requireSet(t, of(identity.Identity{Name: "a", SPIFFEID: "/a", Match: []identity.Item{item}}))
	_, err := s.Decide(r)
	return err == nil
}

func denied(t *testing.T, item identity.Item, r identity.Request) bool {
	t.Helper()
	s := requireSet(t, identity.Resources{
		Identities: []identity.Identity{{Name: "a", SPIFFEID: "/a", Match: items("node.name", "n1")}},
		Denies:     []identity.Deny{{Name: "d", Match: []identity.Item{item}}},
	})
	_, err := s.Decide(r)
	return err != nil
}

// What a prover left out may stand beside what it said.
func TestThreeValuesOfHalfKnownGroups(t *testing.T) {
	for _, when := range []string{
		`!workload.docker.exists(k, k == "image")`,
		`workload.docker.all(k, k != "image")`,
		`!("image" in workload.docker)`,
		`!(("im" + "age") in workload.docker)`,
		`workload.docker["im" + "age"] != "bad"`,
		`!has(workload.docker.image)`,
	} {
		r := shop(t)
		r.Workload = facts(t, "workload", "workload.docker.id", "x")
		item := identity.Item{Terms: terms("node.name", "n1"), When: when}
		r.Unknown = []string{"workload.docker.image"}
		if granted(t, item, r) || !denied(t, item, r) {
			t.Errorf("%s is not unknown", when)
		}
	}
}

// A deny that is filed by nothing but a glob is found without a value.
func TestThreeValuesOfGlobsAlone(t *testing.T) {
	r := shop(t)
	r.Unknown = []string{"workload.docker"}
	if !denied(t, identity.Item{Terms: terms("workload.docker.image", "evil/*")}, r) {
		t.Error("the deny doesn't hold")
	}
	r.Unknown = nil
	if denied(t, identity.Item{Terms: terms("workload.docker.image", "evil/*")}, r) {
		t.Error("the deny holds")
	}
}

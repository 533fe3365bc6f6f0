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
	}
	for _, row := range []struct {
		name  string
		item  identity.Item
		truth string // t, f or u for each state in order
	}{
		{"equality", identity.Item{Terms: terms(bound, "n1", subject, "good")}, "tffuuut"},
		{"glob", identity.Item{Terms: terms(bound, "n1", subject, "go*")}, "tffuuut"},
		{"bare star", identity.Item{Terms: terms(bound, "n1", subject, "**")}, "ttfuuut"},
		{"CEL", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good"`}, "tfuuuut"},
		{"CEL with has", identity.Item{Terms: terms(bound, "n1"), When: `has(workload.docker.image) && workload.docker.image == "good"`}, "tffuuut"},
		{"CEL by key", identity.Item{Terms: terms(bound, "n1"), When: `workload["docker"]["image"] == "good"`}, "tfuuuut"},
		{"CEL in", identity.Item{Terms: terms(bound, "n1"), When: `"image" in workload.docker && workload.docker.image == "good"`}, "tfuuuut"},
		{"negation", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image != "bad"`}, "tfuuuut"},
		{"negated has", identity.Item{Terms: terms(bound, "n1"), When: `!has(workload.docker.image)`}, "fftuuuf"},
		{"negated in", identity.Item{Terms: terms(bound, "n1"), When: `!("image" in workload.docker)`}, "ffuuuuf"},
		{"negated iteration", identity.Item{Terms: terms(bound, "n1"), When: `!workload.docker.exists(k, k == "image")`}, "ffuuuuf"},
		{"iteration that looks at nothing", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.exists(k, true)`}, "ttuuuut"},
		{"false and unknown", identity.Item{Terms: terms(bound, "n1"), When: `node.name == "n2" && workload.docker.image == "good"`}, "fffffff"},
		{"unknown and false", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good" && node.name == "n2"`}, "fffffff"},
		{"true or unknown", identity.Item{Terms: terms(bound, "n1"), When: `node.name == "n1" || workload.docker.image == "good"`}, "ttttttt"},
		{"unknown or true", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good" || node.name == "n1"`}, "ttttttt"},
		{"not unknown or false", identity.Item{Terms: terms(bound, "n1"), When: `!(workload.docker.image == "good") || node.name == "n2"`}, "ftuuuuf"},
		{"choice", identity.Item{Terms: terms(bound, "n1"), When: `workload.docker.image == "good" ? true : true`}, "ttuuuut"},
		{"another fact false", identity.Item{Terms: terms(bound, "n2", subject, "good")}, "fffffff"},
		{"unknown fact first", identity.Item{Terms: terms(subject, "good", bound, "n2")}, "fffffff"},
		{"false when on unknown terms", identity.Item{Terms: terms(bound, "n1", subject, "good"), When: `node.name == "n2"`}, "fffffff"},
		{"unknown when on false terms", identity.Item{Terms: terms(bound, "n2"), When: `workload.docker.image == "good"`}, "fffffff"},
		{"spent cost limit", identity.Item{Terms: terms(bound, "n1"), When: expensive}, "uuuuuuu"},
		{"list has no such type", identity.Item{Terms: terms(bound, "n1"), When: `node.name < 3`}, "uuuuuuu"},
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

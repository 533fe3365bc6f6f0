package server_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/api"
)

// What is planned and what is applied is warned of, and nothing else that stands.
func TestWhatIsAppliedIsWarnedOf(t *testing.T) {
	const far = "kind: Identity\nname: far\nspiffe_id: /far\nmatch: [{node.github.repository: acme/a, workload.unix.uid: 0}]\n"
	const cluster = "kind: JoinRule\nname: eu\nkubernetes: {cluster: eu, issuer: https://issuer.example}\nallow: [{node.kubernetes.namespace: credence}]\n"
	const bound = "kind: Identity\nname: CLUSTER\nspiffe_id: /CLUSTER\nmatch: [{node.kubernetes.cluster: CLUSTER, workload.unix.uid: 0}]\n"
	e := newEnv(t)
	e.join("n1")
	in := func(cluster string) string { return strings.ReplaceAll(bound, "CLUSTER", cluster) }
	for _, row := range []struct {
		name, yaml string
		want       []string // parts of warnings
	}{
		{"nobody proves it", far, []string{"Identity far: match[0]: no node that stands satisfies it, and none can that joins: node.github.repository wants a JoinRule of method github [unreachable]"}},
		{"a node that stands", "kind: Identity\nname: near\nspiffe_id: /near\nmatch: [{node.token.site: a, workload.unix.uid: 0}]\n", nil},
		{"a deny", "kind: Deny\nname: d\nmatch: [{workload.unix.uid: 1}]\n", []string{"[deny_workload_only]"}},
		{"a JoinRule beside it", cluster + "---\n" + in("eu"), nil},
		{"another cluster", in("us"), []string{`gives node.kubernetes.cluster: "us" [unreachable]`}},
		{"twins", strings.ReplaceAll(far, "name: far", "name: far2"), []string{"[shadowed]", "[unreachable]"}},
	} {
		for _, dry := range []bool{true, false} {
			r, err := e.admin().Apply(t.Context(), &api.ApplyRequest{Yaml: []byte(row.yaml), File: "test.yaml", DryRun: dry})
			if err != nil {
				t.Fatalf("%s: %v", row.name, err)
			}
			got := r.GetWarnings()
			for i, want := range row.want {
				if i < len(got) && strings.Contains(got[i], want) {
					got[i] = want
				}
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("%s, dry run %v: %s", row.name, dry, diff)
			}
		}
	}
}

// A Target that changes is warned of at the Identities that list it.
func TestATargetWarnsOfItsIdentities(t *testing.T) {
	e := newEnv(t)
	const target = "kind: Target\nname: anywhere\nmtls: {}\n"
	if got := e.apply(target).GetWarnings(); len(got) != 0 {
		t.Errorf("nobody lists it: %q", got)
	}
	e.apply("kind: Identity\nname: a\nspiffe_id: /a\nmatch: [{node.name: n1}]\ntargets: [anywhere]\n")
	if got := e.apply(target).GetWarnings(); len(got) != 1 || !strings.Contains(got[0], "[subject_missing]") {
		t.Errorf("one lists it: %q", got)
	}
}

package server_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"

	"github.com/credence-id/credence/broker/api"
)

// idents are Identities of those names, one document each.
func idents(names ...string) []byte {
	var all []string
	for _, name := range names {
		all = append(all, fmt.Sprintf("kind: Identity\nname: %s\nspiffe_id: /%s\nmatch: [{node.name: n1}]\n", name, name))
	}
	return []byte(strings.Join(all, "---\n"))
}

func (e *env) mustApply(r *api.ApplyRequest) *api.ApplyResponse {
	e.t.Helper()
	response, err := e.tryApply(r)
	if err != nil {
		e.t.Fatal(err)
	}
	return response
}

func actions(r *api.ApplyResponse) (all []string) {
	for _, a := range r.GetApplied() {
		all = append(all, a.GetName()+" "+a.GetAction())
	}
	return all
}

func (e *env) wantActions(r *api.ApplyResponse, want ...string) {
	e.t.Helper()
	if d := cmp.Diff(want, actions(r)); d != "" {
		e.t.Errorf("what was done: want -, got +:\n%s", d)
	}
}

// pack is everything that stands, with owners, but for revisions.
func (e *env) pack(revision uint64) (all []string) {
	e.t.Helper()
	r, err := e.admin().Get(e.t.Context(), &api.GetRequest{Revision: revision})
	if err != nil {
		e.t.Fatal(err)
	}
	for _, one := range r.GetResources() {
		all = append(all, fmt.Sprintf("%s %s of %s: %s", one.GetKind(), one.GetName(), one.GetOwner(), one.GetYaml()))
	}
	return all
}

func TestPruneDeletesOnlyWhatTheOwnerHas(t *testing.T) {
	e := newEnv(t)
	e.mustApply(&api.ApplyRequest{Yaml: idents("a", "b"), Owner: "team"})
	e.mustApply(&api.ApplyRequest{Yaml: idents("x", "y")})
	r := e.mustApply(&api.ApplyRequest{Yaml: idents("a", "new"), Owner: "team", Prune: true, Yes: true})
	e.wantActions(r, "a unchanged", "new created", "b deleted")
	if b := r.GetApplied()[2]; len(b.GetBefore()) == 0 || len(b.GetAfter()) > 0 {
		t.Errorf("b was %q and is %q", b.GetBefore(), b.GetAfter())
	}
	e.wantStands("Identity a", "Identity new", "Identity x", "Identity y")
	deleted := 0
	for _, one := range e.records() {
		if one.Kind == "delete" && one.OK && one.Detail["name"] == "b" && one.Detail["act"] == "apply" {
			deleted++
		}
	}
	if deleted != 1 {
		t.Errorf("%d records of the deletion", deleted)
	}
}

func TestMoreThanATenthIsNotDeletedByMistake(t *testing.T) {
	e := newEnv(t)
	var names []string
	for i := range 20 {
		names = append(names, fmt.Sprintf("i%02d", i))
	}
	e.mustApply(&api.ApplyRequest{Yaml: idents(names...), Owner: "team"})
	e.mustApply(&api.ApplyRequest{Yaml: idents("other"), Owner: "one"})
	// The others' don't count among the twenty.
	refused := &api.ApplyRequest{Yaml: idents(names[3:]...), Owner: "team", Prune: true}
	_, err := e.tryApply(refused)
	if text := wantCode(t, err, codes.InvalidArgument); !strings.Contains(text, "3 of 20 resources would be deleted (Identity i00, Identity i01, Identity i02)") || !strings.Contains(text, "--yes") {
		t.Error(text)
	}
	if n := len(e.stands()); n != 21 {
		t.Fatalf("%d stand", n)
	}
	refused.DryRun = true
	if plan := e.mustApply(refused); !plan.GetNeedsYes() || plan.GetOwned() != 20 {
		t.Errorf("the plan does not say so: %d, %t", plan.GetOwned(), plan.GetNeedsYes())
	}
	allowed := e.mustApply(&api.ApplyRequest{Yaml: idents(names[2:]...), Owner: "team", Prune: true})
	if allowed.GetNeedsYes() || len(e.stands()) != 19 {
		t.Errorf("%d stand", len(e.stands()))
	}
	for _, one := range []*api.ApplyRequest{
		{Yaml: idents("more"), Owner: "one", Prune: true},                // 1 of 1
		{Yaml: nil, Owner: "one", Prune: true, Yes: true},                // an empty directory deletes nothing, whatever is said
		{Yaml: []byte("# none\n"), Owner: "one", Prune: true, Yes: true}, // nor does an empty file
	} {
		_, err := e.tryApply(one)
		wantCode(t, err, codes.InvalidArgument)
	}
	if n := len(e.stands()); n != 19 {
		t.Errorf("%d stand", n)
	}
}

func TestPruneKeepsWhatOthersName(t *testing.T) {
	e := newEnv(t)
	e.mustApply(&api.ApplyRequest{Yaml: []byte(target), Owner: "clouds"})
	e.mustApply(&api.ApplyRequest{Yaml: []byte(strings.Replace(linked, "federates_with:\n  - partner.example\n", "", 1))})
	_, err := e.tryApply(&api.ApplyRequest{Yaml: idents("other"), Owner: "clouds", Prune: true, Yes: true})
	if text := wantCode(t, err, codes.InvalidArgument); !strings.Contains(text, `Identity linked: targets[0]: there is no Target "t1"`) {
		t.Error(text)
	}
	e.wantStands("Identity linked", "Target t1")
}

func TestTakingOver(t *testing.T) {
	e := newEnv(t)
	e.mustApply(&api.ApplyRequest{Yaml: idents("a", "b")})
	r := e.mustApply(&api.ApplyRequest{Yaml: idents("a"), Owner: "team", TakeOver: true})
	if a := r.GetApplied()[0]; a.GetAction() != "changed" || a.GetTakenFrom() != "default" || a.GetOwner() != "team" {
		t.Errorf("it was %s, from %q to %q", a.GetAction(), a.GetTakenFrom(), a.GetOwner())
	}
	_, err := e.tryApply(&api.ApplyRequest{Yaml: idents("a")})
	wantCode(t, err, codes.InvalidArgument)
	e.mustApply(&api.ApplyRequest{Yaml: idents("b", "c"), Prune: true}) // a is not its own any more
	e.wantStands("Identity a", "Identity b", "Identity c")
}

func TestAPlanOfAnotherRevisionIsRefused(t *testing.T) {
	e := newEnv(t)
	e.apply(web)
	plan := e.mustApply(&api.ApplyRequest{Yaml: idents("a"), DryRun: true})
	e.mustApply(&api.ApplyRequest{Yaml: idents("b")})
	_, err := e.tryApply(&api.ApplyRequest{Yaml: idents("a"), Base: plan.GetRevision()})
	if text := wantCode(t, err, codes.FailedPrecondition); !strings.Contains(text, "plan again") {
		t.Error(text)
	}
	_, err = e.admin().Rollback(t.Context(), &api.RollbackRequest{Revision: 1, Base: plan.GetRevision()})
	wantCode(t, err, codes.FailedPrecondition)
	e.wantStands("Identity b", "Identity web")
	plan = e.mustApply(&api.ApplyRequest{Yaml: idents("a"), DryRun: true})
	e.mustApply(&api.ApplyRequest{Yaml: idents("a"), Base: plan.GetRevision()})
}

func (e *env) rollback(r *api.RollbackRequest) *api.ApplyResponse {
	e.t.Helper()
	response, err := e.admin().Rollback(e.t.Context(), r)
	if err != nil {
		e.t.Fatal(err)
	}
	return response
}

func TestPolicyGoesBack(t *testing.T) {
	e := newEnv(t)
	first := e.mustApply(&api.ApplyRequest{Yaml: append(idents("a", "b"), "---\n"+target...)}).GetRevision()
	e.mustApply(&api.ApplyRequest{Yaml: idents("ours"), Owner: "team"})
	second := e.mustApply(&api.ApplyRequest{
		Yaml: []byte(strings.ReplaceAll(string(idents("a", "c")), "n1", "n2")), Prune: true, Yes: true,
	}).GetRevision()
	e.wantStands("Identity a", "Identity c", "Identity ours")

	// What was deleted is there at its revision, as apply takes it.
	at, err := e.admin().Get(t.Context(), &api.GetRequest{Kind: "identity", Name: "b", Revision: first + 1})
	if err != nil || len(at.GetResources()) != 1 || at.GetRevision() != first+1 {
		t.Fatalf("%v, %v", at, err)
	}
	e.wantActions(e.mustApply(&api.ApplyRequest{Yaml: at.GetResources()[0].GetYaml(), DryRun: true}), "b created")

	// A plan changes nothing, and says what is dear.
	before := e.pack(second)
	plan := e.rollback(&api.RollbackRequest{Revision: first, DryRun: true})
	e.wantActions(plan, "a changed", "b created", "t1 created", "c deleted", "ours deleted")
	if !plan.GetNeedsYes() || plan.GetOwned() != 3 || plan.GetRevision() != second {
		t.Errorf("%d, %t, revision %d", plan.GetOwned(), plan.GetNeedsYes(), plan.GetRevision())
	}
	_, err = e.admin().Rollback(t.Context(), &api.RollbackRequest{Revision: first})
	wantCode(t, err, codes.InvalidArgument)
	if d := cmp.Diff(before, e.pack(0)); d != "" {
		t.Fatal(d)
	}

	// One resource, one owner, all.
	e.wantActions(e.rollback(&api.RollbackRequest{Revision: first, Kind: "identity", Name: "b"}), "b created")
	e.wantStands("Identity a", "Identity b", "Identity c", "Identity ours")
	e.wantActions(e.rollback(&api.RollbackRequest{Revision: first, Owner: "default", Yes: true}), "a changed", "t1 created", "c deleted")
	e.wantStands("Identity a", "Identity b", "Identity ours", "Target t1")
	third := e.rollback(&api.RollbackRequest{Revision: first, Yes: true})
	e.wantActions(third, "ours deleted")
	if d := cmp.Diff(e.pack(first), e.pack(0)); d != "" {
		t.Errorf("it is not what stood: %s", d)
	}
	if third.GetRevision() <= second {
		t.Errorf("it is revision %d", third.GetRevision())
	}
	e.wantActions(e.rollback(&api.RollbackRequest{Revision: second, Yes: true}), "a changed", "c created", "ours created", "b deleted", "t1 deleted") // and there again
	if d := cmp.Diff(before, e.pack(0)); d != "" {
		t.Error(d)
	}
	same := e.rollback(&api.RollbackRequest{Revision: second})
	if len(same.GetApplied()) > 0 {
		t.Errorf("%v", actions(same))
	}
	acts := 0
	for _, one := range e.records() {
		if one.OK && one.Detail["act"] == fmt.Sprintf("rollback to %d", first) {
			acts++
		}
	}
	if acts != 1+3+1 {
		t.Errorf("%d changes are recorded", acts)
	}
}

func TestPolicyDoesNotGoBack(t *testing.T) {
	e := newEnv(t)
	e.apply(target)
	named := strings.Replace(linked, "federates_with:\n  - partner.example\n", "", 1)
	first := e.apply(named).GetRevision()
	e.mustApply(&api.ApplyRequest{Yaml: idents("a"), Prune: true, Yes: true})
	last := e.mustApply(&api.ApplyRequest{Yaml: idents("a"), Owner: "team", TakeOver: true}).GetRevision()
	for name, c := range map[string]struct {
		r    *api.RollbackRequest
		code codes.Code
		says string
	}{
		"what it names is gone":   {&api.RollbackRequest{Revision: first, Kind: "Identity", Name: "linked"}, codes.InvalidArgument, `there is no Target "t1"`},
		"no revision":             {&api.RollbackRequest{}, codes.NotFound, "revision 0"},
		"not there yet":           {&api.RollbackRequest{Revision: last + 1}, codes.NotFound, fmt.Sprintf("the last is %d", last)},
		"no such kind":            {&api.RollbackRequest{Revision: first, Kind: "Pod", Name: "a"}, codes.InvalidArgument, "Pod"},
		"a kind alone":            {&api.RollbackRequest{Revision: first, Kind: "Identity"}, codes.InvalidArgument, "its name"},
		"a name alone":            {&api.RollbackRequest{Revision: first, Name: "a"}, codes.InvalidArgument, "its kind"},
		"never there":             {&api.RollbackRequest{Revision: first, Kind: "Identity", Name: "z"}, codes.NotFound, "there is none now"},
		"somebody else's by now":  {&api.RollbackRequest{Revision: last - 1, Owner: "default", Yes: true}, codes.InvalidArgument, `belonged to owner "default" and belongs to "team" now`},
		"somebody else's then":    {&api.RollbackRequest{Revision: last - 1, Owner: "team", Yes: true}, codes.InvalidArgument, `belonged to owner "default" and belongs to "team" now`},
		"no owner that can be":    {&api.RollbackRequest{Revision: first, Owner: "../x"}, codes.InvalidArgument, "owner"},
		"deletes more than a bit": {&api.RollbackRequest{Revision: first}, codes.InvalidArgument, "1 of 1"},
	} {
		_, err := e.admin().Rollback(t.Context(), c.r)
		if text := wantCode(t, err, c.code); !strings.Contains(text, c.says) {
			t.Errorf("%s: it says %q", name, text)
		}
	}
	e.wantStands("Identity a")
	e.rollback(&api.RollbackRequest{Revision: last - 1}) // for all owners: it is the other's again
	e.mustApply(&api.ApplyRequest{Yaml: idents("a")})
}

func TestListRevisions(t *testing.T) {
	e := newEnv(t)
	list := func(r *api.ListRevisionsRequest) []string {
		t.Helper()
		got, err := e.admin().ListRevisions(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, one := range got.GetRevisions() {
			if !strings.HasPrefix(one.GetActor(), "uid:") || one.GetWrittenAt() == 0 {
				t.Errorf("revision %d is by %q", one.GetRevision(), one.GetActor())
			}
			all = append(all, fmt.Sprintf("%s of %q: +%d ~%d -%d %s", one.GetAct(), one.GetOwner(), one.GetCreated(), one.GetChanged(), one.GetDeleted(), strings.Join(one.GetSome(), ", ")))
		}
		return all
	}
	if all := list(&api.ListRevisionsRequest{}); len(all) > 0 {
		t.Errorf("%v", all)
	}
	first := e.mustApply(&api.ApplyRequest{Yaml: idents("a", "b", "c", "d")}).GetRevision()
	second := e.mustApply(&api.ApplyRequest{Yaml: idents("x"), Owner: "team"}).GetRevision()
	if _, err := e.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Identity", Name: "a"}); err != nil {
		t.Fatal(err)
	}
	e.rollback(&api.RollbackRequest{Revision: first, Yes: true})
	want := []string{
		fmt.Sprintf(`rollback to %d of "": +1 ~0 -1 Identity a, Identity x`, first), `delete of "default": +0 ~0 -1 Identity a`,
		`apply of "team": +1 ~0 -0 Identity x`, `apply of "default": +4 ~0 -0 Identity a, Identity b, Identity c`,
	}
	for name, c := range map[string]struct {
		r    *api.ListRevisionsRequest
		want []string
	}{
		"all":             {&api.ListRevisionsRequest{}, want},
		"a limit":         {&api.ListRevisionsRequest{Limit: 1}, want[:1]},
		"before":          {&api.ListRevisionsRequest{Before: second}, want[3:]},
		"of one resource": {&api.ListRevisionsRequest{Kind: "identity", Name: "x"}, []string{want[0], want[2]}},
		"one":             {&api.ListRevisionsRequest{Revision: second}, want[2:3]},
	} {
		if d := cmp.Diff(c.want, list(c.r)); d != "" {
			t.Errorf("%s: want -, got +:\n%s", name, d)
		}
	}
	one, err := e.admin().ListRevisions(t.Context(), &api.ListRevisionsRequest{Revision: second + 2})
	if err != nil {
		t.Fatal(err)
	}
	var wrote []string
	for _, a := range one.GetRevisions()[0].GetWrote() {
		wrote = append(wrote, fmt.Sprintf("%s %s %t %t", a.GetName(), a.GetAction(), len(a.GetBefore()) > 0, len(a.GetAfter()) > 0))
	}
	if !slices.Equal(wrote, []string{"a created false true", "x deleted true false"}) {
		t.Errorf("it wrote %v", wrote)
	}
	for code, r := range map[codes.Code]*api.ListRevisionsRequest{
		codes.NotFound: {Revision: 1 << 40}, codes.InvalidArgument: {Kind: "Identity"},
	} {
		_, err := e.admin().ListRevisions(t.Context(), r)
		wantCode(t, err, code)
	}
}

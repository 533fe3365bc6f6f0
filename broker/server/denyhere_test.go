package server_test

import (
	"bytes"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/server"
)

// TestDenyHere denies while the database is away: it holds at once on this broker,
// over a start from the snapshot too, as does a Deny that this lacks; and everywhere
// once the database is back.
func TestDenyHere(t *testing.T) {
	t.Parallel()
	database, all := replicas(t, 2, func(e *env) { e.snapshot = true })
	a, b := all[0], all[1]
	n, _ := a.serve()
	out := a.join("n2")
	a.apply(strings.NewReplacer("web", "mail", "33", "34").Replace(web))
	issues := func(n *node, uid string, want int) {
		t.Helper()
		got, _, err := n.issue(t.Context(), t, uid)
		if err != nil || len(got.GetSvids()) != want || (got.GetDenial() != nil) != (want == 0) {
			t.Fatalf("%v (%v), want %d SVIDs", got, err, want)
		}
	}
	kept := func(e *env, what string) int {
		text, err := os.ReadFile(filepath.Join(e.dir, "revoked.jsonl"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		return bytes.Count(text, []byte(what))
	}
	here := func(e *env, yaml string) (*api.ApplyResponse, error) {
		return e.tryApply(&api.ApplyRequest{Yaml: []byte(yaml), Here: true})
	}
	const copied = `"revision":`
	if _, err := a.config.Keeper.Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	other := strings.NewReplacer("incident", "mails", "/web", "/mail").Replace(deny)
	a.apply(other)
	if n := kept(a, copied); n != 1 {
		t.Errorf("%d copies of a Deny that the snapshot lacks", n)
	}
	a.apply(strings.Replace(deny, "incident", "gone", 1))
	a.remove("Deny", "gone")
	if n := kept(a, copied); n != 1 {
		t.Errorf("%d copies once another is deleted", n)
	}
	await(t, "the other knows the node, and evicts it", func() bool {
		_, err := b.admin().EvictNode(t.Context(), &api.EvictNodeRequest{Id: "n2", Reason: "stolen"})
		return err == nil
	})
	evicted := func() {
		t.Helper()
		_, _, err := out.at(a).issue(t.Context(), t, "33")
		wantCode(t, err, codes.Unauthenticated)
	}
	await(t, "it holds at the other", func() bool {
		_, _, err := out.issue(t.Context(), t, "33")
		return status.Code(err) == codes.Unauthenticated && kept(a, out.id) > 0 // which comes next
	})
	w, _ := n.watch(t)
	issues(n, "33", 1)

	database.Stop()
	_, err := a.tryApply(&api.ApplyRequest{Yaml: []byte(deny)})
	wantCode(t, err, codes.Unavailable)
	if !strings.Contains(err.Error(), "apply --here") {
		t.Error(err)
	}
	r, err := here(a, deny)
	if err != nil || !strings.Contains(strings.Join(r.GetWarnings(), "\n"), "on this broker alone") {
		t.Fatal(r, err)
	}
	w.until(func(m *api.WatchResponse) bool {
		for _, c := range m.GetChanges() {
			if c.GetErase() {
				return true
			}
		}
		return false
	})
	issues(n, "33", 0)
	if notes := strings.Join(a.server.Notes(), "\n"); !strings.Contains(notes, "on this broker alone, until the database has them: incident") {
		t.Error(notes)
	}
	if _, err := here(b, strings.Replace(deny, "/web", "/other", 1)); err != nil { // of the same name
		t.Fatal(err)
	}

	a.restart()
	issues(n.at(a), "33", 0)
	issues(n.at(a), "34", 0)
	evicted()

	if _, err := here(a, strings.Replace(deny, "incident", "mistake", 1)); err != nil {
		t.Fatal(err)
	}
	undo := &api.DeleteRequest{Kind: "deny", Name: "mistake", Here: true}
	if _, err := a.admin().Delete(t.Context(), undo); err != nil {
		t.Fatal(err)
	}
	_, err = a.admin().Delete(t.Context(), undo)
	wantCode(t, err, codes.NotFound)

	database.Run(t)
	both := "Deny incident, Deny mails"
	await(t, "both have the Denies", func() bool {
		for _, e := range all {
			var denies []string
			for _, one := range e.stands() {
				if strings.Contains(one, "Deny") {
					denies = append(denies, one)
				}
			}
			if strings.Join(denies, ", ") != both {
				return false
			}
		}
		return true
	})
	// One of them went there; the other's holds on, until it is taken back.
	await(t, "one of the two is taken over", func() bool {
		return kept(a, `"kind":"deny"`)-kept(a, copied)+kept(b, `"kind":"deny"`)-kept(b, copied) == 1
	})
	loser := a
	if kept(b, `"kind":"deny"`) > kept(b, copied) {
		loser = b
	}
	issues(n.at(a), "34", 0)
	if _, err := loser.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Deny", Name: "incident", Here: true}); err != nil {
		t.Fatal(err)
	}
	await(t, "the database, which is back, has it no more", func() bool {
		_, err := loser.admin().Delete(t.Context(), &api.DeleteRequest{Kind: "Deny", Name: "incident"})
		return err == nil || status.Code(err) == codes.NotFound
	})
	for _, e := range all {
		await(t, "nothing of it is left", func() bool {
			got, _, err := n.at(e).issue(t.Context(), t, "33")
			return err == nil && len(got.GetSvids()) == 1
		})
	}
	// With the database it is no more than an apply.
	if r, err := here(a, deny); err != nil || len(r.GetWarnings()) != 0 {
		t.Error(r, err)
	}
	_, err = here(a, strings.Replace(deny, "/web", "/**", 1))
	wantCode(t, err, codes.InvalidArgument)
	issues(n.at(a), "33", 0)
	if _, err := a.config.Keeper.Make(t.Context()); err != nil {
		t.Fatal(err)
	}
	await(t, "no copy is left that the snapshot has", func() bool { return kept(a, copied) == 0 })
}

// TestOnlyDeniesHere refuses what does not hold without the database.
func TestOnlyDeniesHere(t *testing.T) {
	e := newEnv(t)
	for _, r := range []*api.ApplyRequest{
		{Yaml: []byte(web)}, {Yaml: []byte(deny + "---\n" + web)}, {Yaml: []byte(deny), Prune: true}, {Yaml: []byte(deny), DryRun: true},
		{Yaml: []byte(deny), TakeOver: true}, {Yaml: []byte(deny), Base: 1}, {Yaml: []byte(strings.Replace(deny, "incident", "here/incident", 1))},
	} {
		r.Here = true
		_, err := e.tryApply(r)
		wantCode(t, err, codes.InvalidArgument)
	}
	e.wantStands()
}

// still starts the broker anew, and nobody catches up.
func (e *env) still() {
	e.close()
	e.open()
	e.t.Cleanup(func() { _ = errors.Join(e.broker.Close(), e.audit.Close(), e.store.Close()) })
}

// TestDenyHereOfAnother: a Deny that was made here is no operator's to narrow, to
// replace or to take back but under their paths; and goes to the database as whoever
// made it, whoever asks for something then.
func TestDenyHereOfAnother(t *testing.T) {
	e := newEnv(t, withRoles)
	all := "kind: Deny\nname: all\nmatch: [{node.name: n1}]\n"
	keep := broker.KeptDeny{Name: "all", Owner: "default", Actor: "uid:0", At: e.now(), Text: []byte(all)}
	if err := e.broker.KeepDenies(keep); err != nil {
		t.Fatal(err)
	}
	e.still()
	shopkeeper := server.As(t.Context(), e.roles[1])
	const me = "spiffe://example.org/people/shopkeeper"
	narrowed := &api.ApplyRequest{Yaml: []byte(all + "spiffe_ids: [/shop/x]\n")}
	for what, do := range map[string]func() error{
		"narrowed":   func() error { _, err := e.server.ApplyHere(shopkeeper, me, narrowed); return err },
		"replaced":   func() error { return e.server.Change(shopkeeper, me, narrowed, "") },
		"taken back": func() error { return e.server.Change(shopkeeper, me, nil, "all") },
	} {
		if err := do(); !errors.Is(err, identity.ErrDenied) {
			t.Errorf("%s: %v", what, err)
		}
	}
	mine := "kind: Deny\nname: mine\nmatch: [{node.name: n1}]\nspiffe_ids: [/shop/**]\n"
	if problem, err := e.server.ApplyHere(shopkeeper, me, &api.ApplyRequest{Yaml: []byte(mine)}); problem != "" || err != nil {
		t.Errorf("%q, %v", problem, err)
	}
	rows, _, err := e.store.Resources(t.Context())
	if err != nil || len(rows) != 2 || rows[0].Actor != "uid:0" || rows[1].Actor != me {
		t.Errorf("%+v (%v)", rows, err)
	}
	if left := e.broker.KeptDenies(); len(left) != 0 {
		t.Errorf("left here: %+v", left)
	}
}

// TestDenyHereThatIsNotTaken: while the database takes nothing, though it is there,
// what was denied here is not tried, and recorded, all the time.
func TestDenyHereThatIsNotTaken(t *testing.T) {
	e := newEnv(t)
	for _, name := range []string{"a", "b"} {
		text := strings.Replace(deny, "incident", name, 1)
		if err := e.broker.KeepDenies(broker.KeptDeny{Name: name, Owner: "default", Actor: "uid:0", At: e.now(), Text: []byte(text)}); err != nil {
			t.Fatal(err)
		}
	}
	e.still()
	db, err := sql.Open("sqlite", filepath.Join(e.dir, "credence.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE TRIGGER full BEFORE INSERT ON resource BEGIN SELECT RAISE(ABORT, 'the disk is full'); END"); err != nil {
		t.Fatal(err)
	}
	e.server.TendDenies(t.Context())
	if d := cmp.Diff([]string{"apply ", "apply "}, spoken(e.records())); d != "" { // one, and that it failed
		t.Error(d)
	}
	for range 20 {
		e.server.TendDenies(t.Context())
	}
	if n := len(e.records()); n >= 2*20 { // on a slow machine some are tried
		t.Errorf("%d records", n)
	}
	if _, err := db.ExecContext(t.Context(), "DROP TRIGGER full"); err != nil {
		t.Fatal(err)
	}
	e.ahead.Add(int64(time.Minute))
	e.server.TendDenies(t.Context())
	if left := e.broker.KeptDenies(); len(left) != 0 {
		t.Errorf("left here: %+v", left)
	}
}

// TestDenyHereAgain: where the file took a Deny not, the same again is no repetition.
func TestDenyHereAgain(t *testing.T) {
	e := newEnv(t)
	e.still()
	file := filepath.Join(e.dir, "revoked.jsonl")
	if err := os.Mkdir(file, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := e.server.ApplyHere(t.Context(), "uid:0", &api.ApplyRequest{Yaml: []byte(deny)}); err == nil || !strings.Contains(err.Error(), "until it stops") {
			t.Errorf("it is kept: %v", err)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if problem, err := e.server.ApplyHere(t.Context(), "uid:0", &api.ApplyRequest{Yaml: []byte(deny)}); problem != "" || err != nil {
		t.Errorf("%q, %v", problem, err)
	}
}

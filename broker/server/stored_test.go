package server_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/broker/store"
)

// What an older program wrote as YAML stands, is given back, and is not
// changed by applying it again; what is written now is written as JSON.
func TestOlderTextIsRead(t *testing.T) {
	e := newEnv(t)
	_, last, err := e.store.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.store.Apply(t.Context(), last, store.Act{Actor: "older"}, []store.Change{{Kind: "Deny", Name: "incident", Owner: "default", Body: []byte(deny)}}); err != nil {
		t.Fatal(err)
	}
	e.tryApply(&api.ApplyRequest{Yaml: []byte(target)}) // which meets what is new
	for range 2 {
		for _, a := range e.apply(deny).GetApplied() {
			if a.GetAction() != "unchanged" {
				t.Errorf("%s %s was %s", a.GetKind(), a.GetName(), a.GetAction())
			}
		}
	}
	e.apply(web)
	rows, _, err := e.store.Resources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, row := range rows {
		got[row.Kind] = bytes.HasPrefix(row.Body, []byte("{"))
	}
	if diff := cmp.Diff(map[string]bool{"Deny": false, "Identity": true}, got); diff != "" {
		t.Errorf("which are JSON: %s", diff)
	}
}

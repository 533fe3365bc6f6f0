package storetest

import "github.com/google/go-cmp/cmp"

func confirmed(e *env) {
	for _, c := range []struct{ root, target string }{{"r1", "b"}, {"r1", "a"}, {"r1", "b"}, {"r2", "c"}} {
		if err := e.Store.ConfirmAnchor(e.Context(), c.root, c.target, "uid:0"); err != nil {
			e.Fatal(err)
		}
	}
	e.reopen()
	for root, want := range map[string][]string{"r1": {"a", "b"}, "r2": {"c"}, "r3": nil} {
		got, err := e.Store.ConfirmedAnchors(e.Context(), root)
		if err != nil {
			e.Fatal(err)
		}
		if d := cmp.Diff(want, got); d != "" {
			e.Errorf("%s: %s", root, d)
		}
	}
}

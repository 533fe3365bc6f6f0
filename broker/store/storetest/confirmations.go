package storetest

import "time"

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

// placed: a key is at a place since the first time that somebody said so.
func placed(e *env) {
	look := func(want map[string]time.Time) {
		e.Helper()
		got, err := e.Places(e.Context(), "k1")
		e.must(err)
		e.equal(got, want)
	}
	look(map[string]time.Time{})
	first := e.time
	e.must(e.ConfirmPlace(e.Context(), "k1", "s3://bucket", "uid:0"))
	e.must(e.ConfirmAnchor(e.Context(), "k1", "aws", "uid:0")) // is something else
	e.must(e.ConfirmPlace(e.Context(), "k2", "gs://bucket", "uid:0"))
	e.time = e.time.Add(time.Hour)
	e.must(e.ConfirmPlace(e.Context(), "k1", "s3://bucket", "uid:0"))
	e.must(e.ConfirmPlace(e.Context(), "k1", "dir:///www", "uid:0"))
	e.reopen()
	look(map[string]time.Time{"s3://bucket": first, "dir:///www": e.time})
	anchors, err := e.ConfirmedAnchors(e.Context(), "k2")
	e.must(err)
	e.equal(len(anchors), 1) // a key has no anchors, and a root no places
}

package storetest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
)

// svid is the n-th of a test: of one ID, identity, node and authority in two
// each, issued a minute after the one before, for an hour.
func (e *env) svid(n int) broker.Issued {
	odd := n % 2
	return broker.Issued{
		Kind: []string{broker.KindX509, broker.KindJWT}[odd], Serial: fmt.Sprintf("%032x", n),
		SPIFFEID: fmt.Sprintf("spiffe://example.org/w%d", odd), Identity: fmt.Sprintf("i%d", odd), Revision: 7,
		Node: fmt.Sprintf("spiffe://example.org/credence/node/n%d", odd), Authority: fmt.Sprintf("a%d", odd),
		Target: "t", Audiences: []string{"a", "b\"ü"},
		IssuedAt: e.time.Add(time.Duration(n) * time.Minute), ExpiresAt: e.time.Add(time.Duration(n)*time.Minute + time.Hour), Record: uint64(n) + 1,
	}
}

func (e *env) svids(from, to int) (all []broker.Issued) {
	for n := from; n < to; n++ {
		all = append(all, e.svid(n))
	}
	return all
}

// place is in the record of a broker.
func place(n int) audit.Ref { return audit.Ref{Sequence: uint64(n), Hash: [32]byte{byte(n), 1}} }

func (e *env) issued(q broker.IssuedQuery) []broker.Issued {
	e.Helper()
	rows, _, err := e.Issued(e.Context(), q)
	e.must(err)
	return rows
}

// unreplaced counts what is left under authorities that were replaced.
func unreplaced(e *env) {
	at := func(serial, id, node, kind, authority string, life time.Duration) broker.Issued {
		return broker.Issued{
			Kind: kind, Serial: serial, SPIFFEID: "spiffe://example.org/" + id, Identity: "i", Node: node, Authority: authority,
			IssuedAt: e.time, ExpiresAt: e.time.Add(life),
		}
	}
	look := func(want int, until time.Duration) {
		e.Helper()
		count, end, err := e.Unreplaced(e.Context(), []string{"new", "newer"}, e.time.Add(time.Hour))
		e.must(err)
		e.equal(count, want)
		if want > 0 {
			e.equal(end, e.time.Add(until))
		}
	}
	look(0, 0)
	x509, jwt := broker.KindX509, broker.KindJWT
	e.must(e.AddIssued(e.Context(), "b1", place(1), []broker.Issued{
		at("ended", "a", "n1", x509, "old", time.Hour), at("old", "a", "n1", x509, "old", 3*time.Hour), at("elsewhere", "a", "n2", x509, "older", 2*time.Hour),
		at("token", "b", "n1", jwt, "old", 4*time.Hour), at("new", "c", "n1", x509, "new", 4*time.Hour),
	}))
	look(2, 3*time.Hour)
	e.must(e.AddIssued(e.Context(), "b1", place(2), []broker.Issued{
		at("another's", "d", "n1", x509, "new", 2*time.Hour), at("no X.509", "a", "n1", jwt, "new", 2*time.Hour),
	}))
	look(2, 3*time.Hour)
	e.must(e.AddIssued(e.Context(), "b1", place(3), []broker.Issued{at("successor", "a", "n1", x509, "newer", 2*time.Hour)}))
	look(1, 2*time.Hour)
	_, _, err := e.Unreplaced(e.Context(), nil, e.time)
	e.refused(err, broker.ErrRequest)
}

func issued(e *env) {
	first, err := e.IndexedUpTo(e.Context(), "b1")
	e.must(err)
	e.equal(first, audit.Ref{})
	revision := e.revision()
	e.must(e.AddIssued(e.Context(), "b1", place(10), e.svids(0, 10)))
	bare := broker.Issued{Kind: broker.KindX509, Serial: "bare", SPIFFEID: "spiffe://example.org/credence/node/n1", IssuedAt: e.time, ExpiresAt: e.time.Add(time.Hour)}
	e.must(e.AddIssued(e.Context(), "b2", place(3), []broker.Issued{bare}))
	e.equal(e.revision(), revision) // nobody watches it
	e.reopen()
	for origin, want := range map[string]audit.Ref{"b1": place(10), "b2": place(3), "b3": {}} {
		got, err := e.IndexedUpTo(e.Context(), origin)
		e.must(err)
		e.equal(got, want)
	}
	e.equal(e.issued(broker.IssuedQuery{Serial: "bare"}), []broker.Issued{bare})
	odd := []broker.Issued{e.svid(9), e.svid(7), e.svid(5), e.svid(3), e.svid(1)} // newest first
	for name, q := range map[string]broker.IssuedQuery{
		"id": {SPIFFEID: odd[0].SPIFFEID}, "identity": {Identity: "i1"}, "node": {Node: odd[0].Node}, "authority": {Authority: "a1"},
	} {
		if got := e.issued(q); len(got) != 5 {
			e.Errorf("by %s: %d", name, len(got))
		}
		e.equal(e.issued(q), odd)
	}
	e.equal(e.issued(broker.IssuedQuery{Serial: odd[0].Serial}), odd[:1])
	e.equal(e.issued(broker.IssuedQuery{Identity: "i1", From: odd[2].IssuedAt, Before: odd[0].IssuedAt}), odd[1:3])
	e.equal(e.issued(broker.IssuedQuery{Identity: "i1", LiveAt: odd[2].ExpiresAt}), odd[:2])
	e.equal(len(e.issued(broker.IssuedQuery{Identity: "i1", Node: "spiffe://example.org/credence/node/n0"})), 0)
	some, total, err := e.Issued(e.Context(), broker.IssuedQuery{Identity: "i1", Limit: 2})
	e.must(err)
	e.equal(some, odd[:2])
	e.equal(total, 5)

	all := e.issued(broker.IssuedQuery{Kind: broker.KindX509, Authority: "a0"})
	e.equal(len(all), 5)
	e.equal(len(e.issued(broker.IssuedQuery{Kind: broker.KindX509, Authority: "a1"})), 0)
	twin := all[2] // of the same time
	twin.Serial = "twin"
	e.must(e.AddIssued(e.Context(), "b1", place(11), []broker.Issued{twin}))
	q := broker.IssuedQuery{Authority: "a0", Limit: 1}
	var walked []broker.Issued
	for page := e.issued(q); len(page) > 0 && len(walked) < 10; page = e.issued(q) {
		walked = append(walked, page...)
		q.After = &page[0]
	}
	e.equal(walked, slices.Insert(all, 3, twin))
}

func issuedBounds(e *env) {
	for name, q := range map[string]broker.IssuedQuery{
		"everything": {}, "all of a time": {From: e.time}, "too many": {Identity: "i", Limit: broker.MaxIssued + 1}, "fewer than none": {Identity: "i", Limit: -1},
	} {
		if _, _, err := e.Issued(e.Context(), q); err == nil {
			e.Errorf("%s is answered", name)
		} else {
			e.refused(err, broker.ErrRequest)
		}
	}
	e.must(e.AddIssued(e.Context(), "b1", place(200), e.svids(0, 300)))
	e.equal(len(e.issued(broker.IssuedQuery{Identity: "i1"})), 100)
	hostile := e.svid(1000)
	hostile.Identity, hostile.SPIFFEID, hostile.Target = "x' OR '1'='1", "\x01%_\"", "$1"
	e.must(e.AddIssued(e.Context(), "b1", place(201), []broker.Issued{hostile}))
	e.equal(e.issued(broker.IssuedQuery{Identity: hostile.Identity}), []broker.Issued{hostile})
	e.equal(e.issued(broker.IssuedQuery{SPIFFEID: hostile.SPIFFEID}), []broker.Issued{hostile})
}

// issuedTwice holds that what is indexed again, after a crash or from a record
// that was begun anew, is there once and as it was.
func issuedTwice(e *env) {
	e.must(e.AddIssued(e.Context(), "b1", place(10), e.svids(0, 10)))
	again := e.svids(5, 15)
	again[0].SPIFFEID = "spiffe://example.org/another"
	e.must(e.AddIssued(e.Context(), "b1", place(15), again))
	counts, err := e.Outstanding(e.Context(), e.time)
	e.must(err)
	e.equal(counts, map[string]int{"a0": 8, "a1": 7})
	e.equal(e.issued(broker.IssuedQuery{Serial: again[0].Serial}), []broker.Issued{e.svid(5)})
	e.must(e.AddIssued(e.Context(), "b1", place(2), nil)) // also back
	got, err := e.IndexedUpTo(e.Context(), "b1")
	e.must(err)
	e.equal(got, place(2))
}

// issuedAtomic holds that rows and place are written together or not at all.
func issuedAtomic(e *env) {
	e.must(e.AddIssued(e.Context(), "b1", place(1), e.svids(0, 1)))
	bad := append(e.svids(1, 5), broker.Issued{Kind: "cookie", Serial: "c"})
	if err := e.AddIssued(e.Context(), "b1", place(6), bad); err == nil {
		e.Error("a cookie is taken")
	}
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	if err := e.AddIssued(ctx, "b1", place(6), e.svids(1, 5)); err == nil {
		e.Error("after the call ended: no error")
	}
	got, err := e.IndexedUpTo(e.Context(), "b1")
	e.must(err)
	e.equal(got, place(1))
	counts, err := e.Outstanding(e.Context(), time.Time{})
	e.must(err)
	e.equal(counts, map[string]int{"a0": 1})
}

func outstanding(e *env) {
	e.must(e.AddIssued(e.Context(), "b1", place(10), e.svids(0, 10)))
	for after, want := range map[time.Duration]map[string]int{
		0: {"a0": 5, "a1": 5}, time.Hour: {"a0": 4, "a1": 5}, time.Hour + 8*time.Minute: {"a1": 1}, 2 * time.Hour: {},
	} {
		counts, err := e.Outstanding(e.Context(), e.time.Add(after))
		e.must(err)
		e.equal(counts, want)
	}
}

func forgotten(e *env) {
	e.must(e.AddIssued(e.Context(), "b1", place(10), e.svids(0, 10)))
	end := e.svid(7).ExpiresAt // 0 to 6 ended before it
	for _, want := range []int{3, 3, 1, 0} {
		n, err := e.ForgetIssued(e.Context(), end, 3)
		e.must(err)
		e.equal(n, want)
		if want == 3 { // the oldest first
			e.equal(len(e.issued(broker.IssuedQuery{Serial: e.svid(6).Serial})), 1)
		}
	}
	counts, err := e.Outstanding(e.Context(), time.Time{})
	e.must(err)
	e.equal(counts, map[string]int{"a0": 1, "a1": 2})
}

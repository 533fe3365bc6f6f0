package storetest

import "github.com/credence-id/credence/broker"

// marks go on, never back, and begin anew with another spool.
func marks(e *env) {
	const n1, n2 = "spiffe://example.org/credence/node/n1", "spiffe://example.org/credence/node/n2"
	holds := func(node string, want broker.Mark) {
		e.Helper()
		got, err := e.Mark(e.Context(), node)
		e.must(err)
		e.equal(got, want)
	}
	holds(n1, broker.Mark{})
	revision := e.revision()
	e.must(e.SaveMarks(e.Context(), []broker.Mark{{Node: n1, Spool: "a", Number: 7}, {Node: n2, Spool: "b", Number: 1 << 62}}))
	e.equal(e.revision(), revision)
	e.reopen()
	holds(n1, broker.Mark{Node: n1, Spool: "a", Number: 7})
	holds(n2, broker.Mark{Node: n2, Spool: "b", Number: 1 << 62})
	e.must(e.SaveMarks(e.Context(), []broker.Mark{{Node: n1, Spool: "a", Number: 3}}))
	holds(n1, broker.Mark{Node: n1, Spool: "a", Number: 7})
	e.must(e.SaveMarks(e.Context(), []broker.Mark{{Node: n1, Spool: "a", Number: 9}}))
	holds(n1, broker.Mark{Node: n1, Spool: "a", Number: 9})
	e.must(e.SaveMarks(e.Context(), []broker.Mark{{Node: n1, Spool: "c", Number: 1}}))
	holds(n1, broker.Mark{Node: n1, Spool: "c", Number: 1})
}

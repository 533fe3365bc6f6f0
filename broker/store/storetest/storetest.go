// Package storetest is the contract of broker/store, to be run against every
// engine.
//
// It trusts nothing but what the store's methods return: it looks at no file
// and speaks no SQL. What only one engine has (its files, its locks, what it
// does when the disk is full) is left to the tests beside the engine.
package storetest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/broker/identity"
	"github.com/credence-id/credence/broker/store"
)

// Open opens the database that belongs to a directory of the test's. The same
// directory is the same database: the suite closes it and opens it again.
type Open func(t *testing.T, dir string, now func() time.Time) (*store.Store, error)

// Run holds an engine to the contract.
func Run(t *testing.T, open Open) {
	for name, test := range map[string]func(*env){
		"a new database is empty":               empty,
		"revisions order all changes":           revisions,
		"a change comes back":                   applied,
		"resources are applied all or not":      allOrNothing,
		"a base that is not the last conflicts": staleBase,
		"one of many on the same base wins":     raceToApply,
		"a resource belongs to its owner":       owners,
		"what is not there is not deleted":      deleteAbsent,
		"policy comes back as it was":           pastPolicy,
		"a revision says who did what":          policyRevisions,
		"a node comes back":                     nodes,
		"a renewal on an old state is refused":  staleRenewal,
		"a join follows from the one before":    stepped,
		"an evicted node stays out":             evicted,
		"an evicted node is allowed back":       allowed,
		"a renewal never undoes an eviction":    renewalAgainstEviction,
		"an ID belongs to one durable key":      otherMachine,
		"facts that cannot be read back":        oversizedFacts,
		"nodes that have ended are forgotten":   endedNodes,
		"a token is spent once":                 spendOnce,
		"evidence is spent once":                spendEvidence,
		"evidence is spent on one holder":       spendEvidenceFor,
		"a token that will not do":              badTokens,
		"a token's hash is unique":              sameToken,
		"authorities come back":                 authorities,
		"records are replaced whole":            replaced,
		"one authority is active":               uniqueActive,
		"two authorities change places":         changePlaces,
		"a lease's fence":                       fences,
		"authorities that others changed":       conflicts,
		"what others ended stays ended":         endedByOthers,
		"revocations come back":                 revocations,
		"a CRL's number grows":                  crlNumbers,
		"a revocation stays until listed":       revokedUntilListed,
		"old lists are forgotten":               listsForgotten,
		"bundles come back":                     bundles,
		"a confirmed anchor stays confirmed":    confirmed,
		"a key stays where it is published":     placed,
		"what was issued comes back":            issued,
		"marks of reports only go on":           marks,
		"the index answers no more than bounds": issuedBounds,
		"what is indexed twice is there once":   issuedTwice,
		"rows and place are written together":   issuedAtomic,
		"what is outstanding is counted":        outstanding,
		"what is not replaced is counted":       unreplaced,
		"what has ended is forgotten in parts":  forgotten,
		"cut-offs come back":                    cutoffs,
		"cut-offs only grow":                    cutoffsOnlyGrow,
		"old cut-offs are forgotten":            cutoffsForgotten,
		"what is new is told":                   changes,
		"followers end with what stands":        followed,
		"a name is one broker's":                claims,
		"a restart keeps everything":            restart,
		"an ended call writes nothing":          cancelled,
	} {
		t.Run(name, func(t *testing.T) {
			e := &env{T: t, open: open, dir: t.TempDir(), time: time.Date(2026, 5, 4, 10, 20, 30, 123e6, time.UTC)}
			e.reopen()
			t.Cleanup(func() {
				if err := e.Store.Close(); err != nil {
					t.Error(err)
				}
			})
			test(e)
		})
	}
}

// env is one database and a test of it.
type env struct {
	*testing.T
	*store.Store
	open Open
	dir  string
	time time.Time // of its clock
}

// reopen opens the database, closing it first if it is open.
func (e *env) reopen() {
	e.Helper()
	if e.Store != nil {
		e.must(e.Store.Close())
	}
	s, err := e.open(e.T, e.dir, func() time.Time { return e.time })
	e.must(err)
	e.Store = s
}

func (e *env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// refused checks that err is of a kind.
func (e *env) refused(err, kind error) {
	e.Helper()
	if !errors.Is(err, kind) {
		e.Fatalf("the error is %v, want one that is %v", err, kind)
	}
}

func (e *env) equal(got, want any) {
	e.Helper()
	if d := cmp.Diff(want, got, compare); d != "" {
		e.Fatalf("want -, got +:\n%s", d)
	}
}

var compare = cmp.Options{
	cmpopts.EquateEmpty(),
	cmp.Transformer("facts", identity.Facts.Map),
	cmp.Comparer(func(a, b spiffeid.TrustDomain) bool { return a == b }),
}

func (e *env) revision() uint64 {
	e.Helper()
	r, err := e.Revision(e.Context())
	e.must(err)
	return r
}

func empty(e *env) {
	e.equal(e.revision(), uint64(0))
	e.unchanged(state{})
}

// state is all that a store returns.
type state struct {
	Resources   []store.Resource
	Last        uint64
	Revisions   []store.Revision
	Nodes       any
	Authorities any
	Publication any
	Bundles     any
	Revoked     int
	CRLs        int
}

func (e *env) state() state {
	e.Helper()
	resources, last, err := e.Resources(e.Context())
	e.must(err)
	nodes, err := e.Nodes(e.Context())
	e.must(err)
	authorities, publication, err := e.Authorities(e.Context())
	e.must(err)
	bundles, err := e.Bundles(e.Context())
	e.must(err)
	revisions, _, err := e.Revisions(e.Context(), 0, "", "", 100)
	e.must(err)
	s := state{Resources: resources, Last: last, Revisions: revisions}
	if len(nodes) > 0 {
		s.Nodes = nodes
	}
	if len(authorities) > 0 {
		s.Authorities, s.Publication = authorities, publication
	}
	if len(bundles) > 0 {
		s.Bundles = bundles
	}
	revoked, lists, err := e.Revocations(e.Context())
	e.must(err)
	s.Revoked, s.CRLs = len(revoked), len(lists)
	return s
}

func (e *env) unchanged(before state) {
	e.Helper()
	e.equal(e.state(), before)
}

func restart(e *env) {
	e.fill()
	before, revision := e.state(), e.revision()
	e.reopen()
	e.unchanged(before)
	e.equal(e.revision(), revision)
	_, _, err := e.SpendToken(e.Context(), hash("spent"), "token", e.time)
	e.refusedSpent(err)
	node, labels, err := e.SpendToken(e.Context(), hash("fresh"), "token", e.time)
	e.must(err)
	e.equal(node, "n9")
	e.equal(labels, map[string]string{"site": "a"})
	_, err = e.SaveNode(e.Context(), e.node("banned"))
	e.conflict(err)
}

// fill writes one of everything.
func (e *env) fill() {
	e.Helper()
	ctx := e.Context()
	_, err := e.Apply(ctx, 0, by("uid:0"), []store.Change{text("Identity", "a"), text("Identity", "gone"), text("Deny", "d")})
	e.must(err)
	_, last, err := e.Resources(ctx)
	e.must(err)
	_, err = e.Apply(ctx, last, by("uid:0"), []store.Change{{Kind: "Identity", Name: "gone", Owner: "team"}})
	e.must(err)
	for _, name := range []string{"n1", "banned"} {
		_, err = e.SaveNode(ctx, e.node(name))
		e.must(err)
	}
	_, err = e.EvictNode(ctx, e.node("banned").ID, e.time)
	e.must(err)
	for _, name := range []string{"spent", "fresh"} {
		e.must(e.CreateToken(ctx, e.token(name, "n9")))
	}
	_, _, err = e.SpendToken(ctx, hash("spent"), "token", e.time)
	e.must(err)
	e.must(e.saveAuthorities(e.authorities(), publication(7)))
	e.must(e.SaveBundle(ctx, e.bundle("peer.example", 1<<63)))
	e.must(e.SaveRevocations(ctx, []authority.Revocation{e.revocation("ca", 1, e.time)}, []authority.CRL{e.list("ca", 1, e.time)}))
}

func cancelled(e *env) {
	e.fill()
	before, revision := e.state(), e.revision()
	change := e.change(nil, publication(8))
	ctx, cancel := context.WithCancel(e.Context())
	cancel()
	_, authorities := e.SaveAuthorities(ctx, change)
	_, applying := e.Apply(ctx, before.Last, by("uid:0"), []store.Change{text("Identity", "b")})
	_, saving := e.SaveNode(ctx, e.node("n2"))
	_, evicting := e.EvictNode(ctx, e.node("n1").ID, e.time)
	_, _, spending := e.SpendToken(ctx, hash("fresh"), "token", e.time)
	for act, err := range map[string]error{
		"applying": applying, "saving": saving, "evicting": evicting, "spending": spending,
		"keeping a bundle": e.SaveBundle(ctx, e.bundle("other.example", 1)),
		"deleting one":     e.DeleteBundle(ctx, e.bundle("peer.example", 1).TrustDomain),
		"authorities":      authorities,
		"revoking":         e.SaveRevocations(ctx, []authority.Revocation{e.revocation("ca", 2, e.time)}, nil),
		"creating a token": e.CreateToken(ctx, e.token("more", "n1")),
	} {
		if err == nil {
			e.Errorf("%s after the call ended: no error", act)
		}
	}
	e.unchanged(before)
	e.equal(e.revision(), revision)
}

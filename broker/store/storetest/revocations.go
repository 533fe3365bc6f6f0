package storetest

import (
	"math/big"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/credence-id/credence/broker/authority"
)

func (e *env) revocation(issuer string, serial int64, notAfter time.Time) authority.Revocation {
	return authority.Revocation{
		Issuer: issuer, Serial: big.NewInt(serial), At: e.time, NotAfter: notAfter, Reason: "lost",
	}
}

func (e *env) list(issuer string, number int64, at time.Time) authority.CRL {
	return authority.CRL{
		Issuer: issuer, DER: hash(issuer + at.String()), Number: big.NewInt(number), ThisUpdate: at, NextUpdate: at.Add(24 * time.Hour),
	}
}

func (e *env) equalRevocations(want []authority.Revocation, lists []authority.CRL) {
	e.Helper()
	got, gotLists, err := e.Revocations(e.Context())
	e.must(err)
	e.equalBig(got, want)
	e.equalBig(gotLists, lists)
}

func (e *env) equalBig(got, want any) {
	e.Helper()
	if d := cmp.Diff(want, got, compare, cmp.Comparer(func(a, b *big.Int) bool { return a.Cmp(b) == 0 })); d != "" {
		e.Fatalf("want -, got +:\n%s", d)
	}
}

func revocations(e *env) {
	wide := e.revocation("a", 1, e.time.Add(time.Hour))
	wide.Serial.Lsh(wide.Serial, 127)
	all := []authority.Revocation{e.revocation("a", 5, e.time.Add(time.Hour)), wide, e.revocation("b", 5, e.time.Add(time.Hour))}
	e.must(e.SaveRevocations(e.Context(), []authority.Revocation{all[2], all[1], all[0]}, nil))
	again := e.revocation("a", 5, e.time.Add(time.Minute)) // the first word stands
	lists := []authority.CRL{e.list("a", 7, e.time)}
	e.must(e.SaveRevocations(e.Context(), []authority.Revocation{again}, lists))
	e.equalRevocations(all, lists)
	e.reopen()
	e.equalRevocations(all, lists)
	for name, bad := range map[string]authority.Revocation{
		"no issuer": {Serial: big.NewInt(1)}, "no serial": {Issuer: "a"}, "a serial of nothing": {Issuer: "a", Serial: new(big.Int)},
	} {
		if err := e.SaveRevocations(e.Context(), []authority.Revocation{bad}, nil); err == nil {
			e.Errorf("%s: kept", name)
		}
	}
	e.equalRevocations(all, lists)
}

// A CRL's number grows, whoever else writes; what is refused is refused whole.
func crlNumbers(e *env) {
	e.must(e.SaveRevocations(e.Context(), nil, []authority.CRL{e.list("a", 7, e.time)}))
	for _, number := range []int64{0, 6, 7} {
		added := []authority.Revocation{e.revocation("b", 1, e.time.Add(time.Hour))}
		err := e.SaveRevocations(e.Context(), added, []authority.CRL{e.list("b", 1, e.time), e.list("a", number, e.time.Add(time.Hour))})
		if err == nil {
			e.Errorf("CRL %d after 7", number)
		}
	}
	e.equalRevocations(nil, []authority.CRL{e.list("a", 7, e.time)})
	e.must(e.SaveRevocations(e.Context(), nil, []authority.CRL{e.list("a", 8, e.time.Add(time.Hour))}))
	e.equalRevocations(nil, []authority.CRL{e.list("a", 8, e.time.Add(time.Hour))})
}

// A revoked certificate stays until a CRL was made after its end.
func revokedUntilListed(e *env) {
	short, long := e.revocation("a", 1, e.time.Add(time.Hour)), e.revocation("a", 2, e.time.Add(5*time.Hour))
	other := e.revocation("b", 1, e.time.Add(time.Hour))
	e.must(e.SaveRevocations(e.Context(), []authority.Revocation{short, long, other}, []authority.CRL{e.list("a", 1, e.time)}))
	e.must(e.SaveRevocations(e.Context(), nil, []authority.CRL{e.list("a", 2, e.time.Add(2*time.Hour))}))
	e.equalRevocations([]authority.Revocation{short, long, other}, []authority.CRL{e.list("a", 2, e.time.Add(2*time.Hour))})
	e.must(e.SaveRevocations(e.Context(), nil, []authority.CRL{e.list("a", 3, e.time.Add(3*time.Hour))}))
	e.equalRevocations([]authority.Revocation{long, other}, []authority.CRL{e.list("a", 3, e.time.Add(3*time.Hour))})
}

// What a CA that makes no lists any more left behind goes after a month.
func listsForgotten(e *env) {
	gone, lives := e.revocation("gone", 1, e.time.Add(time.Hour)), e.revocation("a", 1, e.time.Add(40*24*time.Hour))
	e.must(e.SaveRevocations(e.Context(), []authority.Revocation{gone, lives}, []authority.CRL{e.list("gone", 1, e.time)}))
	month := e.time.Add(30*24*time.Hour + time.Hour)
	e.must(e.SaveRevocations(e.Context(), nil, []authority.CRL{e.list("a", 2, month)}))
	e.equalRevocations([]authority.Revocation{lives, gone}, []authority.CRL{e.list("a", 2, month), e.list("gone", 1, e.time)})
	later := month.Add(22 * time.Hour)
	e.must(e.SaveRevocations(e.Context(), nil, []authority.CRL{e.list("a", 3, later)}))
	e.equalRevocations([]authority.Revocation{lives}, []authority.CRL{e.list("a", 3, later), e.list("gone", 1, e.time)})
	e.must(e.SaveRevocations(e.Context(), nil, []authority.CRL{e.list("a", 4, later.Add(2*time.Hour))}))
	e.equalRevocations([]authority.Revocation{lives}, []authority.CRL{e.list("a", 4, later.Add(2*time.Hour))})
}

package storetest

import (
	"errors"
	"slices"
	"time"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/authority"
)

// fences holds that a change of what is shared is refused whose fence another
// holder has overtaken, and that one is not which is the broker's own.
func fences(e *env) {
	ctx, name := e.Context(), authority.LeaseName
	e.must(e.saveAuthorities(e.authorities(), publication(1)))
	lost := e.change(nil, publication(2))
	lost.Fence = 1
	if _, err := e.SaveAuthorities(ctx, lost); !errors.Is(err, authority.ErrFenced) {
		e.Errorf("under a fence that nobody was given: %v", err)
	}
	first, ok, err := e.Acquire(ctx, name, "b1", time.Minute, false)
	e.must(err)
	if other, got, err := e.Acquire(ctx, name, "b2", time.Minute, false); err != nil || got || other.Holder != "b1" || !ok {
		e.Errorf("b2 has what b1 holds: %+v, %v", other, err)
	}
	second, ok, err := e.Acquire(ctx, name, "b2", time.Minute, true)
	e.must(err)
	if !ok || second.Fence <= first.Fence {
		e.Errorf("fence %d after %d", second.Fence, first.Fence)
	}
	e.must(e.Release(ctx, name, first.Fence)) // b2's goes on
	if _, got, err := e.Acquire(ctx, name, "b3", time.Minute, false); err != nil || got {
		e.Errorf("b3 has what b2 holds (%v)", err)
	}
	c := e.change(nil, publication(2))
	c.Fence = first.Fence
	if _, err := e.SaveAuthorities(ctx, c); !errors.Is(err, authority.ErrFenced) || !errors.Is(err, broker.ErrConflict) {
		e.Errorf("under an old fence: %v", err)
	}
	c.Fence = second.Fence + 1
	if _, err := e.SaveAuthorities(ctx, c); !errors.Is(err, authority.ErrFenced) {
		e.Errorf("under a fence that is to come: %v", err)
	}
	own := e.authorities()[0]
	own.Reason = "its own"
	e.must(e.saveAuthorities([]authority.Record{own}, authority.Publication{}))
	c.Seen, c.Fence = e.change(nil, publication(2)).Seen, second.Fence
	_, err = e.SaveAuthorities(ctx, c)
	e.must(err)
	e.must(e.Release(ctx, name, second.Fence))
	if third, got, err := e.Acquire(ctx, name, "b3", time.Minute, false); err != nil || !got || third.Fence <= second.Fence {
		e.Errorf("after its release: %+v, %v", third, err)
	}
}

// conflicts holds that a change is refused that was decided on what has changed
// since, and that a last expiry only rises, whoever wrote meanwhile.
func conflicts(e *env) {
	ctx := e.Context()
	all := e.authorities()
	e.must(e.saveAuthorities(all, publication(1)))
	old := e.change(nil, publication(3))
	own := e.authority("own", authority.Issuing, authority.Active)
	own.Broker = "b2"
	its := e.change([]authority.Record{own}, authority.Publication{})
	its.Broker = "b2"
	_, err := e.SaveAuthorities(ctx, its)
	e.must(err)
	whole := old
	whole.All = true
	if _, err := e.SaveAuthorities(ctx, whole); !errors.Is(err, authority.ErrConflict) {
		e.Errorf("decided on less than all: %v", err)
	}
	_, err = e.SaveAuthorities(ctx, old) // another's own CA is nothing to it
	e.must(err)
	if _, err := e.SaveAuthorities(ctx, old); !errors.Is(err, authority.ErrConflict) || !errors.Is(err, broker.ErrConflict) {
		e.Errorf("decided on an older bundle: %v", err)
	}
	revision := e.revision()
	for _, end := range []time.Time{e.time.Add(3 * time.Hour), e.time} {
		_, err := e.SaveAuthorities(ctx, authority.Change{Broker: "b9", LastExpiry: map[string]time.Time{"jwt": end, "ca": end}})
		e.must(err)
	}
	e.equal(e.revision(), revision)
	got, _, err := e.Authorities(ctx)
	e.must(err)
	for _, r := range got {
		if (r.ID == "jwt" || r.ID == "ca") && !r.LastExpiry.Equal(e.time.Add(3*time.Hour)) {
			e.Errorf("%s until %s", r.ID, r.LastExpiry)
		}
	}
	all[2].State = authority.Revoked
	e.must(e.saveAuthorities(all[2:3], publication(4)))
	for _, id := range []string{"jwt", "none"} {
		_, err := e.SaveAuthorities(ctx, authority.Change{Broker: "b9", LastExpiry: map[string]time.Time{id: e.time.Add(9 * time.Hour)}})
		if !errors.Is(err, authority.ErrConflict) {
			e.Errorf("%s: raised: %v", id, err)
		}
	}
}

// endedByOthers holds that a broker changes nothing of its own that another has
// changed since, and that a change leaves the version that it says.
func endedByOthers(e *env) {
	ctx := e.Context()
	all := e.authorities()
	e.must(e.saveAuthorities(all, publication(1)))
	own := e.change(slices.Clone(all[:1]), authority.Publication{})
	ended := e.change(all[:1], authority.Publication{})
	ended.Broker, ended.All = "b2", true
	ended.Records[0].State = authority.Revoked
	saved, err := e.SaveAuthorities(ctx, ended)
	e.must(err)
	_, p, err := e.Authorities(ctx)
	e.must(err)
	e.equal(p.Version, saved.After)
	if _, err := e.SaveAuthorities(ctx, own); !errors.Is(err, authority.ErrConflict) {
		e.Errorf("b1 brings back what b2 ended: %v", err)
	}
}

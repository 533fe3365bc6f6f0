package agent

import (
	"bytes"
	"context"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

// A caller waits this long for the broker before it gets what others with the
// same facts hold, and Config.Patience before it is told that the agent cannot
// answer.
const (
	grace    = 300 * time.Millisecond
	patience = 5 * time.Second
)

func (t Attestation) workload() *api.Workload {
	w := &api.Workload{Facts: make(map[string]*api.Values, len(t.Facts)), Unknown: t.Unknown, Proofs: t.Proofs}
	for name, values := range t.Facts {
		w.Facts[name] = &api.Values{Values: values}
	}
	return w
}

// An Update is all that a workload may know at one moment: its SVIDs, in an
// order that stays, the bundles of our own and of the trust domains that they
// federate with, and the CRLs of our own.
type Update struct {
	SVIDs   []*SVID
	Bundles map[spiffeid.TrustDomain]*Bundle
	CRLs    []*CRL

	ends time.Time // of the SVID or CRL that ends first
}

// An Identities is one caller's view, for as long as its stream is open. It is
// for one goroutine.
type Identities struct {
	agent  *Agent
	proc   *caller.Process
	set    *set
	after  uint64 // a denial of the set counts from the next ask on
	wanted *map[string]bool
	erased uint64 // of the set, as it was told
	last   Update // as it was told
	told   bool
	proven Attestation // of the caller, when it was attested last
}

// Identities opens a caller's view. Close it.
func (a *Agent) Identities(p *caller.Process) *Identities {
	return &Identities{agent: a, proc: p}
}

// Close lets the caller's set of facts go.
func (i *Identities) Close() {
	if i.set != nil {
		i.agent.sets.leave(i.set, i)
		i.agent.sets.release(i.set, i.agent.cfg.Now())
		i.set = nil
	}
}

// Next returns what the caller may know: at once the first time, after that
// when it has changed. The error is ErrDenied when nothing is granted (any
// more), ErrUnavailable when the broker has not answered and nothing is held:
// but for a caller whose SVIDs ended before there were others, which waits.
func (i *Identities) Next(ctx context.Context) (Update, error) {
	var waiting *wait
	for {
		if err := i.attest(ctx); err != nil {
			return Update{}, err
		}
		// Ask for the bells before looking: nothing is missed.
		granted, others := i.set.changed.wait(), i.agent.bundles.changed.wait()
		erased, _ := i.agent.sets.counts(i.set)
		u, held, err := i.agent.look(i.set, i.after)
		if err != nil {
			return Update{}, blame(err, i.proven.Failed)
		}
		if !held {
			if waiting == nil {
				waiting = i.agent.newWait()
				if i.told && erased == i.erased {
					waiting.late = nil // what it has ends; it gets what comes
				}
			}
			if err := waiting.until(ctx, i, granted, others); err != nil {
				return Update{}, err
			}
			continue
		}
		waiting = nil
		if !i.told || !u.same(i.last) {
			if err := i.proc.Check(); err != nil {
				i.agent.reports.refused(i.set, notTheSame, "")
				return Update{}, errChanged()
			}
			i.told, i.last, i.erased = true, u, erased
			return u, nil
		}
		select {
		case <-ctx.Done():
			return Update{}, ctx.Err()
		case <-granted:
		case <-others:
		case <-time.After(u.ends.Sub(i.agent.cfg.Now())):
		}
	}
}

func errChanged() error {
	return &Denied{Reason: "the calling process is not the one that connected", Code: ProcessChanged}
}

// A wait is a caller's that has nothing yet.
type wait struct {
	lend, late <-chan time.Time
	tried      bool
}

func (a *Agent) newWait() *wait {
	return &wait{lend: time.After(min(grace, a.cfg.Patience)), late: time.After(a.cfg.Patience)}
}

// until returns when it is worth looking again, or with ErrUnavailable when
// the caller has waited for long enough.
func (w *wait) until(ctx context.Context, i *Identities, granted, others <-chan struct{}) error {
	i.agent.wanting()
	select {
	case <-time.After(hungryPause):
	case <-ctx.Done():
		return ctx.Err()
	case <-granted:
		if !w.tried && i.agent.sets.failure(i.set) != nil {
			w.tried = true
			i.agent.sets.lend(i.set, i.agent.cfg.Now())
		}
	case <-others:
	case <-w.lend:
		i.agent.sets.lend(i.set, i.agent.cfg.Now())
	case <-w.late:
		return i.agent.unavailable(i.agent.sets.failure(i.set))
	}
	return nil
}

// attest proves the caller the first time, and again when other costly facts
// are wanted.
func (i *Identities) attest(ctx context.Context) error {
	wanted := i.agent.wanted.Load()
	if i.set != nil && i.wanted == wanted {
		return nil
	}
	t, err := i.agent.Attest(ctx, i.proc)
	if err != nil {
		return err
	}
	next, after, err := i.agent.sets.use(t.workload(), trace.SpanContextFromContext(ctx), i.agent.cfg.Now())
	if err != nil {
		return err
	}
	i.Close()
	i.set, i.after, i.wanted, i.proven = next, after, wanted, t
	i.agent.sets.attend(next, i)
	return nil
}

// look returns what a set holds, and whether that is anything. A set that is
// being asked about again serves what it holds, for as long as that is valid.
// A denial counts if it came of an ask later than after.
func (a *Agent) look(st *set, after uint64) (u Update, held bool, err error) {
	now := a.cfg.Now()
	a.sets.mu.Lock()
	svids, denied, valid, final := st.svids, st.denied, st.valid(now), a.sets.final
	if st.deniedBy <= after {
		denied = nil
	}
	a.sets.mu.Unlock()
	switch {
	case final != nil:
		return Update{}, false, final
	case denied != nil:
		return Update{}, false, denied
	case !valid:
		return Update{}, false, nil
	}
	u, held = a.update(svids, now)
	return u, held, nil
}

// update is SVIDs with the bundles and CRLs that go with them; there is none
// without our own bundle.
func (a *Agent) update(svids []*SVID, now time.Time) (u Update, ok bool) {
	own, ok := a.bundles.get(a.cfg.TrustDomain)
	if !ok || len(own.X509Authorities) == 0 {
		return Update{}, false
	}
	u = Update{SVIDs: svids, Bundles: map[spiffeid.TrustDomain]*Bundle{a.cfg.TrustDomain: own}, ends: svids[0].ends()}
	for _, v := range svids {
		u.ends = earlier(u.ends, v.ends())
		for _, name := range v.FederatesWith {
			td, err := federation.ParseTrustDomain(name)
			if err != nil {
				continue
			}
			// A missing bundle of a peer never withholds a local identity.
			if b, ok := a.bundles.get(td); ok {
				u.Bundles[td] = b
			}
		}
	}
	u.CRLs = a.bundles.currentCRLs(now)
	for _, l := range u.CRLs {
		u.ends = earlier(u.ends, l.NextUpdate)
	}
	return u, true
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// same says whether two updates come to the same for a workload.
func (u Update) same(o Update) bool {
	if len(u.SVIDs) != len(o.SVIDs) || len(u.Bundles) != len(o.Bundles) {
		return false
	}
	for n, v := range u.SVIDs {
		w := o.SVIDs[n]
		if v != w && (v.ID != w.ID || v.Hint != w.Hint || !v.Certificates[0].Equal(w.Certificates[0])) {
			return false
		}
	}
	for td, b := range u.Bundles {
		if c := o.Bundles[td]; c == nil || b != c && b.sum != c.sum {
			return false
		}
	}
	return slices.EqualFunc(u.CRLs, o.CRLs, func(x, y *CRL) bool { return x == y || bytes.Equal(x.DER, y.DER) })
}

// granted attests a caller afresh and returns its set with what it holds. The
// caller of granted releases the set.
func (a *Agent) granted(ctx context.Context, p *caller.Process) (*set, Update, error) {
	i := a.Identities(p)
	u, err := i.Next(ctx)
	if err != nil {
		i.Close()
		return nil, Update{}, err
	}
	a.sets.leave(i.set, i)
	return i.set, u, nil
}

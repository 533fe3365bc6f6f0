package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/federation"
)

const (
	callTime  = 10 * time.Second
	callsOnce = 4 // calls under way: a slow one must not hold up the others
	spareKeys = 2 // keys sent where no number is known
	mostKeys  = 8
	maxChain  = 8
)

// tend asks the broker about the sets that are due, in batches, until ctx
// ends.
func (a *Agent) tend(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	slots := make(chan struct{}, callsOnce)
	for {
		a.pulses.tend.rest()
		select {
		case <-ctx.Done():
			return nil
		case slots <- struct{}{}:
		}
		a.pulses.tend.work(a.cfg.Now())
		a.sources.sweep(a.cfg.Now())
		ask, wait := a.sets.due(a.cfg.Now())
		if len(ask) > 0 {
			running.Go(func() {
				a.ask(ctx, ask)
				<-slots
				a.sets.nudge()
			})
			continue
		}
		<-slots
		a.pulses.tend.rest()
		select {
		case <-ctx.Done():
			return nil
		case <-a.sets.wake:
		case <-time.After(wait):
		}
	}
}

// question is one item of a call with the keys that it sent.
type question struct {
	set  *set
	keys []*ecdsa.PrivateKey
	held []*SVID
	// As the set's fields were when it was put.
	asks, changes, erased uint64
	caller                trace.SpanContext
}

// ask puts one call and gives every set its answer, or its failure.
func (a *Agent) ask(ctx context.Context, ask []*set) {
	request := &api.IssueX509Request{}
	questions := make([]question, 0, len(ask))
	for _, st := range ask {
		q, item, err := a.question(ctx, st)
		if err != nil {
			a.failed(ctx, ask, err)
			return
		}
		questions = append(questions, q)
		request.Items = append(request.Items, item)
	}
	asking, end := a.asking(ctx, questions)
	response, err := a.issueX509(asking, request)
	end(err)
	if status.Code(err) == codes.InvalidArgument {
		if len(ask) > 1 {
			// One bad workload must not spoil the others.
			for _, st := range ask {
				a.ask(ctx, []*set{st})
			}
			return
		}
		// Asked again it would be refused again.
		denied := &Denied{Reason: "the broker refuses what was attested of this process: " + status.Convert(err).Message(), Code: RequestRefused}
		if InfoOf(err).GetReason() == KeyRefused {
			denied.Reason, denied.Code = "the broker signs no SVID for the key that this agent made: "+status.Convert(err).Message(), KeyRefused
		}
		a.settle(questions[0], nil, denied)
		return
	}
	if err != nil {
		a.failed(ctx, ask, err)
		return
	}
	a.heard()
	for i, q := range questions {
		a.answer(ctx, q, response.GetResults()[i])
	}
}

func (a *Agent) issueX509(ctx context.Context, request *api.IssueX509Request) (*api.IssueX509Response, error) {
	if err := a.node.mustJoin(a.cfg.Now()); err != nil {
		return nil, err // no broker takes its SVID
	}
	l := a.fresh()
	called, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	response, err := api.NewNodeClient(l.conn).IssueX509(called, request)
	a.callEnded(ctx, l, err)
	if err == nil && len(response.GetResults()) != len(request.GetItems()) {
		err = fmt.Errorf("the broker answered %d of %d", len(response.GetResults()), len(request.GetItems()))
	}
	return response, err
}

func (a *Agent) question(ctx context.Context, st *set) (question, *api.IssueX509Request_Item, error) {
	now := a.cfg.Now()
	a.sets.mu.Lock()
	q := question{set: st, held: slices.Concat(st.partial, st.svids), asks: st.asks, changes: st.changes, erased: st.erased, caller: st.caller}
	st.caller = trace.SpanContext{}
	n := min(max(st.keys, len(st.svids), spareKeys), mostKeys)
	a.sets.mu.Unlock()
	item := &api.IssueX509Request_Item{Workload: a.asks(ctx, st)}
	for _, v := range q.held {
		if now.Before(v.renewAt) {
			item.Held = append(item.Held, &api.Held{Identity: v.Identity, Digest: v.digest, NotAfter: v.Certificates[0].NotAfter.Unix()})
		}
	}
	for range n {
		key, der, err := newKey()
		if err != nil {
			return question{}, nil, err
		}
		q.keys = append(q.keys, key)
		item.PublicKeys = append(item.PublicKeys, der)
	}
	return q, item, nil
}

// failed wakes those who wait, with the reason; what is held stands. The next
// try is made after a pause.
func (a *Agent) failed(ctx context.Context, ask []*set, err error) {
	if ctx.Err() == nil && !errors.Is(err, errMustJoin) { // that is told by itself
		a.cfg.Log.WarnContext(ctx, "SVIDs not obtained", "error", err, "workloads", len(ask))
	}
	for range ask {
		a.observe(Event{What: EventSVIDs, Outcome: OutcomeFailed})
	}
	now := a.cfg.Now()
	a.sets.mu.Lock()
	defer a.sets.mu.Unlock()
	most := maxPause
	if a.sets.hungry(ask, now) {
		most = hungryPause
	}
	a.sets.pause.longer(now, most)
	a.sets.pause.after(now, err)
	for _, st := range ask {
		st.failed, st.asking, st.due = err, false, true
		st.changed.ring()
	}
}

// answer makes a result what the set holds.
func (a *Agent) answer(ctx context.Context, q question, r *api.IssueX509Response_Result) {
	if d := r.GetDenial(); d != nil {
		denied := &Denied{Record: d.GetRecord()}
		if who := bearer(q.set.workload); who != thisProcess {
			denied.Reason = "no identity is granted to " + who
		}
		a.settle(q, nil, denied)
		return
	}
	next, err := a.svids(q, r.GetSvids())
	if err != nil {
		a.unusable(ctx, q.set, err)
		return
	}
	if more := int(r.GetKeysNeeded()); more > 0 && len(q.keys) < mostKeys {
		// An answer is served whole or not at all (SPIFFE Workload API §4.3).
		a.sendMoreKeys(q, next, len(q.keys)+more)
		return
	}
	if len(next) == 0 {
		a.unusable(ctx, q.set, errors.New("the broker answered with neither SVIDs nor a denial"))
		return
	}
	a.settle(q, next, nil)
}

// settle ends an ask. What was asked for before an erasure is not taken, nor a
// denial from before a change: the set is asked about again.
func (a *Agent) settle(q question, next []*SVID, denied *Denied) {
	st := q.set
	a.sets.mu.Lock()
	st.asking, st.failed, st.partial, st.pause = false, nil, nil, pause{}
	taken := st.erased == q.erased && (denied == nil || st.changes == q.changes) && a.sets.final == nil
	had := len(st.svids) > 0
	if taken {
		st.svids, st.keys, st.lenders = next, len(next), nil
		if st.denied = denied; denied != nil {
			st.deniedBy = q.asks
		}
		a.sets.forget(st, a.cfg.Now())
	}
	a.sets.mu.Unlock()
	switch {
	case !taken:
	case denied != nil:
		a.observe(Event{What: EventSVIDs, Outcome: OutcomeDenied})
		a.tokens.forget(st.id[:])
		a.sources.drop(st.id[:])
	default:
		a.observe(Event{What: EventSVIDs, Outcome: OutcomeOK})
		a.sources.retain(st.id, next)
	}
	a.tokens.nudge()
	if had || denied == nil { // strangers that are denied cost no write
		a.kept.nudge(denied != nil)
	}
	st.changed.ring()
}

// sendMoreKeys has a set asked about again at once, with what is there already
// as held.
func (a *Agent) sendMoreKeys(q question, got []*SVID, keys int) {
	a.sets.mu.Lock()
	defer a.sets.mu.Unlock()
	q.set.asking, q.set.due, q.set.failed = false, true, nil
	if q.set.erased == q.erased {
		q.set.partial, q.set.keys = got, keys
	}
}

// unusable notes that the broker answered, but with what cannot be served.
func (a *Agent) unusable(ctx context.Context, st *set, err error) {
	a.cfg.Log.WarnContext(ctx, "answer of the broker not used", "error", err)
	a.observe(Event{What: EventSVIDs, Outcome: OutcomeFailed})
	a.sets.mu.Lock()
	defer a.sets.mu.Unlock()
	st.failed, st.asking, st.due, st.partial = err, false, true, nil
	st.pause.longer(a.cfg.Now(), maxPause)
	st.changed.ring()
}

// svids reads the SVIDs of an answer.
func (a *Agent) svids(q question, all []*api.X509SVID) ([]*SVID, error) {
	var next []*SVID
	for _, m := range all {
		v, err := a.svid(q, m)
		if err != nil {
			return nil, err
		}
		next = append(next, v)
	}
	return next, nil
}

// svid reads one SVID of an answer, and holds it against what it must be.
func (a *Agent) svid(q question, m *api.X509SVID) (*SVID, error) {
	v, err := a.bare(m)
	if err != nil {
		return nil, err
	}
	if len(m.GetChain()) == 0 {
		return v, v.keep(q.held, a.cfg.Now())
	}
	return v, a.read(q, m, v)
}

// bare is an SVID without its certificates and key.
func (a *Agent) bare(m *api.X509SVID) (*SVID, error) {
	id, err := federation.ParseID(m.GetSpiffeId())
	if err != nil || id.TrustDomain() != a.cfg.TrustDomain {
		return nil, fmt.Errorf("the broker answered with an SVID of %q", m.GetSpiffeId())
	}
	v := &SVID{
		Identity: m.GetIdentity(), ID: id, Hint: m.GetHint(), FederatesWith: m.GetFederatesWith(),
		JWTAudiences: m.GetJwtAudiences(), digest: m.GetDigest(), depends: m.GetDepends(),
	}
	for _, u := range m.GetJwtUses() {
		if v.JWTUses == nil {
			v.JWTUses = make(map[string]string)
		}
		v.JWTUses[u.GetAudience()] = strictest(v.JWTUses[u.GetAudience()], u.GetUse())
	}
	for _, t := range m.GetTargets() {
		v.Targets = append(v.Targets, Target{t.GetName(), t.GetRevision(), t.GetProvider(), t.GetSettings()})
	}
	return v, nil
}

// keep fills in the certificate of an SVID that is held already.
func (v *SVID) keep(held []*SVID, now time.Time) error {
	i := slices.IndexFunc(held, func(h *SVID) bool {
		return h.Identity == v.Identity && h.ID == v.ID && bytes.Equal(h.digest, v.digest) && h.current(now)
	})
	if i < 0 {
		return fmt.Errorf("the broker answered that we hold an SVID of %s, which we do not", v.ID)
	}
	v.Certificates, v.Key, v.KeyDER, v.renewAt, v.back = held[i].Certificates, held[i].Key, held[i].KeyDER, held[i].renewAt, held[i].back
	return nil
}

// read fills in a new certificate.
func (a *Agent) read(q question, m *api.X509SVID, v *SVID) error {
	if int64(m.GetPublicKey()) >= int64(len(q.keys)) || len(m.GetChain()) > maxChain {
		return fmt.Errorf("the broker answered for key %d of %d with %d certificates", m.GetPublicKey(), len(q.keys), len(m.GetChain()))
	}
	for _, der := range m.GetChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("parsing the SVID of %s: %w", v.ID, err)
		}
		v.Certificates = append(v.Certificates, c)
	}
	key, leaf, now := q.keys[m.GetPublicKey()], v.Certificates[0], a.cfg.Now()
	if named, err := federation.CheckForm(leaf); err != nil || named != v.ID || !key.PublicKey.Equal(leaf.PublicKey) {
		return fmt.Errorf("the broker's SVID is not the one of %s for our key", v.ID)
	}
	if !v.current(now) {
		return fmt.Errorf("the broker's SVID of %s ended at %s, and it is %s here: is this machine's clock right?", v.ID, leaf.NotAfter, now)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("marshalling the key of %s: %w", v.ID, err)
	}
	v.Key, v.KeyDER, v.renewAt = key, der, halfLife(now, leaf.NotAfter)
	return nil
}

// halfLife is when to renew what was obtained now: at half of what is left,
// and up to a tenth of it earlier, so that those who began together don't
// renew together.
func halfLife(now, end time.Time) time.Time {
	now = now.Round(0) // by the wall clock: the other one stands still in a suspension
	left := max(end.Sub(now), 0)
	return now.Add(left/2 - rand.N(left/10+1))
}

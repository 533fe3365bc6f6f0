package agent

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

// Bounds of what is kept.
const (
	maxSets  = 4096
	idleLife = 5 * time.Minute // of a set that no stream uses
	batch    = 64              // items a call
	spare    = 2               // keys sent where no number is known
	mostKeys = 8
)

// An SVID is one identity of a workload.
type SVID struct {
	Identity      string
	ID            spiffeid.ID
	Hint          string
	Certificates  []*x509.Certificate // leaf first, without the root
	Key           crypto.Signer
	FederatesWith []string
	JWTAudiences  []string
	Targets       []Target

	digest   []byte
	depends  map[string]*api.Values
	obtained time.Time
	renewAt  time.Time
}

// set is what the broker granted on one set of facts.
type set struct {
	id       [sha256.Size]byte
	workload *api.Workload
	changed  bell

	// Guarded by sets.mu.
	svids    []*SVID
	denied   *Denied
	answered bool // the broker has answered since it was last asked
	keys     int  // to send at the next ask
	users    int
	lastUsed time.Time
	failed   error // of the last ask
}

// sets are all sets of facts that this node serves.
type sets struct {
	mu   sync.Mutex // guards all, and the sets' fields
	all  map[[sha256.Size]byte]*set
	wake chan struct{} // of capacity 1
}

func (s *sets) init() {
	s.all = make(map[[sha256.Size]byte]*set)
	s.wake = make(chan struct{}, 1)
}

func (s *sets) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// use returns the set of a workload and holds it until release.
func (s *sets) use(w *api.Workload, now time.Time) (*set, error) {
	id := api.WorkloadDigest(w)
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.all[id]
	if !ok {
		if len(s.all) >= maxSets {
			s.shed(now)
		}
		if len(s.all) >= maxSets {
			return nil, fmt.Errorf("%w: it serves %d different workloads, and takes no more", ErrUnavailable, maxSets)
		}
		st = &set{id: id, workload: w, keys: spare}
		s.all[id] = st
		defer s.nudge()
	}
	st.users++
	st.lastUsed = now
	if st.answered && (st.denied != nil || !st.valid(now)) {
		// A denial is never served from memory: policy may have changed.
		st.answered, st.denied, st.failed = false, nil, nil
		defer s.nudge()
	}
	return st, nil
}

// shed drops what nobody uses. It must be called with mu held.
func (s *sets) shed(now time.Time) {
	for id, st := range s.all {
		if st.users == 0 && now.Sub(st.lastUsed) > idleLife/10 {
			delete(s.all, id)
		}
	}
}

func (s *sets) release(st *set, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.users--
	st.lastUsed = now
}

// valid says whether every SVID may still be served. It must be called with
// sets.mu held.
func (st *set) valid(now time.Time) bool {
	for _, v := range st.svids {
		if !now.Before(v.Certificates[0].NotAfter) {
			return false
		}
	}
	return len(st.svids) > 0
}

// erase drops a set's SVIDs at once; an empty id means every set. With a
// denial that is final, otherwise the broker is asked again.
func (s *sets) erase(id []byte, final *Denied) {
	s.each(id, func(st *set) {
		st.svids, st.denied, st.failed = nil, final, nil
		st.answered = final != nil
	})
}

// askAgain has a set decided again; what is held is served meanwhile.
func (s *sets) askAgain(id []byte) {
	s.each(id, func(st *set) { st.answered = false })
}

func (s *sets) each(id []byte, do func(*set)) {
	s.mu.Lock()
	var rung []*set
	for _, st := range s.all {
		if len(id) == 0 || bytes.Equal(id, st.id[:]) {
			do(st)
			rung = append(rung, st)
		}
	}
	s.mu.Unlock()
	for _, st := range rung {
		st.changed.ring()
	}
	s.nudge()
}

// due returns up to a batch of sets to ask the broker about, and how long to
// wait for the next.
func (s *sets) due(now time.Time) (ask []*set, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = time.Minute
	for id, st := range s.all {
		if st.users == 0 && now.Sub(st.lastUsed) > idleLife {
			delete(s.all, id)
			continue
		}
		if len(ask) == batch {
			return ask, 0
		}
		if !st.answered {
			ask = append(ask, st)
			continue
		}
		if st.users == 0 {
			continue
		}
		for _, v := range st.svids {
			if !now.Before(v.renewAt) {
				ask = append(ask, st)
				break
			}
			wait = min(wait, v.renewAt.Sub(now))
		}
	}
	return ask, wait
}

// tend asks the broker about the sets that are due, batch by batch, one call
// at a time.
func (a *Agent) tend(ctx context.Context) error {
	var backoff time.Duration
	for {
		ask, wait := a.sets.due(a.cfg.Now())
		if len(ask) > 0 {
			if err := a.ask(ctx, ask); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				a.cfg.Log.WarnContext(ctx, "SVIDs not obtained", "error", err, "workloads", len(ask))
				backoff = min(max(2*backoff, 100*time.Millisecond), 10*time.Second)
				wait = backoff/2 + rand.N(backoff)
			} else {
				backoff = 0
				continue
			}
		}
		if backoff > 0 {
			// The broker is away: new callers don't shorten the pause.
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(wait):
			}
			continue
		}
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
}

// ask puts one call and gives every set its answer, or its failure.
func (a *Agent) ask(ctx context.Context, ask []*set) error {
	request := &api.IssueX509Request{}
	questions := make([]question, 0, len(ask))
	for _, st := range ask {
		q, item, err := a.question(st)
		if err != nil {
			return err
		}
		questions = append(questions, q)
		request.Items = append(request.Items, item)
	}
	callCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	response, err := api.NewNodeClient(a.link.Load().conn).IssueX509(callCtx, request)
	if err == nil && len(response.GetResults()) != len(questions) {
		err = fmt.Errorf("the broker answered %d of %d", len(response.GetResults()), len(questions))
	}
	if err != nil {
		if status.Code(err) == codes.InvalidArgument && len(ask) > 1 {
			// One bad workload must not spoil the others.
			return a.askEach(ctx, ask)
		}
		a.failed(ask, err)
		if status.Code(err) == codes.InvalidArgument {
			return nil // asking again would be refused again
		}
		return err
	}
	var errs []error
	for i, q := range questions {
		errs = append(errs, a.answer(q, response.GetResults()[i]))
	}
	return errors.Join(errs...)
}

func (a *Agent) askEach(ctx context.Context, ask []*set) error {
	var errs []error
	for _, st := range ask {
		errs = append(errs, a.ask(ctx, []*set{st}))
	}
	return errors.Join(errs...)
}

func (a *Agent) question(st *set) (question, *api.IssueX509Request_Item, error) {
	a.sets.mu.Lock()
	q := question{set: st, held: slices.Clone(st.svids)}
	n := st.keys
	st.answered = true // unless something changes while we ask
	a.sets.mu.Unlock()
	item := &api.IssueX509Request_Item{Workload: st.workload}
	now := a.cfg.Now()
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

// failed wakes those who wait, with the reason; what is held stands.
func (a *Agent) failed(ask []*set, err error) {
	a.sets.mu.Lock()
	for _, st := range ask {
		st.failed = err
		if status.Code(err) != codes.InvalidArgument {
			st.answered = false
		}
	}
	a.sets.mu.Unlock()
	for _, st := range ask {
		st.changed.ring()
	}
}

// answer makes a result what the set holds.
func (a *Agent) answer(q question, r *api.IssueX509Response_Result) error {
	var next []*SVID
	for _, m := range r.GetSvids() {
		v, err := a.svid(q, m)
		if err != nil {
			a.failed([]*set{q.set}, err)
			return err
		}
		next = append(next, v)
	}
	a.sets.mu.Lock()
	st := q.set
	st.failed = nil
	st.svids = next
	st.denied = nil
	if d := r.GetDenial(); d != nil {
		st.denied = &Denied{Record: d.GetRecord()}
	}
	st.keys = spare
	if more := int(r.GetKeysNeeded()); more > 0 {
		st.keys = min(len(q.keys)+more, mostKeys)
		st.answered = len(q.keys) >= mostKeys // then no more can be had
	}
	a.sets.mu.Unlock()
	if r.GetDenial() != nil {
		a.tokens.forget(st.id[:])
		a.sources.drop(st.id[:])
	} else {
		a.sources.retain(st.id, next)
	}
	st.changed.ring()
	return nil
}

// svid reads one SVID of an answer, and holds it against what it must be.
func (a *Agent) svid(q question, m *api.X509SVID) (*SVID, error) {
	id, err := spiffeid.FromString(m.GetSpiffeId())
	if err != nil || id.TrustDomain() != a.cfg.TrustDomain {
		return nil, fmt.Errorf("the broker answered with an SVID of %q", m.GetSpiffeId())
	}
	v := &SVID{
		Identity: m.GetIdentity(), ID: id, Hint: m.GetHint(), FederatesWith: m.GetFederatesWith(),
		JWTAudiences: m.GetJwtAudiences(), digest: m.GetDigest(), depends: m.GetDepends(),
	}
	for _, t := range m.GetTargets() {
		v.Targets = append(v.Targets, Target{t.GetName(), t.GetRevision(), t.GetProvider(), t.GetSettings()})
	}
	if len(m.GetChain()) == 0 {
		i := slices.IndexFunc(q.held, func(h *SVID) bool { return h.Identity == v.Identity && h.ID == v.ID })
		if i < 0 {
			return nil, fmt.Errorf("the broker answered that we hold an SVID of %s, which we do not", id)
		}
		h := q.held[i]
		v.Certificates, v.Key, v.obtained, v.renewAt = h.Certificates, h.Key, h.obtained, h.renewAt
		return v, nil
	}
	if int(m.GetPublicKey()) >= len(q.keys) {
		return nil, fmt.Errorf("the broker answered for key %d of %d", m.GetPublicKey(), len(q.keys))
	}
	for _, der := range m.GetChain() {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("parsing the SVID of %s: %w", id, err)
		}
		v.Certificates = append(v.Certificates, c)
	}
	key := q.keys[m.GetPublicKey()]
	leaf := v.Certificates[0]
	if named, err := leafID(leaf); err != nil || named != id || !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, fmt.Errorf("the broker's SVID is not the one of %s for our key", id)
	}
	v.Key, v.obtained = key, a.cfg.Now()
	life := leaf.NotAfter.Sub(v.obtained)
	v.renewAt = v.obtained.Add(life/2 - rand.N(life/10+1))
	return v, nil
}

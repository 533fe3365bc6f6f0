package agent

import (
	"bytes"
	"container/list"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/broker/api"
)

// Bounds of what is kept.
const (
	maxSets  = 4096
	idleLife = 5 * time.Minute // of a set that nobody uses
	batch    = 64              // items a call
)

// Pauses between tries while the broker is away. One that a caller waits for is
// never longer than hungryPause.
const (
	firstPause  = 100 * time.Millisecond
	maxPause    = 10 * time.Second
	hungryPause = time.Second
)

// An SVID is one identity of a workload. It is immutable.
type SVID struct {
	Identity      string
	ID            spiffeid.ID
	Hint          string
	Certificates  []*x509.Certificate // leaf first, without the root
	Key           crypto.Signer
	KeyDER        []byte // the key in PKCS #8
	FederatesWith []string
	JWTAudiences  []string
	JWTUses       map[string]string // of those that have another than the default
	Targets       []Target

	digest  []byte
	depends map[string]*api.Values
	renewAt time.Time
	back    time.Duration // by which the clock was set back since it was obtained
}

// current says whether an SVID may still be served.
func (v *SVID) current(now time.Time) bool { return now.Before(v.ends()) }

// ends is when it ends by the clock as it is now.
func (v *SVID) ends() time.Time { return v.Certificates[0].NotAfter.Add(-v.back) }

// set is what the broker granted on one set of facts.
type set struct {
	id       [sha256.Size]byte
	workload *api.Workload
	changed  bell

	// Guarded by sets.mu.
	svids    []*SVID
	partial  []*SVID             // of an answer that asked for more keys: not served yet
	lenders  [][sha256.Size]byte // sets that svids were borrowed from, see lend
	denied   *Denied
	deniedBy uint64 // the ask whose answer was the denial
	failed   error  // of the last ask; nil: it was answered
	due      bool   // the broker is to be asked
	asking   bool   // a call is under way
	asks     uint64 // begun
	changes  uint64 // told by the broker, erasures too
	erased   uint64 // times
	keys     int    // to send at the next ask
	users    int
	lastUsed time.Time
	idle     *list.Element     // of sets.idle; nil: it has users
	pause    pause             // after an answer that could not be used
	caller   trace.SpanContext // of the first who waits for the next ask, if that is traced

	showing // proofs, if its workloads have any
}

// sets are all sets of facts that this node serves.
type sets struct {
	wake chan struct{} // of capacity 1
	kept *kept         // learns of changes

	mu    sync.Mutex // guards what follows, and the sets' fields
	all   map[[sha256.Size]byte]*set
	idle  list.List                  // of sets without users, the one first that was used least recently
	busy  map[[sha256.Size]byte]*set // with users, or to be asked about; due drops the others
	pause pause                      // while the broker is away
	final error                      // nobody is served any more; nil: the agent runs
}

// pause is how long to wait after failures, longer each time.
type pause struct {
	until  time.Time
	length time.Duration
}

func (p *pause) longer(now time.Time, most time.Duration) {
	p.length = min(max(2*p.length, firstPause), maxPause)
	d := min(p.length, most)
	p.until = now.Add(d/2 + rand.N(d/2+1))
}

// after puts the next try off as long as a broker that is asked too often says, and
// some more, so that not all come at once.
func (p *pause) after(now time.Time, err error) {
	for _, detail := range status.Convert(err).Details() {
		if info, ok := detail.(*errdetails.RetryInfo); ok {
			d := min(max(info.GetRetryDelay().AsDuration(), 0), maxPause)
			if later := now.Add(d + rand.N(d/2+1)); later.After(p.until) {
				p.until = later
			}
		}
	}
}

// apart has a first pause fit what contacts are spread over: a broker that many
// wait for is not asked ten times by each.
func (p *pause) apart(spread time.Duration) { p.length = max(p.length, spread/10) }

// spreadOver is a pause of up to d.
func spreadOver(now time.Time, d time.Duration) pause {
	return pause{until: now.Add(rand.N(d))}
}

// atMost brings the next try forward.
func (p *pause) atMost(now time.Time, d time.Duration) {
	if soon := now.Add(d/2 + rand.N(d/2+1)); soon.Before(p.until) {
		p.until = soon
	}
}

func (s *sets) init(k *kept) {
	s.kept = k
	s.all, s.busy = make(map[[sha256.Size]byte]*set), make(map[[sha256.Size]byte]*set)
	s.wake = make(chan struct{}, 1)
}

func (s *sets) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// use returns the set of a workload and holds it until release. A denial by
// an ask that had begun by then is older than the caller, and doesn't count
// for it: policy may have changed. That is what after is for. What is asked for first
// for a caller belongs to the caller's trace.
func (s *sets) use(w *api.Workload, caller trace.SpanContext, now time.Time) (st *set, after uint64, err error) {
	id := api.WorkloadDigest(w)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final != nil {
		return nil, 0, s.final
	}
	st, ok := s.all[id]
	if !ok {
		if len(s.all) >= maxSets {
			s.shed(now)
		}
		if len(s.all) >= maxSets {
			return nil, 0, fmt.Errorf("%w: it serves %d different workloads, and takes no more", ErrUnavailable, maxSets)
		}
		st = &set{id: id, workload: &api.Workload{Facts: w.GetFacts(), Unknown: w.GetUnknown()}}
		s.all[id] = st
	}
	s.take(st)
	st.lastUsed = now
	st.show(w, now)
	valid := st.valid(now)
	if valid && st.dueIn(now) <= 0 {
		st.due = true // also where the caller goes before it is asked: it comes again
		s.nudge()
	}
	if !valid {
		st.due = true
		if caller.IsSampled() && !st.caller.IsValid() {
			st.caller = caller
		}
		s.pause.atMost(now, hungryPause)
		st.pause.atMost(now, hungryPause)
		defer s.nudge()
	}
	return st, st.asks, nil
}

// shed drops what nobody has used for a while, and at least the one that
// nobody has used for longest. It must be called with mu held.
func (s *sets) shed(now time.Time) {
	for e := s.idle.Front(); e != nil; e = s.idle.Front() {
		st := e.Value.(*set)
		if len(s.all) < maxSets && now.Sub(st.lastUsed) <= idleLife/10 {
			break
		}
		s.remove(st)
	}
	s.kept.nudge(false)
}

// sweep drops the sets that nobody has used for idleLife, unless the broker is
// asked about them just now. It must be called with mu held.
func (s *sets) sweep(now time.Time) {
	for e := s.idle.Front(); e != nil; {
		st := e.Value.(*set)
		if now.Sub(st.lastUsed) <= idleLife {
			break
		}
		e = e.Next()
		if !st.asking {
			s.remove(st)
			s.kept.nudge(false)
		}
	}
}

// take notes one more user. It must be called with mu held.
func (s *sets) take(st *set) {
	if st.users++; st.idle != nil {
		s.idle.Remove(st.idle)
		st.idle = nil
	}
	s.busy[st.id] = st
}

// remove must be called with mu held.
func (s *sets) remove(st *set) {
	if st.idle != nil {
		s.idle.Remove(st.idle)
		st.idle = nil
	}
	delete(s.all, st.id)
	delete(s.busy, st.id)
}

// hold takes a set once more, for one who has it already.
func (s *sets) hold(st *set) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.take(st)
}

// release lets a set go.
func (s *sets) release(st *set, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st.users--
	st.lastUsed = now
	if st.users == 0 && s.all[st.id] == st {
		st.idle = s.idle.PushBack(st)
	}
	s.forget(st, now)
}

// forget drops a set that nobody uses and that got nothing: a denial is never
// served from memory, so there is nothing to keep. It must be called with mu
// held.
func (s *sets) forget(st *set, now time.Time) {
	if st.users == 0 && !st.asking && !st.valid(now) && s.all[st.id] == st {
		s.remove(st)
	}
}

// valid says whether there are SVIDs and all may still be served. It must be
// called with sets.mu held.
func (st *set) valid(now time.Time) bool {
	for _, v := range st.svids {
		if !v.current(now) {
			return false
		}
	}
	return len(st.svids) > 0
}

// erase drops the SVIDs of a set, and of those that borrowed from it, at once,
// and has the broker asked again: another identity may be granted. It returns
// the sets' ids. An empty id means every set.
func (s *sets) erase(id []byte) [][]byte {
	var ids [][]byte
	s.each(id, func(st *set) {
		st.drop()
		ids = append(ids, st.id[:])
	})
	s.kept.nudge(true)
	return ids
}

// drop must be called with sets.mu held.
func (st *set) drop() {
	st.svids, st.partial, st.failed, st.lenders = nil, nil, nil, nil
	st.erased++
	st.changes++
	st.due = true
}

// askAgain has a set decided again; what is held is served meanwhile.
func (s *sets) askAgain(id []byte) {
	s.each(id, func(st *set) {
		st.changes++
		st.due = true
	})
}

// each does something to a set, and to those that borrowed from it.
func (s *sets) each(id []byte, do func(*set)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, st := range s.all {
		borrowed := func(from [sha256.Size]byte) bool { return bytes.Equal(id, from[:]) }
		if len(id) == 0 || bytes.Equal(id, st.id[:]) || slices.ContainsFunc(st.lenders, borrowed) {
			do(st)
			s.busy[st.id] = st
			st.changed.ring()
		}
	}
	s.nudge()
}

// end drops everything for good: who calls from now on gets err.
func (s *sets) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final == nil { // the first reason stands
		s.final = err
	}
	for _, st := range s.all {
		st.drop()
		st.changed.ring()
	}
}

// back ends the pauses: the broker has been heard.
func (s *sets) back() {
	s.mu.Lock()
	s.pause = pause{}
	s.mu.Unlock()
	s.nudge()
}

// due returns up to a batch of sets to ask the broker about, or how long to
// wait for some.
func (s *sets) due(now time.Time) (ask []*set, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	wait = time.Minute
	if away := s.pause.until.Sub(now); away > 0 {
		return nil, min(wait, away)
	}
	s.sweep(now)
	for id, st := range s.busy {
		if st.users == 0 && !st.due && !st.asking {
			delete(s.busy, id)
			continue
		}
		if st.asking {
			continue // its answer wakes us
		}
		switch left := st.dueIn(now); {
		case left > 0:
			wait = min(wait, left)
		case len(ask) < batch:
			st.asking, st.due = true, false
			st.asks++
			ask = append(ask, st)
		default:
			return ask, 0
		}
	}
	return ask, wait
}

// dueIn says in how long the broker is to be asked about a set. It must be
// called with sets.mu held.
func (st *set) dueIn(now time.Time) time.Duration {
	least := time.Hour
	if st.due {
		least = 0
	} else if st.users > 0 { // what nobody uses is not renewed
		for _, v := range st.svids {
			least = min(least, v.renewAt.Sub(now))
		}
	}
	return max(least, st.pause.until.Sub(now))
}

// hungry says whether a caller waits for one of these without anything to get.
// It must be called with mu held.
func (s *sets) hungry(asked []*set, now time.Time) bool {
	for _, st := range asked {
		if st.users > 0 && !st.valid(now) {
			return true
		}
	}
	return false
}

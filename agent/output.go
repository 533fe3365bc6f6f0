package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.opentelemetry.io/otel/trace"

	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// outputFact names an output. No attestor may prove what stands beside it: a
// process that calls never passes for an output.
const (
	outputPrefix = "workload.output."
	outputFact   = outputPrefix + "name"
)

// A denied output asks again by itself: the broker does not remember what it
// denied, and tells no change of that. The pause grows from the first to the
// last of these.
const (
	firstAskAgain = time.Second
	lastAskAgain  = 30 * time.Second
)

// An Output is what this node writes for processes that call nothing.
type Output struct {
	Name string
	UID  uint32 // of the processes that it is for
}

var outputName = regexp.MustCompile(`^[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?$`)

// Check refuses a name that is none, and the uid that the kernel reads as "no
// change".
func (o Output) Check() error {
	if !outputName.MatchString(o.Name) {
		return fmt.Errorf("output %q: a name of up to 63 lower-case letters, digits, - and _ is wanted, which begins and ends with a letter or digit", o.Name)
	}
	if o.UID == ^uint32(0) {
		return fmt.Errorf("output %s: uid %d is nobody's", o.Name, o.UID)
	}
	return nil
}

// workload is all that an output is decided on: its name and its uid. Every
// other fact is absent; none is unknown, for no attestor was asked.
func (o Output) workload() *api.Workload {
	return &api.Workload{Facts: map[string]*api.Values{
		outputFact:          {Values: []string{o.Name}},
		"workload.unix.uid": {Values: []string{strconv.FormatUint(uint64(o.UID), 10)}},
	}}
}

// bearer says for a refusal who has these facts.
func bearer(w *api.Workload) string {
	if name := w.GetFacts()[outputFact].GetValues(); len(name) == 1 {
		return "output " + name[0]
	}
	return thisProcess
}

const thisProcess = "this process"

// A Delivery is an Output's view of what it may have. Next is for one
// goroutine; JWT, TargetToken and Exchange may be called by many beside it.
type Delivery struct {
	agent  *Agent
	output Output
	erased uint64 // of the set, as it was told
	jumps  uint64 // of the clock, as it was told
	told   told
	last   Update
	pause  time.Duration // since the last ask about what is denied

	mu    sync.Mutex // guards what follows
	set   *set
	after uint64 // a denial of the set counts from the next ask on
}

// told is what Next has said last.
type told int

const (
	toldNothing told = iota
	toldGranted
	toldUnavailable
	toldErased
	toldDenied
)

// Output opens an output's view. Close it.
func (a *Agent) Output(o Output) (*Delivery, error) {
	if err := o.Check(); err != nil {
		return nil, err
	}
	return &Delivery{agent: a, output: o}, nil
}

// Output is whose view it is.
func (d *Delivery) Output() Output { return d.output }

// Close lets the output's set of facts go. Nothing else is called afterwards.
func (d *Delivery) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.set != nil {
		d.agent.sets.release(d.set, d.agent.cfg.Now())
		d.set = nil
	}
}

// Next returns what the output may have: at once the first time, after that
// when it has changed, or the clock has jumped.
//
// ErrDenied says that nothing is granted, or that what was granted has been
// erased: what was written must be erased. That is told once; the next call
// waits for a grant. ErrUnavailable says, once too, that the broker does not
// answer and nothing is held: what was written stays. An eviction ends the
// agent, and is told though ctx has ended by it.
func (d *Delivery) Next(ctx context.Context) (Update, error) {
	var late <-chan time.Time
	if d.told == toldNothing {
		d.settled(ctx)
	}
	for {
		st, after, err := d.open()
		if err != nil {
			return Update{}, d.over(ctx, err)
		}
		// Ask for the bells before looking: nothing is missed.
		granted, others := st.changed.wait(), d.agent.bundles.changed.wait()
		jumps := d.agent.jumps.Load()
		u, held, err := d.look(st, after)
		switch {
		case d.agent.sets.ended() != nil:
			continue
		case err != nil:
			return Update{}, err
		case held && (d.told != toldGranted || !u.equal(d.last) || jumps != d.jumps):
			d.told, d.last, d.jumps, d.pause = toldGranted, u, jumps, 0
			return u, nil
		}
		pause := max(d.pause, firstAskAgain)
		again := pause/2 + rand.N(pause/2)
		switch {
		case held:
			again, late = u.ends.Sub(d.agent.cfg.Now()), nil
		case late == nil:
			late = time.After(d.agent.cfg.Patience)
		}
		if !held && d.agent.sets.failure(st) != nil {
			d.agent.sets.lend(st, d.agent.cfg.Now())
		}
		select {
		case <-ctx.Done():
			return Update{}, d.over(ctx, d.agent.sets.ended())
		case <-granted:
		case <-others:
		case <-time.After(again):
			if !held {
				d.pause = min(2*pause, lastAskAgain)
				d.agent.sets.askAbout(st)
			}
		case <-late:
			if d.told < toldUnavailable {
				d.told = toldUnavailable
				return Update{}, d.unavailable(st)
			}
		}
	}
}

// settled waits until bundles and CRLs are here too, so that the first state is
// not followed by another at once.
func (d *Delivery) settled(ctx context.Context) {
	select {
	case <-d.agent.ready:
	case <-time.After(d.agent.cfg.Patience):
	case <-ctx.Done():
	}
}

// open is the output's set of facts.
func (d *Delivery) open() (*set, uint64, error) {
	if err := d.agent.sets.ended(); err != nil {
		return nil, 0, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.set != nil {
		return d.set, d.after, nil
	}
	st, after, err := d.agent.sets.use(d.output.workload(), trace.SpanContext{}, d.agent.cfg.Now())
	if err != nil {
		return nil, 0, err
	}
	d.set, d.after = st, after
	return st, after, nil
}

// look is what the set holds now, or a denial that was not told yet.
func (d *Delivery) look(st *set, after uint64) (u Update, held bool, err error) {
	erased, deniedBy := d.agent.sets.counts(st) // before looking: nothing is missed
	u, held, err = d.agent.look(st, after)
	switch {
	case d.agent.sets.ended() != nil:
		return Update{}, false, nil // open says why
	case errors.Is(err, ErrDenied):
		d.mu.Lock()
		d.after = max(d.after, deniedBy)
		d.mu.Unlock()
		d.erased = erased
		if d.told == toldDenied {
			return Update{}, false, nil
		}
		d.told = toldDenied
		return Update{}, false, err
	case err != nil:
		return Update{}, false, err
	case erased != d.erased && !held:
		d.erased, d.told = erased, toldErased
		return Update{}, false, &Denied{Reason: "what was granted has been withdrawn", Code: Withdrawn}
	}
	d.erased = erased
	return u, held, nil
}

// over is the end of a view. Only an eviction is told, once; then the caller
// waits for ctx: nothing comes any more.
func (d *Delivery) over(ctx context.Context, err error) error {
	if errors.Is(err, ErrDenied) && d.told != toldDenied {
		d.told = toldDenied
		return err
	}
	if err != nil && d.agent.sets.ended() == nil {
		return err // too many sets
	}
	<-ctx.Done()
	return ctx.Err()
}

func (d *Delivery) unavailable(st *set) error {
	return d.agent.unavailable(d.agent.sets.failure(st))
}

// equal says whether two updates come to the same for an output: to same, it
// adds what it may ask for.
func (u Update) equal(o Update) bool {
	return u.same(o) && slices.EqualFunc(u.SVIDs, o.SVIDs, func(v, w *SVID) bool {
		return slices.Equal(v.JWTAudiences, w.JWTAudiences) && maps.Equal(v.JWTUses, w.JWTUses) && slices.EqualFunc(v.Targets, w.Targets, func(s, t Target) bool {
			return s.Name == t.Name && s.Revision == t.Revision
		})
	})
}

// holding is what the output has now.
func (d *Delivery) holding() (*set, Update, error) {
	st, after, err := d.open()
	if err != nil {
		return nil, Update{}, err
	}
	u, held, err := d.agent.look(st, after)
	if err == nil && !held {
		err = d.unavailable(st)
	}
	return st, u, err
}

// JWT returns the JWT-SVID of one of the output's identities for audiences. It
// is Agent.JWT for an output.
func (d *Delivery) JWT(ctx context.Context, audiences []string, id spiffeid.ID) (JWTSVID, error) {
	st, _, err := d.holding()
	if err != nil {
		return JWTSVID{}, err
	}
	if usesOf(d.agent.sets.held(st), audiences, id) == useSingle {
		return JWTSVID{}, singleUse(audiences)
	}
	got, err := d.agent.jwt(ctx, st, audiences, id)
	if err != nil {
		return JWTSVID{}, err
	}
	if got.use == useSingle {
		return JWTSVID{}, singleUse(audiences)
	}
	return got.svids[0].JWTSVID, nil
}

// singleUse refuses to keep in a file what nobody may keep.
func singleUse(audiences []string) error {
	return &Denied{Code: AudienceSingleUse, Reason: fmt.Sprintf("a JWT-SVID for %q is used once, and no file holds it: call the Workload API for each", audiences)}
}

// Exchange is Agent.Exchange for an output.
func (d *Delivery) Exchange(ctx context.Context, target, claims string) (Exchanged, error) {
	e, err := d.exchange(ctx, target, claims)
	if errors.Is(err, exchangers.ErrDropped) || errors.Is(err, exchangers.ErrClosed) {
		// Something changed while it was made: what holds now decides.
		e, err = d.exchange(ctx, target, claims)
	}
	return e, err
}

func (d *Delivery) exchange(ctx context.Context, target, claims string) (Exchanged, error) {
	st, u, err := d.holding()
	if err != nil {
		return Exchanged{}, err
	}
	credential, v, err := d.agent.exchange(ctx, st, u, target, claims)
	if err != nil {
		return Exchanged{}, err
	}
	t, _ := v.target(target)
	return Exchanged{credential, t, v.ID}, nil
}

// TargetToken is Agent.TargetToken for an output.
func (d *Delivery) TargetToken(ctx context.Context, target string, toFile bool) (JWTSVID, Target, error) {
	st, u, err := d.holding()
	if err != nil {
		return JWTSVID{}, Target{}, err
	}
	return d.agent.targetToken(ctx, st, u, target, toFile)
}

// ended is why nobody is served any more; nil: the agent runs.
func (s *sets) ended() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.final
}

// counts are how often a set was erased, and the ask whose answer was a denial.
func (s *sets) counts(st *set) (erased, deniedBy uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return st.erased, st.deniedBy
}

// askAbout has the broker asked about a set that holds nothing.
func (s *sets) askAbout(st *set) {
	s.mu.Lock()
	st.due = st.due || len(st.svids) == 0
	s.mu.Unlock()
	s.nudge()
}

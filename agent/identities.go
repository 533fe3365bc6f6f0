package agent

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/credence-id/credence/agent/caller"
	"github.com/credence-id/credence/broker/api"
)

// askTime bounds how long a caller waits for the broker before it is told that
// the agent cannot answer.
const askTime = 5 * time.Second

// An Attestation is what this node proved of a process.
type Attestation struct {
	Facts   map[string][]string
	Unknown []string
}

// Attest proves facts about a process, afresh. An attestor that fails leaves
// its prefix unknown.
func (a *Agent) Attest(ctx context.Context, p *caller.Process) (Attestation, error) {
	out := Attestation{Facts: make(map[string][]string)}
	wanted := *a.wanted.Load()
	for prefix, attestor := range a.cfg.Attestors {
		facts, unknown, err := attestor.Attest(ctx, p, func(name string) bool { return wanted[name] })
		if err != nil {
			a.cfg.Log.WarnContext(ctx, "attestor failed", "attestor", prefix, "pid", p.PID(), "error", err)
			out.Unknown = append(out.Unknown, prefix)
			continue
		}
		for name, values := range facts {
			if !strings.HasPrefix(name, prefix+".") {
				return Attestation{}, fmt.Errorf("attestor %s proved %q, which is not its own", prefix, name)
			}
			out.Facts[name] = values
		}
		out.Unknown = append(out.Unknown, unknown...)
	}
	slices.Sort(out.Unknown)
	// Attesting took a while: it must still be the same process.
	if err := p.Check(); err != nil {
		return Attestation{}, &Denied{Reason: "the calling process is not the one that connected"}
	}
	return out, nil
}

func (t Attestation) workload() *api.Workload {
	w := &api.Workload{Facts: make(map[string]*api.Values, len(t.Facts)), Unknown: t.Unknown}
	for name, values := range t.Facts {
		w.Facts[name] = &api.Values{Values: values}
	}
	return w
}

// An Update is all that a workload may know at one moment: its SVIDs, in an
// order that stays, and the bundles of our own and of the trust domains that
// they federate with.
type Update struct {
	SVIDs   []*SVID
	Bundles map[spiffeid.TrustDomain]*Bundle
}

// An Identities is one caller's view, for as long as its stream is open.
type Identities struct {
	agent  *Agent
	proc   *caller.Process
	set    *set
	wanted *map[string]bool
	last   [sha256.Size]byte
	told   bool
}

// Identities opens a caller's view. Close it.
func (a *Agent) Identities(p *caller.Process) *Identities {
	return &Identities{agent: a, proc: p}
}

// Close lets the caller's set of facts go.
func (i *Identities) Close() {
	if i.set != nil {
		i.agent.sets.release(i.set, i.agent.cfg.Now())
		i.set = nil
	}
}

// Next returns what the caller may know: at once the first time, after that
// when it has changed. The error is ErrDenied when nothing is granted (any
// more), ErrUnavailable when the broker has not answered and nothing is held.
func (i *Identities) Next(ctx context.Context) (Update, error) {
	deadline := time.After(askTime)
	for {
		if err := i.attest(ctx); err != nil {
			return Update{}, err
		}
		// Ask for the bells before looking: nothing is missed.
		granted, others := i.set.changed.wait(), i.agent.bundles.changed.wait()
		u, state, err := i.agent.look(i.set)
		if err != nil {
			return Update{}, err
		}
		if state == held {
			if sum := u.digest(); !i.told || sum != i.last {
				if err := i.proc.Check(); err != nil {
					return Update{}, &Denied{Reason: "the calling process is not the one that connected"}
				}
				i.told, i.last = true, sum
				return u, nil
			}
		}
		var late <-chan time.Time
		if !i.told {
			late = deadline
		}
		select {
		case <-ctx.Done():
			return Update{}, ctx.Err()
		case <-granted:
		case <-others:
		case <-late:
			return i.agent.offline(i.set)
		}
	}
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
	next, err := i.agent.sets.use(t.workload(), i.agent.cfg.Now())
	if err != nil {
		return err
	}
	i.Close()
	i.set, i.wanted = next, wanted
	return nil
}

// state is how far a set is.
type state int

const (
	waiting state = iota // for the broker
	held                 // SVIDs that may be served
)

// look says what a set holds. A set that is being asked about again serves
// what it holds, for as long as that is valid.
func (a *Agent) look(st *set) (Update, state, error) {
	now := a.cfg.Now()
	a.sets.mu.Lock()
	svids, denied, valid, failed := slices.Clone(st.svids), st.denied, st.valid(now), st.failed
	a.sets.mu.Unlock()
	if denied != nil {
		return Update{}, waiting, denied
	}
	if status.Code(failed) == codes.InvalidArgument {
		return Update{}, waiting, fmt.Errorf("%w: the broker refuses what was attested: %s", ErrDenied, status.Convert(failed).Message())
	}
	if !valid {
		return Update{}, waiting, nil
	}
	u := Update{SVIDs: svids, Bundles: make(map[spiffeid.TrustDomain]*Bundle)}
	own, ok := a.bundles.get(a.cfg.TrustDomain)
	if !ok || len(own.X509Authorities) == 0 {
		return Update{}, waiting, nil
	}
	u.Bundles[a.cfg.TrustDomain] = own
	for _, v := range svids {
		for _, name := range v.FederatesWith {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				continue
			}
			// A missing bundle of a peer never withholds a local identity.
			if b, ok := a.bundles.get(td); ok {
				u.Bundles[td] = b
			}
		}
	}
	return u, held, nil
}

// offline serves a caller whom the broker has not answered for from what
// others with the same facts hold (decision 1): every fact that the granting
// identity or a deny names has the same value, absences too, and none of these
// is unknown.
func (a *Agent) offline(st *set) (Update, error) {
	now := a.cfg.Now()
	a.sets.mu.Lock()
	var found *set
	for _, other := range a.sets.all {
		if other != st && other.denied == nil && other.valid(now) && covers(other.svids, st.workload) {
			found = other
			break
		}
	}
	failed := st.failed
	a.sets.mu.Unlock()
	if found != nil {
		u, state, err := a.look(found)
		if err == nil && state == held {
			return u, nil
		}
	}
	if failed != nil {
		return Update{}, fmt.Errorf("%w: %s", ErrUnavailable, status.Convert(failed).Message())
	}
	return Update{}, fmt.Errorf("%w: the broker has not answered", ErrUnavailable)
}

// covers says whether all SVIDs were decided on facts that w has too.
func covers(svids []*SVID, w *api.Workload) bool {
	for _, v := range svids {
		if len(v.depends) == 0 {
			return false
		}
		for name, values := range v.depends {
			if !strings.HasPrefix(name, "workload.") {
				continue // the node's: the same for all on it
			}
			if unknown(w, name) || !slices.Equal(values.GetValues(), w.GetFacts()[name].GetValues()) {
				return false
			}
		}
	}
	return len(svids) > 0
}

// unknown says whether a fact could not be proven, by itself or with all under
// a prefix.
func unknown(w *api.Workload, name string) bool {
	for _, u := range w.GetUnknown() {
		if name == u || strings.HasPrefix(name, u+".") {
			return true
		}
	}
	return false
}

// digest names what a workload would be told.
func (u Update) digest() [sha256.Size]byte {
	h := sha256.New()
	for _, v := range u.SVIDs {
		fmt.Fprintf(h, "%s\x00%s\x00%x\x00", v.ID, v.Hint, sha256.Sum256(v.Certificates[0].Raw))
	}
	domains := make([]spiffeid.TrustDomain, 0, len(u.Bundles))
	for td := range u.Bundles {
		domains = append(domains, td)
	}
	slices.SortFunc(domains, spiffeid.TrustDomain.Compare)
	for _, td := range domains {
		fmt.Fprintf(h, "%s\x00", td)
		for _, c := range u.Bundles[td].X509Authorities {
			h.Write(c.Raw)
		}
		ids := make([]string, 0, len(u.Bundles[td].JWTAuthorities))
		for id := range u.Bundles[td].JWTAuthorities {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		fmt.Fprintf(h, "%q", ids)
	}
	return [sha256.Size]byte(h.Sum(nil))
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
	return i.set, u, nil
}

package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/credence-id/credence/agent/spool"
	"github.com/credence-id/credence/broker/api"
	"github.com/credence-id/credence/exchangers"
)

// What waits for the disk.
const (
	dropPatience = 2 * time.Second  // of an exchange, whose report is counted as lost then
	stopPatience = 10 * time.Second // where no report may be lost
)

// Refusals of the same caller at the same target are told as one for so long.
const (
	foldTime      = 5 * time.Minute
	maxFolded     = 1024
	tooMany       = "too_many" // the code of the refusals beyond that
	notListedHere = "target_not_listed"
	notTheSame    = "process_changed"
)

// Spool says how reports to the broker's record are kept on this node.
type Spool struct {
	Max  int64 // bytes; 0 is 64 MiB
	Stop bool  // while they cannot be kept, nothing is exchanged; else they are lost, and counted
}

// reports are what happened on this node until the broker's record has it: on
// disk before anything that they tell of is handed out.
type reports struct {
	*spool.Spool
	agent *Agent
	stop  bool

	mu     sync.Mutex // guards what follows
	folded map[foldKey]*refusal
	ready  []*api.Refusal // for the disk
}

type foldKey struct {
	set          [sha256.Size]byte
	code, target string
}

// refusal is one that was told, and how often it was repeated since.
type refusal struct {
	since time.Time
	again uint64
	facts map[string]*api.Values
}

func (a *Agent) openReports() error {
	s, err := spool.Open(spool.Config{Dir: filepath.Join(a.cfg.Data, "spool"), Max: a.cfg.Spool.Max, Log: a.cfg.Log, Now: a.cfg.Now})
	if err != nil {
		return err
	}
	a.reports = &reports{Spool: s, agent: a, stop: a.cfg.Spool.Stop, folded: make(map[foldKey]*refusal)}
	return nil
}

// Spooled is how the reports of this node stand.
func (a *Agent) Spooled() spool.Stats { return a.reports.Stats() }

// room refuses an exchange whose report could not be kept, where none may be
// lost.
func (r *reports) room(ctx context.Context) error {
	if !r.stop {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	if err := r.Room(ctx); err != nil {
		return fmt.Errorf("%w: nothing is exchanged that cannot be reported (spool.full: stop): %w", ErrUnavailable, err)
	}
	return nil
}

// exchange makes the report of an exchange durable. The error is one for which
// what was obtained must not be handed out.
func (r *reports) exchange(ctx context.Context, e exchangers.Event, identity string) error {
	m := &api.Exchange{
		SpiffeId: e.SPIFFEID.String(), Target: e.Target, Time: e.Time.Unix(), Ok: e.OK,
		Class: string(e.Class), Code: exchangers.Clean(e.Code), RequestId: exchangers.Clean(e.RequestID), Identity: identity,
		Shown: e.Shown,
	}
	if !e.Expires.IsZero() {
		m.Expires = e.Expires.Unix()
	}
	patience := dropPatience
	if r.stop {
		patience = stopPatience
	}
	// What happened is reported, whoever has left meanwhile.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	err := r.append(ctx, &api.ReportRequest{Exchanges: []*api.Exchange{m}})
	if err != nil && r.stop {
		return fmt.Errorf("%w: the exchange cannot be reported (spool.full: stop): %w", ErrUnavailable, err)
	}
	return nil
}

// append spools one report. What is lost is counted, and told by the spool's
// owner, not once each.
func (r *reports) append(ctx context.Context, m *api.ReportRequest) error {
	text, err := protojson.Marshal(m)
	if err != nil {
		r.Lose(1, spool.LostRefused)
		return fmt.Errorf("writing a report: %w", err)
	}
	return r.Append(ctx, text)
}

// refused reports a caller that was refused here, where the broker was not
// asked. The first is told at once, its repeats as a count. The caller doesn't
// wait for the disk.
func (r *reports) refused(st *set, code, target string) {
	r.agent.observe(Event{What: EventRefused, Outcome: code})
	k, facts := foldKey{code: code, target: target}, map[string]*api.Values(nil)
	if st != nil {
		k.set, facts = st.id, st.workload.GetFacts()
	}
	now := r.agent.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	f, ok := r.folded[k]
	if !ok && len(r.folded) >= maxFolded {
		k, facts = foldKey{code: tooMany}, nil
		f, ok = r.folded[k]
	}
	if ok {
		f.again++
		return
	}
	r.folded[k] = &refusal{since: now, facts: facts}
	r.tell(k, facts, 1, now)
}

// tell must be called with mu held.
func (r *reports) tell(k foldKey, facts map[string]*api.Values, count uint64, now time.Time) {
	if len(r.ready) >= maxFolded {
		r.Lose(1, spool.LostDisk)
		return
	}
	r.ready = append(r.ready, &api.Refusal{Time: now.Unix(), Code: k.code, Target: k.target, Count: count, Facts: facts})
	r.Nudge()
}

// fold tells the repeats of refusals whose time is over.
func (r *reports) fold(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, f := range r.folded {
		if now.Sub(f.since).Abs() < foldTime {
			continue
		}
		delete(r.folded, k)
		if f.again > 0 {
			r.tell(k, f.facts, f.again, now)
		}
	}
}

// flush spools the refusals that are ready, even if ctx ends meanwhile.
func (r *reports) flush(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
	defer cancel()
	r.mu.Lock()
	ready := r.ready
	r.ready = nil
	r.mu.Unlock()
	for _, m := range ready {
		err := r.append(ctx, &api.ReportRequest{Refusals: []*api.Refusal{m}})
		if errors.Is(err, spool.ErrRefused) { // its facts are too many
			m.Facts = nil
			_ = r.append(ctx, &api.ReportRequest{Refusals: []*api.Refusal{m}})
		}
	}
}

// end spools what is left, and ends the spool.
func (r *reports) end() {
	r.mu.Lock()
	for k, f := range r.folded {
		if f.again > 0 {
			r.tell(k, f.facts, f.again, r.agent.cfg.Now())
		}
	}
	clear(r.folded)
	r.mu.Unlock()
	r.flush(context.Background())
	r.Close()
}

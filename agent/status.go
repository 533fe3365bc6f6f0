package agent

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/agent/spool"
	"github.com/credence-id/credence/exchangers"
)

// contact is how this agent stands with its brokers.
type contact struct {
	now func() time.Time

	mu        sync.Mutex // guards what follows
	lost      time.Time  // when there was a stream last, or the agent's beginning
	connected bool       // a Watch stream is open
	heard     time.Time  // when a broker last answered
	trouble   string     // why there is no stream
	unrenewed string     // why the node got no SVID when it last tried; empty: it did
	needs     string     // of a person
	said      string     // in the log, since a broker was heard last
}

func (c *contact) init(now func() time.Time) { c.now, c.lost = now, now() }

// lostAt is since when no broker has answered.
func (c *contact) lostAt() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connected || c.heard.After(c.lost) {
		return c.heard
	}
	return c.lost
}

func (c *contact) hear(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = now
}

// renewed notes that the node got an SVID, or why it did not.
func (c *contact) renewed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unrenewed = ""
	if err != nil {
		c.unrenewed = err.Error()
	}
}

// stream notes that there is a Watch stream, or why there is none.
func (c *contact) stream(open bool, trouble error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.connected && !open {
		c.lost = c.now()
	}
	c.connected, c.trouble = open, ""
	if open {
		c.said = ""
	}
	if trouble != nil {
		c.trouble = trouble.Error()
	}
}

// need notes what a person has to do, and says whether that is news.
func (c *contact) need(what string) (news bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	news = what != c.needs
	c.needs = what
	return news
}

// news says whether an error is another one than what was said last.
func (c *contact) news(err error) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	said := c.said
	c.said = err.Error()
	return c.said != said
}

// Status is how an agent does, and for how long it does without a broker.
type Status struct {
	Node      string    // SPIFFE ID; empty: not joined
	NodeEnds  time.Time // when the node must have been heard by a broker
	Connected bool
	Heard     time.Time // when a broker last answered; zero: never in this run
	Trouble   string    // why it is not connected
	Needs     string    // what a person has to do about that; empty: time will do
	Seal      string    // of what is kept for a restart: "tpm", "keyring" or "plain"
	Spool     spool.Stats
	Held      []Holding            // by SPIFFE ID, then end, then Identity
	Bundles   map[string]time.Time // by trust domain: when the broker last told of it, in this run
	Sets      int                  // different sets of facts that workloads have, or had shortly ago
	Sessions  []Session            // with providers of credentials, kept fresh
	Kept      time.Time            // when what goes on over a restart was last written; zero: nothing does
}

// A Holding is an SVID that this agent serves.
type Holding struct {
	ID        spiffeid.ID
	Identity  string
	Ends      time.Time
	Workloads int          // sets of facts that have it; 0: an earlier run's, which nobody has asked for
	Lent      bool         // by other facts or an earlier run, as the broker is away
	JWT       []JWTHolding // of each listed audience
}

// A Session is one with a provider, for all workloads of this node that have the
// SPIFFE ID.
type Session struct {
	Target, Flow string
	ID           spiffeid.ID
	exchangers.Session
}

// Status tells how the agent does. It waits for nobody.
func (a *Agent) Status() Status {
	s := Status{Node: a.NodeID(), Seal: a.kept.seal.where, Spool: a.Spooled()}
	if cert := a.node.certificate(); cert != nil {
		s.NodeEnds = cert.Leaf.NotAfter
	}
	a.contact.mu.Lock()
	s.Connected, s.Heard, s.Trouble, s.Needs = a.contact.connected, a.contact.heard, a.contact.trouble, a.contact.needs
	a.contact.mu.Unlock()
	a.bundles.mu.RLock()
	s.Bundles = maps.Clone(a.bundles.told)
	a.bundles.mu.RUnlock()
	a.sets.mu.Lock()
	s.Sets = len(a.sets.all)
	a.sets.mu.Unlock()
	s.Sessions = a.sources.sessions()
	if info, err := os.Stat(a.kept.path); err == nil {
		s.Kept = info.ModTime()
	}
	held := a.sets.holdings()
	for _, v := range a.kept.all() {
		if k := v.holding(); held[k] == nil {
			held[k] = &Holding{ID: v.ID, Identity: v.Identity, Ends: v.Certificates[0].NotAfter, Lent: true}
		}
	}
	a.tellTokens(held)
	for _, h := range held {
		s.Held = append(s.Held, *h)
	}
	slices.SortFunc(s.Held, func(x, y Holding) int {
		return cmp.Or(cmp.Compare(x.ID.String(), y.ID.String()), x.Ends.Compare(y.Ends), cmp.Compare(x.Identity, y.Identity))
	})
	return s
}

// holding tells Holdings apart.
type holding struct {
	id       spiffeid.ID
	identity string
	ends     int64
}

func (v *SVID) holding() holding { return holding{v.ID, v.Identity, v.Certificates[0].NotAfter.Unix()} }

func (s *sets) holdings() map[holding]*Holding {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[holding]*Holding)
	for _, st := range s.all {
		for _, v := range st.svids {
			h := all[v.holding()]
			if h == nil {
				h = &Holding{ID: v.ID, Identity: v.Identity, Ends: v.Certificates[0].NotAfter}
				all[v.holding()] = h
			}
			h.Workloads++
			h.Lent = h.Lent || len(st.lenders) > 0
		}
	}
	return all
}

func (k *kept) all() []*SVID {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.svids)
}

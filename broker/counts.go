package broker

import (
	"sync"
	"time"
)

// Counts are how a Broker stands, in numbers whose number does not grow with the
// nodes.
type Counts struct {
	Nodes     int       // that are welcome, and whose SVID has not ended
	Ended     int       // that are welcome, and have no SVID that holds
	Evicted   int       // that are not
	Overdue   int       // of Nodes, those past three quarters of their SVID's life: they renew at half
	FirstEnds time.Time // when the first SVID of Nodes ends; zero: there is none
	Connected int       // nodes with a stream
	Sessions  int       // streams
	Sets      int       // of facts, that is remembered what they gave
	Cutoffs   int       // that stand
	Unsaved   int       // of them, those that the store does not have yet
	Unlisted  int       // of them, those of which something may not be on a CRL yet
	Record    uint64    // sequence number of the last durable record
	Indexed   uint64    // of the last that is in the issuance index
	Indexing  bool      // whether it is being indexed at all
}

// Counts counts. It is made for somebody who asks every few seconds.
func (b *Broker) Counts() (c Counts) {
	now := b.cfg.Now()
	b.mu.RLock()
	for _, n := range b.nodes {
		switch {
		case !n.EvictedAt.IsZero():
			c.Evicted++
			continue
		case !n.ExpiresAt.After(now):
			c.Ended++
			continue
		}
		c.Nodes++
		if c.FirstEnds.IsZero() || n.ExpiresAt.Before(c.FirstEnds) {
			c.FirstEnds = n.ExpiresAt
		}
		if life := n.ExpiresAt.Sub(n.IssuedAt); !n.IssuedAt.IsZero() && n.ExpiresAt.Sub(now) < life/4 {
			c.Overdue++
		}
	}
	c.Connected = len(b.sessions)
	for _, sessions := range b.sessions {
		c.Sessions += len(sessions)
		for _, s := range sessions {
			c.Sets += len(s.sets)
		}
	}
	b.mu.RUnlock()
	c.Cutoffs = len(b.cuts.Load().all)
	b.revoking.Lock()
	c.Unsaved = len(b.unsaved)
	b.revoking.Unlock()
	b.listing.mu.Lock()
	c.Unlisted = len(b.listing.due)
	b.listing.mu.Unlock()
	c.Record = b.cfg.Record.Head().Sequence
	b.indexer.mu.Lock()
	c.Indexed, c.Indexing = min(b.indexer.at, c.Record), b.indexer.running
	b.indexer.mu.Unlock()
	return c
}

// Contact is how the store last answered.
type Contact struct {
	Away  bool
	Since time.Time // since when it is there, or away; zero: nobody asked yet
	Error string    // why it is away
}

// contact is the Contact of one Broker.
type contact struct {
	mu sync.Mutex
	Contact
}

// NoteStore notes how the store answered to who asks it all the time.
func (b *Broker) NoteStore(err error) {
	b.contact.mu.Lock()
	defer b.contact.mu.Unlock()
	if away := err != nil; b.contact.Since.IsZero() || away != b.contact.Away {
		b.contact.Away, b.contact.Since = away, b.cfg.Now()
	}
	b.contact.Error = ""
	if err != nil {
		b.contact.Error = err.Error()
	}
}

// StoreContact is how the store last answered.
func (b *Broker) StoreContact() Contact {
	b.contact.mu.Lock()
	defer b.contact.mu.Unlock()
	return b.contact.Contact
}

package server

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/credence-id/credence/broker"
	"github.com/credence-id/credence/broker/audit"
	"github.com/credence-id/credence/broker/authority"
	"github.com/credence-id/credence/federation"
)

// An Overview is how a broker stands, for those who watch over it. Nothing in it
// is asked of anybody: it is there while the store is away.
type Overview struct {
	Hung, Unready, Notes []string // in words for an operator
	Revision             uint64   // of the policy in force
	Taken, Written       uint64   // revisions of the store: what holds here, and what was last seen there
	BehindSince          time.Time
	Identities           int
	Store                broker.Contact
	Snapshot             time.Time // of the store, that is read while it is away; zero: none is
	Queries              uint64    // of the store, and transactions
	Counts               broker.Counts
	Audit                audit.Stats
	Authorities          []authority.Status // none that are revoked
	Issuing              authority.Status   // the CA that signs SVIDs here now; zero: there is none
	OwnEnds              time.Time          // the broker's own SVID; zero: there is none
	CRLs                 []authority.CRL
	Peers                []federation.Status
	Limited              map[string]uint64 // who was told to slow down, by the limit
}

// Overview says how the broker stands.
func (s *Server) Overview() Overview {
	o := Overview{
		Hung: s.Hung(), Store: s.cfg.Broker.StoreContact(), Counts: s.cfg.Broker.Counts(), Audit: s.cfg.Audit.Stats(),
		CRLs: s.cfg.Authority.CRLs(), Peers: s.cfg.Peers.Statuses(), Limited: map[string]uint64{},
	}
	st := s.state.Load()
	o.Revision, o.Identities = st.last, st.identities()
	if absence, away := s.cfg.Store.Away(); away {
		o.Store = broker.Contact{Away: true, Since: absence.Since, Error: fmt.Sprint(absence.Reason)}
		o.Snapshot = absence.Snapshot
	}
	o.Queries = s.cfg.Store.Asked()
	o.Taken, o.Written = s.taken.Load(), max(s.written.Load(), s.taken.Load())
	if at := s.behindAt.Load(); at != 0 {
		o.BehindSince = time.UnixMilli(at).UTC()
	}
	for _, a := range s.cfg.Authority.List() {
		if a.State != authority.Revoked {
			o.Authorities = append(o.Authorities, a)
		}
	}
	if c := s.svid.certificate(); c != nil {
		o.OwnEnds = c.Leaf.NotAfter
	}
	o.Issuing = s.issuing(o.Authorities)
	r := s.settings.Load().rates
	for name, l := range map[string]*limits{
		"address": s.sources, "caller": s.callers, "peer": s.domains, "node_explain": s.whys, "all_explain": s.allWhys, "join": r.joins, "node_call": r.calls, "request": r.requests,
		"agents_connection": r.agents, "spiffe_connection": r.spiffe, "web_connection": r.web,
	} {
		o.Limited[name] = l.refused.Load()
	}
	o.Unready, o.Notes = s.unready(o), s.notes(o)
	return o
}

func (st *state) identities() (n int) {
	for _, r := range st.resources {
		if r.row.Kind == "Identity" {
			n++
		}
	}
	return n
}

// issuing is the CA that signs SVIDs here now: this broker's own or, under a
// corporate PKI that certified no other, the one above.
func (s *Server) issuing(all []authority.Status) authority.Status {
	id := ""
	if chain := s.cfg.Authority.IssuingChain(); len(chain) > 0 {
		sum := sha256.Sum256(chain[0].RawSubjectPublicKeyInfo)
		id = hex.EncodeToString(sum[:16])
	}
	for _, a := range all {
		if a.ID == id || id == "" && a.Use != authority.JWTKey && a.State == authority.Active && a.Self {
			return a
		}
	}
	return authority.Status{}
}

// Bounds of readiness.
const (
	behindFor = 10 * time.Second // an apply may take as long
	hungAfter = 30 * time.Second
	fullAt    = 64 << 20 // bytes of room on the record's disk
)

// Unready says why the broker should be asked for nothing now; empty: it is ready.
func (s *Server) Unready() []string { return s.Overview().Unready }

// Notes are what is not as it should be, though the broker is ready.
func (s *Server) Notes() []string { return s.Overview().Notes }

func (s *Server) unready(o Overview) (why []string) {
	now := s.cfg.Now()
	ca := o.Issuing
	switch left := ca.NotAfter.Sub(now); {
	case ca.ID == "" || o.OwnEnds.IsZero():
		why = append(why, errNoCA.Error())
	case left <= 0:
		why = append(why, fmt.Sprintf("the issuing CA %s ended at %s: %s", ca.ID, stamp(ca.NotAfter), cmp.Or(ca.Problem, "credence ca show")))
	case ca.Problem != "" && left < ca.NotAfter.Sub(ca.ActivatedAt)/4:
		why = append(why, fmt.Sprintf("the issuing CA %s ends at %s and is not renewed: %s", ca.ID, stamp(ca.NotAfter), ca.Problem))
	}
	if !o.OwnEnds.IsZero() && o.OwnEnds.Sub(now) < ownLife/4 && s.svid.failed.Load() {
		why = append(why, fmt.Sprintf("the broker's own SVID ends at %s and is not renewed: the log says why", stamp(o.OwnEnds)))
	}
	if since := o.Audit.FailingSince; !since.IsZero() {
		why = append(why, fmt.Sprintf("nothing can be recorded since %s, and nothing is released that is not: %s", stamp(since), o.Audit.Error))
	}
	// While the store is away, what is in force is what is known.
	if !o.BehindSince.IsZero() && now.Sub(o.BehindSince) > behindFor && !o.Store.Away {
		why = append(why, fmt.Sprintf("resources are written that are not in force since %s: the log says why", stamp(o.BehindSince)))
	}
	return why
}

func (s *Server) notes(o Overview) (all []string) {
	if o.Store.Away {
		text := "the database is away since " + stamp(o.Store.Since)
		if !o.Snapshot.IsZero() {
			text += ", and this broker started from its snapshot of " + stamp(o.Snapshot)
		}
		all = append(all, fmt.Sprintf("%s: joined nodes are served, joins, tokens and changes fail, node evict --here and apply --here work (%s)", text, o.Store.Error))
	}
	if n := s.heres.Load(); n > 0 {
		var names []string
		for _, k := range s.cfg.Broker.KeptDenies() {
			if k.Revision == 0 && len(names) < 5 {
				names = append(names, k.Name)
			}
		}
		all = append(all, fmt.Sprintf("%d Denies hold on this broker alone, until the database has them: %s", n, strings.Join(names, ", ")))
	}
	if free := o.Audit.Free; free >= 0 && free < fullAt {
		all = append(all, fmt.Sprintf("the record's disk has %d MiB left: make room, without it nothing is issued", free>>20))
	}
	return all
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// Hung says which of the broker's own loops stand still; empty: it lives. Nothing
// that is asked of others is among them: a start would not mend that.
func (s *Server) Hung() []string { return hung(s.pulseAt.Load(), s.cfg.Now()) }

func hung(beat int64, now time.Time) []string {
	if at := time.UnixMilli(beat); beat != 0 && now.Sub(at).Abs() > hungAfter {
		return []string{"a lock has been held since " + stamp(at)}
	}
	return nil
}

// pulseEvery is how often the broker's locks are tried.
const pulseEvery = time.Second

// pulse notes that the locks which every call takes are free, and how long policy is
// behind, until ctx ends. Whoever holds one for long holds up everybody.
func (s *Server) pulse(ctx context.Context) {
	tick := time.NewTicker(pulseEvery)
	defer tick.Stop()
	defer s.pulseAt.Store(0)
	for {
		s.cfg.Broker.Counts()
		s.pulseAt.Store(s.cfg.Now().UnixMilli())
		switch behind := s.behind.Load() || s.untaken.Load(); {
		case !behind:
			s.behindAt.Store(0)
		case s.behindAt.Load() == 0:
			s.behindAt.Store(s.cfg.Now().UnixMilli())
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// resumeEvery is how often a record that could not be written is tried while
// nobody asks for anything: who is not ready is asked for nothing.
const resumeEvery = 5 * time.Second

// resume writes to the record that it goes on, once it does, until ctx ends.
func (s *Server) resume(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(resumeEvery):
		}
		s.tryRecord(ctx)
	}
}

// tryRecord tries a record that could not be written.
func (s *Server) tryRecord(ctx context.Context) {
	st := s.cfg.Audit.Stats()
	if st.FailingSince.IsZero() {
		return
	}
	event := audit.Event{Kind: "record.resumed", OK: true, Detail: map[string]string{"since": stamp(st.FailingSince)}}
	if _, err := s.cfg.Audit.Append(ctx, event); err != nil && ctx.Err() == nil {
		s.cfg.Log.ErrorContext(ctx, "nothing can be recorded, and so nothing is issued", "error", err)
	}
}

// ScrapeTLS has those in who show an X509-SVID of ours that counts and is one of
// these. Whether it was revoked by serial is not known while the store is away: it
// is then that somebody has to see what goes on.
func (s *Server) ScrapeTLS(allow []spiffeid.ID) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true, NextProtos: []string{"http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.svid.withAnchor() },
		VerifyConnection: func(c tls.ConnectionState) error {
			if len(c.PeerCertificates) > 4 {
				return errors.New("more than four certificates shown")
			}
			e, err := s.verifiedX509(c.PeerCertificates)
			if err != nil {
				return err
			}
			if e.ID.TrustDomain() != s.cfg.TrustDomain || !slices.Contains(allow, e.ID) {
				return fmt.Errorf("%s may not scrape", e.ID)
			}
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
			defer cancel()
			if _, err := s.cfg.Broker.Stand(ctx, e); err != nil && !s.cfg.Broker.StoreContact().Away {
				return err
			}
			return nil
		},
	}
}
